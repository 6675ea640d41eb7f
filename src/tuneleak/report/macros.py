r"""Every number and every conclusion of the paper as a TeX macro, made from tables and sidecars; what a run lacks prints `n/a`.

For a family of claims: `\Status<Family>` (a sentence fragment picked from the statuses), `\Summary<Family>` (its numbers), `\Mde<Family>` (the smallest
effects it could have found), each also as `\Recorded...` for the recorded run.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.report import names, record, recorded, registry, rows, tex
from tuneleak.report.tables import SYSTEM

NOT_RECORDED = "not recorded yet"
_STATUS_WORDS = {
    "reproduced": "reproduced", "not-reproduced": "not reproduced", "consistent-direction": "consistent in direction",
    "opposite-direction": "opposite in direction", "inconclusive": "inconclusive", "not-comparable": "not comparable", "not-run": "not run",
}  # fmt: skip
_PRINTED = 3  # decimals of a difference
_NUMBERS = ["value", "ci_low", "ci_high", "mde", "planned_mde", "power", "p_holm"]


def collect(measured, claims, facts, reference, preset, costs=None):
    """All macros, {name: TeX}.

    measured: metrics table (`rows.read_metrics`); claims: claims table; facts: `record.facts_of` this run; reference: paper/reference;
    costs: `record.seconds_per_rule` of this run, or None.
    """
    past_claims, path = recorded_claims(reference), recorded.metrics_of(reference, SYSTEM)
    past_facts, past_measured = (record.facts_of(path), rows.read_metrics(path)) if path else ({}, None)
    macros = of_claims(claims) | {f"Recorded{name}": text for name, text in of_claims(past_claims, list(dict.fromkeys(claims.family))).items()}
    macros |= of_run(measured, facts, costs) | {"RunPreset": tex.escape(preset), "RecordedPreset": tex.escape(recorded.described(reference)) or NOT_RECORDED}
    macros |= {f"Recorded{name}": text for name, text in of_run(past_measured, past_facts, past_facts.get("rules")).items()}
    return macros | of_published(reference) | {"MissedBars": missed_bars(reference)}


def missed_bars(reference):
    """What the shipped models fall short of, in words and numbers: `part: measure of this value, that value (bar)`, by part and kind of measure."""
    path = Path(reference) / "world/preconditions.csv"
    if not path.is_file():
        return NOT_RECORDED
    table = pd.read_csv(path)
    missed = table[table.met.astype(str) == "False"]
    kinds = missed.measure.str.extract(r"^(.+ of |)(.+)$")
    told = []
    for (part, kind, bar), group in missed.assign(kind=kinds[0], what=kinds[1]).groupby(["part", "kind", "bar"], sort=False):
        values = ", ".join(f"{tex.escape(row.what)} {tex.number(row.value, 2)}" for row in group.itertuples())
        told.append(f"{tex.escape(part)}, {tex.escape(kind)}{values} (bar {tex.number(float(bar.lstrip('<>=')), 2)})")
    return "; ".join(told) or "none of them"


def read_claims(path):
    """A claims table with its numbers as floats."""
    return _with_numbers(files.read_table(path, ["id", "family", "claim", "status", "published", *_NUMBERS], "make it again with `tuneleak claims`"))


def recorded_claims(reference):
    """What the recorded runs said about the claims, as `read_claims`, or None."""
    table = recorded.claims(reference)
    return None if table is None else _with_numbers(table)


def _with_numbers(table):
    table[_NUMBERS] = table[_NUMBERS].apply(pd.to_numeric, errors="coerce")
    return table


def of_claims(table, families=()):
    """Status, Summary and Mde of each family, and the counts; of a missing table, `not recorded yet` for the given families."""
    macros = {}
    for family in dict.fromkeys([*families, *(table.family if table is not None else ())]):
        group = table[table.family == family] if table is not None else None
        macros[tex.camel("status", family)] = status_fragment(group)
        macros[tex.camel("summary", family)] = summary_fragment(group)
        macros[tex.camel("mde", family)] = mde_fragment(group)
    for status in _STATUS_WORDS:
        macros[tex.camel("claims", status)] = str((table.status == status).sum()) if table is not None else tex.MISSING
    macros["ClaimsTotal"] = str(len(table)) if table is not None else tex.MISSING
    heads = table.drop_duplicates("family") if table is not None else None
    for target in ("sourced", "unsourced"):
        macros[tex.camel("targets", target)] = str((heads.published_status == target).sum()) if heads is not None else tex.MISSING
    return macros


def status_fragment(group):
    """Statuses of a family -> "consistent in direction in 3 of 4 comparisons and inconclusive in 1"."""
    if group is None or group.empty:
        return NOT_RECORDED
    counts = group.status.value_counts()
    found = [status for status in _STATUS_WORDS if counts.get(status, 0)]
    if found == ["not-run"]:
        return _STATUS_WORDS["not-run"]
    total = len(group)
    if len(found) == 1:
        text = _STATUS_WORDS[found[0]] + ("", " in both comparisons", f" in all {total} comparisons")[min(total, 3) - 1]
    else:
        parts = [f"{_STATUS_WORDS[status]} in {counts[status]}" + (f" of {total} comparisons" if index == 0 else "") for index, status in enumerate(found)]
        text = ", ".join(parts[:-1]) + " and " + parts[-1]
    tested = group[~group.status.isin(["not-run", "not-comparable"])]
    return text + (" (over pictures)" if (tested.unit == "images").any() else "")


def summary_fragment(group):
    """Numbers of a family -> "identities, LoRA: .058 [.046, .070]; ...", `n/a` where there are none."""
    parts = []
    for row in group.itertuples() if group is not None else ():
        if np.isfinite(row.value):
            where = ", ".join(filter(None, (names.world_name(row.world), "" if "-minus-" in row.method else names.method_name(row.method))))
            parts.append(f"{tex.escape(where)}: {tex.with_interval(row.value, row.ci_low, row.ci_high, _PRINTED)}")
    return "; ".join(parts) or tex.MISSING


def mde_fragment(group):
    """The smallest detectable effects of a family -> ".017" or ".017 to .023"; `n/a` where nothing was tested."""
    found = group.mde.dropna() if group is not None else pd.Series(dtype=float)
    if found.empty:
        return tex.MISSING
    low, high = (tex.number(value, _PRINTED) for value in (found.min(), found.max()))
    return low if low == high else f"{low} to {high}"


def of_run(measured, facts, costs=None):
    """What was run, on what, with which settings; `n/a` for everything unknown."""
    machine, versions, git = (facts.get(name) or {} for name in ("machine", "versions", "git"))
    extraction, evaluation = (facts.get(name) or {} for name in ("extraction", "evaluation"))
    plain = {
        "RunProcessor": machine.get("processor"), "RunCores": machine.get("cores"), "RunAccelerator": machine.get("accelerator"),
        "RunPython": versions.get("python"), "RunTorch": versions.get("torch"), "RunDiffusers": versions.get("diffusers"),
        "RunCommit": _commit(git), "RunFinished": (facts.get("finished") or "")[:10],
        "SamplerSteps": extraction.get("steps"), "SamplerName": extraction.get("sampler"), "ControlDraws": extraction.get("control_draws"),
        "GenerationsPerImage": extraction.get("generations_per_image"), "BootstrapReplicates": evaluation.get("bootstrap"),
        "ConfidencePercent": _percent(evaluation.get("confidence")), "FalseMatchPercent": _percent(evaluation.get("false_match_rate")),
        "CostHours": None if not costs else f"{sum(rule['seconds'] for rule in costs.values()) / 3600:.2g}",
    }  # fmt: skip
    macros = {name: tex.escape(value) if value not in (None, "") else tex.MISSING for name, value in plain.items()}
    return macros | {"ConceptsTested": concepts_fragment(measured)}


def concepts_fragment(measured):
    """How many test concepts of each world were attacked -> "16 identities and 8 artists"."""
    if measured is None or measured.empty:
        return tex.MISSING
    per_concept = measured[(measured.system == SYSTEM) & (measured.concept != "")]
    counts = per_concept.groupby("world").concept.nunique()
    parts = [f"{counts[world]} {tex.escape(names.world_name(world))}" for world in names.worlds_in_order(counts.index)]
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else tex.MISSING


def of_published(reference):
    r"""The sourced numbers of the paper that are no per-picture results: `\Published<Id>`, shares in percent."""
    table = registry.published_rows(reference, SYSTEM)
    table = table[table.method == ""]
    return {
        tex.camel("published", name): rf"{row.value:.0%}".replace("%", r"\%") if row.metric.startswith("A-ESR") else tex.number(row.value, 2)
        for name, row in zip(table.index, table.itertuples(), strict=True)
    }


def write(macros):
    """Macros as the text of macros.tex."""
    return "".join(rf"\newcommand{{\{name}}}{{{text}\xspace}}" + "\n" for name, text in sorted(macros.items()))


def _commit(git):
    commit = git.get("commit") or ""
    known = commit[:12] if set(commit) <= set("0123456789abcdef") else ""  # git answers "HEAD" before the first commit
    return known + (" with changes" if known and git.get("changed") else "")


def _percent(share):
    return None if share is None else f"{100 * share:g}%"
