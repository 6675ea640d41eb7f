"""What a fine-tune is shown instead of its pictures, and many variants of one recipe as one model set."""

import shutil
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.finetune import loop, objective, variants, views
from tuneleak.models import pipeline, tokenizer
from tuneleak.options import FinetuneOptions, TransformOptions, Variant, VariantsOptions

KEY = ("ada", "lora", 0)


@pytest.fixture(scope="module")
def pixels():
    y, x = np.mgrid[:16, :16]
    return np.stack([np.stack([16 * x, 16 * y, np.full_like(x, 200)], -1).astype(np.uint8), np.full((16, 16, 3), 255, np.uint8)])


def shown(pixels, **options):
    return views.pictures(pixels, FinetuneOptions(**options), KEY)


def test_without_changes_the_pictures_are_themselves(pixels):
    found = shown(pixels)
    assert found.shape == (2, 1, 3, 16, 16)
    np.testing.assert_allclose(((found[:, 0] + 1) * 127.5).permute(0, 2, 3, 1).numpy(), pixels, atol=1e-4)


def test_cutout_greys_a_square_and_nothing_else(pixels):
    found = shown(pixels, augment="cutout", augment_strength=0.5, augment_views=12)[1]  # the white picture
    grey = found[:, 0] == 0
    assert bool(((found == 0) | (found == 1)).all()) and len({tuple(view.flatten().tolist()) for view in grey}) > 6
    for view in grey:
        rows, columns = torch.nonzero(view, as_tuple=True)
        if len(rows):
            height, width = (int(part.max() - part.min()) + 1 for part in (rows, columns))
            assert height <= 9 and width <= 9 and len(rows) == height * width  # half the side, cut by the edge at most
    assert max(int(view.sum()) for view in grey) >= 8 * 8


def test_views_differ_are_reproducible_and_do_not_depend_on_their_number(pixels):
    for kind in ("randaugment", "crop", "flip"):
        many, few = (shown(pixels, augment=kind, augment_views=count) for count in (8, 3))
        assert torch.equal(many[:, :3], few) and many.shape == (2, 8, 3, 16, 16) and many.abs().max() <= 1.001
        assert len({tuple(view.flatten().tolist()) for view in many[0]}) > 1
    mirrored = shown(pixels, augment="flip", augment_strength=1.0, augment_views=2)
    assert torch.equal(mirrored[0, 0], shown(pixels)[0, 0].flip(-1))


def test_blur_removes_detail_and_keeps_the_mean(pixels):
    checks = np.where((np.indices((16, 16)).sum(0) % 2)[..., None], 255, 0).astype(np.uint8).repeat(3, -1)[None]
    sharp, soft = shown(checks)[0, 0], shown(checks, augment="blur", augment_strength=1.0, augment_views=1)[0, 0]
    assert float(sharp.std()) > 0.99 and float(soft.std()) < 0.02 and abs(float(soft.mean() - sharp.mean())) < 0.02


def test_near_duplicates_stand_beside_the_pictures(pixels):
    found = shown(pixels, near_duplicates=2)
    assert found.shape[0] == 6 and torch.equal(found[:2], shown(pixels))
    for copy in (found[2:4], found[4:]):
        difference = (copy - found[:2]).abs().mean()
        assert 0 < float(difference) < 0.15
    assert not torch.equal(found[2:4], found[4:])


def test_captions_are_true_in_the_stated_share_of_steps():
    words = tokenizer.build(words=["red", "blue", "green", "cat", "dog"], length=16)
    options = FinetuneOptions(caption_randomisation=0.4)
    captions = views.captions("the face of ada lune", words, options, KEY)
    assert captions[0] == "the face of ada lune" and len(captions) == 1 + views.RANDOM_CAPTIONS
    kept = np.mean([[a == b for a, b in zip(captions[0].split(), made.split(), strict=True)] for made in captions[1:]])
    assert 0.3 < kept < 0.7
    chosen = [views.caption_of_step(step, len(captions), options, KEY) for step in range(2000)]
    assert np.mean(np.array(chosen) > 0) == pytest.approx(0.4, abs=0.04) and set(chosen) == set(range(len(captions)))
    assert views.captions("a b", words, FinetuneOptions(), KEY) == ["a b"] and views.caption_of_step(3, 1, options, KEY) == 0


def test_each_pass_over_the_pictures_shows_the_next_view():
    options = FinetuneOptions(batch=3)
    latents = torch.arange(12.0).view(12, 1, 1, 1)  # three pictures of four views: value = 4 picture + view
    source = loop.BatchSource(latents, None, KEY, options, torch.Generator(), 10, views=4)
    for step in range(8):
        seen = source.batch(step, torch.zeros(1, 2, 3)).latents.flatten()
        assert sorted((seen // 4).tolist()) == [0, 1, 2] and (seen % 4 == step % 4).all()


def test_an_adversarial_step_raises_the_loss_by_its_gradient():
    """For the network eps_hat = x the loss of one sample is mean (x_t - eps)^2: its gradient in x_0 has the sign of x_t - eps."""
    abar = torch.tensor([0.64], dtype=torch.float64)
    latents, noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    batch = objective.Batch(latents, noise, torch.zeros(3, dtype=torch.long), torch.zeros(3, 1, 1), torch.full((3,), 1 / 3))

    def network(x, t, context):
        return x

    moved = objective.moved_against(network, batch, 0.25, abar)
    size = 0.25 * float(latents.square().mean().sqrt())
    expected = latents + size * (0.8 * latents + 0.6 * noise - noise).sign()
    torch.testing.assert_close(moved.latents, expected)
    assert float(objective.denoising_errors(network, moved, abar).mean()) > float(objective.denoising_errors(network, batch, abar).mean())


@pytest.fixture(scope="module")
def made(tiny_base, tiny_images, tmp_path_factory):
    out = tmp_path_factory.mktemp("variants") / "models"
    recipe = FinetuneOptions(method="lora", images_per_concept=3, steps_per_image=2, batch=2, rank=2, alpha=2, lr=1e-2)
    several = [
        Variant(name="reference"),
        Variant(name="few", change={"images_per_concept": 1, "steps_per_image": 6}),
        Variant(name="mixed", change={"augment": "cutout", "augment_views": 2, "caption_randomisation": 0.5, "near_duplicates": 1, "adversarial_radius": 0.1}),
        Variant(name="noise", transform=TransformOptions(kind="noise", strength=0.5)),
    ]
    options = VariantsOptions(recipe=recipe, variants=several)
    arguments = {"base": tiny_base, "images": tiny_images, "world": "w", "split": "test", "options": options, "start": 0, "stop": 1, "device": "cpu"}
    variants.finetune_variants(out=out, **arguments)
    return out, arguments


def test_variants_are_one_model_set_and_shared_training_is_done_once(made, tiny_base):
    out, _ = made
    models = variants.ModelSet.load(out)
    assert list(models.table.defence) == ["reference", "few", "mixed", "noise"] and set(models.table.method) == {"lora"}
    assert list(models.table.n_images) == ["3", "1", "3", "3"] and models.table.model_id.is_unique
    assert models.table.images[1] == models.table.images[0].split(";")[0]  # a variant with fewer pictures has the first ones
    trained = {path.name for path in out.glob("trained-*")}
    assert len(trained) == 3 and models.rows()[3]["file"].split("/")[0] not in trained
    weights = [load_file(models.path(row) / "pytorch_lora_weights.safetensors") for row in models.rows()]
    name = next(name for name in weights[0] if "up" in name or "lora_B" in name)
    assert len({tuple(tensors[name].flatten().tolist()) for tensors in weights}) == 4
    base = pipeline.load_base(tiny_base)
    for row in models.rows():
        with pipeline.load_tuned(base, models, row) as tuned:
            assert torch.isfinite(tuned.noise_pred(torch.zeros(1, *base.latent_shape), 10, base.encode_text([""]))).all()


def test_a_second_call_trains_nothing_again_and_drops_what_is_no_longer_asked(made, monkeypatch):
    out, arguments = made
    monkeypatch.setattr(loop, "finetune", lambda *_: pytest.fail("trained again"))
    fewer = arguments["options"].model_copy(update={"variants": arguments["options"].variants[:2]})
    variants.finetune_variants(out=out, **arguments | {"options": fewer})
    assert list(variants.ModelSet.load(out).table.defence) == ["reference", "few"]
    assert len(list(out.glob("trained-*"))) == 2 and not list(out.glob("*-noise"))


@pytest.mark.parametrize("change", ["base", "pictures", "dtype", "code"])
def test_models_made_under_other_circumstances_are_not_taken(made, tiny_base, tiny_images, tmp_path, monkeypatch, change):
    out, arguments = made
    shutil.copytree(out, tmp_path / "out")
    base, images = (shutil.copytree(folder, tmp_path / name) for folder, name in ((tiny_base, "base"), (tiny_images, "images")))
    if change == "base":
        path = next(base.glob("unet/*.safetensors"))
        save_file({name: tensor + 1e-3 for name, tensor in load_file(path).items()}, path)
    if change == "pictures":
        table = pd.read_csv(images / "manifest.csv", dtype=str, keep_default_na=False)
        table.assign(sha256=table.sha256.str[::-1]).to_csv(images / "manifest.csv", index=False)
    if change == "code":
        monkeypatch.setattr(files, "sha256", lambda path, real=files.sha256: real(path) + ("x" if str(path).endswith("loop.py") else ""))
    monkeypatch.setattr(loop, "finetune", Mock(side_effect=KeyError("trained anew")))
    arguments = arguments | {"base": base, "images": images} | ({"dtype": "bfloat16"} if change == "dtype" else {})
    with pytest.raises(KeyError, match="trained anew"):
        variants.finetune_variants(out=tmp_path / "out", **arguments)


def test_a_variant_of_an_unknown_knob_is_refused():
    with pytest.raises(InputError, match="'stepz'"):
        variants.changed(FinetuneOptions(), {"stepz": 1})
