"""The sweep, the choice of a weight without training data, and what evaluation makes of them, against numbers computed by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak.attacks.extraction import criteria, finextract_unconditional, sweep
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.errors import InputError
from tuneleak.finetune import variants
from tuneleak.metrics import ablations
from tuneleak.models import embedders, samplers
from tuneleak.models.schedule import alphas_cumprod, ddim_timesteps
from tuneleak.options import (
    AblationEvaluateOptions,
    AblationFigureOptions,
    ClusterOptions,
    FinetuneOptions,
    Guidance,
    SweepOptions,
    Variant,
    VariantsOptions,
)
from tuneleak.report import figures_ablations, rows

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_noise_norm_of_a_known_gaussian():
    """Data N(0, v I) walked exactly: x_t has variance a v + 1 - a, and eps_hat = sqrt(1 - a) x_t / (a v + 1 - a) the mean square (1 - a) / (a v + 1 - a)."""
    abar, v = alphas_cumprod(SD), 0.05

    def exact(pair, x, t, guidance):
        a = float(abar[t])
        return math.sqrt(1 - a) * x / (a * v + 1 - a)

    steps = ddim_timesteps(1000, 20)
    start = float(abar[steps[0][0]])
    recorder = criteria.NoiseNorm(exact, 20)
    x_T = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * math.sqrt(start * v + 1 - start)
    samplers.sample(lambda x, t: recorder(None, x, t, None), x_T, steps, abar)
    expected = np.mean([(1 - float(abar[t])) / (float(abar[t]) * v + 1 - float(abar[t])) for t, _ in steps[:10]])
    assert recorder.value == pytest.approx(expected, rel=0.05)


def test_noise_norm_prefers_the_weight_that_undoes_the_mixture():
    """theta' = (1 - lambda) theta + lambda q with narrow q at every timestep: 1 / lambda gives a norm near 1, weights far from it do not."""
    abar, steps = alphas_cumprod(SD), ddim_timesteps(1000, 20)

    def gaussian(variance):
        return lambda x, t: math.sqrt(1 - float(abar[t])) * x / (float(abar[t]) * variance + 1 - float(abar[t]))

    wide, narrow = gaussian(1.0), gaussian(0.01)
    null = torch.zeros(1, 1, 1)
    mixed = lambda x, t, c: 0.75 * wide(x, t) + 0.25 * narrow(x, t)  # noqa: E731
    pair = ModelPair(lambda x, t, c: wide(x, t), mixed, pretrained_null=null, pretrained_caption=null, finetuned_null=null, finetuned_caption=null)
    x_T, norms, weights = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)), [], (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    for w in weights:
        recorder = criteria.NoiseNorm(finextract_unconditional.guide, 20)
        samplers.sample(lambda x, t, recorder=recorder, w=w: recorder(pair, x, t, Guidance(w=w)), x_T, steps, abar)
        norms.append(recorder.value)
    assert weights[criteria.choose("noise-norm", norms, [0.0] * 6)] in (2.0, 4.0)
    assert abs(math.log(norms[3])) < 0.35 and abs(math.log(norms[-1])) > abs(math.log(norms[3]))


def test_agreement_is_the_mean_nearest_similarity():
    similarities = [[0, 0.9, 0.1], [0.9, 0, 0.4], [0.1, 0.4, 0]]
    assert criteria.agreement(similarities) == pytest.approx((0.9 + 0.9 + 0.4) / 3)
    assert criteria.choose("agreement", [1, 1, 1], [0.2, 0.8, 0.8]) == 1 and math.isnan(criteria.agreement([[0.0]]))


@pytest.fixture(scope="module")
def swept(tiny_base, tiny_images, tmp_path_factory):
    """Two tiny variants trained and swept: the folder of matches.csv and the sweep's options."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("swept")
    config = {"kind": "copy", "width": 4, "dimensions": 8, "image_size": 32, "name": "copy"}
    (folder / "copy").mkdir()
    save_file(embedders.build(config).state_dict(), folder / "copy" / "model.safetensors")
    (folder / "copy" / "config.json").write_text(json.dumps(config))
    recipe = FinetuneOptions(method="lora", images_per_concept=2, steps_per_image=1, batch=2, rank=2, lr=1e-2)
    options = VariantsOptions(recipe=recipe, variants=[Variant(name="reference"), Variant(name="flips", change={"augment": "flip"})])
    variants.finetune_variants(tiny_base, tiny_images, "w", "test", folder / "models", options, 0, 2, "cpu")
    options = SweepOptions(
        guidance=[Guidance(w=3.0), Guidance(w=1.0)], only_first=["flips"], generations_per_image=3, fewer_generations=[1], steps=2, other_steps=[3],
        thresholds=[0.9], cluster=ClusterOptions(), control_draws=2,
    )  # fmt: skip
    arguments = {"models": folder / "models", "images": tiny_images, "base": tiny_base, "copy_cluster": folder / "copy", "copy_score": folder / "copy"}
    sweep.sweep(**arguments, out=folder / "out", options=options, device="cpu")
    return folder, arguments, options


def test_a_sweep_has_every_setting_once(swept):
    folder, _, _ = swept
    table = pd.read_csv(folder / "out" / "matches.csv")
    counts = table.groupby(["defence", "setting"]).size().to_dict()
    assert counts == dict.fromkeys(
        [
            ("reference", "w=3,k=0"),
            ("reference", "w=1,k=0"),
            ("flips", "w=3,k=0"),
            ("generations-1", "w=3,k=0"),
            ("sampler-3", "w=3,k=0"),
            ("threshold-0.9", "w=3,k=0"),
        ],
        4,
    )
    generated = table.groupby("defence").n_generated.first()
    assert generated["reference"] == 6 and generated["generations-1"] == 2 and generated["threshold-0.9"] == 6
    assert table[table.defence == "threshold-0.9"].threshold.ge(0.9).all()  # where it starts; it rises if there are fewer than N0 cliques
    assert table[table.defence == "generations-1"].noise_norm.isna().all() and table[table.defence == "reference"].noise_norm.notna().all()
    assert (table.oracle >= table.extracted - 1e-6).all()
    first = table[table.defence.isin(["generations-1", "reference"]) & (table.setting == "w=3,k=0")].pivot(index="image_id", columns="defence", values="oracle")
    assert (first["reference"] >= first["generations-1"] - 1e-6).all()  # the fewer are the first of the more
    # six generations of two steps and two calls under two weights, one weight for flips, three steps once; for each of two concepts
    assert json.loads((folder / "out" / "matches.csv.meta.json").read_text())["model_calls"] == 2 * (6 * 4 * 3 + 6 * 6)


def test_a_name_that_is_used_twice_is_refused(swept, tmp_path):
    matches = str(swept[0] / "out" / "matches.csv")
    with pytest.raises(InputError, match="has two scores of"):
        ablations.evaluate([matches, matches], tmp_path / "metrics.csv", AblationEvaluateOptions(bootstrap=50))


def test_figures_show_every_variant_at_the_frozen_guidance(tmp_path):
    """The grid begins below the frozen weight, where the reference is better: it must not stand there beside variants at the frozen one."""
    table = made_up({"reference": 1.0, "flips": 4.0, "steps-80": 2.0}, extra=("steps-80",))
    frozen = table.setting == "w=4,k=0"
    table = pd.concat(
        [table[frozen & (table.defence != "flips")], table[table.defence == "flips"].assign(setting="w=4,k=0"), table[~frozen & (table.defence != "flips")]]
    )
    found = evaluated(table, tmp_path)
    shown = figures_ablations._at_frozen(found[(found.control == "") & (found.bound == "")])
    assert dict(zip(shown.defence, shown.guidance, strict=True)) == dict.fromkeys(["flips", "reference", "steps-80"], "w=4,k=0")
    variants = [Variant(name="reference"), Variant(name="steps-80", axis="steps", value=80)]
    placed = figures_ablations._placed(shown, AblationFigureOptions(recipe=FinetuneOptions(steps_per_image=40), variants=variants))
    assert dict(zip(placed.defence, placed.place, strict=True)) == {"reference": 40, "steps-80": 80}


def panels(table, options, tmp_path, monkeypatch):
    """What the figure of ablations shows in each panel: {label of the x axis: (ticks, rings)}, and the remarks."""
    kept = []
    monkeypatch.setattr(figures_ablations.style, "save", lambda figure, out, name: kept.append(figure))
    figures_ablations.ablations(table[(table.control == "") & (table.bound == "")], options, tmp_path)
    shown = {}
    for axes in kept[0].axes:
        rings = [tuple(line.get_xdata()) for line in axes.lines if line.get_label() == "reference"]
        shown[axes.get_xlabel()] = list(axes.get_xticks()), rings
    return shown, [text.get_text() for axes in kept[0].axes for text in axes.texts]


def test_the_reference_stands_beside_what_the_attack_varies(tmp_path, monkeypatch):
    """A threshold and a number of generations, one each: without the reference a panel of them would have nothing to compare."""
    found = evaluated(made_up({"reference": 4.0}), tmp_path)
    score = found[(found.metric == "AS") & (found.defence == "reference") & (found.attack == "finextract") & (found.control == "") & (found.bound == "")]
    made = [score.head(1).assign(defence=name, value=value) for name, value in (("threshold-0.6", 0.3), ("generations-2", 0.2))]
    less = [part.assign(defence=part.defence + "-minus-reference") for part in made]
    table = pd.concat([found, *made, *less], ignore_index=True)
    options = AblationFigureOptions(variants=[Variant(name="reference")], generations_per_image=5, threshold=0.5)
    shown, remarks = panels(table, options, tmp_path, monkeypatch)
    assert shown["clustering threshold"] == ([0.5, 0.6], [(0.5,)]) and shown["generations per picture"] == ([2, 5], [(5,)]) and not remarks
    shown, remarks = panels(table[table.defence != "reference"], options, tmp_path, monkeypatch)
    assert "clustering threshold" not in shown
    (told,) = [text for text in remarks if text.startswith("clustering threshold")]
    row = made[0].iloc[0]
    assert told.endswith(f"0.6 alone: 0.300 [{row.ci_low:.3f}, {row.ci_high:.3f}]")


def test_a_sweep_evaluates_and_draws(swept, tmp_path):
    folder, _, _ = swept
    options = AblationEvaluateOptions(bootstrap=50, steps={"reference": 1.0})
    matches = [folder / "out" / "matches.csv"]
    ablations.evaluate(matches, tmp_path / "metrics.csv", options, tuning=matches)
    table = rows.read_metrics(tmp_path / "metrics.csv")
    assert set(table.system) == {"finextract-ablations"} and {"flips-minus-reference", "sampler-3-minus-reference"} <= set(table.defence)
    named = AblationFigureOptions(variants=[Variant(name="reference"), Variant(name="flips")])
    figures_ablations.figures(tmp_path / "metrics.csv", tmp_path / "drawn", named)
    assert {path.name for path in (tmp_path / "drawn").glob("*.pdf")} == {"ablations.pdf", "defences.pdf"}


def made_up(bests, extra=(), seed=0, concepts=10, weights=(0.5, 1.0, 2.0, 4.0, 8.0)):
    """A sweep whose AS falls by .1 per doubling of w away from `bests[variant]`, by concept and picture exactly; norms are 1 at the reference's best."""
    shifts, made = np.random.default_rng(seed).normal(0, 0.02, concepts), []
    for variant, best in bests.items():
        for concept in range(concepts):
            for w in weights if variant in ("reference", *extra) else weights[:1]:
                height = 0.6 - 0.1 * abs(math.log2(w / best)) + shifts[concept]
                for image in range(3):
                    made.append(
                        {"world": "identities", "base": "H1", "method": "lora", "attack": "finextract", "defence": variant, "setting": f"w={w:g},k=0"}
                        | {"concept": f"c{concept}", "seed": "0", "image_id": f"c{concept}-{image}", "extracted": height, "oracle": height, "random": 0.1}
                        | {"heldout": 0.2, "n_extracted": 3, "threshold": 0.5, "noise_norm": w / bests["reference"], "agreement": 0.9 - 0.1 * abs(math.log2(w))}
                    )
    return pd.DataFrame(made)


def evaluated(table, tmp_path, tuning=None, utility=(), steps=()):
    table.to_csv(tmp_path / "matches.csv", index=False)
    if tuning is not None:
        tuning.to_csv(tmp_path / "tuning.csv", index=False)
    options = AblationEvaluateOptions(bootstrap=200, steps=dict(steps))
    ablations.evaluate([tmp_path / "matches.csv"], tmp_path / "m.csv", options, [tmp_path / "tuning.csv"] if tuning is not None else [], utility)
    return rows.read_metrics(tmp_path / "m.csv")


def only(table, **values):
    found = table[np.logical_and.reduce([table[name] == value for name, value in values.items()])]
    assert len(found) == 1, found
    return found.iloc[0]


def test_the_best_weight_and_its_slope_are_found(tmp_path):
    """Best weights 4, 2 and 1 at 5, 10 and 20 steps: log2 falls by one per doubling."""
    table = made_up({"reference": 2.0, "steps-5": 4.0, "steps-20": 1.0}, extra=("steps-5", "steps-20"))
    found = evaluated(table, tmp_path, steps={"reference": 10, "steps-5": 5, "steps-20": 20})
    for variant, best in (("reference", 2), ("steps-5", 4), ("steps-20", 1)):
        row = only(found, metric="best w", defence=variant)
        assert row.value == row.ci_low == row.ci_high == best
    slope = only(found, metric="best w slope")
    assert slope.value == pytest.approx(-1) and slope.ci_high < 0


def test_variants_are_compared_on_the_pictures_they_share(tmp_path):
    table = made_up({"reference": 2.0, "worse": 2.0})
    table.loc[table.defence == "worse", "extracted"] -= 0.15
    table = table[(table.defence != "worse") | ~table.image_id.str.endswith("-2")]  # trained on two of the three pictures
    table.loc[table.image_id.str.endswith("-2"), "extracted"] = 0.99  # would mislead an unpaired comparison
    row = only(evaluated(table, tmp_path), metric="AS", defence="worse-minus-reference")
    assert row.value == pytest.approx(-0.15) and row.ci_high < 0 and row.n == 20


def test_rules_choose_per_model_and_are_compared_with_the_fixed_weight_of_tune_concepts(tmp_path):
    """The norm is 1 at the reference's best weight, so that rule finds it; agreement is highest at w = 1. Tune concepts have their best at 8."""
    test, tune = made_up({"reference": 2.0}), made_up({"reference": 8.0}, seed=1)
    found = evaluated(test, tmp_path, tuning=tune)
    best = only(found, metric="AS", attack="finextract-noise-norm").value
    assert best == pytest.approx(only(found, metric="AS", attack="finextract", guidance="w=2,k=0", control="", bound="").value)
    assert only(found, metric="AS", attack="finextract-agreement").value == pytest.approx(best - 0.1)
    row = only(found, metric="AS chosen minus fixed")
    assert row.guidance == "noise-norm minus w=8" and row.value == pytest.approx(0.2)  # two doublings from 2 to 8
    assert "AS chosen minus fixed minimum detectable effect" not in set(found.metric), "by as much for all"
    test.loc[test.concept == "c0", "extracted"] *= 0.9
    assert only(evaluated(test, tmp_path, tuning=tune), metric="AS chosen minus fixed minimum detectable effect").value > 0


def test_the_published_weight_is_held_against_the_grid(tmp_path):
    weights = (1.25, 2.5, 5.0, 10.0)  # 5 is published for LoRA
    row = only(evaluated(made_up({"reference": 5.0}, weights=weights), tmp_path), metric="AS published minus grid")
    assert row.value == pytest.approx((0.2 + 0.1 + 0 + 0.1) / 4) and row.guidance == "w=5"


def test_utility_stands_beside_and_is_paired(tmp_path):
    told = [
        {"model_id": f"{defence}{c}", "world": "identities", "base": "H1", "concept": f"c{c}", "method": "lora", "defence": defence, "seed": 0}
        | {"similarity_heldout": 0.5 + 0.01 * c - shift, "kid_heldout": 0.1 + shift, "caption_accuracy": "", "loss_heldout": 0.06}
        for defence, shift in (("reference", 0.0), ("cutout", 0.2)) for c in range(10)
    ]  # fmt: skip
    told.append(told[0] | {"model_id": "base", "method": "", "defence": ""})
    pd.DataFrame(told).to_csv(tmp_path / "utility.csv", index=False)
    found = evaluated(made_up({"reference": 2.0, "cutout": 2.0}), tmp_path, utility=[tmp_path / "utility.csv"])
    row = only(found, metric="similarity", defence="cutout-minus-reference")
    assert row.value == pytest.approx(-0.2) and row.ci_high < 0 and only(found, metric="KID", defence="cutout").value == pytest.approx(0.3)
    assert "caption accuracy" not in set(found.metric)  # no reader of factors, no number
    pd.DataFrame(told).drop(columns="loss_heldout").to_csv(tmp_path / "utility.csv", index=False)
    with pytest.raises(InputError, match="loss_heldout"):
        evaluated(made_up({"reference": 2.0}), tmp_path, utility=[tmp_path / "utility.csv"])


def test_a_run_without_ablations_draws_figures_that_say_so(study, tmp_path):
    figures_ablations.figures(study.metrics, tmp_path, AblationFigureOptions())
    assert {path.name for path in tmp_path.glob("*.png")} == {"ablations.png", "defences.png"}
