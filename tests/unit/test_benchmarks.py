"""Benchmarks run (how fast is nobody's test), and their table keeps one row per measure."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "benchmarks"
TINY = {
    "many-loras": ["--models", "2", "--steps", "1", "--batch", "1", "--repeats", "2"],
    "guidance": ["--generations", "1", "--steps", "1", "--batch", "1", "--repeats", "1", "--unet", str(ROOT / "resources" / "bases" / "H1")],
    "secmi": ["--pictures", "1", "--batch", "1", "--repeats", "1"],
}


@pytest.fixture
def load(monkeypatch):
    """A module of the folder by its name, which finds the others as it does when it is run."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(name):
        specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, name, module)
        specification.loader.exec_module(module)
        return module

    return run


def test_a_rerun_replaces_the_rows_of_its_benchmark_alone(load, tmp_path):
    recording, out = load("recording"), tmp_path / "benchmarks.csv"

    def record(benchmark, measures, threads=1, out=out):
        results = recording.Results(benchmark, argparse.Namespace(out=out, threads=threads, unet=Path("a"), repeats=3))
        for measure, values in measures.items():
            results.add(measure, min(values), "s", values)
        results.write()

    record("b", {"first": [2.0, 1.0, 4.0], "second": [5.0]})
    record("a", {"first": [3.0]})
    record("b", {"third": [1 / 3]}, threads=2)
    table = pd.read_csv(out, dtype=str)
    assert list(table.columns) == recording.COLUMNS
    assert table[["benchmark", "measure", "value", "low", "high", "repeats", "threads"]].to_numpy().tolist() == [
        ["a", "first", "3", "3", "3", "1", "1"], ["b", "third", "0.333333", "0.333333", "0.333333", "1", "2"],
    ]  # fmt: skip
    record("b", {"first": [2.0, 1.0, 4.0]})
    row = pd.read_csv(out).set_index("benchmark").loc["b"]
    assert (row.value, row.low, row.high, row.repeats, row.settings) == (1, 1, 4, 3, '{"repeats": 3, "unet": "a"}') and row.processor and row.torch
    with pytest.raises(ValueError, match="'same' twice"):
        results = recording.Results("c", argparse.Namespace(out=out))
        results.add("same", 1, "s"), results.add("same", 2, "s")
        results.write()
    record("nothing", {"first": [1.0]}, out=None)
    where = argparse.Namespace(unet=recording.ROOT / "resources/bases/H1", elsewhere=tmp_path / "H1")
    assert json.loads(recording.Results("d", where).facts["settings"]) == {"unet": "resources/bases/H1", "elsewhere": str(tmp_path / "H1")}
    assert set(pd.read_csv(out).benchmark) == {"a", "b"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_and_is_recorded(name, load, monkeypatch, tmp_path):
    module = load(f"bench_{name.replace('-', '_')}")
    monkeypatch.setattr(sys, "argv", ["bench", *TINY[name], "--out", str(tmp_path / "out.csv")])
    module.main()
    table = pd.read_csv(tmp_path / "out.csv")
    assert set(table.benchmark) == {name} and (table.value > 0).any() and table.measure.is_unique
    assert (table.unit == "ratio").any() and (table.low <= table.value).all() and table.torch.notna().all()


def test_make_runs_every_benchmark_and_each_takes_out(load):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "tests/benchmarks/bench_*.py" in makefile and "--out $(BENCHMARKS)" in makefile
    for path in FOLDER.glob("bench_*.py"):
        text = path.read_text(encoding="utf-8")
        assert "add_out(parser)" in text and "results.write()" in text, path.name
