"""The verb `verify`: does a run repeat the recorded one?"""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.report import record, rows

RELATIVE = 1e-3  # same seeds on the same kind of machine with the same versions: only the order of float additions may differ
# computed from sampled numbers, but without an interval of their own: on another machine there is nothing to hold them against
DERIVED = r"minimum detectable effect$|^Pareto frequency$"
_SIDES = ("value", "ci_low", "ci_high", "seeds")


def verify(metrics, reference, out, resources="resources"):
    """Compare a metrics table with the recorded one, write the comparison (CSV), print what differs, and exit with code 1 if anything does.

    metrics: metrics.csv of a run; reference: paper/reference/<preset>, with a folder per recorded system; resources: the shipped
    models, named as a reason if the recorded run had others. A row agrees within a relative
    1e-3 if both runs had the same seeds, processor and library versions, else within the combined half-widths of the two intervals; what is derived from
    sampled numbers and has no interval (`DERIVED`) is then not compared. Rows that only the recorded run has are missing and count as differing; rows that
    only this run has are listed as extra.
    """
    recorded = sorted(Path(reference).glob("*/metrics.csv"))
    if not recorded:
        raise InputError(f"{reference} holds no recorded run (<system>/metrics.csv); `tuneleak record` writes one")
    measured = rows.read_metrics(metrics)
    here = machine_class(record.facts_of(metrics))
    parts = []
    if other := [path.parent.name for path in recorded if record.of_other_models(record.facts_of(path), resources)]:
        print(f"{', '.join(other)}: recorded with other models than those under {resources}, so rows will differ; `make record` records a run anew")
    for path in recorded:
        same_machine = here is not None and here == machine_class(record.facts_of(path))
        parts.append(compare(measured[measured.system == path.parent.name], rows.read_metrics(path), same_machine))
    result = pd.concat(parts, ignore_index=True)
    files.write_csv(out, result)
    counts = result.verdict.value_counts()
    for verdict in ("differs", "missing", "extra"):
        for _, row in result[result.verdict == verdict].iterrows():
            print(f"{verdict:8} {rows.describe(row)}: {row.value:.6g} here, {row.recorded_value:.6g} recorded, tolerance {row.tolerance:.3g}")
    verdicts = ("agrees", "differs", "missing", "extra", "not compared")
    print(", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in verdicts), f"of {len(result)} rows; see {out}")
    if counts.get("differs", 0) or counts.get("missing", 0):
        raise SystemExit(1)


def machine_class(facts):
    """What must be equal for numbers to be equal: processor, accelerator and versions; None where it is unknown."""
    machine = facts.get("machine", {})
    if not machine.get("processor") or not facts.get("versions"):
        return None
    return machine["processor"], machine.get("accelerator", "cpu"), tuple(sorted(facts["versions"].items()))


def compare(measured, recorded, same_machine):
    """One row per key of either table: both values, the tolerance and the verdict (agrees, differs, missing, extra, not compared)."""
    sides = [
        table[[*rows.KEY, *_SIDES]].rename(columns={name: f"{prefix}{name}" for name in _SIDES}) for table, prefix in ((measured, ""), (recorded, "recorded_"))
    ]
    both = sides[0].merge(sides[1], on=list(rows.KEY), how="outer", indicator=True)
    half = np.hypot(both.ci_high - both.ci_low, both.recorded_ci_high - both.recorded_ci_low) / 2
    relative = RELATIVE * both.recorded_value.abs()
    exact = (both.seeds == both.recorded_seeds) & same_machine
    both["tolerance"] = np.where(exact, relative, np.fmax(half.fillna(0), relative))
    nothing = both.value.isna() & both.recorded_value.isna()
    agrees = ((both.value - both.recorded_value).abs() <= both.tolerance + 1e-9) | nothing
    derived = both.metric.str.contains(DERIVED) & ~exact
    cases = {"extra": both._merge == "left_only", "missing": both._merge == "right_only", "agrees": agrees, "not compared": derived}
    both["verdict"] = np.select([*cases.values()], [*cases], "differs")
    return both.drop(columns="_merge")
