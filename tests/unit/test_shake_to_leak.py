"""Amplifications from scores whose effect is known: membership against shift, controls, intervals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tuneleak.attacks.membership.blind import blind_scores
from tuneleak.errors import InputError
from tuneleak.metrics import cell_rows, intervals, join, roc, shake_scores, shake_to_leak
from tuneleak.options import ShakeEvaluateOptions
from tuneleak.report import claims, figures_shake
from tuneleak.report import rows as report_rows

REFERENCE = Path(__file__).resolve().parents[2] / "paper" / "reference"

OPTIONS = ShakeEvaluateOptions(bootstrap=300)
COLUMNS = [*shake_scores.NAMED, "score", "model_calls"]


def scores(
    domains=4, pictures=30, bases=("H1", "H1-twin"), effect=0.5, shift=0.0, methods=("lora", "dreambooth+lora"), sources=("self", "unrelated", "lr0"), seed=0
):
    """A made-up scores.csv. Base scores are noise; self-made tuning adds `effect` for members and `shift` for fold P, controls add nothing."""
    rng, found = np.random.default_rng(seed), []
    for domain in range(domains):
        for base in bases:
            for index in range(2 * pictures):
                fold = "PQ"[index % 2]
                member = fold == ("P" if base == bases[0] else "Q")
                row = dict.fromkeys(COLUMNS, "") | {"base": base, "setting": "t=1", "caption": "true", "image_id": f"i{domain}-{index}", "model_calls": 2}
                row |= {"image_concept": f"d{domain}", "dose": str([1, 16][index // 2 % 2]), "pretrained": str(int(member))}
                for attack in ("loss", "sima"):
                    before = rng.normal()
                    found.append(row | {"model_id": "base", "attack": attack, "score": before})
                    for method in methods:
                        for source in sources:
                            after = before + (effect * member + shift * (fold == "P") + rng.normal() * 0.3 if source == "self" else 0)
                            model = {"model_id": "m", "world": source, "concept": f"d{domain}", "method": method, "seed": "0", "attack": attack}
                            found.append(row | model | {"score": after})
    return pd.DataFrame(found, columns=COLUMNS)


def evaluated(table, tmp_path, **options):
    table.to_csv(tmp_path / "scores.csv", index=False)
    shake_to_leak.evaluate([tmp_path / "scores.csv"], "named", tmp_path / "main.csv", OPTIONS.model_copy(update=options))
    return report_rows.read_metrics(tmp_path / "main.csv")  # the report reads it: unique keys, known qualifiers


def one(table, **values):
    for name, value in ({"base": "all", "control": "", "concept": "", "attack": "loss", "method": "lora"} | values).items():
        table = table[table[name] == value]
    assert len(table) == 1, f"{len(table)} rows for {values}"
    return table.iloc[0]


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """A made-up study with an effect of .5, and its metrics."""
    table = scores()
    return table, evaluated(table, tmp_path_factory.mktemp("default"))


def test_an_amplification_is_the_mean_over_domains_of_paired_auc_differences(default):
    table, result = default
    by_hand = []
    for base in ("H1", "H1-twin"):
        for domain in range(4):
            mine = table[(table.base == base) & (table.image_concept == f"d{domain}") & (table.attack == "loss")]
            auc = {}
            for name, block in (("before", mine[mine.model_id == "base"]), ("after", mine[(mine.method == "lora") & (mine.world == "self")])):
                auc[name] = roc.auc(block.score[block.pretrained == "1"], block.score[block.pretrained == "0"])
            by_hand.append(auc["after"] - auc["before"])
    row = one(result, metric="amplification")
    assert row.value == pytest.approx(np.mean(by_hand), abs=1e-6) and row.ci_low < row.value < row.ci_high and row.interval == "images"
    assert row.value > 0.1 and row.ci_low > 0
    assert one(result, metric="amplification", base="H1").value == pytest.approx(np.mean(by_hand[:4]), abs=1e-6)
    assert one(result, metric="AUC", method="base").value == pytest.approx(0.5, abs=0.06)


def test_twins_tell_membership_from_a_shift(tmp_path):
    member = evaluated(scores(effect=0.6, methods=("lora",), sources=("self",)), tmp_path)
    assert one(member, metric="amplification").ci_low > 0 and abs(one(member, metric="shift").value) < 0.06
    moved = evaluated(scores(effect=0.0, shift=0.6, methods=("lora",), sources=("self",)), tmp_path)
    amplified, shifted = one(moved, metric="amplification"), one(moved, metric="shift")
    assert abs(amplified.value) < 0.04 and shifted.value > 0.1 and shifted.ci_low > 0
    assert one(moved, metric="amplification", base="H1").value > 0.1 > -0.1 > one(moved, metric="amplification", base="H1-twin").value, (
        "alone, a base is fooled"
    )
    alone = evaluated(scores(bases=("H1",), methods=("lora",), sources=("self",)), tmp_path)
    assert "shift" not in set(alone.metric)
    assert one(alone, metric="amplification", base="H1").value == one(alone, metric="amplification").value


def test_controls_stand_beside_every_amplification(default):
    _, result = default
    for attack in ("loss", "sima"):
        nothing = one(result, metric="amplification", control="lr0", attack=attack)
        assert nothing.value == nothing.ci_low == nothing.ci_high == 0, "a rate of zero gives exactly nothing"
        beyond = one(result, metric="amplification beyond unrelated", attack=attack)
        assert beyond.value == pytest.approx(one(result, metric="amplification", attack=attack).value, abs=1e-6)
    both = one(result, metric="amplification", method="dreambooth+lora-minus-others")
    expected = one(result, metric="amplification", method="dreambooth+lora").value - one(result, metric="amplification", method="lora").value
    assert both.value == pytest.approx(expected, abs=1e-6)


def test_attacks_on_a_few_models_have_a_table_of_their_own_that_joins_the_other(tmp_path):
    """Under the base's name alone, since `all` bases have not been asked; what the base's best attack is stays what it was."""
    table = scores(methods=("dreambooth+lora",), sources=("self",))
    main = evaluated(table[table.attack == "sima"], tmp_path)
    (tmp_path / "main.csv").rename(tmp_path / "few.csv")
    few = table[(table.attack == "loss") & (table.base == "H1")].assign(attack="pfami", model_calls=110)
    assert set(evaluated(few, tmp_path, alone=["H1"]).base) == {"H1"}
    join.join([tmp_path / "few.csv", tmp_path / "main.csv"], tmp_path / "metrics.csv")
    both = report_rows.read_metrics(tmp_path / "metrics.csv")
    told = {"metric": "amplification", "method": "dreambooth+lora"}
    assert len(both) > len(main) and one(both, base="H1", attack="pfami", **told).value > 0.1
    assert one(both, attack="sima", **told).value == one(main, attack="sima", **told).value


def test_random_labels_give_nothing_within_the_interval(tmp_path):
    table = scores(effect=0.7, domains=9, bases=("H1",), methods=("lora",), sources=("self",))
    rng = np.random.default_rng(1)
    pictures = sorted(set(table.image_id))
    labels = dict(zip(pictures, rng.permutation([str(i % 2) for i in range(len(pictures))]), strict=True))
    result = evaluated(table.assign(pretrained=table.image_id.map(labels)), tmp_path)
    for row in (one(result, metric="AUC"), one(result, metric="AUC", method="base")):
        assert row.ci_low < 0.5 < row.ci_high
    row = one(result, metric="amplification")
    assert row.ci_low < 0 < row.ci_high and row.interval == ""
    assert one(result, metric="amplification pooled").ci_low < 0 < one(result, metric="amplification pooled").ci_high


def test_dose_domains_and_low_rates(default, tmp_path):
    result = evaluated(scores(domains=10, pictures=60, bases=("H1",), methods=("lora",), sources=("self",)), tmp_path, bootstrap=50)
    assert {"amplification at dose 1", "amplification at dose 16", "amplification pooled", "TPR@1%FPR"} <= set(result.metric)
    assert set(result[result.metric == "amplification per domain"].concept) == {f"d{i}" for i in range(10)}
    per_domain = result[(result.metric == "amplification per domain") & (result.attack == "loss") & (result.base == "all")]
    assert per_domain.value.mean() == pytest.approx(one(result, metric="amplification").value, abs=1e-6)
    assert one(result, metric="TPR@1%FPR").value > one(result, metric="TPR@1%FPR", method="base").value
    assert not default[1].metric.str.startswith("TPR").any(), "not below 500 non-members"


def test_the_base_as_reference_is_held_against_the_bases_own_best_attack(default):
    _, result = default
    reference = one(result, metric="AUC", attack="reference-loss")
    # tuned minus base is effect * member + noise of deviation .3: AUC = Phi(.5 / (.3 sqrt 2))
    assert reference.value == pytest.approx(0.881, abs=0.04)
    assert one(result, metric="AUC minus base best", attack="reference-loss").ci_low > 0.2
    assert one(result, metric="AUC", attack="two-score-loss").value == pytest.approx(reference.value, abs=0.05), "the classifier finds the difference itself"


def test_an_interval_of_an_auc_ends_where_aucs_end():
    made, key = cell_rows.Rows("shake-to-leak", "named", OPTIONS), {"base": "H1", "method": "lora", "attack": "loss", "setting": "t"}
    labels, score = np.arange(6) % 2 == 0, np.array([3.0, 1.0, 4.0, 2.0, 1.5, 0.0])
    cells = [cell_rows.Cell("H1", "0", "d", labels, score, score, np.full(6, ""))]
    row = made.of(key, "AUC", cells, cell_rows.auc_of(cell_rows.tuned))
    assert row["value"] == pytest.approx(8 / 9) and row["ci_high"] == 1.0 and row["ci_low"] < row["value"]


def test_intervals_cover_and_few_domains_are_said_to_be_few():
    made, covered = cell_rows.Rows("shake-to-leak", "named", OPTIONS), 0
    key = {"base": "H1", "method": "lora", "attack": "loss", "setting": "t"}
    for seed in range(40):
        table = scores(domains=3, pictures=25, bases=("H1",), effect=0.0, methods=("lora",), sources=("self",), seed=seed)
        table = table[table.attack == "loss"]
        cells = shake_to_leak.cells_of(table[table.model_id == "m"], table[table.model_id == "base"])
        row = made.of(key, "amplification", cells, cell_rows.difference(cell_rows.tuned, cell_rows.before))
        covered += row["ci_low"] <= 0 <= row["ci_high"]
        assert row["setting"].endswith("; interval=images")
    assert covered >= 34, f"{covered} of 40 intervals of 95 % hold the true value"
    assert intervals.MINIMUM_CLUSTERS == 8


def test_the_blind_classifier_sees_a_split_by_looks_and_nothing_in_a_fair_one():
    rng = np.random.default_rng(0)
    concepts, labels = np.repeat([f"c{i}" for i in range(6)], 40), np.tile([0, 1], 120)
    fair = rng.normal(size=(240, 8)) + 5 * np.repeat(rng.normal(size=(6, 8)), 40, axis=0)
    values = np.concatenate([blind_scores(fair, labels, concepts, f"c{i}") for i in range(6)])
    assert 0.4 < roc.auc(values[labels == 1], values[labels == 0]) < 0.6
    split = fair + 0.8 * labels[:, None] * np.eye(8)[0]
    values = blind_scores(split, labels, concepts, "c0")
    assert roc.auc(values[labels[:40] == 1], values[labels[:40] == 0]) > 0.6
    with pytest.raises(InputError, match="other concepts"):
        blind_scores(fair, np.where(concepts == "c0", labels, 0), concepts, "c0")


def test_every_registered_claim_finds_its_row_or_says_why_not(tmp_path):
    table = scores(domains=3, pictures=8, bases=("H1",), methods=("end-to-end", "lora", "dreambooth+lora"), sources=("self", "unrelated", "instrument"))
    evaluated(table[table.attack == "loss"].assign(attack="secmi-stat"), tmp_path)
    judged = tmp_path / "claims.csv"
    claims.claims(tmp_path / "main.csv", REFERENCE / "claims.yaml", "embedded", judged)
    found = pd.read_csv(judged).query("system == 'shake-to-leak'")
    assert len(found) == 9 and found.set_index("id").reason["shake-extracts-members"] == "attack 'regeneration-aligned' was not run"
    along = found[found.id.str.endswith("-at-equal-loss")]
    assert len(along) == 2 and set(along.reason) == {"defence 'steps=matched' was not run"}
    found = found[(found.id != "shake-extracts-members") & ~found.id.isin(along.id)]
    assert set(found.status) <= {"consistent-direction", "opposite-direction", "inconclusive"} and set(found.unit) == {"images"}
    alone = scores(domains=3, pictures=8, bases=("H1",), methods=("dreambooth+lora",), sources=("self",))
    evaluated(alone[alone.attack == "loss"].assign(attack="secmi-stat"), tmp_path)
    claims.claims(tmp_path / "main.csv", REFERENCE / "claims.yaml", "embedded", judged)
    found = pd.read_csv(judged).query("system == 'shake-to-leak'").set_index("id")
    assert found.reason["shake-dreambooth-lora-leaks-most"] == "no other method was run" and found.status["shake-amplifies"] != "not-run"
    assert "was not measured" in found.reason["shake-unrelated-gives-nothing"]


def test_the_figures_show_bases_controls_and_doses(tmp_path, default):
    table, _ = default
    table.to_csv(tmp_path / "scores.csv", index=False)
    shake_to_leak.evaluate([tmp_path / "scores.csv"], "named", tmp_path / "main.csv", OPTIONS)
    figures_shake.figures(tmp_path / "main.csv", [tmp_path / "scores.csv"], tmp_path / "figures")
    for name in ("amplification", "roc", "dose"):
        assert (tmp_path / "figures" / f"shake_{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "figures" / f"shake_{name}.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(InputError, match="no row of shake-to-leak"):
        pd.read_csv(tmp_path / "main.csv").assign(system="finextract").to_csv(tmp_path / "other.csv", index=False)
        figures_shake.figures(tmp_path / "other.csv", [tmp_path / "scores.csv"], tmp_path / "figures")


def test_bad_scores_are_named(tmp_path):
    table = scores(domains=2)
    for broken, says in (
        (pd.concat([table, table[table.model_id == "m"].iloc[:1]]), "two scores"),
        (pd.concat([table, table[table.model_id == "base"].iloc[:1].assign(score=9.0)]), "jobs disagree"),
        (table.assign(pretrained=""), "--members"),
        (table.drop(columns="caption"), "caption"),
        (table.assign(score="x"), "not a number"),
        (table.assign(score="inf"), "infinite"),
        (table[~((table.model_id == "base") & (table.image_id == "i0-3"))], "has no score of the base"),
        (table[table.model_id != "base"], "no scores of a base"),
        (table.assign(pretrained="1"), "two members and two non-members"),
    ):
        with pytest.raises(InputError, match=says):
            evaluated(broken, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        shake_to_leak.evaluate([tmp_path / "nothing.csv"], "named", tmp_path / "main.csv", OPTIONS)


def test_methods_that_were_tried_on_a_few_domains_only_are_left_out_of_the_dose_figure():
    rows = pd.DataFrame({"method": ["base", "lora", "lora", "hypernetwork"], "n": [40, 40, 38, 8], "value": [0.6, 0.1, 0.2, 0.3]})
    assert figures_shake.of_all_domains(rows).value.tolist() == [0.6, 0.1, 0.2]
