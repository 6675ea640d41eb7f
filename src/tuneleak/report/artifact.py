"""The verb `artifact`: the tables of ARTIFACT.md and the README's table of findings, made from the registered claims, the recorded runs and the estimates
of the paper preset."""

from pathlib import Path

import pandas as pd

from tuneleak import config, estimate, files
from tuneleak.errors import InputError
from tuneleak.report import record, recorded, registry

ARTIFACT, README = Path("ARTIFACT.md"), Path("README.md")
REFERENCE = Path("paper/reference")
PAPER, PAPER_ONE, PAIRS = Path("workflow/presets/paper.yaml"), Path("workflow/overlays/paper-one.yaml"), Path("workflow/overlays/dp-pairs.yaml")
TARGETS = {  # the workflow's target of each system
    "finextract": "finextract", "finextract-ablations": "ablations", "finextract-attacker": "attacker", "shake-to-leak": "shake", "lora-weights": "weights",
    "dp-ldm": "dp", "defences": "defences",
}  # fmt: skip
NOT_RECORDED = "not recorded yet"
BLOCKS = {ARTIFACT: ("studies", "claims", "runs", "estimates", "pairs"), README: ("findings",)}
FINDINGS = (  # what the README tells: of each system the claim that gave it its name, and the control or defence that matters most
    *("extraction-beats-base", "extraction-beats-heldout", "finextract-beats-cfg", "captions-are-in-the-weights", "shake-amplifies", "weights-name-the-person"),
    *("weights-reveal-identity", "dp-beats-base", "dp-beats-full", "members-beyond-base", "dp-protects-members", "a-defence-at-kept-use"),
)


def artifact(root=".", write=False):
    """Check that the generated tables of ARTIFACT.md and README.md below the folder `root` are up to date, or write them with `write`."""
    root = Path(root)
    for path in (root / name for name in BLOCKS):
        if not path.is_file():
            raise InputError(f"{path}: no such file; run this in the project's folder")
    costs = estimated_costs(root)
    tables = {"studies": studies_table(root, costs["paper"]), "claims": claims_table(root), "runs": runs_table(root)}
    tables |= {"estimates": estimates_table(costs, planned_jobs(root)), "pairs": pairs_table(root), "findings": findings_table(root)}
    for path, blocks in ((root / name, blocks) for name, blocks in BLOCKS.items()):
        text = before = path.read_text(encoding="utf-8")
        for block in blocks:
            text = _replaced(text, block, tables[block], path)
        if write:
            files.write_text(path, text)
        elif text != before:
            raise InputError(f"{path} is not what paper/reference and the presets say; run `python -m tuneleak artifact --write`")


def _replaced(text, name, table, path):
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{path} needs the line {begin} and, below it, {end}, once each: a generated table goes between them")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def estimated_costs(root):
    """{preset: {system: Cost}} of the paper preset and of its overlay `paper-one`."""
    overlays = {"paper": [root / PAPER], "paper-one": [root / PAPER, root / PAPER_ONE]}
    return {preset: estimate.costs(config.read(root / "config.yaml", paths), estimate.count()) for preset, paths in overlays.items()}


def studies_table(root, costs=None):
    """Markdown: a row per study with its command, what its jobs took as recorded, and with `costs` ({system: Cost}) what they would take at the scale of the
    paper."""
    lines = [
        "| study | command | as recorded: hours of jobs, largest job | in the paper preset (estimated; state: weights, gradients, optimiser) |",
        "|---|---|---|---|",
    ]
    took = {preset: recorded_costs(root, preset) for preset in recorded.PRESETS}
    for system, target in TARGETS.items():
        preset = recorded.preset_of(root / REFERENCE, system)
        overlay = f"--configfile workflow/presets/{preset}.yaml -- " if preset not in ("", "embedded") else ""
        hours, peak, _ = took.get(preset, {}).get(system, (0, 0, 0))
        spent = f"{preset}: {_rounded(hours)} h, {peak:.1f} GB" if hours else NOT_RECORDED
        lines.append(f"| {system} | `snakemake --cores all {overlay}{target}` | {spent} | {_needs(system, costs or {})} |")
    return "\n".join(lines)


def claims_table(root):
    """Markdown: a row per claim with its study and the numbers that the recorded run got."""
    registered = registry.load(root / REFERENCE / "claims.yaml", recorded.PRESETS[-1])
    past = recorded.claims(root / REFERENCE)
    lines = ["| claim | of | study | expected (value [interval], status) |", "|---|---|---|---|"]
    for claim in {item.family.id: item.family for item in registered.claims}.values():
        numbers = _numbers(root, past[past.family == claim.id]) if past is not None else NOT_RECORDED
        lines.append(f"| **{claim.id}**: {_cell(claim.claim)} | {claim.paper or 'ours'} | {claim.system} | {_cell(numbers)} |")
    return "\n".join(lines)


def findings_table(root):
    """Markdown: the claims of `FINDINGS`, whether the recorded runs agree, and each number with its interval."""
    registered = {item.family.id: item.family for item in registry.load(root / REFERENCE / "claims.yaml", recorded.PRESETS[-1]).claims}
    past = recorded.claims(root / REFERENCE)
    lines = ["| claim | preset | recorded |", "|---|---|---|"]
    for name in FINDINGS:
        rows = past[past.family == name] if past is not None else None
        numbers = NOT_RECORDED if rows is None or rows.empty else "<br>".join(_finding(row) for _, row in rows.iterrows())
        lines.append(f"| {_cell(registered[name].claim)} | {'' if numbers == NOT_RECORDED else rows.iloc[0].preset} | {_cell(numbers)} |")
    return "\n".join(lines)


def recorded_costs(root, preset):
    """{system: (hours of jobs, GB of the largest, number of jobs)} of the recorded runs of a preset."""
    owner, found = recorded.owners(root), {}
    for rule, facts in recorded.rules(root / REFERENCE, preset).items():
        hours, peak, count = found.get(owner.get(rule, recorded.SHARED), (0.0, 0.0, 0))
        found[owner.get(rule, recorded.SHARED)] = hours + facts["seconds"] / 3600, max(peak, facts["peak_memory_mb"] / 1000), count + facts["jobs"]
    return found


def runs_table(root):
    """Markdown: what the jobs of each system took in the recorded runs, and those that serve all."""
    lines = ["| preset | system | processor | jobs | hours of jobs | largest job, GB |", "|---|---|---|---|---|---|"]
    for preset in recorded.PRESETS:
        for system, (hours, peak, count) in sorted(recorded_costs(root, preset).items(), key=lambda item: (item[0] == recorded.SHARED, item[0])):
            meta = root / REFERENCE / preset / system / record.META
            there = meta if meta.is_file() else next((root / REFERENCE / preset).glob(f"*/{record.META}"))
            machine = files.read_object(there, "machine")["machine"]
            where = f"{machine['processor']}, {machine['cores']} cores, {machine['accelerator']}"
            lines.append(f"| {preset}{_with_what(root, preset, there.parent.name)} | {system} | {where} | {count} | {hours:.2f} | {peak:.1f} |")
    return "\n".join(lines)


def planned_jobs(root):
    """{preset: {system: jobs}} of presets that were planned by a dry run and not run (`paper/reference/jobs.csv`: preset, rule, jobs)."""
    table, owner = pd.read_csv(root / REFERENCE / "jobs.csv"), recorded.owners(root)
    systems = table.rule.map(lambda rule: owner.get(rule, recorded.SHARED))
    return {preset: group.groupby(systems).jobs.sum().to_dict() for preset, group in table.groupby("preset")}


def estimates_table(costs, jobs):
    """Markdown: what presets would take, by system; costs: {preset: {system: Cost}}; jobs: `planned_jobs`."""
    network = estimate.count()
    lines = [
        f"One UNet call on one sample of 512 px: {network.flops / 1e12:.3f} TFLOP (counted). Hours at an assumed {estimate.TERAFLOPS:g} TFLOP/s sustained.",
        "",
        "| preset | system | jobs | models trained | UNet calls | GPU-hours | disk, GB | weights, gradients and optimiser of the largest training, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for preset, systems in costs.items():
        for system, cost in systems.items():
            numbers = f"{cost.models:,d} | {cost.calls:,d} | {_rounded(cost.hours)} | {_rounded(cost.disk_gb)} | {cost.state_gb:.1f}"
            lines.append(f"| {preset} | {system} | {jobs[preset].get(system, 0):,d} | {numbers} |")
        total = sum(cost.hours for cost in systems.values()), sum(cost.disk_gb for cost in systems.values())
        lines.append(f"| {preset} | {recorded.SHARED} | {jobs[preset][recorded.SHARED]:,d} | | | | | |")
        lines.append(f"| {preset} | all | {sum(jobs[preset].values()):,d} | | | {_rounded(total[0])} | {_rounded(total[1])} | |")
    return "\n".join(lines)


def pairs_table(root):
    """Markdown: what DP-LDM's pairs of public and private pictures would take (overlay `dp-pairs`)."""
    lines = [
        "| private pictures | UNet call, GFLOP | first stage, GFLOP | its training, GPU-hours | public model's training | private trainings | samples |",
        "|---|---|---|---|---|---|---|",
    ]
    total, seen = 0.0, set()
    study = config.read(root / "config.yaml", [root / PAPER, root / PAIRS])
    bases = {world.name: world.base for world in study.dp_ldm.worlds}
    for world, cost in estimate.pair_costs(study).items():
        shared = bases[world] in seen
        seen.add(bases[world])
        public = ("(above)", "(above)") if shared else (_rounded(cost.first_stage_hours), _rounded(cost.public_hours))
        total += cost.private_hours + cost.sampling_hours + (0 if shared else cost.first_stage_hours + cost.public_hours)
        flops = f"{cost.unet_flops / 1e9:.2f} | {cost.first_stage_flops / 1e9:.2f}"
        lines.append(f"| {world} | {flops} | {public[0]} | {public[1]} | {_rounded(cost.private_hours)} | {_rounded(cost.sampling_hours)} |")
    return "\n".join([*lines, f"| all | | | | | | {_rounded(total)} in all |"])


def _with_what(root, preset, system):
    """A note if a system was recorded with other models than the shipped ones."""
    path = root / REFERENCE / preset / (system or "") / record.META
    earlier = path.is_file() and record.of_other_models(files.read_json(path), root / "resources")
    return " (with models shipped earlier)" if earlier else ""


def _numbers(root, rows):
    if rows.empty:
        return NOT_RECORDED
    first = rows.iloc[0]
    return f"{first.preset}{_with_what(root, first.preset, first.system)}: " + "; ".join(_number(row) for _, row in rows.iterrows())


def _number(row):
    where = ", ".join(filter(None, (row["world"], row["method"])))
    if not row["value"]:
        return f"{where}: {row['status']}"
    return f"{where}: {float(row['value']):z.3f} [{float(row['ci_low']):z.3f}, {float(row['ci_high']):z.3f}] {row['status']}"


def _finding(row):
    where = ", ".join(filter(None, (row["world"], row["method"].replace("-minus-", " minus "))))
    if not row["value"]:
        return f"{where}: {row['status']}"
    value, low, high = (f"{float(row[name]):z.3f}" for name in ("value", "ci_low", "ci_high"))
    return f"{where}: {row['metric']} {value} [{low}, {high}], {row['status']}"


def _needs(system, costs):
    if system not in costs:
        return ""
    cost = costs[system]
    if not cost.calls:
        return "not part of it"
    shared = ", beside finextract's" if system.startswith("finextract-") else ""  # whose models it looks at again
    return f"{_rounded(cost.hours)} GPU-hours, {_rounded(cost.disk_gb)} GB of disk, {cost.state_gb:.1f} GB of state{shared}"


def _rounded(value):
    """Two figures are all that an estimate is good for."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _cell(text):
    return " ".join(text.split()).replace("|", "\\|")
