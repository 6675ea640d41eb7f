"""What DP-LDM is compared with: DP-MEPF's released means and DPAgg-TI's averaged inversions."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import aggregate, mean_features, private, private_data, sample
from tuneleak.models import embedders, generator, modelset, perceptual
from tuneleak.models.pipeline import load_base
from tuneleak.options import AggregateOptions, BudgetOptions, MeanFeaturesOptions, SampleOptions

PROMPTS = {name: f"picture of person {name}" for name in ("ada", "bob", "cyd", "dee")}
BUDGET = {"epsilon": 2, "delta": 1e-3, "public_size": 16}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A tiny random copy embedder, as a folder."""
    folder = tmp_path_factory.mktemp("embedder")
    config = {"name": "tiny", "kind": "copy", "width": 4, "dimensions": 8, "image_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(embedders.build(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def means(**changes):
    values = {"prompts": PROMPTS, "pool": 2, "steps": 6, "batch": 16, "width": 4, "latent": 4, "checkpoint_every": 3}
    return MeanFeaturesOptions(**values | changes, privacy=BudgetOptions(**BUDGET))


def test_a_picture_moves_the_sum_by_exactly_the_sensitivity(network, tiny_images):
    features, images = perceptual.load(network, 2), ImageSet.load(tiny_images).where(fold="train")
    labels = private_data.class_numbers(images, PROMPTS)
    whole, side = mean_features.feature_sum(images, labels, features, 4, 0.3, "cpu")
    assert side == 32 and torch.allclose(whole[:, -1], torch.full((4,), 4 * 0.3, dtype=torch.float64))
    keep = [row for row in range(len(images)) if row != 5]
    without, _ = mean_features.feature_sum(ImageSet(images.folder, images.table.iloc[keep].reset_index(drop=True)), labels[keep], features, 4, 0.3, "cpu")
    assert float((whole - without).norm()) == pytest.approx((2 + 0.3**2) ** 0.5, rel=1e-6) == mean_features.sensitivity(0.3)


def test_the_noise_of_a_release_has_the_deviation_that_is_accounted_for():
    total = torch.zeros(4, 5001, dtype=torch.float64)
    total[:, -1] = 0.3 * 1e6  # counts so large that their own noise does not matter
    found, shares = mean_features.noisy_means(total, 2.0, 0.3, "test")
    assert float(found.std()) * 1e6 == pytest.approx(2.0 * mean_features.sensitivity(0.3), rel=0.02)
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=1e-4)


def test_the_loss_is_the_squared_distance_of_the_means_on_average(network):
    """Halves are independent: pictures that vary are not punished for it, where one half alone would be."""
    features = perceptual.load(network, 2)
    total = torch.zeros(2, 2 * features(torch.zeros(1, 3, 32, 32)).shape[1] + 1, dtype=torch.float64)
    total[:, -1] = 0.3 * 8
    training = mean_features._Training(total, 0.0, features, 32, ("w", "1", 0), means(lr=1e-12, steps=400, batch=8), torch.device("cpu"))
    with torch.no_grad():
        noise, labels = torch.randn(512, 4, generator=torch.Generator().manual_seed(0)), torch.arange(2).repeat_interleave(256)
        exact = mean_features.embedding(features(training.generator(noise, labels))).view(2, 256, -1).mean(1).square().sum(1).mean()
    while training.step_number < 60:
        training.step()
    assert np.mean([loss for _, loss in training.log]) == pytest.approx(float(exact), rel=0.03)


def test_a_generator_learns_from_one_release_and_draws_by_class(network, tiny_base, tiny_images, tmp_path):
    arguments = tiny_base, tiny_images, network, "w"
    mean_features.mean_features(*arguments, tmp_path / "models", means(), device="cpu")
    made = modelset.ModelSet.load(tmp_path / "models")
    row = made.rows()[0]
    assert (row["method"], row["defence"]) == ("dp-mepf", "epsilon=2")
    facts = json.loads((made.path(row) / private.RECORD).read_text())
    assert facts["epsilon"] == pytest.approx(2, abs=0.01) and facts["history"] == [[facts["noise_multiplier"], 1.0, 1]]
    options = SampleOptions(prompts=PROMPTS, samples=8, steps=2)
    sample.sample_classes(tiny_base, tmp_path / "drawn", options, models=tmp_path / "models", device="cpu")
    drawn = ImageSet.load(tmp_path / "drawn")
    assert list(drawn.table.label) == [*PROMPTS, *PROMPTS] and drawn.pixels().shape == (8, 32, 32, 3)
    with pytest.raises(InputError, match="not trained for the class 'eve'"):
        sample.sample_classes(tiny_base, tmp_path / "no", SampleOptions(prompts={"eve": "x"}, samples=1), models=tmp_path / "models", device="cpu")
    with pytest.raises(InputError, match="pixels, not 64"):
        mean_features.load_generator(made.path(row) / modelset.GENERATOR_FILE, 64)


def test_a_killed_generator_goes_on_to_the_same_numbers(network, tiny_base, tiny_images, tmp_path, monkeypatch):
    arguments = tiny_base, tiny_images, network, "w"
    mean_features.mean_features(*arguments, tmp_path / "whole", means(), device="cpu")
    step = mean_features._Training.step

    def killed(self):
        if self.step_number == 4:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(mean_features._Training, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mean_features.mean_features(*arguments, tmp_path / "cut", means(), device="cpu")
    monkeypatch.setattr(mean_features._Training, "step", step)
    mean_features.mean_features(*arguments, tmp_path / "cut", means(), device="cpu")
    name = modelset.ModelSet.load(tmp_path / "cut").rows()[0]["model_id"]
    assert (tmp_path / "cut" / name / "generator.safetensors").read_bytes() == (tmp_path / "whole" / name / "generator.safetensors").read_bytes()


def test_a_doubled_convolution_is_that_of_the_doubled_picture():
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((2, 3, 4, 5), (6, 3, 3, 3), (6,)))
    plain = torch.nn.functional.conv2d(torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    assert torch.allclose(generator.doubled_convolution(x, weight, bias), plain, atol=1e-12)


def test_a_generator_refuses_sides_it_cannot_double_to():
    assert generator.Generator(2, 16, 3, 4)(torch.zeros(1, 4), torch.tensor([1])).shape == (1, 3, 16, 16)
    for side in (4, 24, 40):
        with pytest.raises(InputError, match="8, 16, 32"):
            generator.Generator(2, side)


def inversions(**changes):
    values = {"prompts": PROMPTS, "expected_pictures": 8, "caption_template": "picture of {}", "steps": 3, "draws": 2, "at_once": 3}
    return AggregateOptions(**values | changes, privacy=BudgetOptions(**BUDGET))


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base(tiny_base)


def test_public_vectors_give_the_public_contexts(base):
    captions = aggregate.Captions(base, PROMPTS, "picture of {}")
    found = captions.contexts([2, 0], [captions.vectors[2], captions.vectors[0]])
    assert torch.allclose(found, base.encode_text([PROMPTS["cyd"], PROMPTS["ada"]]), atol=1e-6)
    moved = captions.contexts([2], [captions.vectors[2].flip(1)])
    assert not torch.allclose(moved, found[:1], atol=1e-2)


def test_an_inversion_depends_on_its_own_picture_alone(base):
    captions, made = aggregate.Captions(base, PROMPTS, "picture of {}"), inversions()
    latents = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    together = aggregate.invert(base, captions, latents, [0, 3, 0], [("a",), ("b",), ("c",)], made)
    alone = aggregate.invert(base, captions, latents[1:2], [3], [("b",)], made)
    assert torch.allclose(together[1], alone[0], atol=1e-5) and float(alone[0].abs().max()) > 1e-3


def test_no_picture_adds_more_than_the_clip():
    change = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    assert float(aggregate.clipped(change, 1.0).norm()) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(aggregate.clipped(0.01 * change, 1.0), 0.01 * change)
    assert float(aggregate.clipped(torch.full((2, 32), torch.nan), 1.0).norm()) == 0


def test_averaged_inversions_become_contexts_that_are_drawn_under(tiny_base, tiny_images, tmp_path):
    aggregate.aggregate_embeddings(tiny_base, tiny_images, "w", tmp_path / "models", inversions(), device="cpu")
    made = modelset.ModelSet.load(tmp_path / "models")
    facts = json.loads((made.path(made.rows()[0]) / private.RECORD).read_text())
    assert facts["sample_rate"] == 0.5 and facts["epsilon"] == pytest.approx(2, abs=0.01) and facts["clip"] == 1.0
    sample.sample_classes(tiny_base, tmp_path / "drawn", SampleOptions(prompts=PROMPTS, samples=4, steps=2), models=tmp_path / "models", device="cpu")
    assert set(ImageSet.load(tmp_path / "drawn").table.method) == {"dpagg-ti"}


def test_words_beyond_the_text_encoders_reach_are_refused(base):
    with pytest.raises(InputError, match="not found among its first"):
        aggregate.Captions(base, {"long": "picture of " + "person " * 30}, "picture of {}")


def test_networks_without_layers_are_refused(network, tmp_path):
    config = json.loads((network / "config.json").read_text()) | {"kind": "clip", "clip": embedders.clip_config(32, 32, 1, 8, 100)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous().clone() for name, value in embedders.build(config).state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no layers to read"):
        perceptual.load(tmp_path, 2)
