"""Recording a run, and comparing another with it."""

import json
import shutil

import pandas as pd
import pytest

from tuneleak.errors import InputError
from tuneleak.report import record, verify


@pytest.fixture
def recorded(report_study, study, tmp_path):
    """Folder with a run (metrics.csv and sidecar), and its record under reference/full."""
    shutil.copyfile(study.metrics, tmp_path / "metrics.csv")
    report_study.meta(tmp_path / "metrics.csv", "processor A")
    benchmarks = tmp_path / "benchmarks"
    (benchmarks / "finetune").mkdir(parents=True)
    for name, seconds in (("one", "10.5"), ("two", "20")):
        (benchmarks / "finetune" / f"{name}.tsv").write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:10\t100.5\n")
    (benchmarks / "join_metrics.tsv").write_text("s\th:m:s\tmax_rss\n1.5\t0:00:01\tNA\n")
    record.record(tmp_path / "metrics.csv", benchmarks, tmp_path / "reference" / "full")
    return tmp_path


def change(folder, **changes):
    """Change the run's metrics: {column: function of the table}."""
    table = pd.read_csv(folder / "metrics.csv", dtype={"seeds": str}, keep_default_na=False)
    for name, function in changes.items():
        table[name] = function(table)
    table.to_csv(folder / "metrics.csv", index=False)


def compare(folder):
    verify.verify(folder / "metrics.csv", folder / "reference" / "full", folder / "verify.csv")


def verdicts(folder):
    return pd.read_csv(folder / "verify.csv").verdict.value_counts().to_dict()


def test_a_record_is_the_run_to_the_letter_with_its_machine_and_cost(recorded):
    folder = recorded / "reference" / "full" / "finextract"
    assert (folder / "metrics.csv").read_bytes() == (recorded / "metrics.csv").read_bytes()
    facts = json.loads((folder / "run.meta.json").read_text())
    assert facts["preset"] == "full" and facts["machine"] == {"processor": "processor A"}
    assert facts["rules"] == {
        "finetune": {"jobs": 2, "seconds": 30.5, "peak_memory_mb": 100.5},
        "join_metrics": {"jobs": 1, "seconds": 1.5, "peak_memory_mb": 0.0},
    }


def test_a_run_agrees_with_itself(recorded, capsys):
    compare(recorded)
    assert set(verdicts(recorded)) == {"agrees"}
    assert "0 differs, 0 missing" in capsys.readouterr().out


def test_other_models_are_named_as_a_reason(recorded, tmp_path, capsys):
    models = tmp_path / "models"
    models.mkdir()
    (models / "SHA256SUMS").write_text("aa  bases/H1/config.json\n")
    where = recorded / "metrics.csv", recorded / "reference" / "full"
    record.record(where[0], recorded / "benchmarks", where[1], resources=models)
    verify.verify(*where, recorded / "verify.csv", resources=models)
    assert "other models" not in capsys.readouterr().out
    (models / "SHA256SUMS").write_text("bb  bases/H1/config.json\n")
    verify.verify(*where, recorded / "verify.csv", resources=models)
    assert "finextract: recorded with other models" in capsys.readouterr().out


def test_on_the_same_machine_a_thousandth_is_the_limit(recorded, capsys):
    change(recorded, value=lambda table: table.value * 1.0009)
    compare(recorded)
    change(recorded, value=lambda table: table.value.where(table.index != 3, table.value * 1.0009))
    with pytest.raises(SystemExit) as stopped:
        compare(recorded)
    assert stopped.value.code == 1 and verdicts(recorded)["differs"] == 1
    assert capsys.readouterr().out.count("differs  system='finextract'") == 1


@pytest.mark.parametrize("what", ["processor", "versions", "seeds", "unknown"])
def test_elsewhere_the_intervals_are_the_limit(recorded, report_study, what):
    metrics = recorded / "metrics.csv"
    inside = lambda table: table.value + 0.6 * (table.ci_high - table.ci_low)  # combined half-width: .707 of the whole  # noqa: E731
    change(recorded, value=inside)
    with pytest.raises(SystemExit):
        compare(recorded)
    if what == "processor":
        report_study.meta(metrics, "processor B")
    elif what == "versions":
        report_study.meta(metrics, "processor A", versions={"numpy": "1"})
    elif what == "unknown":
        metrics.with_name("metrics.csv.meta.json").unlink()
    else:
        change(recorded, seeds=lambda table: "1")
    compare(recorded)
    change(recorded, value=lambda table: table.value + 0.2 * (table.ci_high - table.ci_low))
    with pytest.raises(SystemExit):
        compare(recorded)


def test_missing_rows_fail_and_extra_rows_are_listed(recorded, capsys):
    table = pd.read_csv(recorded / "metrics.csv", keep_default_na=False)
    pd.concat([table, table.head(2).assign(attack="another")]).to_csv(recorded / "metrics.csv", index=False)
    compare(recorded)
    assert verdicts(recorded) == {"agrees": len(table), "extra": 2} and capsys.readouterr().out.count("extra    ") == 2
    table.iloc[1:].to_csv(recorded / "metrics.csv", index=False)
    with pytest.raises(SystemExit):
        compare(recorded)
    assert verdicts(recorded)["missing"] == 1


def test_the_interval_note_of_a_setting_is_no_other_row(recorded):
    change(recorded, setting=lambda table: table.setting + "; interval=images")
    compare(recorded)
    assert set(verdicts(recorded)) == {"agrees"}


def test_errors_name_what_is_missing(recorded, study, tmp_path):
    with pytest.raises(InputError, match="holds no recorded run"):
        verify.verify(recorded / "metrics.csv", tmp_path / "nowhere", tmp_path / "verify.csv")
    (recorded / "metrics.csv.meta.json").unlink()
    with pytest.raises(InputError, match=r"no sidecar metrics\.csv\.meta\.json"):
        record.record(recorded / "metrics.csv", recorded / "benchmarks", tmp_path / "again")
    (recorded / "benchmarks" / "odd.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match=r"odd.tsv is not a benchmark"):
        record.seconds_per_rule(recorded / "benchmarks")


def test_facts_are_found_through_the_sidecars(report_study, tmp_path):
    for name, content in (
        ("metrics.csv", {"machine": {"processor": "P"}, "versions": {"torch": "1"}, "metrics": [str(tmp_path / "main.csv")]}),
        ("main.csv", {"options": {"bootstrap": 7}, "matches": [str(tmp_path / "matches.csv")]}),
        ("matches.csv", {"options": {"steps": 20}}),
    ):
        (tmp_path / f"{name}.meta.json").write_text(json.dumps(content))
    facts = record.facts_of(tmp_path / "metrics.csv")
    assert facts["evaluation"] == {"bootstrap": 7} and facts["extraction"] == {"steps": 20} and facts["machine"] == {"processor": "P"}
    assert record.facts_of(tmp_path / "nothing.csv") == {}


def test_what_has_no_interval_of_its_own_is_not_compared_elsewhere(recorded, report_study):
    derived = lambda table: table.metric.where(table.index != 3, "AS minimum detectable effect")  # noqa: E731
    exact = {side: lambda table, side=side: table[side].where(table.index != 3, table.value) for side in ("ci_low", "ci_high")}
    change(recorded, metric=derived, **exact)
    record.record(recorded / "metrics.csv", recorded / "benchmarks", recorded / "reference" / "full")
    change(recorded, value=lambda table: table.value.where(table.index != 3, 1.2 * table.value))
    with pytest.raises(SystemExit):
        compare(recorded)
    assert verdicts(recorded)["differs"] == 1, "on the same machine it is"
    report_study.meta(recorded / "metrics.csv", "processor B")
    compare(recorded)
    assert verdicts(recorded)["not compared"] == 1 and "differs" not in verdicts(recorded)
