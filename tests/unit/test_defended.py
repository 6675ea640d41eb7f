"""Models under defences: private training per person, DPAgg-TI of one person, shadows, and the shaking of what was released."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tuneleak import runtime
from tuneleak.attacks.membership import shadows
from tuneleak.attacks.membership.query import Pictures, Query
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import aggregate, defended, many, mean_features, methods, private, shaken
from tuneleak.models import batched_lora, weightset
from tuneleak.models.modelset import ModelSet, image_ids
from tuneleak.models.pipeline import load_base, load_tuned
from tuneleak.options import AggregateOptions, CollectOptions, FinetuneOptions, MeanFeaturesOptions, PrivateFinetuneOptions, TransformOptions
from tuneleak.privacy import gradients, mechanism, release
from tuneleak.studies.defences import Defence, FinetuneDefendedOptions, PrivateDefence, ShadowOptions, ShakeDefendedOptions

RECIPE = FinetuneOptions(method="lora", images_per_concept=3, steps_per_image=2, batch=2, rank=2, alpha=2, lr=1e-2, target_modules=["to_q", "to_v"])
TRAINING = {"steps": 2, "multiplicity": 2, "lr": 1e-2}
ROWS = [
    Defence(name="none"),
    Defence(name="gauge", transform=TransformOptions(kind="gauge", strength=10)),
    Defence(name="dp-10", private=PrivateDefence(epsilon=10, **TRAINING)),
    Defence(name="dp-person-10", private=PrivateDefence(epsilon=10, unit="person", delta=1e-5, images=4, **TRAINING)),
    Defence(name="dpagg-1", aggregate={"privacy": {"epsilon": 1, "delta": 1e-3}, "caption_template": "picture of person {}", "steps": 2, "draws": 2}),
]


@pytest.fixture(scope="module")
def made(tiny_base, tiny_images, tmp_path_factory):
    out = tmp_path_factory.mktemp("defended") / "models"
    arguments = {"base": tiny_base, "images": tiny_images, "world": "w", "split": "test", "start": 0, "stop": 1, "device": "cpu"}
    defended.finetune_defended(out=out, options=FinetuneDefendedOptions(recipe=RECIPE, defences=ROWS), **arguments)
    return out, arguments


def test_one_set_holds_every_defence(made, tiny_base):
    models = ModelSet.load(made[0])
    assert list(models.table.defence) == [item.name for item in ROWS] and set(models.table.method) == {"lora"} and models.table.model_id.is_unique
    assert [len(image_ids(row)) for row in models.rows()] == [3, 3, 3, 4, 3]
    base = load_base(tiny_base)
    x, context = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(0)), None
    said = {}
    for row in models.rows():
        with load_tuned(base, models, row) as tuned:
            context = tuned.encode_text([row["caption"]])
            said[row["defence"]] = tuned.noise_pred(x, 500, context)
    plain = base.noise_pred(x, 500, base.encode_text([models.table.caption[0]]))
    assert torch.allclose(said["none"], said["gauge"], atol=1e-4)  # other factors of the same update
    assert all(not torch.allclose(said[name], plain, atol=1e-5) for name in said)


def test_what_was_promised_is_written_down(made):
    table = pd.read_csv(made[0] / "privacy.csv").set_index("defence")
    assert list(table.index) == ["dp-10", "dp-person-10", "dpagg-1"] and list(table.unit) == ["image", "person", "image"]
    image, person, words = (table.loc[name] for name in table.index)
    # every picture takes part in both steps: two Gaussian steps are one with sigma / sqrt 2, and sigma is what the budget asks for
    assert image.noise_multiplier == pytest.approx(release.noise_multiplier(10, 1e-3) * math.sqrt(2)) and image.epsilon == pytest.approx(10, rel=1e-4)
    assert image.person_epsilon == pytest.approx(3 * image.epsilon) and image.person_delta > image.delta
    assert (person.person_epsilon, person.person_delta) == (person.epsilon, person.delta) and person.noise_multiplier > image.noise_multiplier
    assert words.noise_multiplier == pytest.approx(release.noise_multiplier(1, 1e-3)) and words.steps == 1
    models = ModelSet.load(made[0])
    record = json.loads((models.path(models.rows()[3]) / private.RECORD).read_text())
    assert "For one person with all 4 pictures" in record["statement"] and record["unit"] == "person"


def test_a_second_run_makes_the_same_models_and_drops_others(made):
    out, arguments = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors") if "dp-person" not in str(path)}
    options = FinetuneDefendedOptions(recipe=RECIPE, defences=[item for item in ROWS if item.name != "dp-person-10"])
    copy = out.parent / "copy"
    shutil.copytree(out, copy)
    defended.finetune_defended(out=copy, options=options, **arguments)
    assert not list(copy.glob("*dp-person-10*")) and len(ModelSet.load(copy)) == 4
    for path in before:
        first, second = load_file(path), load_file(copy / path.relative_to(out))  # the order of names in a header is not fixed
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_person_is_clipped_as_one(tiny_base, tiny_images):
    """The share of a person in the sum is the mean gradient over their pictures and draws, of length 1 at most, whatever their number."""
    base, pictures = load_base(tiny_base), ImageSet.load(tiny_images).where(concept="cyd", fold="train")
    options = PrivateDefence(unit="person", multiplicity=2, clip=1e-6).options(RECIPE.model_copy(update={"images_per_concept": 4}))
    assert (options.privacy.public_size, options.privacy.expected_batch, options.privacy.multiplicity) == (1, 1, 8)
    network, parameters, _, _ = private.prepare(base, options, 0)
    try:
        data = defended.PersonRecords(base, pictures, options)
        random = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
        noise, timesteps = torch.randn(8, *base.latent_shape, generator=random), torch.randint(1000, (8,), generator=random)
        errors = data.errors_of(data.pictures_of(torch.zeros(1, dtype=torch.long), 8), noise, timesteps)
        mean = torch.cat([part.flatten() for part in torch.autograd.grad(errors(network).mean(), parameters)])
        sums = gradients.make("hooks", network, parameters)
        clipped = torch.cat([part.flatten() for part in sums.clipped(errors, 1, options.privacy.clip)[0]]).detach()
        sums.close()
        assert len(data) == 1 and float(clipped.norm()) == pytest.approx(1, abs=1e-4)
        torch.testing.assert_close(clipped, mean / mean.norm(), atol=1e-4, rtol=1e-3)
    finally:
        private.restore(base, options)
    assert methods.trainable({"unet": base.unet}) == []


def test_coins_decide_who_is_in(tiny_images):
    pool = ImageSet.load(tiny_images).where(concept="cyd", fold="train")
    inside = np.array([[name in set(many.by_coin(pool, "cyd", seed).table.image_id) for name in pool.table.image_id] for seed in range(300)])
    assert inside.any(1).all() and inside.mean() == pytest.approx(8 / 15, abs=0.05)  # of 16 outcomes the empty one is tossed again
    assert abs(np.corrcoef(inside.T)[np.triu_indices(4, 1)]).max() < 0.3
    assert list(many.by_coin(pool, "cyd", 7).table.image_id) == list(many.by_coin(pool, "cyd", 7).table.image_id)


@pytest.fixture(scope="module")
def many_loras(tiny_base, tiny_images, tmp_path_factory):
    out = tmp_path_factory.mktemp("shadows") / "models"
    recipe = RECIPE.model_copy(update={"seeds": [0, 1, 2, 3]})
    many.collect(tiny_base, tiny_images, "w", out, CollectOptions(recipe=recipe, coin=True, models_at_once=4), "test", 0, 1, "cpu")
    return out


def test_shadow_losses_are_those_of_one_model_at_a_time(many_loras, tiny_base, tiny_images, tmp_path):
    options = ShadowOptions(
        timesteps=[100, 500], population=3, transforms=[TransformOptions(), TransformOptions(kind="gauge", strength=10)], names=["none", "gauge"]
    )
    shadows.attack(many_loras, tiny_images, tiny_base, tmp_path / "shadows.csv", options, "cpu")
    table = pd.read_csv(tmp_path / "shadows.csv", dtype={"seed": str})
    assert len(table) == 2 * 4 * (4 + 3) and set(table.role) == {"pool", "population"} and not table[table.role == "population"].inside.any()
    wide = table.pivot_table(index=["seed", "image_id"], columns="defence", values="loss")
    np.testing.assert_allclose(wide.none, wide.gauge, rtol=1e-4)
    base, models = load_base(tiny_base), weightset.load([many_loras], load_base(tiny_base))
    mine = table[(table.defence == "none") & (table.seed == "2")]
    assert set(mine[mine.inside == 1].image_id) == set(image_ids(models.table.iloc[2].to_dict()))
    found = ImageSet.load(tiny_images).where(image_id=list(mine.image_id))
    pictures = Pictures(found.table, found.pixels(), base.encode_images, options.seed)
    with batched_lora.BatchedLora(base.unet, models.layers) as lora:
        lora.use(models.chosen([2]))

        def alone(x, t, context):
            return base.predict_noise(base.unet, x, t, context)

        with torch.no_grad():
            query = Query(pictures, list(found.table.caption), alone, base.encode_text, base.alphas_cumprod)
            expected = (query.losses(100) + query.losses(500)) / 2
    np.testing.assert_allclose(mine.set_index("image_id").loc[list(found.table.image_id)].loss, expected.numpy(), rtol=1e-4)


def test_no_two_private_models_share_noise(made, tiny_base, tiny_images, tmp_path, monkeypatch):
    """Released updates minus each other must not be free of noise: methods, rates and bases seed streams of their own, and a secret seeds others."""
    seen = []
    add = mechanism.NoisySum.noised

    def noised(self, sigma, batch, *key):
        seen.append(key)
        return add(self, sigma, batch, *key)

    monkeypatch.setattr(mechanism.NoisySum, "noised", noised)
    attention = RECIPE.model_copy(update={"method": "dreambooth"})
    for number, (recipe, lr) in enumerate([(RECIPE, 1e-3), (RECIPE, 2e-3), (attention, 1e-3)]):
        private = {"epsilon": 10, "steps": 2, "multiplicity": 1, "lr": lr}
        options = FinetuneDefendedOptions(recipe=recipe, defences=[Defence(name="dp-10", private=private)])
        defended.finetune_defended(tiny_base, tiny_images, "w", "test", tmp_path / str(number), options, stop=1, device="cpu")
    assert len(seen) == 6 == len(set(seen))
    options = RECIPE.model_copy(update={"lr": 1e-3})
    public = mechanism.run_key(options, "H1", "a")
    assert public == mechanism.run_key(options.model_copy(update={"checkpoint_every": 7}), "H1", "a") != mechanism.run_key(options, "H2", "a")
    monkeypatch.setenv(mechanism.SECRET, "long and random")
    secret = mechanism.run_key(options, "H1", "a")
    assert secret[:3] == public and "random" not in str(secret) and len(secret) == 5
    one, other = (mechanism.run_key(options, "H1", "a", pictures=found) for found in (["x", "y"], ["x"]))
    assert one != other and one == mechanism.run_key(options, "H1", "a", pictures=["y", "x"])
    (tmp_path / "unet").write_text("of another base of this name")
    assert mechanism.run_key(options, "H1", "a", pictures=["x"], networks=[tmp_path / "unet"]) != other
    monkeypatch.delenv(mechanism.SECRET)
    assert (
        mechanism.run_key(options, "H1", "a", pictures=["x"], networks=[tmp_path / "unet"]) == public
    )  # noise that anybody can compute must not tell who took part


def test_secret_randomness_is_uniform_gaussian_and_nobody_elses(monkeypatch):
    from scipy import stats

    public = mechanism.gaussian((3,), "a", 1)
    assert torch.equal(public, torch.randn(3, generator=runtime.generator("a", 1)))
    monkeypatch.setenv(mechanism.SECRET, "long and random")
    first, again, other = mechanism.gaussian((40_001,), "a", 1), mechanism.gaussian((40_001,), "a", 1), mechanism.gaussian((40_001,), "a", 2)
    assert torch.equal(first, again) and abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.02
    assert stats.kstest(first.numpy(), "norm").pvalue > 1e-3 and stats.kstest(mechanism.uniform(40_000, "a").numpy(), "uniform").pvalue > 1e-3
    assert mechanism.gaussian((2, 3), "a", 1, dtype=torch.float64).shape == (2, 3) and len(mechanism.uniform(0, "a")) == 0
    assert np.array_equal(mechanism._secret_uniform(10, ("a",), chunk=4)[:4], mechanism._secret_uniform(4, ("a",), chunk=4))
    monkeypatch.setenv(mechanism.SECRET, "another")
    assert not torch.equal(first, mechanism.gaussian((40_001,), "a", 1))


def test_steps_made_without_the_secret_are_not_continued_with_it(tiny_base, tiny_images, monkeypatch):
    base, pictures = load_base(tiny_base), ImageSet.load(tiny_images)
    item = Defence(name="dp-10", private={"epsilon": 10, "steps": 2})
    digests = []
    for secret in ("", "long and random", "another one"):
        monkeypatch.setenv(mechanism.SECRET, secret)
        found = [private._digest(base, pictures, PrivateFinetuneOptions()), aggregate._digest(base, pictures, AggregateOptions())]
        found += [defended._digest(base, pictures, item, RECIPE), mean_features._digest(pictures, tiny_base / "vae", MeanFeaturesOptions(), base.device)]
        digests.append(found)
    for found in zip(*digests, strict=True):
        assert len(set(found)) == 3
    assert mean_features._networks(tiny_base / "vae") != mean_features._networks(tiny_base / "unet")


def test_the_shaken_are_asked_about_the_owners_pictures(made, tiny_base, tiny_images, tmp_path):
    out, _ = made
    recipe = RECIPE.model_copy(update={"images_per_concept": 2, "steps_per_image": 1})
    options = ShakeDefendedOptions(defences=["none", "dp-10"], synthesize={"count": 2, "steps": 2}, recipe=recipe)
    shaken.shake_defended(out, tiny_images, tiny_base, "w", tmp_path / "shaken", options, stop=1, device="cpu")
    models, released = ModelSet.load(tmp_path / "shaken"), ModelSet.load(out)
    assert list(models.table.defence) == ["none", "dp-10"]
    for row in models.rows():
        owner = released.where(defence=row["defence"]).rows()[0]
        assert row["images"] == owner["images"] and row["caption"] == owner["caption"]
        before, after = (
            weightset._read(ModelSet(one.folder, one.table[one.table.defence == row["defence"]]), load_base(tiny_base)) for one in (released, models)
        )
        name = before.layers[0]
        moved = (weightset.update(after.pairs[name]) - weightset.update(before.pairs[name])).norm()
        assert 0 < float(moved) < 20 * float(weightset.update(before.pairs[name]).norm() + 1)
    with pytest.raises(InputError, match="under the defence 'cutout'"):
        shaken.shake_defended(out, tiny_images, tiny_base, "w", tmp_path / "other", options.model_copy(update={"defences": ["cutout"]}), stop=1, device="cpu")
