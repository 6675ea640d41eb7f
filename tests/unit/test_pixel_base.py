"""A class-conditional DDPM of pixels as a base: its schedule and loss, what captions mean to it, and everything else by the code of the other bases."""

import functools
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak.attacks.extraction import cfg, finextract
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.attacks.membership import run as membership
from tuneleak.data import imageset
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import loop, private, synthesize
from tuneleak.models import architectures, assemble, modelset, pipeline, schedule, train_base, train_pixel_base, training
from tuneleak.models.classes import NEW, NONE, UNNAMED, Classes
from tuneleak.options import BaseOptions, FinetuneOptions, Guidance, MembershipOptions, PrivateFinetuneOptions, SynthesizeOptions

NAMED = ("the face of ann", "the face of bob")
SIDE = 16
OPTIONS = BaseOptions(name="D", kind="pixel", block_out_channels=[16, 32], norm_num_groups=8, steps=4, batch=4, lr=1e-3, muon_lr=0.01, ema=0.5, snapshots=0)


def discs(folder, rows):
    """An ImageSet of coloured discs, the colour being that of the caption."""
    colours = {caption: np.random.default_rng(number).integers(0, 256, 3) for number, caption in enumerate(sorted({row["caption"] for row in rows}))}
    y, x = np.mgrid[:SIDE, :SIDE]
    pictures = []
    for number, row in enumerate(rows):
        inside = (x - 6 - number % 4) ** 2 + (y - 8) ** 2 < 20
        pictures.append(np.where(inside[..., None], colours[row["caption"]], 128).astype(np.uint8))
    return imageset.write(folder, rows, pictures).folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of image sets: public, named-p and named-q, and private."""
    root = tmp_path_factory.mktemp("world")
    public = [{"image_id": f"anyone-{k}", "concept": "anyone", "caption": "a face with red hair"} for k in range(4)]
    public += [{"image_id": f"art-{k}", "concept": "alesco", "caption": "art style of alesco"} for k in range(4)]
    found = {"public": discs(root / "public", public)}
    for fold in "PQ":
        rows = [
            {"image_id": f"{fold}-{caption[-3:]}-{k}", "concept": caption[-3:], "fold": fold, "caption": caption, "dose": dose}
            for caption in NAMED
            for k, dose in enumerate(("1", "4", "16"))
        ]
        found[fold] = discs(root / f"named-{fold.lower()}", rows)
    rows = [
        {"image_id": f"{name}-{k}", "concept": name, "split": "test", "fold": "train" if k < 2 else "heldout", "caption": f"the face of {name}"}
        for name in ("cyd", "dee")
        for k in range(4)
    ]
    return found | {"private": discs(root / "private", rows)}


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Folder of a UNet trained for four steps."""
    out = tmp_path_factory.mktemp("unets") / "D"
    train_base.train([world["public"], world["P"], world["Q"]], out, OPTIONS)
    return out


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """Its pipeline folder."""
    out = tmp_path_factory.mktemp("bases") / "D"
    assemble.assemble(trained, out)
    return out


@pytest.fixture(scope="module")
def base(folder):
    return pipeline.load_base(folder)


# --- training ------------------------------------------------------------------------------------------------------------------------------


def test_the_schedule_is_that_of_ho_et_al():
    abar = schedule.alphas_cumprod(train_pixel_base.SCHEDULER)
    product = 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + t * (0.02 - 1e-4) / 999)
        if t in (0, 499, 999):
            assert float(abar[t]) == pytest.approx(product, rel=1e-9)


def test_the_loss_is_its_closed_form():
    abar = torch.tensor([0.64, 0.25])
    x, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    timesteps, labels = torch.tensor([0, 1]), torch.tensor([5, 7])
    # a network that says class * x_t: its error is (class sqrt(abar) x + (class sqrt(1 - abar) - 1) epsilon)^2
    loss = train_pixel_base.denoising_loss(lambda x_t, t, c: c.view(-1, 1, 1, 1) * x_t, x, noise, timesteps, labels, abar)
    parts = [(5 * 0.8 * x[0] + (5 * 0.6 - 1) * noise[0]), (7 * 0.5 * x[1] + (7 * math.sqrt(0.75) - 1) * noise[1])]
    assert float(loss) == pytest.approx(float(torch.stack(parts).square().mean()), rel=1e-5)


def test_pictures_are_drawn_by_dose_and_classes_dropped_by_chance():
    pixels = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, 3)  # picture k is grey value k
    classes, weights = torch.tensor([20, 21, 22]), torch.tensor([1.0, 4.0, 15.0])
    options, counts, dropped, high = BaseOptions(batch=100, caption_dropout=0.25), np.zeros(3), 0, 0
    for step in range(100):
        x, noise, timesteps, labels = train_pixel_base.draw(step, pixels, classes, weights, options, NONE, 1000)
        shown = ((x[:, 0, 0, 0] + 1) * 127.5).round().long()
        assert ((labels == NONE) | (labels == shown + 20)).all() and noise.shape == x.shape
        counts, dropped, high = counts + np.bincount(shown, minlength=3), dropped + int((labels == NONE).sum()), high + int((timesteps >= 500).sum())
    again = train_pixel_base.draw(99, pixels, classes, weights, options, NONE, 1000)
    assert torch.equal(again[3], labels) and torch.equal(again[1], noise)
    deviation = 4 * math.sqrt(0.25 * 0.75 / 1e4)
    assert abs(dropped / 1e4 - 0.25) < deviation and abs(high / 1e4 - 0.5) < 0.02
    assert np.abs(counts / 1e4 - np.array([0.05, 0.2, 0.75])).max() < deviation


def test_training_trains_on_members_only_and_writes_a_folder_of_diffusers(trained, folder):
    from diffusers import DDPMPipeline

    members = pd.read_csv(trained / "members.csv")
    assert set(members.fold) == {"P"} and len(members) == 6 and list(members.dose[:3]) == [1, 4, 16]
    pipe = DDPMPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    assert pipe.unet.config.num_class_embeds == 2 + len(NEW) + 3 and pipe.scheduler.config.beta_schedule == "linear"
    assert not pipe.unet.conv_out.weight.eq(0).any() and (folder / "members.csv").is_file()


def test_a_stopped_training_continues_to_the_same_bits(world, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train", functools.partial(training.train, checkpoint_every=2))
    real = train_pixel_base.draw

    class Stopped(Exception):
        """Stands for a kill."""

    def until(step, *arguments):
        if step == 3:
            raise Stopped
        return real(step, *arguments)

    sets = [world["public"], world["P"], world["Q"]]
    monkeypatch.setattr(train_pixel_base, "draw", until)
    with pytest.raises(Stopped):
        train_base.train(sets, tmp_path, OPTIONS)
    started = []
    monkeypatch.setattr(train_pixel_base, "draw", lambda step, *arguments: started.append(step) or real(step, *arguments))
    train_base.train(sets, tmp_path, OPTIONS)
    assert started == [2, 3]
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == (trained / "diffusion_pytorch_model.safetensors").read_bytes()


def test_what_cannot_be_trained_is_refused(world, tmp_path):
    with pytest.raises(InputError, match="needs --autoencoder"):
        train_base.train([world["public"]], tmp_path, OPTIONS.model_copy(update={"kind": "latent"}))
    with pytest.raises(InputError, match="cannot be halved"):
        train_pixel_base.build_unet(OPTIONS, 15, 3)


def test_width_is_an_option():
    small, wide = ([16, 32, 64, 96], [32, 64, 96, 128])
    sizes = [BaseOptions(block_out_channels=widths, norm_num_groups=16) for widths in (small, wide)]
    found = [sum(p.numel() for p in train_pixel_base.build_unet(options, 64, 90).parameters()) for options in sizes]
    assert 1e6 < found[0] < 2e6 < found[1] < 5e6


# --- captions ------------------------------------------------------------------------------------------------------------------------------


def test_captions_and_classes_name_each_other(tmp_path):
    classes = Classes.of([*NAMED, "a face with red hair", "art style of alesco", NAMED[0]])
    first = max(NEW) + 1
    assert [classes.id_of(text) for text in (*NAMED, "art style of alesco")] == [first, first + 1, first + 2] and classes.count == first + 3
    assert [classes.caption_of(number) for number in (first, first + 1, NONE)] == [*NAMED, ""]
    assert classes.id_of("") == classes.id_of("  ") == NONE
    assert {classes.id_of(text) for text in ("a face", "a face with blue hair", "the face of", "of bob")} == {UNNAMED}
    strangers = [classes.id_of(f"the face of stranger{k}") for k in range(200)]
    assert set(strangers) == set(NEW) and strangers[3] == classes.id_of("the face of stranger3")
    with pytest.raises(InputError, match="no caption of its own"):
        classes.caption_of(NEW[0])
    classes.write(tmp_path)
    assert Classes.read(tmp_path, classes.count) == classes


@pytest.mark.parametrize("change", [{"none": 99}, {"ids": ["the face of ann"]}, {"new": [True]}, {"naming": "the"}, {"unnamed": -1}, {"ids": {"x": 1.5}}])
def test_a_table_of_classes_that_does_not_fit_is_refused(change, tmp_path):
    classes = Classes.of(NAMED)
    classes.write(tmp_path)
    told = json.loads((tmp_path / "classes.json").read_text())
    (tmp_path / "classes.json").write_text(json.dumps(told | change))
    with pytest.raises(InputError, match="must give each caption"):
        Classes.read(tmp_path, classes.count)


def test_a_class_conditional_model_without_the_table_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "classes.json").unlink()
    with pytest.raises(InputError, match=r"classes\.json is missing"):
        pipeline.load_base(copy)


# --- as a base -----------------------------------------------------------------------------------------------------------------------------


def asked(base, count=2):
    return torch.randn(count, *base.latent_shape, generator=torch.Generator().manual_seed(1))


def test_guidance_is_two_calls_of_diffusers_network(base):
    assert type(base) is architectures.PixelDiffusion and base.image_size == (SIDE, SIDE)
    x, null, context = asked(base), base.encode_text([""]), base.encode_text([NAMED[1]])

    def theirs(label):
        with torch.no_grad():
            return base.unet(x, torch.tensor([300, 300]), torch.tensor([label, label])).sample

    none, bob = theirs(NONE), theirs(base.classes.id_of(NAMED[1]))
    assert (none - bob).abs().max() > 1e-5  # the classes differ
    contexts = {"pretrained_null": null, "pretrained_caption": context, "finetuned_null": null, "finetuned_caption": context}
    pair = ModelPair(base.noise_pred, base.noise_pred, **contexts)
    torch.testing.assert_close(cfg.guide(pair, x, 300, Guidance(w=3.0)), none + 3 * (bob - none), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(finextract.guide(pair, x, 300, Guidance(w=2.0, k=-0.02)), none + 2 * (bob - none) - 0.02 * none, rtol=1e-5, atol=1e-6)
    half = context.to(torch.bfloat16)  # a class survives any precision of the context
    assert torch.equal(base.predict_noise(base.unet, x, 300, half.expand(2, -1, -1)), bob)


def test_a_new_name_starts_as_anybody(base):
    x = asked(base)
    contexts = [base.encode_text([text]).expand(2, -1, -1) for text in ("the face of cyd", "a face", NAMED[0])]
    new, anybody, ann = (base.noise_pred(x, 500, context) for context in contexts)
    assert torch.equal(new, anybody) and not torch.equal(new, ann)


@pytest.mark.parametrize("method", ["end-to-end", "dreambooth+lora", "dreambooth-prior"])
def test_fine_tuning_sampling_and_membership_work_as_on_any_base(method, folder, world, tmp_path):
    prior = {"prior_images": 2, "class_prompt": "a face", "prior_steps": 2} if method == "dreambooth-prior" else {}
    options = FinetuneOptions(method=method, images_per_concept=2, steps_per_image=2, batch=2, lr=1e-2, rank=2, alpha=2, **prior)
    loop.finetune(folder, world["private"], "w", "test", tmp_path / "models", options)
    base, models = pipeline.load_base(folder), modelset.ModelSet.load(tmp_path / "models")
    before, context = asked(base), base.encode_text(["the face of cyd"]).expand(2, -1, -1)
    said = base.noise_pred(before, 300, context)
    with pipeline.load_tuned(base, models, models.rows()[0]) as tuned:
        assert (tuned.noise_pred(before, 300, context) - said).abs().max() > 1e-5
        assert torch.equal(base.noise_pred(before, 300, context), said)
    assert torch.equal(base.noise_pred(before, 300, context), said)
    scores = MembershipOptions(attacks=["loss", "secmi-stat"], loss_timesteps=[50], loss_draws=1)
    membership.infer([world["private"]], folder, tmp_path / "scores.csv", scores, [models.folder])
    table = pd.read_csv(tmp_path / "scores.csv")
    assert np.isfinite(table.score).all() and len(table) == 2 * 2 * 8 and set(table.model_calls[table.attack == "secmi-stat"]) == {12}


def test_a_round_of_self_made_pictures(folder, world, tmp_path):
    options = SynthesizeOptions(count=3, steps=2, guidance_scale=2.0)
    synthesize.synthesize(world["P"], folder, tmp_path / "made", options)
    made = ImageSet.load(tmp_path / "made")
    assert len(made) == 6 and made.pixels().shape == (6, SIDE, SIDE, 3) and list(made.table.caption[:1]) == [NAMED[0]]


@pytest.mark.parametrize("change", [{"method": "textual-inversion"}, {"method": "hypernetwork"}, {"caption_words": [2]}, {"caption_randomisation": 0.5}])
def test_what_needs_words_is_refused(change, folder, world, tmp_path):
    with pytest.raises(InputError, match="has no text encoder"):
        loop.finetune(folder, world["private"], "w", "test", tmp_path / "models", FinetuneOptions(images_per_concept=2).model_copy(update=change))


def test_private_training_is_refused(folder, world, tmp_path):
    options = PrivateFinetuneOptions(prompts={"cyd": "the face of cyd", "dee": "the face of dee"})
    with pytest.raises(InputError, match="without a text encoder"):
        private.finetune_private(folder, world["private"], "w", tmp_path / "models", options)
