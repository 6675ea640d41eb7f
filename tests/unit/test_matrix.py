"""The matrix: its evaluation on made-up scores with known answers, planes and rankings, what is drawn and said of it, and its configuration."""

import copy
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from tuneleak import budget, config
from tuneleak.errors import InputError
from tuneleak.metrics import bits, cell_rows, defences, defended_scores, defended_use, roc
from tuneleak.report import figures_defences, matrix, practice, rows, shades, tex
from tuneleak.studies.defences import GROUPS, DefenceEvaluateOptions, Further, Missing

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS, SHIFT = [f"p{i}" for i in range(8)], {"none": 2.0, "dp-1": 0.0}
OPTIONS = DefenceEvaluateOptions(
    bootstrap=200, missing=[Missing(method="lora", defence="dp-1", attack="weights", reason="words are released and no LoRA")], utility_kept=0.9
)
MODEL = {"world": "w", "base": "b", "method": "lora", "seed": "0"}


def scores(folder, rng):
    """membership.csv: eight concepts, twenty members and sixty others; the tuned score of a member is shifted, the base's is part of every score."""
    parts = []
    for concept in CONCEPTS:
        names = [f"{concept}-{i}" for i in range(80)]
        inside, base = np.arange(80) < 20, rng.normal(0, 3, 80)
        common = {"attack": "loss", "setting": "t=50", "caption": "true", "image_id": names}
        parts.append(pd.DataFrame({"model_id": "base", **MODEL, "concept": "", "defence": "", "finetuned": 0, "score": base} | common))
        for name, shift in SHIFT.items():
            told = {"model_id": f"{concept}-{name}", **MODEL, "concept": concept, "defence": name, "finetuned": inside.astype(int)}
            parts.append(pd.DataFrame(told | common | {"score": base + rng.normal(0, 1, 80) + shift * inside}))
    path = folder / "membership.csv"
    pd.concat(parts).to_csv(path, index=False)
    return path


def utility(folder):
    parts = [
        {"model_id": "base", "world": "w", "base": "b", "concept": name, "method": "", "defence": "", "seed": "", "similarity_heldout": 0.1}
        for name in CONCEPTS
    ]
    for number, concept in enumerate(CONCEPTS):
        for name, value in (("none", 0.5), ("dp-1", 0.2)):
            told = {"model_id": f"{concept}-{name}", "concept": concept, "defence": name, **MODEL}
            liked = value + 0.01 * (number % 3) * (1 + (name == "none"))
            parts.append(told | {"similarity_heldout": liked, "kid_heldout": 0.2, "loss_heldout": 0.05, "caption_accuracy": 0.5})
    path = folder / "utility.csv"
    pd.DataFrame(parts).to_csv(path, index=False)
    return path


def matches(folder, rng):
    parts = []
    for concept in CONCEPTS:
        for name, level in (("none", 0.7), ("dp-1", 0.3)):
            for condition in ("", ",caption=none"):
                true = rng.integers(0, 4, 12)
                read = true if name == "none" else rng.integers(0, 4, 12)
                told = {"model_id": f"{concept}-{name}", "concept": concept, "defence": name, **MODEL, "attack": "finextract", "setting": f"w=3{condition}"}
                told |= {
                    "image_id": [f"{concept}-{i}" for i in range(12)],
                    "extracted": level + rng.normal(0, 0.02, 12),
                    "oracle": 0.8,
                    "random": 0.2,
                    "heldout": 0.25,
                }
                told |= {"n_extracted": 12, "threshold": 0.5, "true_eyes": true, "read_extracted_eyes": read, "read_heldout_eyes": rng.integers(0, 4, 12)}
                parts.append(pd.DataFrame(told))
    path = folder / "matches.csv"
    pd.concat(parts).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("matrix"), np.random.default_rng(0)
    privacy = {"model_id": "m", "concept": "p0", "method": "lora", "defence": "dp-1", "seed": 0, "unit": "image", "epsilon": 1.0, "delta": 1e-3}
    privacy |= {"person_epsilon": 6.0, "person_delta": 0.4, "noise_multiplier": 16.0, "sample_rate": 1, "steps": 40, "n_images": 6}
    pd.DataFrame([privacy, privacy | {"model_id": "n", "epsilon": 0.9}]).to_csv(folder / "privacy.csv", index=False)
    files = {"membership": [scores(folder, rng)], "utility": [utility(folder)], "matches": [matches(folder, rng)], "privacy": [folder / "privacy.csv"]}
    defences.evaluate(folder / "main.csv", OPTIONS, world="w", base="b", **files)
    return folder / "main.csv"


def one(path, **select):
    table = matrix.read(path)
    table = table[np.logical_and.reduce([table[name] == value for name, value in select.items()])]
    assert len(table) == 1, table
    return table.iloc[0]


def test_scores_and_their_differences(measured):
    """The reference takes the base's part away: AUC Phi(2 / sqrt 2); without the shift .5; the difference is paired."""
    full = one(measured, attack="reference-loss", defence="none", metric="AUC")
    assert full.value == pytest.approx(stats.norm.cdf(np.sqrt(2)), abs=0.03) and full.ci_low < full.value < full.ci_high and full.interval == ""
    assert one(measured, attack="loss", defence="none", metric="AUC").value < full.value - 0.1
    gone = one(measured, attack="reference-loss", defence="dp-1", metric="AUC")
    less = one(measured, attack="reference-loss", defence="dp-1-minus-none", metric="AUC")
    assert gone.ci_low < 0.5 < gone.ci_high and less.value == pytest.approx(gone.value - full.value, abs=1e-5) and less.ci_high < 0
    # the best cut of a shift of 2 is half way: a channel with error Phi(-1)
    channel = 1 - bits.entropy(stats.norm.cdf(-1))
    assert one(measured, attack="reference-loss", defence="none", metric="leaked bits").value == pytest.approx(channel, abs=0.1)
    assert abs(one(measured, attack="reference-loss", defence="dp-1", metric="leaked bits").value) < 0.03
    assert one(measured, attack="reference-loss", defence="dp-1-minus-none", metric="leaked bits").ci_high < 0


def control(path, **select):
    """The single row of the base's control."""
    table = rows.read_metrics(path)
    (row,) = table[(table.control == "base") & np.logical_and.reduce([table[name] == value for name, value in select.items()])].itertuples()
    return row


def test_the_base_alone_is_the_control(measured):
    """It saw nobody, so its own AUC is .5; behind the plain loss it hides the rest, so that the target adds what the plain loss shows."""
    alone = control(measured, attack="loss", defence="none", metric="AUC")
    assert alone.ci_low < 0.5 < alone.ci_high and alone.value == control(measured, attack="reference-loss", defence="dp-1", metric="AUC").value
    assert abs(control(measured, attack="loss", defence="none", metric="leaked bits").value) < 0.03
    for attack, defence in (("loss", "none"), ("reference-loss", "none"), ("loss", "dp-1")):
        own, beyond = (one(measured, attack=attack, defence=defence, metric=metric) for metric in ("AUC", "AUC minus base"))
        assert beyond.value == pytest.approx(own.value - alone.value, abs=1e-5)
        assert beyond.ci_low > 0.1 if defence == "none" else abs(beyond.value) < 0.02
    assert one(measured, attack="reference-loss", defence="none", metric="leaked bits minus base").ci_low > 0.2


def test_a_base_that_knows_the_members_is_found_out(tmp_path):
    """Members that the base already likes (a split by anything but a coin): the plain loss sees them, and beyond the base there is nothing."""
    table = pd.read_csv(scores(tmp_path, np.random.default_rng(0)), keep_default_na=False)
    table = table[table.defence.isin(["", "dp-1"])]
    table.score += 6.0 * (table.image_id.str.partition("-")[2].astype(int) < 20)
    table.to_csv(tmp_path / "liked.csv", index=False)
    found = defended_scores.rows(defended_scores.read(membership=[tmp_path / "liked.csv"]), OPTIONS)
    plain = {(row["metric"], "control" in row["setting"]): row for row in found if row["attack"] == "loss"}
    assert plain["AUC", False]["ci_low"] > 0.7 and plain["AUC", True]["ci_low"] > 0.7
    assert plain["AUC minus base", False]["ci_low"] < 0.02 and plain["AUC minus base", False]["value"] < 0.02


def test_people_have_the_control_and_coins_need_none(tmp_path):
    """Photographs of the person are drawn better by the base already: its own loss tells so. Losses of shadows come without a base."""
    rng, parts = np.random.default_rng(0), []
    for concept in CONCEPTS:
        for role, loss in (("other", 0.5), ("stranger", 1.0)):
            told = {"model_id": concept, **MODEL, "concept": concept, "defence": "none", "caption": "none", "person": role, "role": role}
            before = loss + rng.normal(0, 0.1, 20)
            parts.append(pd.DataFrame(told | {"image_id": [f"{concept}-{role}-{i}" for i in range(20)], "base_loss": before, "tuned_loss": before - 0.1}))
    pd.concat(parts).to_csv(tmp_path / "people.csv", index=False)
    found = {(row["metric"], "control=base" in row["setting"]): row["value"] for row in
             defended_scores.rows(defended_scores.read(people=[tmp_path / "people.csv"]), OPTIONS)}  # fmt: skip
    assert found["AUC", True] > 0.95 and found["AUC minus base", False] == pytest.approx(found["AUC", False] - found["AUC", True])


def test_the_base_is_a_row_of_its_own(measured):
    """Of every attack that has the control; of others the row says why not. Defences and advice are not about it."""
    table = matrix.read(measured)
    assert matrix.defences(table, "lora") == ["none", "dp-1", "base"]
    shown = {column[0]: matrix.cell(table, "lora", "base", column) for column in matrix.COLUMNS}
    assert shown["loss"].own.value == control(measured, attack="loss", defence="none", metric="AUC").value and shown["loss"].bits is not None
    assert "held-out" in shown["finextract"].told and "coin" in shown["lira"].told and "another person" in shown["weights-spectral"].told
    none = matrix.cell(table, "lora", "none", next(column for column in matrix.COLUMNS if column[0] == "loss"))
    assert "AUC minus base 0.1" in none.told and "leaked bits minus base 0.0" in none.told
    assert not any(item.row.defence == "base" for _, said in practice.sentences(table) for item in said)


def test_extraction_and_captions(measured):
    assert one(measured, attack="finextract", defence="none", metric="AS", control="").value == pytest.approx(0.7, abs=0.01)
    less = one(measured, attack="finextract-no-caption", defence="dp-1-minus-none", metric="AS")
    assert less.value == pytest.approx(-0.4, abs=0.02) and less.ci_high < 0
    assert one(measured, attack="finextract", defence="none", metric="leaked bits").value == pytest.approx(2, abs=0.2)  # four equally likely values
    assert one(measured, attack="finextract", defence="dp-1-minus-none", metric="leaked bits").value == pytest.approx(-2, abs=0.3)


def test_use_planes_and_rankings(measured):
    assert one(measured, attack="", defence="dp-1", metric="similarity kept").value == pytest.approx(0.25, abs=0.02)
    assert one(measured, attack="", defence="dp-1-minus-none", metric="similarity").value == pytest.approx(-0.309, abs=0.001)
    for name in ("none", "dp-1"):  # one leaks less, the other is of more use: both are on the front
        assert one(measured, attack="reference-loss", defence=name, metric="Pareto frequency").value > 0.99
    best = one(measured, attack="reference-loss", defence="best-at-kept-utility-minus-none", metric="AUC")
    assert best.value == 0  # nothing else keeps nine tenths of the likeness


def test_promises_and_cells_that_are_not_run(measured):
    assert one(measured, defence="dp-1", metric="AUC allowed").value == pytest.approx(bits.largest_auc(1.0, 1e-3), abs=1e-6)
    assert one(measured, defence="dp-1", metric="person epsilon").value == 6
    missing = one(measured, metric="not run")
    assert (missing.attack, missing.guidance) == ("weights", "words are released and no LoRA") and np.isnan(missing.value)


def test_an_encoder_trained_anew_is_compared_with_the_plain_one_without_a_defence(tmp_path):
    """Rank 1 of nobody's weights: MRR 1; rotated, the plain encoder ranks everybody fourth, MRR .25, and the one that knows it second, MRR .5."""
    told = MODEL | {"setting": "pictures"} | dict.fromkeys(("genuine", "stranger", "threshold", "cosine"), 0.5)
    kinds = [("spectral", "none", 1), ("spectral", "gauge", 4), ("spectral-adaptive", "gauge", 2)]
    rows = [told | {"attack": attack, "defence": defence, "rank": rank, "concept": concept} for attack, defence, rank in kinds for concept in CONCEPTS]
    pd.DataFrame(rows).to_csv(tmp_path / "scores.csv", index=False)
    made, values = defences._weights([tmp_path / "scores.csv"], OPTIONS)
    found = {(row["attack"], row["defence"]): row["value"] for row in made if row["metric"] == "MRR"}
    assert found == {
        ("weights-spectral", "none"): 1, ("weights-spectral", "gauge"): 0.25, ("weights-spectral", "gauge-minus-none"): -0.75,
        ("weights-spectral-adaptive", "gauge"): 0.5, ("weights-spectral-adaptive", "gauge-minus-none"): -0.5,
    }  # fmt: skip
    assert len(values) == 3 * len(CONCEPTS)


def test_rates_need_enough_non_members():
    maker, rng = cell_rows.Rows("defences", "w", OPTIONS), np.random.default_rng(0)
    key = {"system": "defences", "base": "b", "method": "lora", "attack": "lira", "setting": "", "defence": "none"}

    def cells(count, seeds=("0",)):
        labels = np.arange(count) < count // 5
        return [
            cell_rows.Cell("b", seed, name, labels, rng.normal(0, 1, count) + 3 * labels, None, images=np.array([f"{name}-{i}" for i in range(count)]))
            for name in CONCEPTS
            for seed in seeds
        ]

    assert cell_rows.low_rates(key, maker, cells(70), defended_scores.RATES) == []  # 448 non-members
    assert cell_rows.low_rates(key, maker, cells(70, "0123"), defended_scores.RATES) == [], "the same 448 under four models"
    assert [row["metric"] for row in cell_rows.low_rates(key, maker, cells(100), defended_scores.RATES)] == ["TPR@1%FPR"]
    found = {row["metric"]: row["value"] for row in cell_rows.low_rates(key, maker, cells(400), defended_scores.RATES)}
    assert set(found) == {"TPR@1%FPR", "TPR@0.1%FPR"}
    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml")  # of which the paper says that it has too few
    pictures, recipe = full.population.private_pool + full.population.private_heldout, full.defences.recipes[0]
    assert max((pictures - recipe.images_per_concept), full.population.private_pool) * full.defences.concepts < defended_scores.RATES[0][1]
    assert found["TPR@1%FPR"] == pytest.approx(stats.norm.sf(stats.norm.isf(0.01) - 3), abs=0.12) and found["TPR@0.1%FPR"] < found["TPR@1%FPR"]


def test_shadows_become_scores_of_every_target(tmp_path):
    """Twelve models and ten pictures, losses lower by 3 inside; one picture has too few shadows inside for LiRA, and RMIA keeps it."""
    rng, parts = np.random.default_rng(0), []
    inside = rng.random((12, 10)) < 0.5
    inside[:, 0] = np.arange(12) < 2
    for model in range(12):
        told = {"world": "w", "base": "b", "concept": "p", "method": "lora", "defence": "none", "seed": str(model), "setting": "t=300"}
        pool = {"role": "pool", "image_id": [f"x{i}" for i in range(10)], "inside": inside[model].astype(int), "loss": rng.normal(9, 1, 10) - 3 * inside[model]}
        rest = {"role": "population", "image_id": [f"z{i}" for i in range(6)], "inside": 0, "loss": rng.normal(9, 1, 6)}
        parts += [pd.DataFrame(told | pool), pd.DataFrame(told | rest)]
    pd.concat(parts).to_csv(tmp_path / "shadows.csv", index=False)
    table = defended_scores.read(shadows=[tmp_path / "shadows.csv"])
    assert len(table[table.attack == "rmia"]) == 120 and not (table[table.attack == "lira"].image_id == "x0").any() and np.isfinite(table.score).all()
    for row in table[table.attack == "rmia"].itertuples():
        assert row.label == inside[int(row.seed), int(row.image_id[1:])]
    for attack, least in (("lira", 0.9), ("rmia", 0.8)):  # six population pictures rank coarsely
        mine = table[table.attack == attack]
        assert roc.auc(mine.score[mine.label.astype(bool)], mine.score[~mine.label.astype(bool)]) > least
    made = {(row["attack"], row["metric"]): row for row in defended_scores.rows(table, OPTIONS)}
    assert not any("control" in row["setting"] or "minus base" in row["metric"] for row in made.values())
    assert made["lira", "AUC"]["value"] > 0.9 and ("rmia", "leaked bits") not in made  # one concept leaves none to set the threshold on


def test_pairs_are_of_the_same_candidates_with_the_same_membership():
    cell = cell_rows.Cell("b", "0", "p", np.array([1, 1, 1, 0, 0, 0], bool), np.arange(6.0), np.arange(6.0), images=np.array(list("abcdef")))
    other = cell_rows.Cell("b", "0", "p", np.array([1, 0, 1, 0, 0], bool), np.arange(5.0) * 10, np.zeros(5), images=np.array(list("fcbea")[::-1]))
    (both,) = defended_scores.paired_cells([cell], [other])  # a, e, b, c, f with membership 1, 0, 1, 0, 0: c differs
    assert list(both.images) == ["a", "b", "e", "f"] and list(both.before) == [0, 20, 10, 40] and list(both.tuned) == [0, 1, 4, 5]
    assert defended_scores.paired_cells([cell], []) == []


def test_the_front():
    leak, use = [0.9, 0.5, 0.6, 0.5, 0.2], [1.0, 0.8, 0.7, 0.8, 0.1]
    assert list(defended_use.pareto(leak, use)) == [True, True, False, True, True]
    same = [0.9, 0.5, 0.6, 0.5 + 1e-5, 0.2]  # as other factors of the same update: rounding keeps nobody from the front
    assert list(defended_use.pareto(same, use)) == list(defended_use.pareto(leak, [1.0, 0.8 + 1e-5, 0.7, 0.8, 0.1])) == [True, True, False, True, True]


def test_the_best_defence_is_chosen_elsewhere():
    """Two concepts: what is best on one is judged on the other; a defence that loses too much likeness there is no candidate."""
    index = pd.MultiIndex.from_tuples([("a", "0"), ("b", "0")], names=["concept", "seed"])
    leak = pd.DataFrame({"none": [0.9, 0.8], "x": [0.5, 0.75], "y": [0.6, 0.3], "z": [0.1, 0.1]}, index)
    use = pd.DataFrame({"none": [1.0, 1.0], "x": [0.95, 0.95], "y": [0.95, 0.95], "z": [0.2, 0.2]}, index)
    base = use * 0
    np.testing.assert_allclose(defended_use.best_elsewhere(leak, use, base, 0.9), [0.6 - 0.9, 0.75 - 0.8])  # y on b, so y on a; x on a, so x on b
    np.testing.assert_allclose(defended_use.best_elsewhere(leak, use, base, 0.97), 0)
    assert defended_use.best_elsewhere(leak[:1], use[:1], base[:1], 0.9) is None


def test_bases_are_kept_apart(tmp_path):
    """A second base on which every fine-tune is worthless does not change what is kept on the first."""
    alone = defended_use.read([utility(tmp_path)])
    worthless = alone.assign(base="other", similarity_heldout=0.0)
    kept = [
        [row for row in defended_use.rows(table, OPTIONS) if row["metric"] == "similarity kept" and row["base"] != "other"]
        for table in (alone, pd.concat([alone, worthless], ignore_index=True))
    ]
    assert kept[0] and kept[0] == kept[1]


def test_the_reference_of_a_model_is_its_own_base(tmp_path):
    first = pd.read_csv(scores(tmp_path, np.random.default_rng(0)))
    second = first.assign(base="c", score=first.score + 100)  # another base, whose models and whose own scores lie elsewhere
    pd.concat([first, second]).to_csv(tmp_path / "membership.csv", index=False)
    table = defended_scores.read(membership=[tmp_path / "membership.csv"])
    found = table[table.attack == "reference-loss"].pivot(index=["concept", "defence", "image_id"], columns="base", values="score")
    assert len(found) == 2 * 8 * 80 and np.allclose(found.b, found.c)


def test_what_shaking_adds_is_told_of_each_base_apart():
    """Shaking helps on one base and hurts on the other; the pictures, concepts and seeds are the same."""
    rng, parts = np.random.default_rng(0), []
    for base, gain in (("b", 1.5), ("c", -1.5)):
        for concept in CONCEPTS:
            label, noise = np.arange(60) < 30, rng.normal(0, 1, 60)
            for defence, less in (("none", 1.0), ("dp-1", 0.0)):
                told = MODEL | {"base": base, "concept": concept, "defence": defence, "setting": "t=50", "label": label}
                told |= {"image_id": [f"{concept}-{i}" for i in range(60)], "base_score": np.nan}
                parts += [pd.DataFrame(told | {"attack": "loss", "score": noise + 1.5 * label})]
                parts += [pd.DataFrame(told | {"attack": "shaken-loss", "score": noise + (1.5 + gain * less) * label})]
    table = pd.concat(parts, ignore_index=True)
    made = {(row["base"], row["defence"]): row for row in defended_scores.rows(table, OPTIONS) if row["metric"] == "amplification"}
    assert set(made) == {(base, name) for base in "bc" for name in ("none", "dp-1", "dp-1-minus-none")}
    assert made["b", "none"]["ci_low"] > 0 > made["c", "none"]["ci_high"]
    for base in "bc":
        assert made[base, "dp-1"]["value"] == 0, "nothing was gained where nothing was added"
        assert made[base, "dp-1-minus-none"]["value"] == pytest.approx(-made[base, "none"]["value"])
        alone = defended_scores.rows(table[table.base == base], OPTIONS)
        assert [row for row in alone if row["metric"] == "amplification"] == [row for (of, _), row in made.items() if of == base]


def test_rankings():
    assert defended_use.mean_tau(np.array([[1, 2, 3], [10, 20, 30]])) == 1 and defended_use.mean_tau(np.array([[1, 2, 3], [3, 2, 1]])) == -1
    assert defended_use.mean_tau(np.array([[1, 2, 3], [10, 20, 30], [3, 2, 1]])) == pytest.approx(-1 / 3)
    assert defended_use.mean_tau(np.array([[1, 2, 3], [5, 5, 5]])) == 0
    found = [{"attack": attack, "setting": "", "metric": "AUC", "world": "w", "base": "b", "method": "lora", "concept": concept, "seed": seed}
             | {"defence": name, "value": value + 0.001 * (attack == "y")} for attack in "xy" for concept in "pq" for seed in "01"
             for name, value in {"none": 0.9, "cap": 0.7, "dp": 0.5}.items()]  # fmt: skip
    few = [row | {"attack": "lira", "value": -row["value"]} for row in found if row["attack"] == "x" and row["defence"] != "cap"]  # not run on all
    made = {row["metric"]: row for row in defended_use.planes(pd.DataFrame(found + few), defended_use.read([]), OPTIONS)}
    assert made["Kendall tau over attacks"]["value"] == made["Kendall tau over seeds"]["value"] == 1 and "Kendall tau over places" not in made
    turned = [row | {"base": "c", "value": -row["value"]} for row in found]  # another base on which everything is the other way round
    made = {row["metric"]: row for row in defended_use.planes(pd.DataFrame(found + turned), defended_use.read([]), OPTIONS)}
    places = made["Kendall tau over places"]
    assert (places["value"], places["base"], places["world"], places["n"]) == (-1, "b;c", "w", 4) and made["Kendall tau over seeds"]["value"] == 1


def test_figures_tables_and_summary(measured, tmp_path):
    figures_defences.figures(measured, tmp_path / "figures", tmp_path / "tables")
    for name in ("matrix", "planes", "budgets"):
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "figures/matrix.html").read_text()
    assert "title='not run: its leaked bits are beyond held-out pictures already'" in page and "not measured" not in page
    auc = one(measured, attack="reference-loss", defence="none", metric="AUC")
    assert f"AUC {auc.value:.3f} [{auc.ci_low:.3f}, {auc.ci_high:.3f}]" in page and "<script" not in page and "; setting w=3" in page
    hovered = re.findall(r"title='([^']*)' style", page.replace("&#x27;", ""))
    assert hovered and all("not run: " in told or ("leaked bits " in told and told.count("[") > 1) for told in hovered)
    summary = (tmp_path / "figures/summary.md").read_text()
    assert "AUC 0.9" in summary and "dp-1 costs likeness" in summary and "`system='defences'" in summary
    assert "person" not in summary.partition("## What a promise")[0]  # was not measured: nothing is said
    accounts = (tmp_path / "tables/defences_accounting.tex").read_text()
    assert "93.3" in accounts and "341.5" in accounts and "DPGM claims 10" in accounts
    table = (tmp_path / "tables/defences_matrix.tex").read_text()
    letters = {reason: letter for letter, reason in re.findall(r"\\textsuperscript\{(\w)\}\\,([^;.]+)", table)}
    assert "dp-1 & 1" in table and "its leaked bits are beyond held-out pictures already" in letters
    alone = letters["likeness kept is counted from the base's"]
    assert rf"base &  & --\textsuperscript{{{alone}}} & " in table
    ranked = (tmp_path / "tables/defences_rankings.tex").read_text()
    assert ranked.index("FineXtract") < ranked.index("loss, reference") and "over places" in ranked  # two bits of four factors against one of a coin
    assert ranked.count(r"--\textsuperscript") == 3 and "one base and one world" in ranked and "one seed" in ranked and "fewer than three defences" in ranked


def test_every_empty_cell_has_a_reason(measured, tmp_path):
    """A column that one defence alone has: of the other the reason is told; a cell that nobody accounts for says at least that it was not measured."""
    text = pd.read_csv(measured, keep_default_na=False, dtype=str)
    ours = text[(text.attack == "reference-loss") & (text.defence == "none") & text.metric.isin(["AUC", "leaked bits"]) & ~text.setting.str.contains("control")]
    more = [ours.assign(attack=attack, metric=ours.metric.replace("AUC", own)) for attack, own in (("weights-spectral", "MRR"), ("pia", "AUC"))]
    text = text[(text.metric != "similarity kept")]
    pd.concat([text, *more]).to_csv(tmp_path / "more.csv", index=False)
    table = matrix.tex_table(matrix.read(tmp_path / "more.csv"))
    for reason in ("words are released and no LoRA", "not measured", "fine-tuning gave no likeness that a defence could keep", "another person's reading"):
        assert table.count(reason) == 1
    assert "--" not in table.replace(r"--\textsuperscript", "") and tex.MISSING not in table


def test_nothing_is_said_of_what_is_inconclusive(measured, tmp_path):
    table = rows.read_metrics(measured)
    text = pd.read_csv(measured, keep_default_na=False, dtype=str)
    text.loc[text.metric.isin(["AUC", "AS", "leaked bits", "similarity"]), ["ci_low", "ci_high"]] = ["-9", "9"]
    text.to_csv(tmp_path / "wide.csv", index=False)
    said = dict(practice.sentences(matrix.read(tmp_path / "wide.csv")))
    promised = said.pop("What a promise of epsilon allows at most")
    assert not any(said.values()) and len(promised) == 1 and len(table)


def test_advice_survives_holm_over_the_page(measured, tmp_path):
    """Of an interval that just excludes chance p is just below .05; one among all sentences of the page, it is no advice, and is listed apart."""
    text = pd.read_csv(measured, keep_default_na=False, dtype=str)
    weak = (text.attack == "reference-loss") & (text.defence == "none") & (text.metric == "AUC") & ~text.setting.str.contains("control")
    text.loc[weak, ["value", "ci_low", "ci_high"]] = ["0.6", "0.501", "0.7"]
    text.to_csv(tmp_path / "weak.csv", index=False)
    table = matrix.read(tmp_path / "weak.csv")
    row = matrix.row_of(table, "lora", "none", "reference-loss", "AUC")
    assert 0.04 < practice.p_value(row, 0.5) < 0.05
    assert practice.p_value(row._replace(ci_low=0.6, ci_high=0.6), 0.5) == 1 and practice.p_value(row._replace(interval="images"), 0.5) is None
    said = dict(practice.sentences(table))
    (apart,) = [item for item in said[practice.WEAK] if item.row.attack == "reference-loss" and item.row.defence == "none"]
    assert "AUC 0.60 [0.50, 0.70]" in apart.text and apart.p > 0.05
    first = said["A LoRA shared as it is"]
    assert {item.row.attack for item in first} == {"finextract", "finextract-no-caption"} and all(item.p < 0.05 for item in first)
    found = list(said.items())
    assert apart.text in practice.markdown(found) and "AUC .60" not in practice.typeset(found) and "0.60" not in practice.typeset(found)


def test_few_people_settle_nothing(measured, tmp_path):
    text = pd.read_csv(measured, keep_default_na=False, dtype=str)
    text["setting"] += "; interval=images"
    text.to_csv(tmp_path / "few.csv", index=False)
    said = dict(practice.sentences(matrix.read(tmp_path / "few.csv")))
    assert not said["A LoRA shared as it is"] and not said["What helps a LoRA"] and not said["What it costs a LoRA"]


def test_an_interval_of_a_difference_may_reach_below_nothing():
    """With few people intervals are by DeLong; that of a difference of AUCs must not be cut at 0, which would make every rise look certain."""
    rng, labels = np.random.default_rng(1), np.arange(40) < 10
    cell = cell_rows.Cell("b", "0", "p", labels, rng.normal(0, 1, 40) + 0.1 * labels, rng.normal(0, 1, 40))
    key = {"system": "defences", "base": "b", "method": "lora", "attack": "loss", "setting": "", "defence": "x-minus-none"}
    row = cell_rows.Rows("defences", "w", OPTIONS).of(key, "AUC", [cell], cell_rows.difference(cell_rows.tuned, cell_rows.before))
    assert row["ci_low"] < 0 < row["ci_high"]


def test_few_people_give_no_interval_of_bits_about_them(tmp_path):
    """Four people with one model each: no resampling of any of them tells of a fifth, so bits have no ends, and ranks that are all alike have none either."""
    hair, people = ["a", "a", "b", "b"], CONCEPTS[:4]
    told = MODEL | {"setting": "pictures", "attack": "spectral"} | dict.fromkeys(("genuine", "stranger", "threshold", "cosine"), 0.5)
    kinds = [("none", hair, [1, 1, 1, 1]), ("dp-1", ["b", "a", "a", "b"], [1, 2, 4, 4])]
    found = [
        told | {"defence": name, "concept": concept, "rank": rank, "true_hair": true, "read_hair": said}
        for name, read, ranks in kinds
        for concept, rank, true, said in zip(people, ranks, hair, read, strict=True)
    ]
    pd.DataFrame(found).to_csv(tmp_path / "scores.csv", index=False)
    defences.evaluate(tmp_path / "main.csv", OPTIONS, weights=[tmp_path / "scores.csv"])
    table = rows.read_metrics(tmp_path / "main.csv").set_index(["defence", "metric"])
    ends = table[["ci_low", "ci_high"]].isna().all(axis=1)
    assert ends["none", "leaked bits"] and ends["dp-1", "leaked bits"] and ends["dp-1-minus-none", "leaked bits"] and ends["none", "MRR"]
    assert table.value["none", "MRR"] == 1 and table.ci_low["dp-1", "MRR"] < table.value["dp-1", "MRR"] == (1 + 0.5 + 0.25 + 0.25) / 4
    # true and read a a b b: H = 1 each and 1 together; the next one's reading a b b a: 1 and 1 and 2; each entropy is raised by (cells - 1) / 8 ln 2
    assert table.value["none", "leaked bits"] == pytest.approx(1 + 1 / (8 * np.log(2)) - (0 - 1 / (8 * np.log(2))), abs=1e-6)
    shown = matrix.read(tmp_path / "main.csv")
    column = next(column for column in matrix.COLUMNS if column[0] == "weights-spectral")
    assert (
        not matrix.cell(shown, "lora", "none", column).clear
        and "(no interval: bits about people need at least 8" in matrix.cell(shown, "lora", "none", column).told
    )
    text = matrix.tex_table(shown)
    assert re.search(r"\d\.\d\d\\textsuperscript\{[a-z]\}", text) and text.count("no interval: bits about people need at least 8 of them") == 1
    assert "With fewer than" not in text  # speaks of intervals of leaked bits over pictures, and here there are none


def test_intervals_of_bits_over_pictures_say_that_they_speak_of_no_other_people(measured):
    table = matrix.read(measured)
    assert matrix.scope(table) == ""
    table.loc[table.metric == "AUC", "interval"] = "images"
    assert matrix.scope(table) == "", "it is about leaked bits"
    table.loc[table.metric == "leaked bits", "interval"] = "images"
    assert matrix.scope(table).startswith("With fewer than 8 people, intervals of leaked bits are over their pictures") and matrix.scope(table) in matrix.html(
        table
    )


def test_an_interval_without_width_over_few_is_none(measured, tmp_path):
    """Where every picture of few people is told right, the bootstrap has nothing to vary; what is computed keeps its ends, and so do rows over eight people."""
    table = pd.DataFrame(
        [
            ("loss", "none", "t=50; interval=images", "AUC", 1.0, 1.0, 1.0),
            ("loss", "dp-1", "t=50; interval=images", "AUC", 0.7, 0.6, 0.8),
            ("loss", "dp-2", "t=50", "AUC", 1.0, 1.0, 1.0),
            ("", "none", "; interval=models", "similarity kept", 1.0, 1.0, 1.0),
            ("finextract", "dp-1-minus-none", "w=3; interval=images", "AS minimum detectable effect", 0.1, 0.1, 0.1),
            ("", "dp-1", "unit=image", "epsilon", 1.0, 1.0, 1.0),
        ],
        columns=["attack", "defence", "setting", "metric", "value", "ci_low", "ci_high"],
    )
    assert defences._unvaried(table).tolist() == [True, False, False, False, False, False]
    text = pd.read_csv(measured, keep_default_na=False, dtype=str)
    flat = (text.attack == "reference-loss") & (text.defence == "none") & (text.metric == "leaked bits") & ~text.setting.str.contains("control")
    for end in ("ci_low", "ci_high"):
        text.loc[flat, end] = text.loc[flat, "value"]  # as older tables have it
    text.to_csv(tmp_path / "flat.csv", index=False)
    shown = matrix.tex_table(matrix.read(tmp_path / "flat.csv"))
    assert shown.count("no interval: all that could be resampled is alike") == 1 and "no interval" not in matrix.tex_table(matrix.read(measured))
    assert "With fewer than" not in shown
    text.loc[flat, "ci_high"] = str(float(text.loc[flat, "value"].iloc[0]) + 1e-5)
    text.to_csv(tmp_path / "narrow.csv", index=False)
    assert matrix.tex_table(matrix.read(tmp_path / "narrow.csv")).count("the interval is narrower than the last digit") == 1


def test_cells_are_coloured_by_their_bits_and_pale_if_unclear(measured):
    """Two leaked bits look the same in each row; what dp-1 leaves is near 0 and pale, and whatever stands in brackets has no colour."""
    table, page = matrix.read(measured), matrix.html(matrix.read(measured))
    column = next(column for column in matrix.COLUMNS if column[0] == "reference-loss")
    leaks, gone = (matrix.cell(table, "lora", name, column) for name in ("none", "dp-1"))
    assert leaks.clear and not gone.clear and gone.bits.ci_low <= 0 <= gone.bits.ci_high
    for found in (leaks, gone):
        assert f"background:{shades.colour(found.bits.value, found.clear)};color:{shades.ink(found.bits.value, found.clear)}" in page
    below = leaks.bits._replace(value=-0.5, ci_low=-0.9, ci_high=-0.1)
    assert matrix.Cell(leaks.own, below).clear and not matrix.Cell(leaks.own).clear
    weights = next(column for column in matrix.COLUMNS if column[0] == "weights-spectral")
    assert matrix.cell(table, "lora", "dp-1", weights).told == "not run: words are released and no LoRA"


SHIPPED = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def study(**changes):
    values = copy.deepcopy(SHIPPED)
    values["defences"] |= changes
    return config.load(values)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"defences": [{"name": "cutout"}]}, "'none' is missing"),
        ({"defences": [{"name": "none", "change": {"lr": 1}}]}, "must not change anything"),
        ({"defences": [{"name": "none"}, {"name": "x", "change": {"lr": 1}, "private": {}}]}, "mixes kinds"),
        ({"defences": [{"name": "none"}, {"name": "x", "change": {"rate": 1}}]}, "no knob of fine-tuning"),
        ({"defences": [{"name": "none"}, {"name": "base", "change": {"lr": 1}}]}, "what the control is called"),
        ({"defences": [{"name": "none"}, {"name": "x", "private": {"delta": 0.5}}]}, "delta must be below 1"),
        ({"concepts": 99}, "at least 99 test concepts"),
        ({"weights": ["nobody"]}, "'nobody' is none of lora_weights.encoders"),
        ({"recipes": [{"method": "lora", "rank": 16}]}, "expect its recipe and base; rank"),
        ({"recipes": [{"method": "textual-inversion"}]}, "about lora and dreambooth"),
        ({"shake": {"defences": ["nobody"]}}, "'nobody' is none of the defences"),
        ({"further": {"bases": ["H1"]}}, "the base of 'identities' itself"),
        ({"further": {"bases": ["nobody"]}}, "must be listed in `bases`"),
        ({"further": {"bases": ["H1-twin", "H1-twin"]}}, "listed twice"),
        ({"further": {"bases": ["H1-twin"]}, "attacks": ["extraction"]}, "'membership' is not among `attacks`"),
        ({"conditions": ["none"]}, "`known` must be among them"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        study(**changes)


def test_members_of_imported_pictures_are_drawn_by_the_coin():
    """The first files of a larger pool are no random choice; the paper preset trains on all of a pool that a coin drew."""
    values = copy.deepcopy(SHIPPED)
    source = next(item for item in values["images"] if item["name"] == "private-identities")
    source |= {"kind": "folder", "path": "data/people", "options": {"train_per_concept": 6, "tune_concepts": 8}}
    assert config.load(values).defences.recipes[0].images_per_concept == 6
    for pool in ({"train_per_concept": 20}, {"published_split": True, "train_per_concept": 6}):
        with pytest.raises(InputError, match="must be images_per_concept of every recipe"):
            config.load(values | {"images": [item | ({"options": pool} if item["name"] == source["name"] else {}) for item in values["images"]]})
    for overlays in ((), ("overlays/paper-one.yaml",), ("overlays/dp-pairs.yaml",)):
        config.read(ROOT / "config.yaml", [ROOT / "workflow" / name for name in ("presets/paper.yaml", *overlays)])


def test_every_cell_is_run_or_says_why():
    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml").defences
    for recipe in full.recipes:
        for item in full.defences:
            for attack in GROUPS:
                assert bool(full.reason(recipe.method, item.name, attack)) == (item.name not in full.run(recipe.method, attack))
    assert full.reason("lora", "dpagg-1", "weights") and full.reason("lora", "dp-1", "shadows") and not full.reason("lora", "int8", "shadows")
    assert full.shake_options("lora").recipe.rank == 4 and full.shake_options("lora").defences == ["none", "dp-1", "dp-10", "dp-100"]
    assert full.shake_options("dreambooth").recipe.method == "dreambooth"


def test_the_guidance_was_chosen_for_the_recipe_that_the_paper_says():
    """Of DreamBooth in the full preset the same recipe but for its seeds; of LoRAs another."""
    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml")
    tuned = {item.options.method: item.options for item in full.finetune if item.world == full.defences.world}
    differ = {
        recipe.method: {name for name in type(recipe).model_fields if name != "seeds" and getattr(recipe, name) != getattr(tuned[recipe.method], name)}
        for recipe in full.defences.recipes
    }
    assert differ == {"lora": {"steps_per_image", "lr", "rank", "alpha", "target_modules"}, "dreambooth": set()}


def test_further_bases_have_the_shards_after_the_worlds_own():
    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml").defences
    twin = full.model_copy(update={"further": Further(bases=["H1-twin"])})
    assert [twin.place(shard) for shard in (0, 3, 4, 7)] == [
        ("identities", "", 0, 2), ("identities", "", 6, 8), ("identities@H1-twin", "H1-twin", 0, 2), ("identities@H1-twin", "H1-twin", 6, 8),
    ]  # fmt: skip
    corner, more = config.read(ROOT / "config.yaml"), study(further={"bases": ["H1-twin"], "attacks": ["membership"]})
    (row,), (other,) = budget.matrix_rows(corner), budget.matrix_rows(more)
    assert other["models"] - row["models"] == 20 and other["training"] - row["training"] == 3 * 4 * (2 * 78 * 4 + 40 * 6 * 8 + 20 * 6 * 4)
    assert other["sampling"] - row["sampling"] == (20 + 4) * 60 * 18


def test_a_further_base_gives_rankings_and_no_cell(measured, tmp_path):
    """Its rows stand under a world of its own, and every cell is still that of the matrix's own base."""
    text = pd.read_csv(measured, keep_default_na=False, dtype=str)
    there = text[text.metric == "AUC"].assign(world="w@c", base="c", value="0.123")
    tau = {"attack": "all", "defence": "", "setting": "", "metric": "Kendall tau over places", "value": "0.5"}
    places = text[text.metric == "AUC"][:1].assign(world="w;w@c", base="b;c", **tau)
    pd.concat([there, text, places]).to_csv(tmp_path / "two.csv", index=False)
    table = matrix.read(tmp_path / "two.csv")
    assert not (table.value == 0.123).any() and ".50" in matrix.rankings_table(table) and "one base" not in matrix.rankings_table(table)


def test_who_knows_the_defence_adapts_to_it():
    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml").defences
    sets = full.shadow_sets("lora")
    assert list(sets) == ["none", "cutout", "randaugment", "steps-3", "steps-10", "dpgm"]  # a recipe of its own each
    assert full.shadow_options("lora", "none").names == ["none", "noise", "int8", "int4", "truncate", "gauge"]
    assert full.shadow_options("lora", "none").transforms[2].name == "quantise-8" and full.shadow_options("lora", "dpgm").names == ["dpgm"]
    recipe = full.shadow_recipe("lora", "steps-3")
    assert recipe.steps_per_image == 3 and recipe.seeds == list(range(16)) and full.shadow_recipe("lora", "none").steps_per_image == 25
    known = full.known_changes("lora")
    assert {change: known[change] for change in known if change != "none"} == {
        "noise-0.5": ["noise"], "quantise-8": ["int8"], "quantise-4": ["int4"], "truncate-1": ["truncate"], "gauge-10": ["gauge"],
    }  # fmt: skip
    assert sorted(name for names in known.values() for name in names) == sorted(full.run("lora", "weights"))  # every defence is attacked in one table


def test_the_matrix_costs_what_its_arithmetic_says():
    corner = config.read(ROOT / "config.yaml")
    (row,) = budget.matrix_rows(corner)
    # 4 people: LoRA and Cutout 78 steps of 4, DP-SGD 40 steps of 6 pictures and 8 draws, inversions 20 steps of 6 and 4; 8 shadows each of LoRA and Cutout
    assert row["training"] == 3 * 4 * (2 * 78 * 4 + 40 * 6 * 8 + 20 * 6 * 4) + 3 * 4 * 8 * 2 * 78 * 4 and row["models"] == 5 * 4 + 2 * 4 * 8
    # 6 x 6 generations, 20 steps of 2, two conditions; 60 pictures x (loss 4, SecMI 12, PIA 2); (6 + 5 x 11) photographs, 3 timesteps, 2 models
    attacks = 36 * 40 * 2 + 60 * 18 + 61 * 3 * 2
    weights = 2 * 20 * 2 * 4  # 2 pictures, two encoders, true prompt, captions of others; words are released by the fifth defence, and no LoRA
    use = 40 * (4 + 4) + 10 * 46
    adaptive = 2 * 20 * 2  # one encoder more, on rotated factors
    assert row["sampling"] == 20 * attacks + 16 * weights + 4 * adaptive + 4 * 60 * 18 + 24 * use + 8 * 4 * 40 * 3 * 3
    assert row["training"] + row["sampling"] < 1.9e6 * 8 / 60, "the corner stays within eight minutes on two cores"
    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml")
    assert sum(row["training"] + row["sampling"] for row in budget.matrix_rows(full)) < 1.9e6 * 6


def test_auc_of_a_model_is_what_the_planes_use():
    labels, values = np.array([1, 1, 0, 0, 0], bool), np.array([0.9, 0.4, 0.5, 0.2, 0.1])
    told = {"attack": "loss", "setting": "s", "world": "w", "base": "b", "method": "lora", "defence": "none", "concept": "p", "seed": "0"}
    table = pd.DataFrame({**told, "image_id": list("abcde"), "label": labels, "score": values, "base_score": np.nan})
    assert defences._aucs(table).value.tolist() == [pytest.approx(roc.auc(values[labels], values[~labels]))]


def test_released_words_are_asked_under_their_caption():
    """Under no caption a model whose words alone were learned is the base: its AUC there says nothing."""
    from tuneleak.report import matrix

    rows = [
        {"method": "lora", "defence": defence, "attack": "people", "metric": "AUC", "guidance": guidance, "value": value}
        for defence, guidance, value in (
            ("none", "caption=known", 0.8), ("none", "caption=none", 0.7), ("dpagg-10", "caption=none", 0.5), ("dpagg-10", "caption=known", 0.6),
            ("dpagg-10-minus-none", "caption=none", -0.2), ("dpagg-10-minus-none", "caption=known", -0.1), ("dp-1", "caption=known", 0.55),
        )
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    found = {defence: matrix.row_of(table, "lora", defence, "people", "AUC").value for defence in dict.fromkeys(table.defence)}
    assert found == {"none": 0.7, "dpagg-10": 0.6, "dpagg-10-minus-none": -0.1, "dp-1": 0.55}
