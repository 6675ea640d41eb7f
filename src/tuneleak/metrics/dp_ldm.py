"""The verb `evaluate dp-ldm`: utility under each privacy budget, with intervals, as rows of the metrics table.

Columns are those of `tuneleak.metrics.finextract.COLUMNS`. `system` is dp-ldm, `attack` empty, `method` the trained set (`base`: the public base;
`real`: real pictures, a bound), `defence` the budget (`epsilon=0` is the base, `epsilon=inf` training without noise). The unit is the training run:
with two or more seeds the interval is Student's over runs (`interval=runs`), with one it is over pictures (`interval=images`) and speaks of that run
only. What the models' records promise (`tuneleak.metrics.dp_columns.PROMISES`) is known, not measured: one row per budget, without an interval.
Differences (`attention-minus-base`, `attention-minus-all`, `epsilon=10-minus-epsilon=1`) are paired by seed, or for one seed by picture
(accuracies) or taken as independent (distances). Beside the table stands bars.csv, which says what each world can show (`tuneleak.metrics.dp_bars`).
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics import dp_bars, intervals, reading
from tuneleak.metrics.dp_columns import PROMISES, UTILITY
from tuneleak.metrics.finextract import COLUMNS, DECIMALS

NUMBERS = ["value", "ci_low", "ci_high", "standard_error", "n"]
GROUP = ["world", "base", "method", "defence", "metric", "block"]
REFERENCES = ("attention", "unconditional-attention")  # what DP-LDM trains, of which a range of blocks may be named; others are compared with it


def evaluate(utility, out, options, further=()):
    """Write the metrics table of the DP-LDM study, and bars.csv beside it.

    utility: utility.csv files of `measure dp-ldm`; further: tables of `audit` and `count-trainable`; options: `DpUtilityOptions`. Raises `InputError` where
    the models of one method and budget promise different things.
    """
    table = read_utility(utility)
    promised = table.metric.isin(PROMISES.values())
    measured, promised = table[~promised], table[promised]
    rows = [_summary(key, group, options.confidence) for key, group in measured.groupby(GROUP, sort=True)]
    rows += _differences(measured, options.confidence)
    rows += [_promise(key, group) for key, group in promised.groupby(GROUP, sort=False)]
    if further:
        rows += reading.joined(further, "table", "audit", COLUMNS, ["value", "ci_low", "ci_high"]).to_dict("records")
    result = pd.DataFrame(rows, columns=COLUMNS)
    result[["value", "ci_low", "ci_high"]] = result[["value", "ci_low", "ci_high"]].astype(float).round(DECIMALS)
    twice = result[result.duplicated(list(COLUMNS[:8]))]
    if len(twice):
        raise InputError(f"two rows describe the same number: {twice.iloc[0].to_dict()}; was a shard given twice?")
    files.write_csv(out, result)
    files.write_csv(Path(out).with_name("bars.csv"), dp_bars.bars(result))
    files.write_meta(out, options, utility=[str(path) for path in utility])


def read_utility(paths):
    """Read and join utility.csv files; `InputError` on missing columns or a model measured twice."""
    table = reading.joined(paths, "utility.csv", "measure dp-ldm", UTILITY, NUMBERS, complete=["value"])
    twice = table[table.duplicated([*GROUP, "seed"])]
    if len(twice):
        raise InputError(
            f"method {twice.iloc[0].method!r}, {twice.iloc[0].defence!r}, seed {twice.iloc[0].seed!r} was measured twice; was a shard given twice?"
        )
    return table


def _summary(key, group, confidence):
    facts = dict(zip(GROUP, key, strict=True))
    if len(group) > 1:
        return _over_runs(facts, group.value, confidence, group.seed)
    row = group.iloc[0]
    sampled = "" if row.ci_low == row.ci_high == row.value else "images"
    return _row(facts, row.value, row.ci_low, row.ci_high, sampled, int(row.n), group.seed)


def _differences(table, confidence):
    rows = []
    models = table[(table.block == "") & (table.method != "real")]
    for (world, base, metric), group in models.groupby(["world", "base", "metric"], sort=True):
        cells = {key: cell.set_index("seed") for key, cell in group.groupby(["method", "defence"], sort=True)}
        public = next((cell for (method, _), cell in cells.items() if method == "base"), None)
        trained = {key: cell for key, cell in cells.items() if key[0] != "base"}
        pairs = []
        if public is not None:
            pairs += [({"method": f"{method}-minus-base", "defence": defence}, cell, public) for (method, defence), cell in trained.items()]
        for (method, defence), cell in trained.items():
            for reference in sorted({name for name, _ in trained if name.startswith(REFERENCES)}):
                ranges = method.startswith(REFERENCES) and reference not in REFERENCES  # all blocks are compared with ranges of them, not the reverse
                if method != reference and (reference, defence) in trained and not ranges:
                    pairs.append(({"method": f"{reference}-minus-{method}", "defence": defence}, trained[reference, defence], cell))
        for method in sorted({name for name, _ in trained}):
            budgets = sorted((defence for name, defence in trained if name == method), key=lambda name: float(name.partition("=")[2]))
            for low, high in combinations(budgets, 2):
                pairs.append(({"method": method, "defence": f"{high}-minus-{low}"}, trained[method, high], trained[method, low]))
        facts = {"world": world, "base": base, "metric": metric, "block": ""}
        rows += [_difference(facts | names, first, second, confidence) for names, first, second in pairs]
    return [row for row in rows if row]


def _difference(facts, first, second, confidence):
    seeds = [seed for seed in first.index if seed in second.index]
    if len(second) == 1 and len(first) > 1 and "-minus-base" in facts["method"]:  # the base is one and the same for every run, but its pictures are a sample
        runs = intervals.student(first.value - second.value.iloc[0], confidence)
        value, half = runs.value, np.hypot(runs.value - runs.low, stats.norm.ppf(0.5 + confidence / 2) * second.standard_error.iloc[0])
        return _row(facts, value, value - half, value + half, "runs", len(first), first.index)
    if len(seeds) > 1:
        return _over_runs(facts, first.value[seeds] - second.value[seeds], confidence, seeds)
    if not seeds and len(second) > 1:
        return None
    one, other = first.loc[seeds[0]] if seeds else first.iloc[0], second.loc[seeds[0]] if seeds else second.iloc[0]
    value = one.value - other.value
    if one.image_hits and len(one.image_hits) == len(other.image_hits):
        change = np.array([int(a) - int(b) for a, b in zip(one.image_hits, other.image_hits, strict=True)], dtype=float)
        error = change.std(ddof=1) / np.sqrt(len(change))
    else:
        error = np.hypot(one.standard_error, other.standard_error)
    half = stats.norm.ppf(0.5 + confidence / 2) * error
    return _row(facts, value, value - half, value + half, "images", int(min(one.n, other.n)), [first.index[0]])


def _promise(key, group):
    """What the models of one method and budget promise, which is the same for all seeds."""
    facts = dict(zip(GROUP, key, strict=True))
    if len(group[["value", "n"]].round(DECIMALS).drop_duplicates()) > 1:
        values = ", ".join(f"{value:g}" for value in group.value)
        raise InputError(f"the models of method {facts['method']!r}, {facts['defence']!r} differ in {facts['metric']} ({values}); train all its seeds alike")
    value = group.value.iloc[0]
    return _row(facts, value, value, value, "", int(group.n.iloc[0]), group.seed)


def _over_runs(facts, values, confidence, seeds):
    found = intervals.student(values, confidence)
    return _row(facts, found.value, found.low, found.high, "runs", found.n, seeds)


def _row(facts, value, low, high, interval, n, seeds):
    setting = "; ".join(part for part in (f"concept={facts['block']}" if facts["block"] else "", f"interval={interval}" if interval else "") if part)
    row = {"system": "dp-ldm", "attack": "", "setting": setting, "value": value, "ci_low": low, "ci_high": high, "n": n}
    return row | {name: facts[name] for name in ("world", "base", "method", "defence", "metric")} | {"seeds": ";".join(map(str, seeds))}
