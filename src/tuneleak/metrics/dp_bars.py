"""Can a world of the DP-LDM study show what it is asked? Bars that real pictures, the public base and training without noise must clear in each of them.

A world in which classifiers fail on real pictures, in which the base is good already, or in which training without noise does not get there within its steps
says little about differences between methods under noise. Of accuracies the best classifier counts, and without noise the best set of weights trained by
clipped gradients: the question is whether anything gets there, not which. Both are picked on the test pictures, which flatters real pictures and
training without noise a little and is strict with the base. Of distances the nearest of those sets counts. A bar is met by the value; its interval stands
beside it.
"""

import re
from typing import get_args

import pandas as pd

from tuneleak.options import Trainable

COLUMNS = ["world", "base", "bar", "method", "metric", "value", "ci_low", "ci_high", "side", "limit", "met"]
MET, MISSED, NOT_RUN = "met", "missed", "not run"
REAL, BASE, NOISELESS = "real pictures teach", "public base does not", "training without noise teaches"
FLOOR, NEARER = "real pictures nearer than without noise", "without noise nearer than the base"
ACCURACY = {REAL: (0.95, "at least"), BASE: (0.5, "at most"), NOISELESS: (0.8, "at least")}
DISTANCES = ("FD-", "FID")
_TRAINED = re.compile(rf"({'|'.join(get_args(Trainable))})(-\d+-\d+)?")


def bars(measured):
    """Rows of `COLUMNS`, five per world and base, from rows of the metrics table; `met`: met, missed, or not run (then without a value).

    `limit` of the two bars of distance is itself measured: that of the real pictures, and that of the base.
    """
    plain = measured[(measured.attack == "") & ~measured.setting.str.contains("concept=", regex=False)]
    plain = plain[plain.metric.str.startswith(("accuracy ", *DISTANCES))]
    found = []
    for (world, base), table in plain.groupby(["world", "base"], sort=True):
        noiseless = table[(table.defence == "epsilon=inf") & table.method.map(lambda name: _TRAINED.fullmatch(name) is not None)]
        groups = {REAL: table[table.method == "real"], BASE: table[table.method == "base"], NOISELESS: noiseless}
        rows = []
        for bar, (limit, side) in ACCURACY.items():
            best = _largest(groups[bar][groups[bar].metric.str.startswith("accuracy ")])
            rows.append(_row(bar, best, limit, side))
        nearest = _largest(noiseless[noiseless.metric.str.startswith(DISTANCES)], sign=-1)
        for bar, other, side in ((FLOOR, REAL, "at least"), (NEARER, BASE, "at most")):
            same = groups[other][groups[other].metric == (nearest.metric if nearest is not None else "")]
            rows.append(_row(bar, nearest if len(same) else None, same.value.iloc[0] if len(same) else float("nan"), side))
        found += [{"world": world, "base": base} | row for row in rows]
    return pd.DataFrame(found, columns=COLUMNS)


def verdict(met):
    """What the bars of one world (a column `met`) say about it, in words."""
    missed, absent = int((met == MISSED).sum()), int((met == NOT_RUN).sum())
    if missed:
        return f"{missed} of {len(met)} bars missed, so differences between methods teach little here"
    return f"{len(met) - absent} of {len(met)} bars met, {absent} not run" if absent else "all bars met"


def _largest(rows, sign=1):
    return rows.loc[(sign * rows.value).idxmax()] if len(rows) else None


def _row(bar, row, limit, side):
    if row is None:
        return {"bar": bar, "method": "", "metric": "", "side": side, "limit": limit, "met": NOT_RUN}
    met = row.value >= limit if side == "at least" else row.value <= limit
    return {"bar": bar, "side": side, "limit": limit, "met": MET if met else MISSED} | {
        name: row[name] for name in ("method", "metric", "value", "ci_low", "ci_high")
    }
