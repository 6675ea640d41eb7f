"""Synthetic private sets, the controls that stand in for them, and their fidelity."""

import json

import numpy as np
import pytest

from tuneleak.data import imageset
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import loop, synthesize
from tuneleak.metrics.fidelity import kernel_distance
from tuneleak.options import FinetuneOptions, SynthesizeOptions


@pytest.fixture(scope="module")
def reference(make_tiny_images, tmp_path_factory):
    """Other pictures of the same four people."""
    folder = tmp_path_factory.mktemp("reference") / "instrument"
    made = ImageSet.load(make_tiny_images(folder, train=3, heldout=3))
    pictures = made.pixels()
    pictures[:, 0, 0] = (1, 2, 3)  # so that no picture is one of the other set's
    return imageset.write(folder, made.table.to_dict("records"), list(pictures)).folder


def make(tiny_base, tiny_images, out, reference=None, models=None, start=0, stop=2, **options):
    options = SynthesizeOptions(**({"count": 3, "steps": 3, "batch": 2} | options))
    synthesize.synthesize(tiny_images, tiny_base, out, options, reference=reference, models=models, start=start, stop=stop, device="cpu")
    return ImageSet.load(out)


def test_a_self_made_set_is_ready_to_be_fine_tuned_on(tiny_base, tiny_images, tmp_path):
    made = make(tiny_base, tiny_images, tmp_path / "self")
    assert list(made.table.concept) == ["ada"] * 3 + ["bob"] * 3 and set(made.table.fold) == {"train"} and set(made.table.split) == {"test"}
    assert set(made.table.caption[:3]) == {"picture of person ada"} and set(made.table.source) == {"drawn"}
    assert len(np.unique(made.pixels().reshape(6, -1), axis=0)) == 6
    assert json.loads((tmp_path / "self" / "manifest.csv.meta.json").read_text())["options"]["guidance_scale"] == 3.0
    tuned = FinetuneOptions(images_per_concept=3, steps_per_image=1, rank=2)
    loop.finetune(tiny_base, made.folder, "self", "test", tmp_path / "tuned", tuned, device="cpu")


def test_a_picture_depends_on_its_number_and_its_domain_only(tiny_base, tiny_images, tmp_path):
    both = make(tiny_base, tiny_images, tmp_path / "both").pixels()
    alone = make(tiny_base, tiny_images, tmp_path / "alone", start=1, count=2, batch=1).pixels()
    assert np.abs(both[3:5].astype(int) - alone).max() <= 1  # another batch size: rounding
    assert (both[:3] != make(tiny_base, tiny_images, tmp_path / "seed", stop=1, seed=1).pixels()).any()


def test_every_control_differs_from_the_set_in_what_it_says(tiny_base, tiny_images, reference, tmp_path):
    drawn = make(tiny_base, tiny_images, tmp_path / "self")
    negative = make(tiny_base, tiny_images, tmp_path / "negative", negative_prompt="picture")
    assert (negative.pixels() != drawn.pixels()).any()
    unrelated = make(tiny_base, tiny_images, tmp_path / "unrelated", kind="unrelated")
    assert list(unrelated.table.caption) == list(drawn.table.caption), "fine-tuned under the domain's own caption"
    noise = make(tiny_base, tiny_images, tmp_path / "noise", kind="noise").pixels()
    assert abs(noise.mean() - 127.5) < 3 and noise.shape == drawn.pixels().shape and noise.std() > 70
    real = make(tiny_base, tiny_images, tmp_path / "instrument", reference, kind="instrument")
    assert (real.pixels()[:3] == ImageSet.load(reference).where(concept="ada").pixels()[:3]).all() and set(real.table.source) == {"instrument"}
    mixed = make(tiny_base, tiny_images, tmp_path / "mixed", reference, mixed=1)
    assert list(mixed.table.source[:3]) == ["drawn", "drawn", "instrument"] and (mixed.pixels()[:2] == drawn.pixels()[:2]).all()
    other = make(tiny_base, tiny_images, tmp_path / "another", kind="another", stop=1)
    assert set(other.table.concept) == {"ada"} and len(other) == 3


def test_the_next_round_is_drawn_by_the_tuned_model(tiny_base, tiny_images, tmp_path):
    first = make(tiny_base, tiny_images, tmp_path / "self", stop=1)
    options = FinetuneOptions(images_per_concept=3, steps_per_image=8, lr=0.1, rank=2)
    loop.finetune(tiny_base, first.folder, "self", "test", tmp_path / "models", options, device="cpu")
    second = make(tiny_base, tiny_images, tmp_path / "again", models=tmp_path / "models", stop=1)
    assert (first.pixels() != second.pixels()).any()
    with pytest.raises(InputError, match="has 0 models of 'bob'"):
        make(tiny_base, tiny_images, tmp_path / "bad", models=tmp_path / "models", start=1)


def test_controls_never_use_members_or_held_outs(tiny_base, tiny_images, tmp_path):
    with pytest.raises(InputError, match="share pictures"):
        make(tiny_base, tiny_images, tmp_path / "bad", tiny_images, kind="instrument")
    with pytest.raises(InputError, match="needs --reference"):
        make(tiny_base, tiny_images, tmp_path / "bad", kind="instrument")
    with pytest.raises(InputError, match="leaves them"):
        make(tiny_base, tiny_images, tmp_path / "bad", stop=9)


def test_kid_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(0)

    def sample(n, shift=0.0):
        x = rng.normal(size=(n, 16)) + shift * np.eye(16)[0]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    same = [kernel_distance(sample(8), sample(12)) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20, "zero on average for sets of one distribution"
    x, y = np.eye(2), -np.eye(2)
    # k = (cosine + 1)^3: off-diagonals of each set (0 + 1)^3 = 1; across: (1 + -1)^3 = 0 twice and (0 + 1)^3 = 1 twice
    assert kernel_distance(x, y) == pytest.approx(1 + 1 - 2 * 0.5)
    assert kernel_distance(sample(30), sample(30, 4.0)) > 2 * max(same)
    with pytest.raises(InputError, match="at least two"):
        kernel_distance(x[:1], y)
