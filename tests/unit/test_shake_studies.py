"""Studies of Shake-to-Leak: changed recipes, the best of random draws, methods at equal loss."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tuneleak.metrics import cell_rows, roc, shake_scores, shake_studies, shake_to_leak
from tuneleak.options import ShakeEvaluateOptions
from tuneleak.report import claims, figures_shake, figures_shake_studies
from tuneleak.report import rows as report_rows

MOST = "shake-dreambooth-lora-leaks-most-at-equal-loss"
OPTIONS = ShakeEvaluateOptions(bootstrap=100)
COLUMNS = [*shake_scores.NAMED, "score", "model_calls"]


def scores(models, domains=3, pictures=40, seed=0):
    """Made-up scores; models: (method, world, step, model seed, effect on members, noise)."""
    rng, found = np.random.default_rng(seed), []
    for domain in range(domains):
        before = rng.normal(size=2 * pictures)
        member = np.arange(2 * pictures) % 2
        told = dict.fromkeys(COLUMNS, "") | {
            "base": "H1",
            "attack": "loss",
            "setting": "t=1",
            "caption": "true",
            "image_concept": f"d{domain}",
            "model_calls": 1,
        }
        parts = [("base", ("", "", "", "", 0, 0))] + [("m", model) for model in models]
        for name, (method, world, step, number, effect, noise) in parts:
            row = told | {"model_id": name, "method": method, "world": world, "step": step, "seed": number, "concept": f"d{domain}" if method else ""}
            after = before + effect * member + noise * rng.normal(size=2 * pictures)
            found += [row | {"image_id": f"{domain}-{i}", "pretrained": str(member[i]), "score": after[i]} for i in range(2 * pictures)]
    return pd.DataFrame(found, columns=COLUMNS)


def evaluated(table, folder, losses=None):
    table.to_csv(folder / "scores.csv", index=False)
    if losses is not None:
        losses.to_csv(folder / "losses.csv", index=False)
    arguments = {"set_losses": [folder / "losses.csv"]} if losses is not None else {}
    shake_to_leak.evaluate([folder / "scores.csv"], "named", folder / "main.csv", OPTIONS, **arguments)
    return report_rows.read_metrics(folder / "main.csv")


def one(table, **values):
    for name, value in ({"base": "all", "control": "", "concept": "", "method": "lora", "metric": "amplification"} | values).items():
        table = table[table[name] == value]
    assert len(table) == 1, f"{len(table)} rows for {values}"
    return table.iloc[0]


def test_a_changed_recipe_stands_beside_the_recipe_and_is_no_control(tmp_path):
    models = [("lora", "self", "12", "0", 0.5, 0.1), ("lora", "rank=4", "12", "0", 1.5, 0.1), ("lora", "lr0", "1", "0", 0, 0)]
    table = evaluated(scores(models), tmp_path)
    beyond = one(table, defence="rank=4", metric="amplification beyond recipe")
    assert beyond.value == pytest.approx(one(table, defence="rank=4").value - one(table, defence="").value, abs=1e-6) and beyond.ci_low > 0
    assert not ((table.metric == "amplification beyond rank=4") | (table.control == "rank=4")).any() and one(table, defence="", control="lr0").value == 0
    figures_shake.figures(tmp_path / "main.csv", [tmp_path / "scores.csv"], tmp_path / "figures")
    assert (tmp_path / "figures" / "shake_studies.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_of_random_draws_is_luck_until_it_is_judged_on_other_pictures(tmp_path):
    told, made, numbers = {"method": "gaussian", "defence": "sigma=0.1"}, cell_rows.Rows("shake-to-leak", "named", OPTIONS), []
    key = {"base": "H1", "method": "gaussian", "attack": "loss", "setting": "t"}
    for seed in range(10):
        table = scores([("gaussian", "sigma=0.1", "0", str(i), 0.0, 1.0) for i in range(8)], domains=2, pictures=30, seed=seed)
        cells = shake_to_leak.cells_of(table[table.model_id == "m"], table[table.model_id == "base"])
        rows = {row["metric"]: row for row in shake_studies.seeds(key, cells, made)}
        gains = [shake_studies.gain(cell)[0] for cell in cells]
        numbers.append([rows["amplification highest of seeds"]["value"], rows["amplification held-out best"]["value"], np.mean(gains)])
        spread = rows["amplification sd over seeds"]
        by_seed = [np.mean([gain for gain, cell in zip(gains, cells, strict=True) if cell.seed == str(i)]) for i in range(8)]
        assert spread["value"] == pytest.approx(np.std(by_seed, ddof=1)) and spread["ci_low"] < spread["value"] < spread["ci_high"] and spread["n"] == 8
    highest, honest, mean = np.mean(numbers, axis=0)
    assert highest > mean + 0.03 and abs(honest - mean) < 0.04
    real = evaluated(scores([("gaussian", "sigma=0.1", "0", str(i), 1.0 * (i == 3), 0.3) for i in range(6)]), tmp_path)
    assert one(real, **told, metric="amplification held-out best").ci_low > 0.1, "a draw that does help is found on either half"


def test_both_halves_of_a_domain_hold_half_of_its_members():
    labels = np.arange(21) % 3 == 0
    cell = cell_rows.Cell("H1", "0", "d", labels, np.arange(21.0), np.arange(21.0), np.full(21, ""))
    first, second = shake_studies.half(cell, 0), shake_studies.half(cell, 1)
    assert sorted([*first.tuned, *second.tuned]) == list(range(21)) and (first.labels.sum(), second.labels.sum()) == (3, 4)
    assert (shake_studies.half(shake_studies.replace(cell, seed="7"), 0).tuned == first.tuned).all()


def test_the_level_that_all_methods_reach_is_interpolated():
    curve = [("", 1.0), ("steps=2", 0.8), ("steps=4", 0.4)]
    assert shake_studies.blend(curve, 0.5) == pytest.approx({"steps=2": 0.25, "steps=4": 0.75})
    assert shake_studies.blend(curve, 0.8) == {"steps=2": 1.0} and shake_studies.blend(curve, 0.4) == {"steps=4": 1.0}
    assert shake_studies.blend([("", 1.0), ("steps=2", 1.1)], 0.9) == {"": 1.0}, "one that never gets there: its nearest point"


def test_methods_are_compared_where_their_losses_meet(tmp_path):
    models = [(method, "steps", str(step), "0", effect * step, 0.05) for method, effect in (("lora", 0.1), ("end-to-end", 0.3)) for step in (4, 8)]
    table = scores(models)
    level = {("", ""): 1.0, ("lora", "4"): 0.9, ("lora", "8"): 0.7, ("end-to-end", "4"): 0.8, ("end-to-end", "8"): 0.4}
    losses = table.assign(score=[-level[method, step] for method, step in zip(table.method, table.step, strict=True)])
    found = evaluated(table, tmp_path, losses)
    assert one(found, metric="set loss", defence="steps=8").value == pytest.approx(0.7) and one(found, metric="set loss", method="base").value == pytest.approx(
        1.0
    )
    told = {"defence": "steps=matched", "metric": "amplification at matched loss"}
    assert one(found, **told).value == pytest.approx(one(found, defence="steps=8").value, abs=1e-6), ".7 is where lora ends"
    between = 0.75 * one(found, method="end-to-end", defence="steps=4").value + 0.25 * one(found, method="end-to-end", defence="steps=8").value
    assert one(found, method="end-to-end", **told).value == pytest.approx(between, abs=1e-6)
    difference = one(found, method="lora-minus-end-to-end", **told)
    assert difference.value == pytest.approx(one(found, **told).value - between, abs=1e-6) and difference.ci_high < 0
    own = np.hypot(*[row.ci_high - row.ci_low for row in (one(found, **told), one(found, method="end-to-end", **told))])
    assert difference.ci_high - difference.ci_low < own, "paired: both are of the same pictures"
    assert one(found, **told | {"method": "lora-minus-end-to-end"}).interval == "images", "three domains are too few to draw from"


def test_trajectories_are_compared_at_all_losses_that_both_reach(tmp_path):
    """Two methods that leak alike at every loss differ after equal steps, and not at equal losses; one that leaks more is found, whichever goes further."""
    amounts = {"lora": (0.4, 0.8), "end-to-end": (0.8, 1.6), "dreambooth+lora": (0.7, 1.4)}  # the last goes as far as the first
    models = [(method, "steps", str(step), "0", amount, 0.0) for method, both in amounts.items() for step, amount in zip((4, 8), both, strict=True)]
    table = scores([*models, *((method, source, "4", "0", 0.4, 0.0) for method in amounts for source in ("self", "unrelated", "instrument"))], domains=9)
    reached = {(method, str(step)): 1 - (1 if method == "end-to-end" else 0.5) * step / 10 for method in amounts for step in (4, 8)} | {("", ""): 1.0}
    along = table[table.world.isin(["", "steps"])]
    losses = along.assign(score=[-reached[method, step] for method, step in zip(along.method, along.step, strict=True)])
    found = evaluated(table, tmp_path, losses)
    told = {"defence": "steps=matched", "metric": "amplification over matched losses"}
    ends = [0.0, one(found, defence="steps=4").value, one(found, defence="steps=8").value]
    mean = one(found, **told)
    assert mean.value == pytest.approx((ends[0] + 2 * ends[1] + ends[2]) / 4, abs=2e-5), "trapezia over equal stretches of the loss"
    assert mean.interval == "", "nine domains are drawn from"
    most = one(found, **told | {"method": "dreambooth+lora-minus-best-other"})
    assert most.ci_low > 0 and most.value == pytest.approx(
        one(found, **told | {"method": "dreambooth+lora"}).value - max(mean.value, one(found, **told | {"method": "end-to-end"}).value), abs=1e-6
    )
    assert set(found[found.metric == told["metric"]].method) == {
        *amounts,
        "lora-minus-end-to-end",
        "lora-minus-dreambooth+lora",
        "end-to-end-minus-dreambooth+lora",
        "dreambooth+lora-minus-best-other",
    }
    figures_shake_studies.studies(found, tmp_path / "figures")
    assert (tmp_path / "figures" / "shake_studies.png").read_bytes().startswith(b"\x89PNG")
    judged = _claims(tmp_path, found)
    assert judged.method.to_dict() == {"shake-peft-leaks-more-at-equal-loss": "lora-minus-end-to-end", MOST: "dreambooth+lora-minus-best-other"}
    assert judged.status[MOST] == "consistent-direction" and judged.value[MOST] == pytest.approx(most.value, abs=1e-6) and judged.unit[MOST] == "concepts"
    # the same leak at the same loss, twice as fast: nothing is left of the difference that equal steps show
    assert abs(one(found, **told | {"method": "lora-minus-end-to-end"}).value) < 0.01 < one(found, method="end-to-end", defence="steps=4").value - ends[1]


def test_the_best_of_the_others_is_none_that_was_asked_about_fewer_domains(tmp_path):
    amounts = {"lora": 0.5, "end-to-end": 2.0, "dreambooth+lora": 0.8}
    table = scores([(method, "steps", str(step), "0", amount * step / 8, 0.0) for method, amount in amounts.items() for step in (4, 8)], domains=4)
    table = table[(table.method != "end-to-end") | table.image_concept.isin(["d0", "d1"])]
    losses = table.assign(score=[0.1 * int(step or 0) - 2 for step in table.step])
    found = evaluated(table, tmp_path, losses)
    told = {"defence": "steps=matched", "metric": "amplification over matched losses"}
    lora = one(found, **told | {"method": "lora-minus-dreambooth+lora"})
    most = one(found, **told | {"method": "dreambooth+lora-minus-best-other"})
    assert one(found, **told | {"method": "end-to-end"}).value > one(found, **told | {"method": "dreambooth+lora"}).value
    assert most.value == pytest.approx(-lora.value, abs=1e-6) and most.value > 0 and most.n == lora.n


def _claims(folder, table):
    """What the registered claims about equal loss make of a table of the loss, as if SecMI had given it."""
    table = table.assign(attack=table.attack.str.replace("loss", "secmi-stat"))[list(report_rows.COLUMNS)]
    table.to_csv(folder / "as-secmi.csv", index=False)
    claims.claims(folder / "as-secmi.csv", Path(__file__).parents[2] / "paper/reference/claims.yaml", "full", folder / "claims.csv")
    judged = pd.read_csv(folder / "claims.csv").set_index("id")
    return judged[judged.index.str.endswith("-at-equal-loss")]


def test_methods_that_never_leave_the_base_are_not_compared(tmp_path):
    table = scores([("lora", "steps", "4", "0", 0.4, 0.1), ("end-to-end", "steps", "4", "0", 0.4, 0.1)])
    reached = {"": 1.0, "lora": 1.1, "end-to-end": 0.9}  # lora only gets worse: the base is where both have been
    losses = table.assign(score=[-reached[method] for method in table.method])
    found = evaluated(table.replace({"world": {"steps": "steps=4"}}), tmp_path, losses.replace({"world": {"steps": "steps=4"}}))
    assert not (found.defence == "steps=matched").any()


def test_a_base_that_stands_alone_is_not_pooled(tmp_path):
    table = scores([("lora", "self", "12", "0", 0.5, 0.1)])
    both = pd.concat([table, table.assign(base="wide", score=-table.score)])
    both.to_csv(tmp_path / "scores.csv", index=False)
    shake_to_leak.evaluate([tmp_path / "scores.csv"], "named", tmp_path / "main.csv", OPTIONS.model_copy(update={"alone": ["wide"]}))
    found = report_rows.read_metrics(tmp_path / "main.csv")
    assert one(found).value == one(found, base="H1").value > 0 > one(found, base="wide").value
    labels = table[table.model_id == "base"].pretrained == "1"
    before = table[(table.model_id == "base") & (table.image_concept == "d0")]
    assert roc.auc(before.score[labels[before.index]], before.score[~labels[before.index]]) == pytest.approx(0.5, abs=0.15)
