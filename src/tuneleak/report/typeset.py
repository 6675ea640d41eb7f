"""The small tables of the paper: what was set up, the claims, the published per-picture results, the cost. Each is a TeX tabular."""

import numpy as np

from tuneleak.report import names, registry, tex
from tuneleak.report.tables import BLOCK, SYSTEM

_SHORT = {
    "consistent-direction": "consistent", "opposite-direction": "opposite", "not-comparable": "not comparable", "not-run": "not run",
    "not-reproduced": "not reproduced",
}  # fmt: skip


def setup_table(measured):
    """TeX tabular: what was attacked in each world, method and base, and with which frozen guidance."""
    body = []
    for (world, base, method), block in sorted(_blocks(measured), key=_position(measured)):
        score = block[(block.metric == "AS") & (block.concept == "")]
        settings = {row.attack: row.guidance for row in score.itertuples()}
        concepts = block[block.concept != ""].concept.nunique()
        reference = score.iloc[0]
        cells = [names.world_name(world), names.method_name(method), base, str(concepts), f"{reference.n:.0f}", reference.seeds.replace(";", ", ")]
        body.append(
            [tex.escape(cell) for cell in [*cells, *(settings.get(attack, tex.MISSING) for attack in ("cfg", "finextract", "finextract-unconditional"))]]
        )
    head = [["world", "method", "base", "concepts", "pictures", "seeds", "CFG", "FineXtract", "unconditional"]]
    return tex.tabular("@{}lllrrllll@{}", head, body)


def _blocks(measured):
    plain = measured[(measured.system == SYSTEM) & (measured.defence == "") & (measured.control == "") & (measured.bound == "")]
    plain = plain[~plain.attack.str.contains("-minus-") & ~plain.method.str.contains("-minus-")]
    return list(plain.groupby(BLOCK))


def _position(measured):
    worlds, methods = names.worlds_in_order(measured.world), names.methods_in_order(measured.method)
    return lambda item: (worlds.index(item[0][0]), item[0][1], methods.index(item[0][2]))


def claims_table(claims, recorded=None):
    """TeX longtable: a block per claim, a row per world and method; the recorded run and this run, each with value, interval and status.

    Beside `inconclusive` stands the power the run had for the planned effect.
    """
    head = [
        ["", "", r"\multicolumn{2}{c}{recorded}", r"\multicolumn{2}{c}{this run}"],
        r"\cmidrule(lr){3-4}\cmidrule(l){5-6}",
        ["", "published", "value", "status", "value", "status"],
    ]
    past = {row.id: row for row in recorded.itertuples()} if recorded is not None else None
    body = []
    for _, group in claims.groupby("family", sort=False):
        first = group.iloc[0]
        ours = "" if first.paper else " (ours)"
        body.append(tex.heading(rf"{tex.escape(first.claim)}{ours}", 6))
        for row in group.itertuples():
            where = ", ".join(filter(None, (names.world_name(row.world), "" if "-minus-" in row.method else names.method_name(row.method))))
            published = f"{tex.escape(row.published)}{'' if row.published_status != 'unsourced' else ' (unsourced)'}" if row.published else ""
            before = [tex.NOT_RECORDED] * 2 if past is None else _claim_cells(past.get(row.id))
            body.append([tex.escape(where), published, *before, *_claim_cells(row)])
    return tex.longtable("@{}llllll@{}", head, body, r"\claimscaption")


def _claim_cells(row):
    if row is None:
        return [tex.MISSING, tex.MISSING]
    status = _SHORT.get(row.status, row.status)
    if row.status == "inconclusive" and np.isfinite(row.power):
        status += f" ({tex.number(row.power, 2)})"
    return [tex.with_interval(row.value, row.ci_low, row.ci_high), tex.escape(status)]


def published_table(reference):
    """TeX tabular of the authors' own per-picture results: one artist, one run per row."""
    table = registry.published_rows(reference, SYSTEM)
    table = table[(table.method != "") & (table.metric != "similarity")]
    metrics = [
        ("AS", "AS", 4),
        ("A-ESR@0.7", r"A-ESR$_{0.7}$", 1),
        ("A-ESR@0.6", r"A-ESR$_{0.6}$", 1),
        ("extracted set size", "$|X'|$", 0),
        ("similarity threshold", r"$\phi$", 2),
    ]
    body = []
    for (method, attack, setting), block in table.groupby(["method", "attack", "setting"], sort=False):
        values = block.set_index("metric")["value"]
        cells = [tex.number(values.get(name, np.nan), decimals) for name, _, decimals in metrics]
        body.append([tex.escape(names.method_name(method)), tex.escape(names.attack_name(attack)), tex.escape(setting), *cells])
    return tex.tabular("@{}lllrrrrr@{}", [["method", "attack", "guidance", *(title for _, title, _ in metrics)]], body)


def cost_table(costs, recorded=None):
    """TeX tabular: jobs, seconds, peak memory and thousands of UNet calls per rule, of the recorded run and of this run; `n/a` without them.

    Both as `record.seconds_per_rule` gives them; calls are those that jobs count (attacks and drawings, not training), a dash stands for none.
    """
    costs, recorded = costs or {}, recorded or {}
    body = []
    for rule in sorted(set(costs) | set(recorded), key=lambda name: -(costs.get(name) or recorded[name])["seconds"]):
        body.append([tex.escape(rule.replace("_", " ")), *_cost_cells(recorded.get(rule)), *_cost_cells(costs.get(rule))])
    body = body or [["n/a", *_cost_cells(None), *_cost_cells(None)]]
    head = [["", r"\multicolumn{4}{c}{recorded}", r"\multicolumn{4}{c}{this run}"], r"\cmidrule(lr){2-5}\cmidrule(l){6-9}"]
    return tex.tabular("@{}lrrrrrrrr@{}", [*head, ["rule", *["jobs", "seconds", "MB", "kcalls"] * 2]], body)


def _cost_cells(rule):
    if rule is None:
        return [tex.NOT_RECORDED] * 4
    calls = f"{rule['calls'] / 1000:.1f}" if "calls" in rule else "--"
    return [str(rule["jobs"]), f"{rule['seconds']:.0f}", f"{rule['peak_memory_mb']:.0f}", calls]
