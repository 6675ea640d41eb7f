"""The tables of the FineXtract study: what this run measured beside the recorded full run."""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.report import names, recorded, rows, tex

SYSTEM = "finextract"
BLOCK = ["world", "base", "method"]
_LINE = [*BLOCK, "attack", "quantity", "metric"]
_NUMBERS = ["value", "ci_low", "ci_high"]
_TITLES = {"A-ESR@tau": r"A-ESR$_\tau$", "A-ESR@0.6": r"A-ESR$_{0.6}$", "A-ESR@0.7": r"A-ESR$_{0.7}$"}

# each table: its name and its columns as (quantity, metric, title); quantity "attack" is the attack itself, else a control or a bound
_TABLES = {
    "finextract": [("attack", metric, _TITLES.get(metric, metric)) for metric in ("AS", "A-ESR@tau", "leaked bits")],
    "finextract_thresholds": [
        ("attack", metric, _TITLES.get(metric, metric)) for metric in ("A-ESR@0.6", "A-ESR@0.7", "extracted set size", "similarity threshold")
    ],
    "finextract_controls": [
        ("attack", "AS", "AS"), ("random", "AS", "random generations"), ("heldout", "AS", "real held-outs"), ("oracle", "AS", "all generations"),
    ],
}  # fmt: skip


def tables(metrics, out, reference="paper/reference"):
    """Write `<out>/finextract{,_thresholds,_controls}.tex`, `finextract.csv` (every number of them, one a row) and `finextract.md`.

    metrics: metrics table of this run; reference: folder of recorded runs, of which that of FineXtract (see `tuneleak.report.recorded`) stands beside
    this run if there is one (else `--`).
    """
    out, past = Path(out), recorded.metrics_of(reference, SYSTEM)
    both = compare(rows.read_metrics(metrics), rows.read_metrics(past) if past else None)
    for name, columns in _TABLES.items():
        files.write_text(out / f"{name}.tex", typeset(both, columns, past is not None))
    files.write_csv(out / "finextract.csv", both)
    files.write_text(out / "finextract.md", markdown(both))
    files.write_meta(out / "tables", None, metrics=str(metrics), recorded=str(past or ""))


def compare(measured, past=None):
    """One row per world, base, method, attack, quantity (attack, heldout, random, oracle) and metric: this run's numbers and the recorded ones.

    Columns: those, then `value, ci_low, ci_high` and `recorded_value, recorded_ci_low, recorded_ci_high` (NaN where a run lacks the row).
    """
    parts = [_long(table) if table is not None else pd.DataFrame(columns=[*_LINE, *_NUMBERS]) for table in (measured, past)]
    both = parts[0].merge(parts[1].rename(columns={name: f"recorded_{name}" for name in _NUMBERS}), on=_LINE, how="outer")
    numbers = [*_NUMBERS, *(f"recorded_{name}" for name in _NUMBERS)]
    both[numbers] = both[numbers].astype(float)
    orders = {"world": names.worlds_in_order(both.world), "method": names.methods_in_order(both.method), "attack": names.attacks_in_order(both.attack)}
    position = {name: both[name].map(order.index) for name, order in orders.items()}
    return both.assign(**{f"_{name}": values for name, values in position.items()}).sort_values(
        ["_world", "base", "_method", "_attack", "metric", "quantity"], kind="stable", ignore_index=True
    )[[*_LINE, *numbers]]  # fmt: skip


def _long(table):
    table = table[(table.system == SYSTEM) & (table.defence == "") & (table.concept == "")]
    table = table[~table.attack.str.contains("-minus-") & ~table.method.str.contains("-minus-")]
    quantity = np.where(table.control != "", table.control, np.where(table.bound != "", table.bound, "attack"))
    return table.assign(quantity=quantity)[[*_LINE, *_NUMBERS]]


def typeset(both, columns, has_record):
    """One TeX tabular: a block per world, method and base, a row per attack; under each of `columns` the recorded run and this run."""
    titles = ["", *(rf"\multicolumn{{2}}{{c}}{{{title}}}" for _, _, title in columns)]
    rules = "".join(rf"\cmidrule(lr){{{2 * index + 2}-{2 * index + 3}}}" for index in range(len(columns)))
    head = [titles, rules, ["", *["recorded", "this run"] * len(columns)]]
    look = {"interval_decimals": 2} if len(columns) <= 3 else {"size": r"\tiny"}  # what fits a page
    body = []
    for (world, base, method), block in both.groupby(BLOCK, sort=False):
        body.append(tex.heading(tex.escape(f"{names.world_name(world)}, {names.method_name(method)} on {base}"), 2 * len(columns) + 1))
        for attack, group in block.groupby("attack", sort=False):
            cells = [_cell(group, quantity, metric, prefix, has_record, look) for quantity, metric, _ in columns for prefix in ("recorded_", "")]
            body.append([tex.escape(names.attack_name(attack)), *cells])
    return tex.tabular("@{}l" + "ll" * len(columns) + "@{}", head, body)


def _cell(group, quantity, metric, prefix, has_record, look):
    if prefix and not has_record:
        return tex.NOT_RECORDED
    found = group[(group.quantity == quantity) & (group.metric == metric)]
    if found.empty or not np.isfinite(found.iloc[0][prefix + "value"]):
        return tex.MISSING
    row = found.iloc[0]
    decimals = 1 if metric == "extracted set size" else 2 if metric == "similarity threshold" else 3
    if decimals < 3:
        return tex.number(row[prefix + "value"], decimals)
    return tex.with_interval(*(row[prefix + name] for name in _NUMBERS), **look)


def markdown(both):
    """The same numbers as one Markdown table, for a terminal and for code hosts."""
    lines = ["| world | method | base | attack | quantity | metric | recorded | this run |", "|---|---|---|---|---|---|---|---|"]
    for row in both.itertuples():
        runs = (_plain(row.recorded_value, row.recorded_ci_low, row.recorded_ci_high), _plain(row.value, row.ci_low, row.ci_high))
        cells = (names.world_name(row.world), names.method_name(row.method), row.base, names.attack_name(row.attack), row.quantity, row.metric, *runs)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(value, low, high):
    if not np.isfinite(value):
        return tex.NOT_RECORDED
    return f"{value:z.3f}" if low == high else f"{value:z.3f} [{low:z.3f}, {high:z.3f}]"
