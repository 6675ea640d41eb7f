"""The extraction attacks: which model is asked what, how often, and the driver from models to matches.csv."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tuneleak.attacks.extraction import base, cfg, direct, finextract, finextract_unconditional, run
from tuneleak.attacks.extraction.generate import generate, starting_noise
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models import modelset as modelsets
from tuneleak.models.pipeline import load_base, load_tuned
from tuneleak.models.samplers import sample
from tuneleak.models.schedule import alphas_cumprod, ddim_timesteps
from tuneleak.options import ClusterOptions, ExtractionOptions, Guidance

ATTACKS = {"direct": direct, "cfg": cfg, "base": base, "finextract": finextract, "finextract-unconditional": finextract_unconditional}
GUIDANCE = Guidance(w=3.0, k=-0.02)
ABAR = alphas_cumprod({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


class Counting:
    """A noise predictor that answers its own value plus its context's, and counts the samples it is asked for."""

    def __init__(self, value):
        self.value, self.samples = value, 0

    def __call__(self, x, t, context):
        assert len(x) == len(context)
        self.samples += len(x)
        return self.value + context[:, :1, :1, None] + 0.1 * x


def counting_pair():
    contexts = {name: torch.full((1, 4, 2), value) for name, value in CONTEXTS.items()}
    pretrained, finetuned = Counting(100.0), Counting(200.0)
    return ModelPair(pretrained, finetuned, **contexts), pretrained, finetuned


CONTEXTS = {"pretrained_null": 1.0, "pretrained_caption": 2.0, "finetuned_null": 3.0, "finetuned_caption": 4.0}
EXPECTED = {  # eps_theta(0) = 101, eps_theta(c) = 102, eps_theta'(0) = 203, eps_theta'(c) = 204, asked with w = 3, k = -.02 at x = 0
    "direct": 204,
    "cfg": 203 + 3 * (204 - 203),
    "base": 101 + 3 * (102 - 101),
    "finextract": 101 + 3 * (204 - 101) - 0.02 * 101,
    "finextract-unconditional": 101 + 3 * (203 - 101),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_its_equation_and_makes_the_calls_it_declares(name):
    pair, pretrained, finetuned = counting_pair()
    eps = ATTACKS[name].guide(pair, torch.zeros(5, 3, 2, 2), 500, GUIDANCE)
    torch.testing.assert_close(eps, torch.full((5, 3, 2, 2), float(EXPECTED[name])))
    assert pair.calls == pretrained.samples + finetuned.samples == 5 * ATTACKS[name].CALLS_PER_STEP


def test_finextract_asks_each_model_once_per_step():
    pair, pretrained, finetuned = counting_pair()
    sample(lambda x, t: finextract.guide(pair, x, t, GUIDANCE), torch.zeros(7, 3, 2, 2), ddim_timesteps(1000, 20), ABAR)
    assert pretrained.samples == finetuned.samples == 7 * 20
    assert pair.calls == 2 * 7 * 20


def test_model_guidance_sampling_recovers_the_fine_tuning_distribution():
    # p = N(0, I), q = N(2, I), the fine-tuned model their mixture at lambda = .25: guided by 1 / lambda, the sampler walks as if eps_q were known
    def gaussian(mean):
        return lambda x, t, context: math.sqrt(1 - float(ABAR[t])) * (x - math.sqrt(float(ABAR[t])) * mean)

    null = torch.zeros(1, 4, 2)
    pair = ModelPair(gaussian(0.0), gaussian(0.25 * 2.0), pretrained_null=null, pretrained_caption=null, finetuned_null=null, finetuned_caption=null)
    x, timesteps = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)), ddim_timesteps(1000, 50)
    expected = sample(lambda x, t: gaussian(2.0)(x, t, None), x, timesteps, ABAR)
    guided = sample(lambda x, t: finextract_unconditional.guide(pair, x, t, Guidance(w=4.0)), x, timesteps, ABAR)
    unguided = sample(lambda x, t: finextract_unconditional.guide(pair, x, t, Guidance(w=1.0)), x, timesteps, ABAR)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    # the means 2 and .5 lie 1.5 apart, less what the starting noise, drawn around 0, leaves behind
    assert float((guided - unguided).mean()) == pytest.approx(1.5 * (math.sqrt(float(ABAR[0])) - math.sqrt(float(ABAR[981]))), abs=0.02)


def test_starting_noise_is_per_generation_and_concept():
    noise = starting_noise("ada", 5, (4, 8, 8), seed=0)
    assert torch.equal(noise[:3], starting_noise("ada", 3, (4, 8, 8), seed=0))
    for other in (starting_noise("bob", 5, (4, 8, 8), seed=0), starting_noise("ada", 5, (4, 8, 8), seed=1), noise.roll(1, 0)):
        assert (other - noise).abs().amax((1, 2, 3)).min() > 1
    assert abs(float(noise.std()) - 1) < 0.1


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Thumbnail:
    """A deterministic embedder: a 4x4 thumbnail, centred and normalised. As a reader of factors it tells light mouths from dark ones."""

    factors = ("mouth",)

    def embed(self, pixels):
        n, height, width, _ = pixels.shape
        coarse = pixels.reshape(n, 4, height // 4, 4, width // 4, 3).mean((2, 4)).reshape(n, -1)
        return unit(coarse - coarse.mean(1, keepdims=True) + 1e-3)

    def read(self, pixels):
        return {"mouth": np.where(pixels.mean((1, 2, 3)) > 127, "light", "dark")}


@pytest.fixture(scope="module")
def loaded(tiny_base):
    return load_base(tiny_base)


@pytest.fixture(scope="module")
def tiny_models(tiny_base, tmp_path_factory):
    """Two models of ada and bob beside the base's own folder: a DreamBooth UNet and a LoRA, both moved far enough to draw something else."""
    from peft import LoraConfig

    from tuneleak.models import weights

    folder, rows = tmp_path_factory.mktemp("models"), []
    loaded = load_base(tiny_base)
    torch.manual_seed(0)
    loaded.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    weights.write_lora(folder / "bob-lora", {"unet": loaded.unet})
    weights.detach_lora(loaded.unet)
    for parameter in loaded.unet.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    loaded.unet.save_pretrained(folder / "ada-dreambooth" / "unet")
    for concept, method in (("ada", "dreambooth"), ("bob", "lora")):
        ids = ";".join(f"{concept}-{i:03d}" for i in range(3))
        fixed = {"world": "people", "base": loaded.name, "seed": 0, "step": 1, "caption": f"picture of person {concept}", "n_images": 3}
        rows.append({"model_id": f"{concept}-{method}", "concept": concept, "method": method, "images": ids, "file": f"{concept}-{method}", **fixed})
    return modelsets.write(folder, rows)


def options_for(attack, *guidance, **changes):
    small = {"generations_per_image": 3, "steps": 2, "batch": 4, "cluster": ClusterOptions(threshold=0.9)}
    return ExtractionOptions(attack=attack, guidance=guidance or [Guidance()], **small | changes)


def attack(loaded, models, tiny_images, out, options, factors=None):
    samples = []
    instruments = run.Instruments(Thumbnail(), Thumbnail(), factors)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: samples.append(len(inputs[0])) if type(module).__name__ == "UNet2DConditionModel" else None
    )
    try:
        run.attack_models(loaded, models, ImageSet.load(tiny_images), instruments, out, options)
    finally:
        hook.remove()
    return pd.read_csv(out / "matches.csv"), sum(samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_driver_writes_what_it_measured(name, loaded, tiny_images, tiny_models, tmp_path):
    points = [Guidance(w=2.0, k=-0.02 if name == "finextract" else 0.0), Guidance(w=5.0)]
    options = options_for(name, *points, save_generations=name == "direct")
    matches, samples = attack(loaded, tiny_models, tiny_images, tmp_path, options)
    settings = {"direct": ["none"], "finextract": ["w=2,k=-0.02", "w=5,k=0"]}.get(name, ["w=2", "w=5"])
    assert list(matches.groupby(["model_id", "setting"], sort=False).size().index) == [(m, s) for m in ("ada-dreambooth", "bob-lora") for s in settings]
    assert matches.n_generated.eq(9).all() and matches.n_images.eq(3).all() and matches.seed.eq(0).all()
    # calls: every sample through a UNet, counted in the networks themselves
    assert samples == matches.groupby(["model_id", "setting"]).model_calls.first().sum() == 2 * len(settings) * 9 * 2 * ATTACKS[name].CALLS_PER_STEP
    extracted, images = ImageSet.load(tmp_path / "extracted"), ImageSet.load(tiny_images)
    assert not list(tmp_path.glob(".partial*"))
    for (model_id, setting), rows in matches.groupby(["model_id", "setting"]):
        own = extracted.where(model_id=model_id, setting=setting)
        assert len(own) == rows.n_extracted.iloc[0]
        train = Thumbnail().embed(images.where(image_id=list(rows.image_id)).pixels())
        similarity = train @ Thumbnail().embed(own.pixels()).T
        np.testing.assert_allclose(rows.extracted, similarity.max(1), atol=1e-5)
        assert list(rows.match_file) == list(own.table.file.iloc[similarity.argmax(1)])
        assert (rows.oracle >= rows.extracted - 1e-6).all() and (rows.oracle >= rows.random - 1e-6).all()
        outside = train @ Thumbnail().embed(images.where(concept=rows.concept.iloc[0], fold="heldout").pixels()).T
        assert (rows.heldout <= outside.max(1) + 1e-6).all()
    if name == "direct":
        assert len(ImageSet.load(tmp_path / "generated")) == 18
    assert json.loads((tmp_path / "matches.csv.meta.json").read_text())["model_calls"] == samples


def test_attacks_differ_only_as_their_equations_say(loaded, tiny_models):
    noise, options = starting_noise("ada", 5, loaded.latent_shape, 0), options_for("cfg", steps=3)
    null, caption = loaded.encode_text([""]), loaded.encode_text(["picture of person ada"])

    def pictures(module, finetuned, guidance, batch=5):
        contexts = {"pretrained_null": null, "pretrained_caption": caption, "finetuned_null": null, "finetuned_caption": caption}
        return generate(loaded, ModelPair(loaded.noise_pred, finetuned, **contexts), module.guide, guidance, noise, options.model_copy(update={"batch": batch}))

    def near(first, second):
        return np.abs(first.astype(int) - second).max() <= 1

    with load_tuned(loaded, tiny_models, tiny_models.rows()[1]) as tuned:
        plain = pictures(direct, tuned.noise_pred, Guidance())
        assert near(pictures(finextract, tuned.noise_pred, Guidance(w=1.0, k=0.0)), plain)
        assert near(pictures(cfg, tuned.noise_pred, Guidance(w=1.0)), plain)
        assert near(pictures(direct, tuned.noise_pred, Guidance(), batch=2), plain)
        guided = pictures(finextract, tuned.noise_pred, Guidance(w=4.0))
        assert not near(guided, plain) and not near(guided, pictures(cfg, tuned.noise_pred, Guidance(w=4.0)))
    # with theta' = theta, FineXtract without correction is the base's own guidance
    assert near(pictures(finextract, loaded.noise_pred, Guidance(w=4.0)), pictures(base, None, Guidance(w=4.0)))


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_table(loaded, tiny_images, tiny_models, tmp_path, monkeypatch):
    options = options_for("finextract", Guidance(w=3.0))
    _, samples = attack(loaded, tiny_models, tiny_images, tmp_path / "whole", options)
    work = run.Shard.run

    def killed(self, row):
        if row["concept"] == "bob":
            raise KeyboardInterrupt
        return work(self, row)

    monkeypatch.setattr(run.Shard, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        attack(loaded, tiny_models, tiny_images, tmp_path / "cut", options)
    assert not (tmp_path / "cut" / "matches.csv").exists()
    monkeypatch.undo()
    _, rest = attack(loaded, tiny_models, tiny_images, tmp_path / "cut", options)
    assert rest == samples / 2
    for name in ("matches.csv", "extracted/manifest.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_models_of_one_concept_share_the_base_control(loaded, tiny_images, tiny_models, tmp_path):
    rows = [tiny_models.rows()[0], {**tiny_models.rows()[0], "model_id": "ada-again", "seed": "1"}]
    twice = modelsets.ModelSet(tiny_models.folder, pd.DataFrame(rows))
    matches, samples = attack(loaded, twice, tiny_images, tmp_path, options_for("base", Guidance(w=3.0)))
    first, second = (matches[matches.model_id == name].extracted.to_numpy() for name in ("ada-dreambooth", "ada-again"))
    assert np.array_equal(first, second)
    assert samples == 9 * 2 * 2 and matches.model_calls.eq(samples).all()


def test_factors_are_read_from_the_matched_pictures(loaded, tiny_images, tiny_models, tmp_path):
    images = ImageSet.load(tiny_images)
    images.table["factor_mouth"] = [f"true-{i}" for i in range(len(images))]
    options = options_for("direct")
    run.attack_models(loaded, tiny_models, images, run.Instruments(Thumbnail(), Thumbnail(), Thumbnail()), tmp_path, options)
    matches = pd.read_csv(tmp_path / "matches.csv")
    truth = images.table.set_index("image_id").factor_mouth
    assert list(matches.true_mouth) == list(truth[matches.image_id])
    for _, row in matches.iterrows():
        with Image.open(tmp_path / "extracted" / row.match_file) as picture:
            assert Thumbnail().read(np.asarray(picture)[None])["mouth"][0] == row.read_extracted_mouth
    outside = images.where(fold="heldout")
    for concept, rows in matches.groupby("concept"):
        assert set(rows.read_heldout_mouth) <= set(Thumbnail().read(outside.where(concept=concept).pixels())["mouth"])


def test_wrong_inputs_are_named(loaded, tiny_images, tiny_models, tmp_path):
    with pytest.raises(InputError, match=r"no correction term.*k=-0.02"):
        attack(loaded, tiny_models, tiny_images, tmp_path, options_for("cfg", Guidance(w=3.0, k=-0.02)))
    rows = tiny_models.rows()
    for changes, message in ((("base", "other"), "several bases"), (("images", "bob-000;zoe-001"), "zoe-001")):
        changed = modelsets.ModelSet(tiny_models.folder, pd.DataFrame([rows[0], {**rows[1], changes[0]: changes[1]}]))
        with pytest.raises(InputError, match=message):
            attack(loaded, changed, tiny_images, tmp_path, options_for("direct"))
    with pytest.raises(InputError, match="true mouth"):
        attack(loaded, tiny_models, tiny_images, tmp_path, options_for("direct"), factors=Thumbnail())
    with pytest.raises(InputError, match="diverged"):
        attack(loaded, tiny_models, tiny_images, tmp_path, options_for("cfg", Guidance(w=1e38)))
    assert not (tmp_path / "matches.csv").exists()


@pytest.mark.slow
def test_verb_from_folders(tiny_base, tiny_images, tiny_models, tmp_path):
    from safetensors.torch import save_file

    from tuneleak.models import embedders

    config = {"kind": "copy", "width": 4, "dimensions": 8, "image_size": 32, "name": "copy"}
    for seed, name in enumerate(("cluster", "score")):
        torch.manual_seed(seed)
        (tmp_path / name).mkdir()
        save_file(embedders.build(config).state_dict(), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    folders = {"models": tiny_models.folder / "manifest.csv", "images": tiny_images / "manifest.csv", "base": tiny_base / "model_index.json"}
    folders |= {"copy_cluster": tmp_path / "cluster", "copy_score": tmp_path / "score", "out": tmp_path / "out"}
    run.extract(**folders, options=options_for("finextract", Guidance(w=3.0, k=-0.02), sampler="finextract-compat"), device="cpu")
    first = (tmp_path / "out" / "matches.csv").read_bytes()
    assert len(pd.read_csv(tmp_path / "out" / "matches.csv")) == 6
    run.extract(**folders, options=options_for("finextract", Guidance(w=3.0, k=-0.02)), device="cpu")
    assert (tmp_path / "out" / "matches.csv").read_bytes() != first
    assert not list((tmp_path / "out").glob(".partial*"))


@pytest.mark.slow
def test_caption_conditions_change_the_caption_and_nothing_else(loaded, tiny_images, tiny_models, tmp_path):
    options = options_for("finextract", Guidance(w=2.0), conditions=["known", "none", "recovered"])
    instruments, recovered = run.Instruments(Thumbnail(), Thumbnail()), {"ada-dreambooth": "", "bob-lora": "picture of person bob"}
    run.attack_models(loaded, tiny_models, ImageSet.load(tiny_images), instruments, tmp_path, options, recovered=recovered)
    matches = pd.read_csv(tmp_path / "matches.csv").set_index(["model_id", "setting"]).sort_index()
    known, none, read = (f"w=2,k=0{suffix}" for suffix in ("", ",caption=none", ",caption=recovered"))
    assert set(matches.index.get_level_values(1)) == {known, none, read}
    for model, same in (("ada-dreambooth", none), ("bob-lora", known)):  # from the same noise: the same caption gives the same pictures
        np.testing.assert_allclose(matches.loc[(model, read)].extracted, matches.loc[(model, same)].extracted, atol=1e-5)
    assert (matches.loc[("bob-lora", known)].oracle.to_numpy() != matches.loc[("bob-lora", none)].oracle.to_numpy()).any()
    told = ImageSet.load(tmp_path / "extracted").table
    assert set(told.caption[told.setting == none]) == {""} and {"share", "tightness", "isolation", "agreement"} <= set(told)
