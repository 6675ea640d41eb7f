"""Claims: the registry's own consistency, selection of rows, statuses, Holm's correction and power."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from tuneleak.errors import InputError
from tuneleak.metrics.finextract import evaluate
from tuneleak.metrics.join import join
from tuneleak.options import EvaluateOptions
from tuneleak.report import claims, record, registry, rows

REFERENCE = Path(__file__).parents[2] / "paper" / "reference"


def judge(metrics, out, preset="embedded", reference=REFERENCE):
    claims.claims(metrics, reference / "claims.yaml", preset, out)
    return pd.read_csv(out, keep_default_na=False).set_index("id")


def edited(study, folder, change):
    """A copy of the study's metrics table, changed by `change(table) -> table`."""
    table = change(pd.read_csv(study.metrics, dtype=str, keep_default_na=False))
    table.to_csv(folder / "metrics.csv", index=False)
    return folder / "metrics.csv"


def where(table, **values):
    chosen = pd.Series(True, index=table.index)
    for name, value in values.items():
        chosen &= table[name] == value
    return chosen


def test_the_registry_holds_together_for_every_preset():
    for preset, worlds in (
        ("embedded", {"identities", "artists"}),
        ("smoke", {"identities", "artists"}),
        ("paper", {"wikiart", "dreambooth"}),
    ):
        found = registry.load(REFERENCE / "claims.yaml", preset)
        assert {claim.select["world"] for claim in found.claims if claim.family.system == "finextract"} == worlds
        assert len({claim.id for claim in found.claims}) == len(found.claims)


def test_planned_effects_follow_from_the_assumptions():
    stated = yaml.safe_load((REFERENCE / "endpoints.yaml").read_text())
    assert stated["endpoints"]
    for endpoint in stated["endpoints"]:
        for world, effect in endpoint["minimum_detectable_effect"].items():
            count = endpoint.get("concepts") or stated["concepts"][world]
            assert count == 3 or endpoint["unit"] == "concept"
            factor = 4.302653 + 1.060660 if endpoint["unit"] == "run" else 1.959964 + 0.841621  # t with two degrees of freedom, normal
            expected = factor * endpoint["assumed_sd"] / math.sqrt(count)
            assert effect == pytest.approx(expected, abs=6e-4), (endpoint["claim"], world)


def test_published_results_are_consistent_with_their_own_similarities():
    table = registry.published_rows(REFERENCE, "finextract")
    assert (table.source != "").all() and (table.scope != "").all()
    results = table[table.method != ""]
    for _, block in results.groupby(["method", "attack"]):
        similarity = block[block.metric == "similarity"].value
        values = block[block.metric != "similarity"].set_index("metric").value
        assert len(similarity) == 10
        assert values["AS"] == pytest.approx(similarity.mean(), abs=6e-4)
        assert values["A-ESR@0.7"] == (similarity >= 0.7).mean() and values["A-ESR@0.6"] == (similarity >= 0.6).mean()


def test_statuses_of_a_study_with_an_advantage(report_study, tmp_path):
    study = report_study.make(tmp_path, advantage=0.1, pictures=False)
    table = judge(study.metrics, tmp_path / "claims.csv")
    assert (table[table.system == "lora-weights"].status == "not-run").all()
    assert set(table[table.system == "shake-to-leak"].status) == {"not-run"}
    table = table[table.system == "finextract"]
    assert set(table.status) <= {"consistent-direction", "opposite-direction", "inconclusive", "not-comparable"}
    assert (table[table.family == "finextract-beats-cfg"].status == "consistent-direction").all()
    shares = table[table.family == "extracted-share"]
    assert (shares.status == "not-comparable").all() and (shares.published == "about 20%").all() and (shares.published_status == "sourced").all()


def test_selectors_fit_what_the_evaluation_writes(study, tmp_path):
    """From matches.csv through `evaluate` and `join-metrics`: every registered claim finds its row."""
    evaluate(study.matches, tmp_path / "main.csv", EvaluateOptions(bootstrap=50))
    join([tmp_path / "main.csv"], tmp_path / "metrics.csv")
    table = judge(tmp_path / "metrics.csv", tmp_path / "claims.csv")
    table = table[table.system == "finextract"]
    assert "not-run" not in set(table.status) and set(table.unit) == {"concepts"}
    assert (table[table.family == "extraction-beats-heldout"].value.astype(float) - 0.1).abs().max() < 1e-6
    facts = record.facts_of(tmp_path / "metrics.csv")
    assert facts["evaluation"]["bootstrap"] == 50 and facts["versions"]


def test_signs_decide_the_direction_and_the_preset_the_word(report_study, tmp_path):
    study = report_study.make(tmp_path, advantage=-0.3, pictures=False)
    table = judge(study.metrics, tmp_path / "claims.csv")
    assert (table[table.family == "finextract-beats-cfg"].status == "opposite-direction").all()
    for number, (advantage, word) in enumerate(((0.1, "reproduced"), (-0.3, "not-reproduced"), (-0.06, "not-reproduced"))):
        paper = report_study.make(tmp_path / f"paper{number}", worlds=("wikiart", "dreambooth"), advantage=advantage, pictures=False)
        assert (judge(paper.metrics, tmp_path / "claims.csv", "paper").query("family == 'finextract-beats-cfg'").status == word).all()


def test_an_interval_around_zero_is_inconclusive_and_shows_power_and_effect(study, tmp_path):
    def flatten(table):
        table.loc[where(table, attack="finextract-minus-cfg", world="identities", method="lora"), ["value", "ci_low", "ci_high"]] = [
            "0.001",
            "-0.0186",
            "0.0206",
        ]
        return table

    row = judge(edited(study, tmp_path, flatten), tmp_path / "claims.csv").loc["finextract-beats-cfg-identities-lora"]
    assert row.status == "inconclusive"
    error = 0.0196 / 2.131450  # sixteen concepts
    assert float(row.mde) == pytest.approx((2.131450 + 0.866245) * error, rel=1e-3)
    assert float(row.power) == pytest.approx(0.943, abs=0.001)  # planned .035: T(3.806 - 2.131), of 15 degrees of freedom


@pytest.mark.parametrize(
    ("value", "low", "high", "p"), [(1, 0.351, 1, 0.0025), (0.5, 0, 2, 0.05), (-0.5, -2, 0, 0.05), (-1, -1, -0.351, 0.0025), (0.5, 0.6, 2.56, 0.3173)]
)
def test_the_side_of_an_interval_towards_zero_tests_the_claim(value, low, high, p):
    """An interval that ends where the metric does is short on that side; one that touches 0 has a p of .05, of however many concepts it is."""
    found = pd.Series(dict.fromkeys(rows.KEY, "") | {"metric": "AS", "value": value, "ci_low": low, "ci_high": high, "n": 48, "interval": ""})
    table, known = pd.DataFrame([found]), SimpleNamespace(confidence=0.95, power=0.8)
    assert claims._power(found, table, float("nan"), known)["p_holm"] == pytest.approx(p, abs=1e-3)
    few = claims._power(found, table, float("nan"), known, 8)["p_holm"]
    assert few == pytest.approx(p, abs=1e-3) if p == 0.05 else few > p or value < low  # Student's tails are longer


@pytest.mark.parametrize(("low", "high", "reason"), [("0.02", "0.02", "the interval has no width"), ("", "", "there is no interval")])
def test_a_difference_without_a_spread_says_why_it_is_inconclusive(study, tmp_path, low, high, reason):
    def change(table):
        row = where(table, attack="finextract-minus-cfg", metric="AS", method="lora", world="identities") & ~table.setting.str.contains("concept")
        table.loc[row, ["value", "ci_low", "ci_high"]] = "0.02", low, high
        return table

    row = judge(edited(study, tmp_path, change), tmp_path / "claims.csv").loc["finextract-beats-cfg-identities-lora"]
    assert row.status == "inconclusive" and row.reason.startswith(reason) and row.p_holm == ""


def test_the_evaluations_own_minimum_effect_is_preferred(study, tmp_path):
    def add(table):
        own = table[where(table, attack="finextract-minus-cfg", world="identities", method="lora", metric="AS")]
        return pd.concat([table, own.assign(metric="AS minimum detectable effect", value="0.123", ci_low="0.123", ci_high="0.123")])

    assert float(judge(edited(study, tmp_path, add), tmp_path / "claims.csv").loc["finextract-beats-cfg-identities-lora"].mde) == 0.123


def test_holm_turns_a_bare_significance_inconclusive(study, tmp_path):
    assert claims.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])

    def weaken(table):
        chosen = where(table, attack="cfg-minus-direct")
        table.loc[chosen, ["value", "ci_low", "ci_high"]] = ["0.0205", "0.0009", "0.0401"]  # p = .04 each
        return table

    table = judge(edited(study, tmp_path, weaken), tmp_path / "claims.csv").query("family == 'cfg-beats-direct'")
    assert (table.status == "inconclusive").all() and table.p_holm.astype(float).min() > 0.05


def test_intervals_over_images_are_named_as_the_unit(study, tmp_path):
    def note(table):
        table["setting"] += "; interval=images"
        return table

    table = judge(edited(study, tmp_path, note), tmp_path / "claims.csv")
    assert set(table[table.system == "finextract"].unit) == {"images"}


def test_what_was_not_run_is_not_run(report_study, study, tmp_path):
    part = report_study.make(tmp_path, worlds=("identities",), methods=("lora",), attacks=("cfg", "finextract"), pictures=False)
    table = judge(part.metrics, tmp_path / "claims.csv")
    ran = table.index[table.status != "not-run"]
    assert "finextract-beats-cfg-identities-lora" in ran and "average-similarity-identities-lora" in ran
    for missing in (
        "finextract-beats-cfg-artists-lora",
        "cfg-beats-direct-identities-lora",
        "extraction-beats-base-identities-lora",
        "lora-is-harder-identities",
    ):
        assert table.loc[missing].status == "not-run" and table.loc[missing].reason.endswith("was not run")
    other = edited(study, tmp_path, lambda table: table.assign(system="another"))
    assert set(judge(other, tmp_path / "claims.csv").status) == {"not-run"}


def test_no_heldouts_and_no_factors_are_not_run(study, tmp_path):
    def drop(table):
        return table[~table.setting.str.contains("heldout") & (table.metric != "leaked bits")]

    table = judge(edited(study, tmp_path, drop), tmp_path / "claims.csv")
    assert (table[table.family.isin(["extraction-beats-heldout", "factors-leak"])].status == "not-run").all()


def test_a_selector_without_its_row_names_the_claim(study, tmp_path):
    lost = edited(study, tmp_path, lambda table: table[~where(table, attack="finextract-minus-cfg", world="artists", method="lora")])
    with pytest.raises(InputError, match="'finextract-beats-cfg-artists-lora' must select one row of the metrics; 0 have"):
        judge(lost, tmp_path / "claims.csv")


def test_a_selector_with_two_rows_names_the_claim(study, tmp_path):
    two = edited(study, tmp_path, lambda table: pd.concat([table, table.assign(base="H2")]))
    with pytest.raises(InputError, match="'finextract-beats-cfg-identities-dreambooth' must select one row of the metrics; 2 have"):
        judge(two, tmp_path / "claims.csv")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attack: finextract-minus-cfg", "attack: finextrakt-minus-cfg", "no attack 'finextrakt'"),
        ("method: lora-minus-dreambooth", "method: lora-minus-dreamboth", "no method 'dreamboth'"),
        ("metric: leaked bits", "metric: leaked bytes", "its endpoint is about"),
        ("metric: A-ESR@0.7", "metric: ESR", "no metric 'ESR'"),
        ("select: {attack: cfg-minus-direct", "select: {atack: cfg-minus-direct", "selects by atack"),
        ("kind: less-than-zero", "kind: smaller", "check.kind"),
        ("{extracted-share:.0%}", "{extracted:.0%}", "has no row 'extracted'"),
        ("id: factors-leak", "id: factors-drip", "one primary endpoint"),
    ],
)
def test_mistakes_in_the_registry_are_named(study, tmp_path, old, new, message):
    shutil.copytree(REFERENCE, tmp_path / "reference")
    path = tmp_path / "reference" / "claims.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        judge(study.metrics, tmp_path / "claims.csv", reference=tmp_path / "reference")


def test_settings_are_taken_apart():
    assert rows.split_setting("w=3,k=-0.02; control=heldout; interval=images") == {
        "guidance": "w=3,k=-0.02", "control": "heldout", "bound": "", "concept": "", "interval": "images",
    }  # fmt: skip
    assert rows.guidance_values("w=3,k=-0.02") == {"w": 3.0, "k": -0.02} and rows.guidance_values("none") == {}
    with pytest.raises(InputError, match="unknown qualifier 'contrl=heldout'"):
        rows.split_setting("w=3; contrl=heldout")


def test_broken_tables_are_named(study, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        rows.read_metrics(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="lacks the columns seeds"):
        rows.read_metrics(edited(study, tmp_path, lambda table: table.drop(columns="seeds")))
    with pytest.raises(InputError, match="column value, line 2: 'high' is no number"):
        rows.read_metrics(edited(study, tmp_path, lambda table: table.assign(value="high")))
    with pytest.raises(InputError, match="two rows describe the same thing: system='finextract'"):
        rows.read_metrics(edited(study, tmp_path, lambda table: pd.concat([table, table.head(1)])))


def test_differences_of_training_runs_are_tested_by_students_t():
    """Three runs: an interval that touches zero has p = .05, however the normal would judge it."""
    key = dict.fromkeys(rows.KEY, "")
    found = pd.Series(key | {"metric": "accuracy cnn", "value": 0.2, "ci_low": 0.0, "ci_high": 0.4, "n": 3, "interval": "runs"})
    table = pd.DataFrame([found])
    known = SimpleNamespace(confidence=0.95, power=0.8)
    judged = claims._power(found, table, 0.2, known, 3)
    assert judged["p_holm"] == pytest.approx(0.05)
    error = 0.2 / 4.302653
    assert judged["mde"] == pytest.approx((4.302653 + 1.060660) * error, rel=1e-5)
    assert claims._power(found.replace("runs", ""), table, 0.2, known)["mde"] == pytest.approx((1.959964 + 0.841621) * 0.2 / 1.959964, rel=1e-5)
    assert judged["power"] == pytest.approx(0.5, abs=0.01)  # the planned effect lies at the edge of what is found


def test_what_lies_below_its_best_control_is_not_thereby_refuted():
    row = {"kind": "greater-than-zero", "p_holm": 0.001, "ci_low": -0.3, "ci_high": -0.1, "value": -0.2, "above": True}
    assert claims._status(row, 0.05, at_paper_scale=False) == "inconclusive"
    assert claims._status(row | {"above": False}, 0.05, at_paper_scale=False) == "opposite-direction"
    assert claims._status(row | {"value": 0.2, "ci_low": 0.1, "ci_high": 0.3}, 0.05, at_paper_scale=False) == "consistent-direction"


def test_one_training_run_decides_nothing_about_a_method(study, tmp_path):
    metrics = edited(study, tmp_path, lambda table: table)
    table = pd.read_csv(metrics, dtype=str, keep_default_na=False)
    row = dict.fromkeys(table.columns, "") | {"system": "dp-ldm", "world": "near", "method": "attention-minus-base", "defence": "epsilon=10"}
    row |= {"metric": "accuracy cnn", "value": "0.05", "ci_low": "0.03", "ci_high": "0.07", "n": "2000", "seeds": "0", "setting": "interval=images"}
    more = [row] + [row | {"method": method} for method in ("attention", "base")]
    pd.concat([table, pd.DataFrame(more)]).to_csv(metrics, index=False)
    judged = judge(metrics, tmp_path / "claims.csv").loc["dp-beats-base-near"]
    assert judged.status == "inconclusive" and "one training run" in judged.reason
    table = pd.read_csv(metrics, dtype=str, keep_default_na=False)
    table.loc[table.setting == "interval=images", ["setting", "n", "seeds"]] = ["interval=runs", "3", "0;1;2"]
    table.to_csv(metrics, index=False)
    assert judge(metrics, tmp_path / "claims.csv").loc["dp-beats-base-near"].status == "consistent-direction"
