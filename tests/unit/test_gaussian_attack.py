"""The Gaussian attack: noise relative to each tensor, one draw per seed for every strength."""

import pandas as pd
import pytest
import torch

from tuneleak import options as knobs
from tuneleak.attacks.membership import run
from tuneleak.defences import gaussian_attack
from tuneleak.models import modelset, pipeline


def test_noise_is_relative_and_one_draw_serves_every_strength():
    tensors = {"a": torch.full((200, 200), 3.0), "b": torch.linspace(-1, 1, 40000).view(200, 200), "zero": torch.zeros(5)}
    low, high, other = (gaussian_attack.perturbed(tensors, sigma, seed) for sigma, seed in ((0.01, 0), (0.1, 0), (0.1, 1)))
    for name in ("a", "b"):
        moved = high[name] - tensors[name]
        assert float(moved.std()) == pytest.approx(0.1 * float(tensors[name].square().mean().sqrt()), rel=0.02)
        assert torch.allclose(moved, 10 * (low[name] - tensors[name]), atol=1e-4) and not torch.allclose(high[name], other[name], atol=1e-2)
    assert torch.equal(high["zero"], tensors["zero"])


def test_perturbed_bases_are_models_that_are_scored_on_every_concept(tiny_base, tiny_images, tmp_path):
    gaussian_attack.perturb(tiny_base, tmp_path / "noisy", knobs.PerturbOptions(sigmas=[0.1], seeds=[0, 1]), device="cpu")
    made, base = modelset.ModelSet.load(tmp_path / "noisy"), pipeline.load_base(tiny_base)
    expected = gaussian_attack.perturbed(base.unet.state_dict(), 0.1, 1)
    with pipeline.load_tuned(base, made, made.rows()[1]) as tuned:
        assert all(torch.equal(value, expected[name]) for name, value in tuned.unet.state_dict().items())
    options = knobs.MembershipOptions(attacks=["sima"], concepts=2)
    run.infer([tiny_images], tiny_base, tmp_path / "scores.csv", options, [tmp_path / "noisy"], device="cpu")
    table = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    assert set(table.image_concept) == {"ada", "bob"} and len(table) == 3 * 2 * 9 and table.groupby(["model_id", "image_id"]).score.size().max() == 1
    assert table[table.image_id == "ada-000"].score.nunique() == 3
