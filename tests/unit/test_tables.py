"""Tables: number formats, this run beside the recorded one, and the files written."""

import math
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from tuneleak.report import rows, tables, tex


def test_numbers_are_printed_alike():
    assert [tex.number(value) for value in (0.5234, -0.02, 1.5, 0.0, -0.0001)] == [".523", "$-$.020", "1.500", ".000", ".000"]
    assert tex.number(math.nan) == tex.number(None) == "n/a"
    assert tex.number(21, 0) == "21" and tex.number(0.0, 0) == "0"
    assert tex.with_interval(0.5, 0.4, 0.61) == ".500 [.400, .610]"
    assert tex.with_interval(0.5, 0.4, 0.61, interval_decimals=2, size=r"\tiny") == r".500 {\tiny [.40, .61]}"
    assert tex.with_interval(0.5, 0.5, 0.5) == ".500" == tex.with_interval(0.5, math.nan, math.nan)
    assert tex.escape("50 % of a_b & <c>") == r"50 \% of a\_b \& \textless{}c\textgreater{}"


def test_macro_names_have_letters_only():
    assert tex.camel("status", "finextract-beats-cfg") == "StatusFinextractBeatsCfg"
    with pytest.raises(ValueError, match="letters only"):
        tex.camel("status", "base2")


def record_as_full(study, reference, shift=0.0):
    folder = reference / "full" / "finextract"
    folder.mkdir(parents=True)
    table = pd.read_csv(study.metrics)
    for name in ("value", "ci_low", "ci_high"):
        table[name] += shift
    table.to_csv(folder / "metrics.csv", index=False)


def test_without_a_record_there_are_dashes(study, tmp_path):
    tables.tables(study.metrics, tmp_path / "out", tmp_path / "reference")
    for name in ("finextract", "finextract_thresholds", "finextract_controls"):
        text = (tmp_path / "out" / f"{name}.tex").read_text()
        body = text.split(r"\midrule")[1]
        lines = [line for line in body.splitlines() if " & " in line]
        assert len(lines) == 20, "two worlds, two methods, five attacks"
        assert all(cell.strip() == "--" for line in lines for cell in line.removesuffix(r" \\").split(" & ")[1::2])
        assert text.count(r"\multicolumn") == 4 + (3 if name == "finextract" else 4)


def test_recorded_and_measured_stand_side_by_side(study, tmp_path):
    record_as_full(study, tmp_path / "reference", shift=0.25)
    tables.tables(study.metrics, tmp_path / "out", tmp_path / "reference")
    table = pd.read_csv(tmp_path / "out" / "finextract.csv")
    assert (table.recorded_value - table.value).to_numpy() == pytest.approx(0.25)
    one = table[(table.world == "identities") & (table.method == "lora") & (table.attack == "finextract") & (table.quantity == "attack")]
    value = one[one.metric == "AS"].iloc[0]
    line = f"FineXtract & {tex.with_interval(value.recorded_value, value.recorded_ci_low, value.recorded_ci_high, interval_decimals=2)} & "
    line += tex.with_interval(value.value, value.ci_low, value.ci_high, interval_decimals=2)
    assert line in (tmp_path / "out" / "finextract.tex").read_text()
    assert f"{value.value:.3f} [{value.ci_low:.3f}, {value.ci_high:.3f}] |" in (tmp_path / "out" / "finextract.md").read_text()


def test_every_number_of_the_run_is_in_the_table(study, tmp_path):
    measured = rows.read_metrics(study.metrics)
    both = tables.compare(measured)
    wanted = measured[~measured.attack.str.contains("-minus-") & ~measured.method.str.contains("-minus-") & (measured.concept == "")]
    assert len(both) == len(wanted) and sorted(both.value) == pytest.approx(sorted(wanted.value))
    assert list(dict.fromkeys(both.world)) == ["identities", "artists"] and both.attack[0] == "direct"
    assert set(both.quantity) == {"attack", "heldout", "random", "oracle"}


def test_worlds_without_factors_have_no_leaked_bits(study):
    text = tables.typeset(tables.compare(rows.read_metrics(study.metrics)), [("attack", "leaked bits", "leaked bits")], has_record=True)
    people, artists = text.split("artists, DreamBooth")
    assert people.count("n/a") == 10 and artists.count("n/a") == 20, "nothing recorded; artists not measured either"


def test_tables_need_neither_torch_nor_matplotlib():
    code = "import sys; from tuneleak.report import tables, claims, paper, verify; print({'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_a_run_of_one_world_stands_beside_a_record_of_two(report_study, study, tmp_path):
    record_as_full(study, tmp_path / "reference")
    part = report_study.make(tmp_path / "part", worlds=("identities",), methods=("lora",), pictures=False)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    tables.tables(part.metrics, tmp_path / "out", tmp_path / "reference")
    table = pd.read_csv(tmp_path / "out" / "finextract.csv")
    assert table[table.world == "artists"].value.isna().all() and table[table.world == "artists"].recorded_value.notna().all()
