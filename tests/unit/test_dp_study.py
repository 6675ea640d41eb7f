"""From sampled pictures to metrics: classifiers, utility, intervals over runs and over pictures."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tuneleak.data import imageset
from tuneleak.errors import InputError
from tuneleak.finetune import sample
from tuneleak.metrics import classifiers, dp_bars, dp_ldm, dp_utility
from tuneleak.models import modelset
from tuneleak.options import DpUtilityOptions, SampleOptions
from tuneleak.report import dp_costs, figures_dp_ldm, record, recorded
from tuneleak.report import rows as report_rows

OPTIONS = DpUtilityOptions(classifiers=["logistic"], classifier_epochs=30, classifier_size=8, distance_samples=1000, replicates=5)
PROMPTS = {"left": "a bar on the left", "right": "a bar on the right"}


def bars(folder, count, draw, noise=20, flip=False, **facts):
    """Pictures of 8 pixels with a bright half, left or right; `flip` tells their labels wrong."""
    random, rows, pixels = np.random.default_rng(draw), [], []
    for index in range(count):
        side = index % 2
        picture = random.integers(0, noise, (8, 8, 3))
        picture[:, side * 4 : side * 4 + 4] += 150
        rows.append({"image_id": f"{folder.name}-{index}", "concept": "bars", "caption": "", "label": ("left", "right")[side != flip], **facts})
        rows[-1].setdefault("fold", "train" if index < count // 2 else "test")
        pixels.append(picture.astype(np.uint8))
    return imageset.write(folder, rows, pixels)


@pytest.mark.parametrize("kind", ["logistic", "cnn", "resnet9", "wrn-40-4"])
def test_every_classifier_learns_what_can_be_learned(kind, tmp_path):
    images = bars(tmp_path / "a", 64, 0)
    labels = (images.table.label == "right").to_numpy().astype(int)
    size, epochs = (8, 2) if kind == "wrn-40-4" else (8, 12)
    network = classifiers.train(kind, images.pixels(), labels, 2, epochs, width=8, batch=16, size=size)
    hits = classifiers.predict(network, bars(tmp_path / "b", 64, 1).pixels(), size) == labels
    assert hits.mean() > (0.4 if kind == "wrn-40-4" else 0.95)  # two passes only show that the large one runs
    again = classifiers.train(kind, images.pixels(), labels, 2, epochs, width=8, batch=16, size=size)
    assert all((a == b).all() for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_classifier_has_the_published_size():
    """WRN-40-4 has 8.9 million weights (Zagoruyko & Komodakis 2016, table 4)."""
    assert sum(parameter.numel() for parameter in classifiers.build("wrn-40-4", 10, 32).parameters()) / 1e6 == pytest.approx(8.9, abs=0.05)


class Mean:
    """An embedder whose features are the mean brightness of the two halves, and noise in between."""

    def __init__(self):
        self.config = {"name": "halves"}

    def embed(self, pixels):
        return np.stack([pixels[:, :, :4].mean((1, 2, 3)), pixels[:, :, 4:].mean((1, 2, 3))], 1)


def test_good_pictures_score_like_real_ones_and_wrong_labels_do_not(tmp_path, monkeypatch):
    from tuneleak.models import embedders

    monkeypatch.setattr(embedders, "load_embedder", lambda folder, device: Mean())
    real = bars(tmp_path / "real", 200, 0)
    facts = {"model_id": "m", "method": "attention", "seed": "0", "fold": ""}
    bars(tmp_path / "good", 100, 1, defence="epsilon=10", **facts)
    bars(tmp_path / "bad", 100, 2, flip=True, defence="epsilon=1", **facts)
    found = {}
    for name, samples in (("real", []), ("good", [tmp_path / "good"]), ("bad", [tmp_path / "bad"])):
        dp_utility.measure(real.folder, "e", "w", "base/H1", tmp_path / f"{name}.csv", OPTIONS, samples=samples)
        found[name] = pd.read_csv(tmp_path / f"{name}.csv", dtype={"image_hits": str}).set_index("metric")
    assert found["good"].value["accuracy logistic"] > 0.95 > 0.05 > found["bad"].value["accuracy logistic"]
    distance = next(name for name in found["good"].index if name.startswith("FD-halves"))
    assert "under 1000" in distance and found["real"].n[distance] == found["good"].n[distance] == 100
    assert found["real"].method.iloc[0] == "real" and len(found["good"].image_hits["accuracy logistic"]) == 100
    dp_ldm.evaluate([tmp_path / f"{name}.csv" for name in found], tmp_path / "metrics.csv", OPTIONS)
    metrics = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False)
    difference = metrics[(metrics.defence == "epsilon=10-minus-epsilon=1") & (metrics.metric == "accuracy logistic")].iloc[0]
    assert difference.ci_low > 0.9 and difference.setting == "interval=images"
    with pytest.raises(InputError, match="measured twice"):
        dp_ldm.evaluate([tmp_path / "good.csv"] * 2, tmp_path / "x.csv", OPTIONS)


def utility(method, defence, values, metric="accuracy cnn"):
    rows = [{"world": "near", "base": "H1", "method": method, "defence": defence, "seed": str(seed), "metric": metric} for seed in range(len(values))]
    return [row | {"block": "", "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "standard_error": 0.05, "n": 1000, "image_hits": ""}
            for row, value in zip(rows, values, strict=True)]  # fmt: skip


def test_with_several_runs_the_run_is_the_unit(tmp_path):
    attention, everything = [0.6, 0.7, 0.8], [0.5, 0.55, 0.75]
    rows = utility("attention", "epsilon=10", attention) + utility("all", "epsilon=10", everything) + utility("base", "epsilon=0", [0.2])
    pd.DataFrame(rows).to_csv(tmp_path / "utility.csv", index=False)
    dp_ldm.evaluate([tmp_path / "utility.csv"], tmp_path / "metrics.csv", OPTIONS)
    table = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False).set_index(["method", "defence"])
    row = table.loc[("attention", "epsilon=10")]
    half = stats.t.ppf(0.975, 2) * np.std(attention, ddof=1) / np.sqrt(3)
    assert row.value == pytest.approx(0.7) and row.ci_high == pytest.approx(0.7 + half, abs=1e-6) and row.setting == "interval=runs" and row.n == 3
    difference = table.loc[("attention-minus-all", "epsilon=10")]
    paired = np.subtract(attention, everything)
    assert difference.value == pytest.approx(paired.mean()) and difference.ci_low == pytest.approx(
        stats.t.interval(0.95, 2, paired.mean(), stats.sem(paired))[0], abs=1e-6
    )
    assert table.loc[("attention-minus-base", "epsilon=10")].value == pytest.approx(0.5)


def models(folder, method, defence, *records):
    """A ModelSet of models without weights, one per seed, each with its record (epsilon, epsilon_pld, noise_multiplier, trained_weights, steps)."""
    facts = {"world": "near", "base": "H1", "concept": "", "method": method, "defence": defence, "step": 0, "caption": "", "n_images": 64, "images": ""}
    rows = [facts | {"model_id": f"m{seed}", "seed": seed, "file": f"m{seed}"} for seed in range(len(records))]
    for row, promised in zip(rows, records, strict=True):
        (folder / row["file"]).mkdir(parents=True)
        names = ("epsilon", "epsilon_pld", "noise_multiplier", "trained_weights", "steps")
        (folder / row["file"] / "privacy.json").write_text(json.dumps(dict(zip(names, promised, strict=True))))
    modelset.write(folder, rows)
    return folder


def test_what_records_promise_is_one_row_per_budget_and_changes_no_other(tiny_base, tmp_path, monkeypatch):
    """Each recipe's table by itself; the rows are what the table said when the evaluation read the records itself."""
    from tuneleak.models import embedders

    monkeypatch.setattr(embedders, "load_embedder", lambda folder, device: Mean())
    real, drawn = bars(tmp_path / "real", 60, 0), {"fold": "", "defence": "epsilon=10"}
    recipes = {
        "attention": [
            models(tmp_path / "a", "attention", "epsilon=10", *[(9.876543219, 9.75, 1.5, 4096, 30)] * 2),
            models(tmp_path / "b", "attention", "epsilon=inf", *[("infinity", "infinity", 0.0, 4096, 30)] * 2),
        ],
        "dp-mepf": [models(tmp_path / "c", "dp-mepf", "epsilon=10", (10, 9.5, 0.25, 12, 1))],
    }
    for method, sets in recipes.items():
        for seed in range(len(recipes)):
            bars(tmp_path / f"{method}-{seed}", 60, 1 + seed, model_id=f"m{seed}", method=method, seed=str(seed), **drawn)
        for name, given in (("with", sets), ("without", [])):
            samples = [tmp_path / f"{method}-{seed}" for seed in range(len(recipes))]
            dp_utility.measure(real.folder, "e", "near", tiny_base, tmp_path / f"{name}-{method}.csv", OPTIONS, samples=samples, models=given)
    for name in ("with", "without"):
        dp_ldm.evaluate([tmp_path / f"{name}-{method}.csv" for method in recipes], tmp_path / name / "metrics.csv", OPTIONS)
    told = pd.read_csv(tmp_path / "with/metrics.csv", dtype=str, keep_default_na=False)
    promised = told.metric.isin(["epsilon spent", "epsilon spent (PLD)", "noise multiplier", "trained weights"])
    columns = ["world", "base", "method", "defence", "metric", "value", "ci_low", "ci_high", "n", "seeds"]
    assert told[promised][columns].to_numpy().tolist() == [
        ["near", "H1", "attention", "epsilon=10", "epsilon spent", "9.876543", "9.876543", "9.876543", "30", "0;1"],
        ["near", "H1", "attention", "epsilon=10", "epsilon spent (PLD)", "9.75", "9.75", "9.75", "30", "0;1"],
        ["near", "H1", "attention", "epsilon=10", "noise multiplier", "1.5", "1.5", "1.5", "30", "0;1"],
        ["near", "H1", "attention", "epsilon=10", "trained weights", "4096.0", "4096.0", "4096.0", "30", "0;1"],
        ["near", "H1", "attention", "epsilon=inf", "noise multiplier", "0.0", "0.0", "0.0", "30", "0;1"],
        ["near", "H1", "attention", "epsilon=inf", "trained weights", "4096.0", "4096.0", "4096.0", "30", "0;1"],
        ["near", "H1", "dp-mepf", "epsilon=10", "epsilon spent", "10.0", "10.0", "10.0", "1", "0"],
        ["near", "H1", "dp-mepf", "epsilon=10", "epsilon spent (PLD)", "9.5", "9.5", "9.5", "1", "0"],
        ["near", "H1", "dp-mepf", "epsilon=10", "noise multiplier", "0.25", "0.25", "0.25", "1", "0"],
        ["near", "H1", "dp-mepf", "epsilon=10", "trained weights", "12.0", "12.0", "12.0", "1", "0"],
    ]
    assert set(told[promised].setting) == set(told[promised].attack) == {""} and set(told[promised].system) == {"dp-ldm"}
    pd.testing.assert_frame_equal(told[~promised], pd.read_csv(tmp_path / "without/metrics.csv", dtype=str, keep_default_na=False))
    assert (tmp_path / "with/bars.csv").read_bytes() == (tmp_path / "without/bars.csv").read_bytes()


def test_models_of_one_budget_that_promise_different_things_are_refused(tmp_path):
    rows = dp_utility.promises(models(tmp_path / "m", "attention", "epsilon=10", (10, 9, 1.5, 4096, 30), (11, 9, 1.5, 4096, 30)))
    pd.DataFrame(rows).reindex(columns=dp_ldm.UTILITY).to_csv(tmp_path / "utility.csv", index=False)
    with pytest.raises(InputError, match=r"differ in epsilon spent \(10, 11\)"):
        dp_ldm.evaluate([tmp_path / "utility.csv"], tmp_path / "metrics.csv", OPTIONS)


def judged(tmp_path, real=0.97, base=0.3, noiseless=0.9, distances=(0.1, 0.3, 0.8)):
    """{bar: row} of bars.csv: without noise two sets of weights were trained (the second worse) and a generator that is none, and does best."""
    rows = utility("real", "", [real]) + utility("real", "", [0.2], "accuracy logistic") + utility("base", "epsilon=0", [base])
    rows += utility("attention", "epsilon=10", [0.99]) + utility("dp-mepf", "epsilon=inf", [0.99])
    if noiseless:
        rows += utility("attention-3-7", "epsilon=inf", [noiseless]) + utility("all", "epsilon=inf", [0.4])
        rows += utility("attention-3-7", "epsilon=inf", [distances[1] + 0.1], "FD-x") + utility("all", "epsilon=inf", [distances[1]], "FD-x")
    rows += utility("real", "", [distances[0]], "FD-x") + utility("base", "epsilon=0", [distances[2]], "FD-x")
    pd.DataFrame(rows).to_csv(tmp_path / "utility.csv", index=False)
    dp_ldm.evaluate([tmp_path / "utility.csv"], tmp_path / "metrics.csv", OPTIONS)
    return pd.read_csv(tmp_path / "bars.csv", keep_default_na=False).set_index("bar")


def test_a_world_that_can_show_something_clears_all_bars(tmp_path):
    found = judged(tmp_path)
    assert list(found.met) == ["met"] * 5 and dp_bars.verdict(found.met) == "all bars met"
    best = found.loc[dp_bars.NOISELESS]
    assert (best.method, best.metric, best.value, best.limit) == ("attention-3-7", "accuracy cnn", 0.9, 0.8)
    assert found.loc[dp_bars.REAL].metric == "accuracy cnn" and found.loc[dp_bars.REAL].ci_high == 1.07
    assert found.loc[dp_bars.FLOOR].method == "all" and list(found.loc[[dp_bars.FLOOR, dp_bars.NEARER]].limit) == [0.1, 0.8]


@pytest.mark.parametrize(
    ("changes", "bar"),
    [
        ({"real": 0.94}, dp_bars.REAL),
        ({"base": 0.51}, dp_bars.BASE),
        ({"noiseless": 0.79}, dp_bars.NOISELESS),
        ({"distances": (0.4, 0.3, 0.8)}, dp_bars.FLOOR),
        ({"distances": (0.1, 0.3, 0.2)}, dp_bars.NEARER),
    ],
)
def test_a_missed_bar_is_said_where_methods_are_compared(tmp_path, changes, bar):
    found = judged(tmp_path, **changes)
    assert list(found.index[found.met == "missed"]) == [bar]
    text = figures_dp_ldm.bars_table(report_rows.read_metrics(tmp_path / "metrics.csv"))
    assert "near style: 1 of 5 bars missed, so differences between methods teach little here" in text
    assert sum(line.endswith(r"missed \\") for line in text.splitlines()) == 1


def test_without_noiseless_training_its_bars_are_not_run(tmp_path):
    found = judged(tmp_path, noiseless=None)
    assert list(found.met) == ["met", "met", "not run", "not run", "not run"] and found.loc[dp_bars.NOISELESS].value == ""
    text = figures_dp_ldm.bars_table(report_rows.read_metrics(tmp_path / "metrics.csv"))
    assert "2 of 5 bars met, 3 not run" in text and r"training without noise teaches &  & n/a & at least .800 & not run" in text


def test_a_killed_sampling_draws_what_is_missing_and_touches_nothing_else(tiny_base, tmp_path, monkeypatch):
    options = SampleOptions(prompts={"a": "picture of person ada", "b": "picture of person bob"}, samples=4, steps=2, guidance_scale=2, batch=1)
    sample.sample_classes(tiny_base, tmp_path / "whole", options, device="cpu")
    out = tmp_path / "out"
    stale = out / "base" / "base-000003.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(next((tmp_path / "whole").glob("base/*000000.png")).read_bytes())  # of other options, once
    (out / "mine.txt").write_text("kept")
    real, calls = sample._latents, []

    def latents(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(sample, "_latents", latents)
    with pytest.raises(KeyboardInterrupt):
        sample.sample_classes(tiny_base, out, options, device="cpu")
    assert not (out / "manifest.csv").exists()
    sample.sample_classes(tiny_base, out, options, device="cpu")
    assert len(calls) == 5, "two before the interruption, one cut short, two after it"
    assert (out / "manifest.csv").read_bytes() == (tmp_path / "whole" / "manifest.csv").read_bytes()
    assert (out / "mine.txt").read_text() == "kept" and not list(out.glob(".drawn-*"))


@pytest.mark.parametrize("batch", [2, 5])
def test_slices_of_the_samples_are_those_of_one_job(tiny_base, tmp_path, batch):
    options = SampleOptions(prompts={"a": "picture of person ada", "b": "picture of person bob"}, samples=7, steps=2, guidance_scale=2, batch=batch)
    sample.sample_classes(tiny_base, tmp_path / "whole", options, device="cpu")
    for start, stop in ((0, 3), (3, 7)):
        sample.sample_classes(tiny_base, tmp_path / f"{start}", options, start=start, stop=stop, device="cpu")
    whole = imageset.ImageSet.load(tmp_path / "whole")
    parts = [imageset.ImageSet.load(tmp_path / name) for name in ("0", "3")]
    together = pd.concat([part.table for part in parts]).set_index("image_id")
    assert sorted(together.index) == sorted(whole.table.image_id) and len(parts[0]) == 3
    for row in whole.table.itertuples():
        pixels = next(part.where(image_id=row.image_id) for part in parts if row.image_id in set(part.table.image_id)).pixels()
        difference = np.abs(pixels.astype(int) - whole.where(image_id=row.image_id).pixels().astype(int)).max()
        assert difference <= 1, "a picture does not depend on which others are drawn with it, but for rounding"
    for start, stop in ((3, 3), (-1, 2), (0, 8), (7, None)):
        with pytest.raises(InputError, match="the slice"):
            sample.sample_classes(tiny_base, tmp_path / "none", options, start=start, stop=stop, device="cpu")


def test_a_model_drawn_in_slices_is_measured_as_one(tmp_path, monkeypatch):
    from tuneleak.models import embedders

    monkeypatch.setattr(embedders, "load_embedder", lambda folder, device: Mean())
    real = bars(tmp_path / "real", 200, 0)
    whole = bars(tmp_path / "drawn", 100, 1, model_id="m", method="attention", seed="0", fold="", defence="epsilon=10")
    pixels = whole.pixels()
    for name, chosen in (("first", slice(0, 30)), ("second", slice(30, 100))):
        imageset.write(tmp_path / name, whole.table[chosen].to_dict("records"), pixels[chosen])
    for name, samples in (("one", ["drawn"]), ("two", ["first", "second"])):
        dp_utility.measure(real.folder, "e", "w", "base/H1", tmp_path / f"{name}.csv", OPTIONS, samples=[tmp_path / folder for folder in samples])
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    with pytest.raises(InputError, match="in two of the given sample sets"):
        dp_utility.measure(real.folder, "e", "w", "base/H1", tmp_path / "x.csv", OPTIONS, samples=[tmp_path / "drawn", tmp_path / "first"])


def test_samples_follow_the_public_grammar_in_turn(tiny_base, tmp_path):
    options = SampleOptions(prompts=PROMPTS, endings=["in red", "in blue"], samples=5, steps=2, batch=2)
    assert [caption for _, caption in sample.captions_of(options)] == [
        "a bar on the left in red", "a bar on the right in red", "a bar on the left in blue", "a bar on the right in blue", "a bar on the left in red",
    ]  # fmt: skip
    sample.sample_classes(tiny_base, tmp_path / "samples", options, device="cpu")
    drawn = imageset.ImageSet.load(tmp_path / "samples")
    assert sorted(drawn.table.label) == ["left"] * 3 + ["right"] * 2 and set(drawn.table.method) == {"base"} and drawn.pixels().shape == (5, 32, 32, 3)
    with pytest.raises(InputError, match="needs prompts"):
        sample.sample_classes(tiny_base, tmp_path / "none", SampleOptions(), device="cpu")


def test_figures_and_tables_come_from_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(figures_dp_ldm, "SETTINGS", [("one", 10, 0.5, 1e-3, (1,))])
    monkeypatch.setattr(figures_dp_ldm, "BUDGETS", (5, 1))
    real = bars(tmp_path / "real", 40, 0)
    facts = {"model_id": "m", "method": "attention", "seed": "0", "fold": "", "defence": "epsilon=10"}
    bars(tmp_path / "drawn", 20, 1, **facts)
    rows = utility("attention", "epsilon=10", [0.6]) + utility("base", "epsilon=0", [0.2]) + utility("real", "", [0.9])
    rows += [row | {"block": f"block {index}"} for index in range(2) for row in utility("attention", "epsilon=10", [0.1], "weight change to_q")]
    pd.DataFrame(rows).to_csv(tmp_path / "utility.csv", index=False)
    audit = dict.fromkeys(dp_ldm.COLUMNS, "") | {"system": "dp-ldm", "world": "near", "attack": "audit-dirac", "defence": "epsilon=10"}
    bounds = [audit | {"metric": metric, "value": 2.5, "ci_low": 2.5, "ci_high": 2.5, "n": 9} for metric in ("audited epsilon (one run)", "correct guesses")]
    pd.DataFrame(bounds).to_csv(tmp_path / "audit.csv", index=False)
    dp_ldm.evaluate([tmp_path / "utility.csv"], tmp_path / "metrics.csv", OPTIONS, further=[tmp_path / "audit.csv"])
    figures_dp_ldm.figures(tmp_path / "metrics.csv", [tmp_path / "drawn"], [real.folder], tmp_path / "figures", tmp_path / "tables")
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.pdf")) == [f"dp_{name}.pdf" for name in ("audit", "samples", "tradeoff", "weights")]
    table = (tmp_path / "tables/dp_utility.tex").read_text()
    assert ".600 [.50, .70]" in table and "public base" in table and "near style" in table
    assert "1 of 5 bars missed" in (tmp_path / "tables/dp_bars.tex").read_text(), "real pictures teach .9"
    assert "2.50" in (tmp_path / "tables/dp_audit.tex").read_text()
    unknown, known = [line for line in (tmp_path / "tables/dp_sigma.tex").read_text().splitlines() if line.startswith("one")]
    assert unknown == r"one & -- & -- & -- & 5 & -- & -- & -- \\" and known.startswith(r"one & 10 & .5000 & $10^{-3}$ & 1 & ")
    assert json.loads((tmp_path / "figures/figures.meta.json").read_text())["metrics"]


def test_a_world_without_private_training_has_no_panel():
    cells = [("near", 10.0), ("near", float("inf")), ("near-long", float("inf")), ("near-long", 0.0), ("few", 1.0)]
    table = pd.DataFrame(cells, columns=["world", "budget"])
    assert figures_dp_ldm.worlds_with_budgets(table) == ["near", "few"]
    assert figures_dp_ldm.worlds_with_budgets(table[table.world == "near-long"]) == ["near-long"], "unless there is no other"


def cell(folder, world, recipe, epsilon, method, seconds, memory, rule="finetune_private", steps=(), models=1):
    """The training of a cell as the workflow leaves it: manifest, log and benchmark."""
    place, benchmark = folder / "dp" / world / recipe / epsilon, folder / "benchmarks" / rule / f"{world}.{recipe}.{epsilon}.tsv"
    place.mkdir(parents=True)
    pd.DataFrame({"method": [method] * models}).to_csv(place / "manifest.csv", index=False)
    pd.DataFrame({"step": range(len(steps)), "seconds" if steps else "loss": steps}).to_csv(place / "train.csv", index=False)
    benchmark.parent.mkdir(parents=True, exist_ok=True)
    benchmark.write_text(f"s\tmax_rss\n{seconds}\t{memory}\n")


def test_what_a_method_costs_is_read_from_its_jobs(tmp_path):
    cell(tmp_path, "near", "attention.late", "10", "attention-3-7", 60, 900.4, steps=[1.0, 2.0, 9.0], models=3)
    cell(tmp_path, "near", "attention.late", "inf", "attention-3-7", 30, 1000.4, steps=[2.5, 2.5], models=3)
    cell(tmp_path, "near", "dp-mepf", "10", "dp-mepf", 8, "-", rule="mean_features")
    (tmp_path / "dp/near/lora/10").mkdir(parents=True)
    (tmp_path / "dp/near/lora/10/manifest.csv").write_text("method\nlora\n")  # taken over from elsewhere: nobody measured it
    found = dp_costs.per_method(tmp_path, tmp_path / "benchmarks")
    assert found == {
        "near/attention-3-7": {"models": 6, "seconds_per_model": 15.0, "peak_memory_mb": 1000.4, "seconds_per_step": 2.5},
        "near/dp-mepf": {"models": 1, "seconds_per_model": 8.0, "peak_memory_mb": 0.0},
    }
    text = dp_costs.table(found, {"near/all": found["near/attention-3-7"]})
    assert r"attention-3-7 & -- & -- & -- & -- & 6 & 2.50 & 15 & 1000 \\" in text and r"all weights & 6 & 2.50 & 15 & 1000 & -- & -- & -- & -- \\" in text
    assert r"DP-MEPF & -- & -- & -- & -- & 1 & -- & 8 & 0 \\" in text and "n/a" in dp_costs.table(None)


def test_what_methods_cost_is_recorded_with_a_run(report_study, study, tmp_path):
    results = tmp_path / "results"
    cell(results, "near", "attention", "10", "attention", 60, 900, steps=[1.0])
    metrics = pd.read_csv(study.metrics, dtype=str, keep_default_na=False).assign(system="dp-ldm")
    metrics.to_csv(results / "metrics.csv", index=False)
    report_study.meta(results / "metrics.csv", "a processor")
    record.record(results / "metrics.csv", results / "benchmarks", tmp_path / "reference/full")
    assert recorded.methods(tmp_path / "reference")["near/attention"]["seconds_per_step"] == 1.0
