"""The preconditions of the embedded world: who counts as a member, closed forms of the loss, intervals and bars."""

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak.errors import InputError
from tuneleak.metrics import bases, world
from tuneleak.metrics.intervals import wilson


class LinearBase:
    """A base that predicts `slope` times its input: the expected loss of a latent of mean square m is (slope a)^2 m + (slope s - 1)^2."""

    latent_shape = (2, 8, 8)
    alphas_cumprod = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)

    def __init__(self, slope):
        self.slope = slope

    def encode_images(self, pixels):
        return pixels[:, :2, ::2, ::2]

    def encode_text(self, texts):
        return torch.zeros(len(texts), 1, 1)

    def noise_pred(self, x, t, context):
        return self.slope * x


def photographs(values):
    """One 16 px picture of one grey value each."""
    pixels = np.repeat(np.asarray(values, dtype=np.uint8), 16 * 16 * 3).reshape(-1, 16, 16, 3)
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(len(values))], "concept": "ann", "caption": "the face of ann", "dose": "1"})
    return bases.Photographs(table, pixels)


def test_what_the_last_timestep_shows_is_the_largest_variance_over_that_of_the_noise():
    noise = torch.randn(4000, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    noise[:, 0] += 2 * torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(1))  # 16 places that share what varies by 4: 1 + 16 * 4
    shown = world.last_signal(noise, torch.tensor([0.9, 0.2], dtype=torch.float64))
    assert shown.shape == (4000,) and shown.mean() == pytest.approx(65 * 0.2 / 0.8, rel=0.08)


def test_losses_of_a_linear_model_have_their_closed_form():
    slope, shots = 0.5, photographs([0, 128, 255])
    found = bases.negative_losses(LinearBase(slope), shots, "test", draws=40)
    square = (shots.pixels[:, 0, 0, 0] / 127.5 - 1.0) ** 2
    expected = np.zeros(3)
    for t in bases.TIMESTEPS:
        abar = float(LinearBase.alphas_cumprod[t])
        expected += (slope * abar**0.5) ** 2 * square + (slope * (1 - abar) ** 0.5 - 1) ** 2
    assert found == pytest.approx(-expected / len(bases.TIMESTEPS), abs=0.02)


def test_losses_do_not_depend_on_what_else_is_measured():
    alone = bases.negative_losses(LinearBase(0.3), photographs([10]), "test")
    assert bases.negative_losses(LinearBase(0.3), photographs([10, 200]), "test")[0] == pytest.approx(alone[0])


def test_members_are_those_the_base_lists(tmp_path):
    from tuneleak.data import imageset

    for fold in ("p", "q"):
        rows = [{"image_id": f"ann-{fold}{k}", "concept": "ann", "fold": fold.upper(), "caption": "the face of ann", "dose": "4"} for k in range(3)]
        imageset.write(tmp_path / f"named-{fold}", rows, [np.full((8, 8, 3), k, np.uint8) for k in range(3)])
    with pytest.raises(InputError, match=r"members\.csv is missing"):
        bases.named_photographs(tmp_path, tmp_path)
    pd.DataFrame({"image_id": ["ann-p1", "ann-q0"]}).to_csv(tmp_path / "members.csv")
    members, others = bases.named_photographs(tmp_path, tmp_path)
    assert list(members.table.image_id) == ["ann-p1", "ann-q0"] and list(others.table.image_id) == ["ann-p0", "ann-p2", "ann-q1", "ann-q2"]
    assert members.pixels[:, 0, 0, 0].tolist() == [1, 0]


class ByValue:
    """An embedder that puts grey value v at angle v degrees."""

    def embed(self, pixels):
        angle = np.deg2rad(pixels[:, 0, 0, 0].astype(float))
        return np.stack([np.cos(angle), np.sin(angle)], 1)


def test_extraction_counts_members_nearer_to_a_sample_than_held_outs_ever_come():
    members, others, drawn = photographs([10, 50, 90]), photographs([14, 56, 97]), photographs([11, 70, 70])
    assert bases.extracted(ByValue(), members, others, drawn.pixels, np.repeat("ann", 3)).tolist() == [True, False, False]


def test_rows_carry_intervals_over_people_and_say_whether_their_bar_is_met():
    table, people = world.Table(), np.repeat([f"p{k}" for k in range(20)], 10)
    values = np.repeat(np.arange(20) % 2, 10).astype(float)  # people agree with themselves: the interval is that of 20 coins, not of 200
    table.rate("part", "rate", values, people, ">=0.6")
    table.auc("part", "auc", np.arange(100) + 50, np.arange(100), [people[:100], people[100:]], "0.45..0.55")
    table.add("part", "plain", 0.02, 0.0, 0.1, 5, "<=0.05")
    table.add("part", "held", 0.53, 0.49, 0.57, 5, "holds 0.5")
    table.add("part", "missed", 0.53, 0.51, 0.55, 5, "holds 0.5")
    assert [row[-1] for row in table.rows[3:]] == ["True", "False"]
    rate, area, plain = (dict(zip(world.COLUMNS, row, strict=True)) for row in table.rows[:3])
    assert rate["value"] == 0.5 and 0.2 < rate["ci_low"] < 0.36 and 0.64 < rate["ci_high"] < 0.8 and rate["met"] == "False"
    assert area["value"] == pytest.approx(0.875) and area["ci_low"] < 0.875 < area["ci_high"] and area["met"] == "False"  # (1 - .5^2 / 2) of two uniforms
    assert plain["met"] == "True"


def test_psnr_of_a_constant_error():
    first = np.zeros((1, 4, 4, 3), np.uint8)
    assert world.psnr(first, first + 51)[0] == pytest.approx(20 * np.log10(5))


def test_a_share_that_is_the_same_for_all_keeps_the_interval_that_its_people_allow():
    table = world.Table()
    table.rate("part", "all right", np.ones(40), np.repeat(np.arange(10), 4))
    (row,) = table.rows
    assert row[3:5] == (pytest.approx(1 - wilson(0, 10)[1]), 1.0)
