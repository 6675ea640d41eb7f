"""The verb `artifact`: the tables of ARTIFACT.md, made from the registered claims, the recorded runs and the estimates of the paper preset."""

from pathlib import Path

from tuneleak import budget, estimate, files
from tuneleak.errors import InputError
from tuneleak.report import record, recorded, registry

ARTIFACT = Path("ARTIFACT.md")
REFERENCE = Path("paper/reference")
PAPER, PAPER_ONE, PAIRS = Path("workflow/presets/paper.yaml"), Path("workflow/overlays/paper-one.yaml"), Path("workflow/overlays/dp-pairs.yaml")
TARGETS = {  # the workflow's target of each system
    "finextract": "finextract", "finextract-ablations": "ablations", "finextract-attacker": "attacker", "shake-to-leak": "shake", "lora-weights": "weights",
    "dp-ldm": "dp", "defences": "defences",
}  # fmt: skip
NOT_RECORDED = "not recorded yet"
BLOCKS = ("claims", "runs", "estimates", "pairs")


def artifact(root=".", write=False):
    """Check that the generated tables of ARTIFACT.md below the folder `root` are up to date, or write them with `write`."""
    root = Path(root)
    path = root / ARTIFACT
    if not path.is_file():
        raise InputError(f"{path}: no such file; run this in the project's folder")
    text = before = path.read_text(encoding="utf-8")
    costs = estimated_costs(root)
    tables = {"claims": claims_table(root, costs["paper"]), "runs": runs_table(root), "estimates": estimates_table(costs), "pairs": pairs_table(root)}
    for name in BLOCKS:
        text = _replaced(text, name, tables[name], path)
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
    return {preset: estimate.costs(budget.load(root / "config.yaml", paths), estimate.count()) for preset, paths in overlays.items()}


def claims_table(root, costs=None):
    """Markdown: a row per claim with its command, the numbers that the recorded run got, and with `costs` ({system: Cost}) those of its study at the scale of
    the paper."""
    registered = registry.load(root / REFERENCE / "claims.yaml", recorded.PRESETS[-1])
    past = recorded.claims(root / REFERENCE)
    lines = [
        "| claim | of | command | expected (value [interval], status) | its study in the paper preset (estimated; state: weights, gradients, optimiser) |",
        "|---|---|---|---|---|",
    ]
    for family in dict.fromkeys(item.family.id for item in registered.claims):
        claim = next(item.family for item in registered.claims if item.family.id == family)
        numbers = _numbers(root, past[past.family == family]) if past is not None else NOT_RECORDED
        command = f"`snakemake --cores all {TARGETS[claim.system]}`"
        lines.append(f"| **{family}**: {_cell(claim.claim)} | {claim.paper or 'ours'} | {command} | {_cell(numbers)} | {_needs(claim.system, costs or {})} |")
    return "\n".join(lines)


def runs_table(root):
    """Markdown: what recorded runs took; systems that were recorded from one run share a row, for its hours are those of all of them."""
    lines = ["| preset | systems | processor | jobs | hours of jobs | largest job, GB |", "|---|---|---|---|---|---|"]
    for preset in recorded.PRESETS:
        runs = {}
        for meta in sorted((root / REFERENCE / preset).glob("*/run.meta.json")):
            facts = files.read_object(meta, "machine", "rules")
            runs.setdefault(files.digest([facts["machine"], facts["rules"]]), (facts, []))[1].append(meta.parent.name)
        for facts, systems in runs.values():
            rules = facts["rules"].values()
            seconds, peak = sum(rule["seconds"] for rule in rules), max(rule["peak_memory_mb"] for rule in rules)
            machine = f"{facts['machine']['processor']}, {facts['machine']['cores']} cores, {facts['machine']['accelerator']}"
            numbers = f"{sum(rule['jobs'] for rule in rules)} | {seconds / 3600:.2f} | {peak / 1000:.1f}"
            lines.append(f"| {preset}{_with_what(root, preset, systems[0])} | {', '.join(systems)} | {machine} | {numbers} |")
    return "\n".join(lines)


def estimates_table(costs):
    """Markdown: what presets would take, by system; costs: {preset: {system: Cost}}."""
    network = estimate.count()
    lines = [
        f"One UNet call on one sample of 512 px: {network.flops / 1e12:.3f} TFLOP (counted). Hours at an assumed {estimate.TERAFLOPS:g} TFLOP/s sustained.",
        "",
        "| preset | system | models trained | UNet calls | GPU-hours | disk, GB | weights, gradients and optimiser of the largest training, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, systems in costs.items():
        for system, cost in systems.items():
            numbers = f"{cost.models:,d} | {cost.calls:,d} | {_rounded(cost.hours)} | {_rounded(cost.disk_gb)} | {cost.state_gb:.1f}"
            lines.append(f"| {preset} | {system} | {numbers} |")
        total = sum(cost.hours for cost in systems.values()), sum(cost.disk_gb for cost in systems.values())
        lines.append(f"| {preset} | all | | | {_rounded(total[0])} | {_rounded(total[1])} | |")
    return "\n".join(lines)


def pairs_table(root):
    """Markdown: what DP-LDM's pairs of public and private pictures would take (overlay `dp-pairs`)."""
    lines = [
        "| private pictures | UNet call, GFLOP | first stage, GFLOP | its training, GPU-hours | public model's training | private trainings | samples |",
        "|---|---|---|---|---|---|---|",
    ]
    total, seen = 0.0, set()
    study = budget.load(root / "config.yaml", [root / PAPER, root / PAIRS])
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
    return f"{where}: {float(row['value']):.3f} [{float(row['ci_low']):.3f}, {float(row['ci_high']):.3f}] {row['status']}"


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
