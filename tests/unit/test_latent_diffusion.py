"""Public latent diffusion models without words: their losses in closed form, their sizes as published, and DP-LDM on every kind of them."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tuneleak import config
from tuneleak.attacks.membership import run
from tuneleak.data import imageset
from tuneleak.data.drawing import Drawing
from tuneleak.errors import InputError
from tuneleak.finetune import loop, private, sample
from tuneleak.metrics import dp_utility
from tuneleak.models import latent_diffusion, modelset, pipeline, train_first_stage, train_latent_diffusion, training
from tuneleak.models.pipeline import load_tuned
from tuneleak.models.train_first_stage import PatchDiscriminator, balance, hinge, perceptual_distance
from tuneleak.options import (
    DiffusionOptions,
    FinetuneOptions,
    FirstStageOptions,
    MembershipOptions,
    PrivacyOptions,
    PrivateFinetuneOptions,
    SampleOptions,
)
from tuneleak.privacy import trainable

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")])]
SIDE, CLASSES = 16, ("disc", "square")
FIRST = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "attention_sides": [8], "norm_num_groups": 4, "codes": 32, "steps": 6, "batch": 4, "lr": 1e-3,
    "discriminator_start": 3, "discriminator_width": 4, "discriminator_layers": 1, "checkpoint_every": 2,
}  # fmt: skip
DIFFUSION = {
    "block_out_channels": [16, 32], "layers_per_block": 1, "attention_levels": [0, 1], "heads": 2, "head_width": 8, "norm_num_groups": 4,
    "steps": 4, "batch": 4, "lr": 1e-3, "ema": 0.5,
}  # fmt: skip


def shapes(folder, count=6, side=SIDE):
    """An ImageSet of discs and squares, of each class `count` to train on and two held out."""
    y, x = np.mgrid[:side, :side]
    inside = {"disc": (x - side / 2) ** 2 + (y - side / 2) ** 2 < side * 2, "square": (abs(x - side / 2) < side / 3) & (abs(y - side / 2) < side / 3)}
    rows, pictures = [], []
    for name in CLASSES:
        for number in range(count + 2):
            rows.append({"image_id": f"{name}-{number}", "concept": name, "caption": name, "fold": "train" if number < count else "heldout"})
            colour = np.random.default_rng(number).integers(0, 256, 3)
            pictures.append(np.where(inside[name][..., None], colour, 128).astype(np.uint8))
    return imageset.write(folder, rows, pictures).folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return shapes(tmp_path_factory.mktemp("sets") / "shapes")


@pytest.fixture(scope="module")
def first_stages(images, tmp_path_factory):
    """{kind: folder of a trained first stage}"""
    root = tmp_path_factory.mktemp("first")
    for kind in ("kl", "vq"):
        train_first_stage.train(images, root / kind, FirstStageOptions(kind=kind, **FIRST))
    return {kind: root / kind for kind in ("kl", "vq")}


@pytest.fixture(scope="module")
def bases(images, first_stages, tmp_path_factory):
    """{(first stage, conditional): pipeline folder}"""
    root, found = tmp_path_factory.mktemp("bases"), {}
    for kind, conditional in ((kind, conditional) for kind in ("kl", "vq") for conditional in (True, False)):
        out = root / f"{kind}-{'classes' if conditional else 'pictures'}"
        options = DiffusionOptions(context_width=6 if conditional else 0, residual_updown=not conditional, **DIFFUSION)
        train_latent_diffusion.train(images, first_stages[kind], out, options)
        found[kind, conditional] = out
    return found


# --- sizes ------------------------------------------------------------------------------------------------------------------------------


def published_models():
    study = config.read(ROOT / "config.yaml", [ROOT / "workflow/presets/paper.yaml", ROOT / "workflow/overlays/dp-pairs.yaml"])
    return {base.name: base for base in study.bases if base.kind == "trained"}, study


@pytest.mark.parametrize(
    ("name", "latent", "total", "blocks", "attention", "late"),
    [  # millions of weights, counted on the authors' networks; their EMNIST UNet (4.61) halves and doubles by residual blocks
        ("emnist-letters", 4, None, 7, 1.58, None),
        ("imagenet32", 16, 90.29, 16, 23.87, 9.28),
        ("imagenet32-unconditional", 16, 162.31, 16, 17.89, None),
        ("imagenet64-unconditional", 32, 72.17, 16, 7.96, 3.09),
        ("imagenet256", 64, 400.92, 16, 169.55, None),
    ],
)
def test_the_models_of_the_pairs_have_the_published_sizes(name, latent, total, blocks, attention, late):
    options = published_models()[0][name].diffusion
    with torch.device("meta"):
        unet = latent_diffusion.build_unet(options, 3, latent)
    sizes = {key: value.numel() / 1e6 for key, value in unet.named_parameters()}
    kind = "attention" if options.context_width else "unconditional-attention"
    chosen = trainable.select(unet, kind)
    assert chosen.available_blocks == blocks
    assert sum(sizes[key] for key in chosen.names) == pytest.approx(attention, abs=0.005)
    if total:
        assert sum(sizes.values()) == pytest.approx(total, abs=0.005)
    if late:
        assert sum(sizes[key] for key in trainable.select(unet, kind, [8, 16]).names) == pytest.approx(late, abs=0.005)


def test_first_stages_give_the_published_latents_and_the_worlds_name_public_classes():
    models, study = published_models()
    sides = {
        "emnist-letters": (32, 4),
        "imagenet32": (32, 16),
        "imagenet32-unconditional": (32, 16),
        "imagenet64-unconditional": (64, 32),
        "imagenet256": (256, 64),
    }
    for name, (side, latent) in sides.items():
        options = models[name].first_stage
        assert side >> (len(options.block_out_channels) - 1) == latent and options.latent_channels == 3
        assert all(smaller in {side >> level for level in range(len(options.block_out_channels))} for smaller in options.attention_sides)
    assert models["imagenet256"].first_stage.kind == "vq"
    for world in study.dp_ldm.worlds:
        conditional = models[world.base].diffusion.context_width > 0
        assert conditional == all(world.prompts.values()), world.name
        assert len(set(world.prompts.values())) == len(world.prompts)


# --- losses -----------------------------------------------------------------------------------------------------------------------------


def test_the_discriminator_is_the_patch_network_of_70_pixels():
    network = PatchDiscriminator(64, 3)
    assert network(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    by_hand = 3 * 64 * 16 + 64 + sum(a * b * 16 + 2 * b for a, b in ((64, 128), (128, 256), (256, 512))) + 512 * 16 + 1
    assert sum(weight.numel() for weight in network.parameters()) == by_hand
    x = torch.zeros(1, 3, 256, 256, requires_grad=True)
    network.eval()(x)[0, 0, 15, 15].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70  # what a patch's score can see


def test_hinge_and_balance_by_hand():
    assert float(hinge(torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.0]))) == pytest.approx(0.5 * (0.25 + 0.5))
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    assert float(balance((3 * weight).sum(), weight.sum(), weight)) == pytest.approx(3, rel=1e-3)
    assert float(balance(weight.sum(), 0 * weight.sum(), weight)) == pytest.approx(1e4)  # never more


def test_perceptual_distance_is_of_unit_features_averaged_over_places():
    class Network:
        mean, std = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)
        stages = nn.ModuleList([nn.Identity(), nn.AvgPool2d(2)])

    x, y = torch.full((1, 3, 2, 2), -1.0), torch.full((1, 3, 2, 2), -1.0)
    x[:, 0], y[:, 1] = 1.0, 1.0  # red against green: orthogonal everywhere
    assert float(perceptual_distance(Network, x, y)) == pytest.approx(2)  # |u - v|^2, in both stages
    assert float(perceptual_distance(Network, x, 3 * x + 2)) == pytest.approx(0, abs=1e-6)  # brightness counts for nothing
    y[..., 0] = x[..., 0]
    assert float(perceptual_distance(Network, x, y)) == pytest.approx((1 + 2 - 2 / math.sqrt(2)) / 2)  # half of the places; their average: 45 degrees


def test_perceptual_distance_takes_the_last_layer_of_each_size():
    class Network:
        mean, std = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)
        stages = nn.ModuleList([nn.Identity(), nn.Flatten(3), nn.Sequential(nn.MaxPool2d(2), nn.Identity())])

    seen = []
    Network.stages[0].register_forward_hook(lambda *_: seen.append("first"))
    x = torch.rand(1, 3, 4, 4)
    y = x.flip(1)
    one = (torch.nn.functional.normalize(x, dim=1) - torch.nn.functional.normalize(y, dim=1)).square().sum(1).mean()
    small = [torch.nn.functional.max_pool2d(z, 2) for z in (x, y)]
    other = (torch.nn.functional.normalize(small[0], dim=1) - torch.nn.functional.normalize(small[1], dim=1)).square().sum(1).mean()
    found = perceptual_distance(Network, x - 1, y - 1)  # which the network's mean and deviation make x and y
    assert float(found) == pytest.approx(float(one + other) / 2, rel=1e-5) and seen == ["first"] * 2  # of three stages the second and the third count


def test_the_pull_of_a_gaussian_latent_is_its_divergence_over_the_numbers_of_a_picture():
    options = FirstStageOptions(**FIRST | {"kl_weight": 0.5})
    torch.manual_seed(0)
    trainer = train_first_stage._Trainer(train_first_stage.build(options, SIDE), None, options, torch.device("cpu"))
    x = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    _, pull = trainer._reconstruct(x, torch.Generator().manual_seed(0))
    posterior = trainer.first_stage.encode(x).latent_dist
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum() / 2
    assert pull.item() == pytest.approx(0.5 * divergence.item() / (3 * SIDE**2), rel=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------------------------


def test_drawing_takes_the_fold_train_alike_from_memory_and_from_disk(images):
    held, read = Drawing(images), Drawing(images, in_memory=0)
    assert len(held) == 12 and read.pixels is None and held.labels == list(CLASSES)
    (x, numbers), (again, same) = held.draw(5, "a", 1), read.draw(5, "a", 1)
    assert torch.equal(x, again) and torch.equal(numbers, same) and x.shape == (5, 3, SIDE, SIDE)
    assert not torch.equal(x, held.draw(5, "a", 2)[0])
    mirrored = Drawing(images, mirrored=True).draw(200, "b")[0]
    plain = Drawing(images).draw(200, "b")[0]
    flipped = [not torch.equal(a, b) for a, b in zip(mirrored, plain, strict=True)]
    assert all(torch.equal(a, b.flip(-1)) for a, b, turned in zip(mirrored, plain, flipped, strict=True) if turned) and 60 < sum(flipped) < 140


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_killed_first_stage_ends_as_if_it_had_not_been(kind, images, first_stages, tmp_path, monkeypatch):
    options, step = FirstStageOptions(kind=kind, **FIRST), train_first_stage._Trainer.step

    def killed(self, x):
        if self.done == 5:
            raise KeyboardInterrupt
        return step(self, x)

    monkeypatch.setattr(train_first_stage._Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_first_stage.train(images, tmp_path / "vae", options)
    monkeypatch.setattr(train_first_stage._Trainer, "step", step)
    train_first_stage.train(images, tmp_path / "vae", options)
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (tmp_path / "vae", first_stages[kind]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logs = [pd.read_csv(folder / "train.csv").drop(columns="seconds") for folder in (tmp_path / "vae", first_stages[kind])]
    pd.testing.assert_frame_equal(*logs)
    assert not (tmp_path / "vae" / ".checkpoints").exists()


def test_a_training_is_not_continued_on_another_first_stage(images, first_stages, tmp_path, monkeypatch):
    options = DiffusionOptions(context_width=6, **DIFFUSION | {"steps": 3})
    update, saved = training.Update.__call__, training.train

    def killed(self, batch):
        if killed.left == 0:
            raise KeyboardInterrupt
        killed.left -= 1
        return update(self, batch)

    monkeypatch.setattr(train_latent_diffusion.training, "train", lambda *arguments, **named: saved(*arguments, checkpoint_every=1, **named))
    train_latent_diffusion.train(images, first_stages["vq"], tmp_path / "whole", options)
    monkeypatch.setattr(training.Update, "__call__", killed)
    killed.left = 2
    with pytest.raises(KeyboardInterrupt):
        train_latent_diffusion.train(images, first_stages["kl"], tmp_path / "base", options)
    killed.left = 3  # all of its steps, from the beginning
    train_latent_diffusion.train(images, first_stages["vq"], tmp_path / "base", options)
    ours, theirs = (load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors") for name in ("base", "whole"))
    assert killed.left == 0 and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_batch_in_pieces_makes_the_same_step(images, first_stages, tmp_path):
    whole, pieces = DiffusionOptions(context_width=6, **DIFFUSION), DiffusionOptions(context_width=6, physical_batch=2, **DIFFUSION)
    for name, options in (("whole", whole), ("pieces", pieces)):
        train_latent_diffusion.train(images, first_stages["kl"], tmp_path / name, options)
    ours, theirs = (load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors") for name in ("pieces", "whole"))
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-4) for name in theirs)  # AdamW's first steps turn rounding into steps of the rate's length
    x, found = Drawing(images).draw(4, "pieces")[0], {}
    for size in (0, 2):
        options = FirstStageOptions(kind="vq", **FIRST | {"physical_batch": size, "discriminator_weight": 0})
        torch.manual_seed(0)
        trainer = train_first_stage._Trainer(train_first_stage.build(options, SIDE), None, options, torch.device("cpu"))
        trainer.step(x)
        found[size] = trainer.first_stage.encoder.conv_in.weight.grad
    assert torch.allclose(found[0], found[2], rtol=1e-3, atol=1e-6)
    with pytest.raises(InputError, match="3 does not divide 4"):
        training.pieces_of(4, 3)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_first_stage_learns_to_reconstruct(kind, images, tmp_path):
    import pandas as pd

    train_first_stage.train(
        images, tmp_path / "vae", FirstStageOptions(kind=kind, **FIRST | {"steps": 150, "discriminator_start": 120, "lr": 4e-3, "scaling_factor": 0})
    )
    table = pd.read_csv(tmp_path / "vae" / "train.csv")
    assert table.l1[table.step.between(80, 119)].mean() < 0.65 * table.l1.iloc[0]
    assert table.discriminator.notna().sum() == (table.step >= 120).sum() > 0  # it takes part from its step on
    from diffusers import AutoencoderKL, VQModel

    network = (AutoencoderKL if kind == "kl" else VQModel).from_pretrained(tmp_path / "vae")
    x, _ = Drawing(images).draw(64, "scale")
    with torch.no_grad():
        assert float(latent_diffusion.encode(network, x).std() * network.config.scaling_factor) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("conditional", [True, False], ids=["classes", "pictures"])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_base_loads_and_codes_as_its_parts_do(bases, first_stages, images, kind, conditional):
    base = pipeline.load_base(bases[kind, conditional])
    assert type(base) in latent_diffusion.KINDS and base.image_size == (SIDE, SIDE) and base.latent_shape == (3, 8, 8)
    x, _ = Drawing(images).draw(3, "x")
    latents = base.encode_images(x)
    if kind == "kl":
        assert torch.allclose(latents, base.vae.encode(x).latent_dist.mean * base.vae.config.scaling_factor)
        drawn = base.encode_images(x, torch.Generator().manual_seed(0))
        assert not torch.allclose(drawn, latents)
    else:
        book = base.vae.quantize.embedding.weight
        quantised = base.vae.quantize(latents / base.vae.config.scaling_factor)[0]
        nearest = torch.cdist(quantised.permute(0, 2, 3, 1).reshape(-1, 3), book).min(1).values
        assert float(nearest.max()) < 1e-4
        assert torch.allclose(base.decode(latents), base.vae.decode(quantised, force_not_quantize=True).sample, atol=1e-5)
    if conditional:
        table = load_file(bases[kind, True] / modelset.CLASS_FILE)["contexts"]
        assert torch.equal(base.encode_text(["square", "disc"]), table[[1, 0]])
        with pytest.raises(InputError, match="knows 2 classes, 'triangle' is none of them"):
            base.encode_text(["triangle"])
    else:
        assert torch.equal(base.encode_text(["anything"]), torch.zeros(1, 1, 1))


def test_a_class_changes_what_a_conditional_base_predicts(bases):
    base = pipeline.load_base(bases["kl", True])
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    disc, square = (base.noise_pred(x, 500, base.encode_text([name])) for name in CLASSES)
    assert disc.shape == x.shape and not torch.allclose(disc, square)


def test_a_base_without_its_classes_or_with_parts_of_another_is_refused(bases, tmp_path):
    import shutil

    folder = shutil.copytree(bases["kl", True], tmp_path / "base")
    (folder / modelset.CLASS_FILE).unlink()
    with pytest.raises(InputError, match=r"class_embedder\.safetensors is missing"):
        pipeline.load_base(folder)
    with pytest.raises(InputError, match="residual_updown is for unconditional models"):
        latent_diffusion.build_unet(DiffusionOptions(context_width=4, residual_updown=True, **DIFFUSION), 3, 8)


@pytest.mark.parametrize(("kind", "conditional"), [("kl", True), ("vq", True), ("kl", False), ("vq", False)])
def test_every_verb_opens_them(bases, images, tmp_path, kind, conditional):
    """Fine-tuned, asked for membership and drawn from like any other base."""
    base, options = bases[kind, conditional], FinetuneOptions(images_per_concept=2, steps_per_image=4, batch=2, rank=2, lr=1e-2)
    loop.finetune(base, images, "shapes", "", tmp_path / "models", options, device="cpu")
    run.infer([images], base, tmp_path / "scores.csv", MembershipOptions(attacks=["loss"], loss_timesteps=[50]), [tmp_path / "models"], None, "cpu")
    scores = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    both = scores[scores.model_id != "base"].merge(scores[scores.model_id == "base"], on="image_id")
    assert len(both) == 16 and not np.isclose(both.score_x, both.score_y, rtol=1e-4).any()
    models = modelset.ModelSet.load(tmp_path / "models")
    loaded = pipeline.load_base(base)
    with load_tuned(loaded, models, models.rows()[0]) as tuned:
        context = tuned.encode_text(["disc"])
        x = loaded.sample(lambda x, t: tuned.noise_pred(x, t, context), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 2)
        assert loaded.decode(x).shape == (1, 3, SIDE, SIDE)
    with pytest.raises(InputError, match="leave it out"):
        loop.finetune(base, images, "shapes", "", tmp_path / "no", options.model_copy(update={"method": "end-to-end", "train_autoencoder": True}), device="cpu")


def test_a_codebook_stays_in_float32(bases):
    """In bfloat16 its vectors would be mixed up."""
    base = pipeline.load_base(bases["vq", False], dtype="bfloat16")
    assert base.vae.dtype == torch.float32 and base.unet.dtype == torch.bfloat16
    assert pipeline.load_base(bases["kl", False], dtype="bfloat16").vae.dtype == torch.bfloat16


# --- DP-LDM on them ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "conditional"), [("kl", True), ("vq", True), ("kl", False)], ids=["kl classes", "vq classes", "kl pictures"])
def test_dp_ldm_from_training_to_pictures(bases, images, tmp_path, kind, conditional):
    prompts = {name: name for name in CLASSES} if conditional else dict.fromkeys(CLASSES, "")
    options = PrivateFinetuneOptions(
        trainable="attention" if conditional else "unconditional-attention",
        conditioning="class" if conditional else "frozen",
        context_tokens=1 if conditional else 0,
        prompts=prompts,
        privacy=PrivacyOptions(epsilon=2, delta=1e-2, expected_batch=4, public_size=12, steps=3, clip=1e-3),
        lr=1e-2,
        physical_batch=4,
        gradients="ghost",
    )
    base = bases[kind, conditional]
    private.finetune_private(base, images, "shapes", tmp_path / "models", options)
    models = modelset.ModelSet.load(tmp_path / "models")
    (row,) = models.rows()
    before, after = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (base, models.path(row)))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    loaded = pipeline.load_base(base)
    chosen = set(trainable.select(loaded.unet, options.trainable, (), 1 if conditional else None).names)
    assert moved and moved <= chosen
    assert conditional == any("attn1" in name for name in moved) and not any("attn2.to_q" in name or "attn2.to_k" in name for name in moved)
    with load_tuned(loaded, models, row) as tuned:
        x = torch.randn(1, 3, 8, 8)
        context = loaded.encode_text([CLASSES[0]])
        assert not torch.allclose(tuned.noise_pred(x, 500, context), loaded.noise_pred(x, 500, context))
    drawing = SampleOptions(prompts=prompts, samples=6, steps=3, guidance_scale=1, batch=4)
    sample.sample_classes(base, tmp_path / "samples", drawing, models=tmp_path / "models")
    drawn = imageset.ImageSet.load(tmp_path / "samples")
    assert drawn.pixels().shape == (6, SIDE, SIDE, 3) and sorted(set(drawn.table.label)) == sorted(CLASSES)
    changes = list(dp_utility.weight_changes(base, tmp_path / "models"))
    assert changes and max(change["value"] for change in changes) > 0


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_the_cifar_pair_at_its_full_size(tmp_path, device):
    """One step of each stage with the overlay's own architecture: 90 M weights, late blocks trained, VGG19's architecture behind the perceptual distance."""
    from safetensors.torch import save_file
    from torchvision.models import vgg19

    torch.manual_seed(0)
    save_file({f"features.{name}": value for name, value in vgg19(weights=None).features.state_dict().items()}, tmp_path / "vgg19.safetensors")
    models, study = published_models()
    (recipe,) = [item.options for item in study.dp_ldm.recipes if item.name == "cifar10"]
    images, plan = shapes(tmp_path / "images", side=32), models["imagenet32"]
    short = {"steps": 8 if device == "cuda" else 1, "batch": 2, "physical_batch": 0}  # on a GPU enough for the recorded graph to be replayed
    first = plan.first_stage.model_copy(update=short | {"discriminator_start": 0})
    train_first_stage.train(images, tmp_path / "vae", first, perceptual=tmp_path / "vgg19.safetensors", device=device)
    train_latent_diffusion.train(images, tmp_path / "vae", tmp_path / "base", plan.diffusion.model_copy(update=short), device=device)
    budgeted = recipe.privacy.model_copy(update={"delta": 1e-2, "expected_batch": 4, "public_size": 12, "steps": 1})
    options = recipe.model_copy(update={"privacy": budgeted, "prompts": {name: name for name in CLASSES}, "seeds": [0]})
    private.finetune_private(tmp_path / "base", images, "cifar10", tmp_path / "models", options, device=device)
    (row,) = modelset.ModelSet.load(tmp_path / "models").rows()
    facts = json.loads((tmp_path / "models" / row["file"] / private.RECORD).read_text())
    blocks = [f"{count}" for count in facts["attention_blocks"]]
    assert row["method"] == "attention-8-16" and blocks == ["8", "16"]
    dead = sum(value.numel() for name, value in late_blocks(plan.diffusion) if any(part in name for part in trainable.SINGLE_TOKEN_DEAD))
    assert facts["trained_weights"] == sum(value.numel() for _, value in late_blocks(plan.diffusion)) - dead + len(CLASSES) * 512
    drawing = SampleOptions(prompts=options.prompts, samples=2, steps=2, guidance_scale=1, batch=2)
    sample.sample_classes(tmp_path / "base", tmp_path / "samples", drawing, models=tmp_path / "models", device=device)
    assert imageset.ImageSet.load(tmp_path / "samples").pixels().shape == (2, 32, 32, 3)


def late_blocks(options):
    """(name, weight) of the attention blocks from the ninth on, without values."""
    with torch.device("meta"):
        unet = latent_diffusion.build_unet(options, 3, 16)
    names = set(trainable.select(unet, "attention", [8, 16]).names)
    return [(name, value) for name, value in unet.named_parameters() if name in names]
