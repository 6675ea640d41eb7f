"""Results of benchmarks as rows of one table, `--out FILE`: what was measured, how far repeats lay apart, and on what.

Columns: `benchmark`; `measure`; `value` (of repeats the one that the benchmark counts, mostly the least), `unit`; `low` and `high` (extremes of the repeats)
and `repeats`; `settings` (the benchmark's arguments, JSON); `processor` (of the GPU, if one computed), `threads`, `torch`. One row per measure: a rerun of a
benchmark replaces all its rows and no other's.
"""

import json
from pathlib import Path

import pandas as pd
import torch

from tuneleak import files

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["benchmark", "measure", "value", "unit", "low", "high", "repeats", "settings", "processor", "threads", "torch"]


def add_out(parser):
    """The flag --out of a benchmark."""
    parser.add_argument("--out", type=Path, help="table (CSV) that gets the results; rows of this benchmark in it are replaced")


class Results:
    """The rows of one run of a benchmark. arguments: its parsed flags, `out` among them (None: nothing is written)."""

    def __init__(self, benchmark, arguments):
        told = vars(arguments)
        self.out = told.get("out")
        settings = {name: _named(value) for name, value in told.items() if name not in ("out", "threads")}
        on_gpu = str(told.get("device", "cpu")).startswith("cuda")
        processor = torch.cuda.get_device_name() if on_gpu else files.provenance()["machine"]["processor"]
        self.facts = {"settings": json.dumps(settings, sort_keys=True), "processor": processor}
        self.facts |= {"threads": told.get("threads", 1), "torch": torch.__version__}
        self.benchmark, self.rows = benchmark, []

    def add(self, measure, value, unit, repeats=()):
        """One measure; repeats: all values it was chosen from."""
        repeats = list(repeats) or [value]
        extremes = {"low": f"{min(repeats):.6g}", "high": f"{max(repeats):.6g}", "repeats": len(repeats)}
        self.rows.append({"benchmark": self.benchmark, "measure": measure, "value": f"{value:.6g}", "unit": unit, **extremes, **self.facts})

    def write(self):
        """Put the rows into the table; `ValueError` for two of one measure."""
        made = pd.DataFrame(self.rows, columns=COLUMNS).astype(str)
        if made.measure.duplicated().any():
            raise ValueError(f"{self.benchmark} measured {made.measure[made.measure.duplicated()].iloc[0]!r} twice")
        if self.out is None:
            return
        kept = made.iloc[:0]
        if self.out.is_file():
            kept = files.read_table(self.out, COLUMNS, "remove it, or name another file")[COLUMNS]
        files.write_csv(self.out, pd.concat([kept[kept.benchmark != self.benchmark], made]).sort_values("benchmark", kind="stable"))


def _named(value):
    """A setting as the table tells it: a path of the repository from its root, wherever that lies."""
    if not isinstance(value, Path):
        return value
    inside = value.resolve()
    return str(inside.relative_to(ROOT) if inside.is_relative_to(ROOT) else value)
