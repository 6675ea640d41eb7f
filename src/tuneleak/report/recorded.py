"""Which recorded run stands beside a new one: of every system the largest that is recorded under paper/reference."""

import re
from pathlib import Path

import pandas as pd

from tuneleak import files
from tuneleak.report import record

SYSTEMS = {  # whose the rules of a file of the workflow are; those of all others are shared
    "extraction": "finextract", "finetune": "finextract", "ablations": "finextract-ablations", "attacker": "finextract-attacker", "shake": "shake-to-leak",
    "weights": "lora-weights", "privacy": "dp-ldm", "defences": "defences",
}  # fmt: skip
SHARED = "shared: pictures, bases, tables, paper"
PRESETS = ("full", "embedded")  # the first that holds a system is its recorded run


def preset_of(reference, system):
    """The preset of a system's recorded run, or ""; reference: paper/reference."""
    return next((preset for preset in PRESETS if (Path(reference) / preset / system / "metrics.csv").is_file()), "")


def metrics_of(reference, system):
    """Path of a system's recorded metrics table, or None."""
    preset = preset_of(reference, system)
    return Path(reference) / preset / system / "metrics.csv" if preset else None


def systems(reference):
    """{system: preset} of everything that is recorded, by name."""
    found = sorted({path.parent.name for preset in PRESETS for path in (Path(reference) / preset).glob("*/metrics.csv")})
    return {system: preset_of(reference, system) for system in found}


def claims(reference):
    """What the recorded runs said about the claims (text columns of claims.csv, with `preset`): each system's from its own recorded run; None if nothing is."""
    parts = []
    for preset in PRESETS:
        path = Path(reference) / preset / "claims.csv"
        if path.is_file():
            table = files.read_table(path, ["id", "family", "system", "value", "status"], "make it again with `tuneleak claims`")
            mine = [system for system, recorded in systems(reference).items() if recorded == preset]
            parts.append(table[table.system.isin(mine)].assign(preset=preset))
    return pd.concat(parts, ignore_index=True) if parts else None


def described(reference):
    """The presets of the recorded runs -> "embedded", "full" or "full (dp-ldm); embedded (finextract, lora-weights)"; "" if nothing is recorded."""
    by_preset = {}
    for system, preset in systems(reference).items():
        by_preset.setdefault(preset, []).append(system)
    if len(by_preset) < 2:
        return next(iter(by_preset), "")
    return "; ".join(f"{preset} ({', '.join(by_preset[preset])})" for preset in PRESETS if preset in by_preset)


def owners(root):
    """{rule: the system it belongs to, or `SHARED`}, by the file of the workflow that defines it; root: the project's folder."""
    found = {}
    for path in sorted((Path(root) / "workflow/rules").glob("*.smk")):
        found |= dict.fromkeys(re.findall(r"^rule (\w+):", path.read_text(encoding="utf-8"), re.MULTILINE), SYSTEMS.get(path.stem, SHARED))
    return found


def rules(reference, preset):
    """`record.seconds_per_rule` of the recorded runs of one preset together. A system's rules are told by its own record, what all share by the run that ran
    most jobs of it, of equals the latest: a run that recorded one part again had few of them. reference: paper/reference in the project's folder."""
    owner, runs, found = owners(Path(reference).parent.parent), {}, {}
    for path in (Path(reference) / preset).glob(f"*/{record.META}"):
        runs[path.parent.name] = files.read_json(path)
    for system, facts in sorted(runs.items(), key=lambda item: (item[1].get("finished", ""), item[0])):
        for rule, cost in (facts.get("rules") or {}).items():
            own, fuller = owner.get(rule), cost.get("jobs", 0) >= found.get(rule, cost).get("jobs", 0)
            if (system == own) if own in runs else fuller:
                found[rule] = cost
    return found


def methods(reference):
    """`dp_costs.per_method` of the recorded run of DP-LDM, or None."""
    path = metrics_of(reference, "dp-ldm")
    return record.facts_of(path).get("methods") if path else None


def costs(reference):
    """`record.seconds_per_rule` of the recorded runs together, or None; a rule that ran in several presets is the largest one's."""
    found = {}
    for preset in reversed(PRESETS):
        found |= rules(reference, preset)
    return found or None
