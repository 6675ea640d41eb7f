"""The verb `redraw`: every figure, table and claim of a recorded run, and its paper, from `paper/reference/<preset>` alone. No model is run.

Figures that show pictures cannot be drawn from numbers; they, and what belongs to systems that were not recorded, become a remark.
"""

import re
import shutil
from pathlib import Path

from tuneleak import config, files
from tuneleak.errors import InputError
from tuneleak.metrics import join
from tuneleak.report import claims, paper, record, style, tables

_GENERATED = ("setup", "claims", "published", "cost", "dp_cost")  # tables that the paper writes itself


def redraw(preset, out, root="."):
    """Write `<out>/{metrics.csv,claims.csv,figures/,tables/,paper.pdf}` from what is recorded of a preset; print what could not be drawn, and why.

    root: the checkout. The paper needs LaTeX. Raises `InputError` if nothing of the preset is recorded.
    """
    root, out = Path(root), Path(out)
    reference, recorded = root / "paper/reference", root / "paper/reference" / str(preset)
    parts = sorted(recorded.glob("*/metrics.csv"))
    if not parts:
        raise InputError(f"{recorded} holds no recorded run (<system>/metrics.csv); recorded are {', '.join(known(reference)) or 'none'}")
    out.mkdir(parents=True, exist_ok=True)
    metrics = out / "metrics.csv"
    join.join(parts, metrics)
    facts = [files.read_json(path.with_name(record.META)) for path in parts]
    files.write_json(out / record.META, facts[0])
    claims.claims(metrics, reference / "claims.yaml", str(preset), out / "claims.csv")
    for folder in ("figures", "tables"):
        shutil.rmtree(out / folder, ignore_errors=True)
    missing = draw_all(preset, root, metrics, [path.parent.name for path in parts], out)
    tables.tables(metrics, out / "tables", reference)
    for kept in filter(Path.is_file, (record.figure_file(recorded, name) for name in record.PICTURES)):
        shutil.copy(kept, out / "figures")
        print(f"kept from the run, not drawn again: {kept.stem} (it shows pictures)")
    missing |= remark_missing(root / "paper", out)
    for name, why in sorted(missing.items()):
        print(f"not drawn: {name} ({why})")
    costs = {rule: cost for each in facts for rule, cost in each.get("rules", {}).items()}
    methods = {name: cost for each in facts for name, cost in each.get("methods", {}).items()}
    arguments = {"tables": out / "tables", "figures": [out / "figures"], "reference": reference, "sources": root / "paper"}
    paper.paper(metrics, out / "claims.csv", out=out / "paper.pdf", costs=costs, methods=methods, **arguments)
    print(f"{out}: {len(list((out / 'figures').glob('*.pdf')))} figures and {len(list((out / 'tables').glob('*.tex')))} tables")


def known(reference):
    """Presets of which something is recorded."""
    return sorted({path.parts[-3] for path in Path(reference).glob("*/*/metrics.csv")})


def draw_all(preset, root, metrics, systems, out):
    """Draw the figures of the recorded systems into `<out>/figures`; returns {name: why not} of what lacks its scores."""
    from tuneleak.report import figures_ablations, figures_attacker, figures_defences, figures_dp_ldm, figures_finextract, figures_lora_weights, figures_shake

    folder, missing = out / "figures", {}

    def scores(name):
        path = record.scores_file(root / "paper/reference" / str(preset), name)
        return path if path.is_file() else None

    if "finextract" in systems:
        tuning, matches = scores("tuning"), scores("matches")
        if tuning and matches:
            figures_finextract.figures(metrics, tuning, [matches], [], folder)
        else:
            missing["similarity, guidance"] = "scores of single pictures are not recorded"
            figures_finextract.theory(folder)
    if "finextract-ablations" in systems:
        overlay = root / f"workflow/presets/{preset}.yaml"
        study = config.read(root / "config.yaml", overlay if overlay.is_file() else None)
        ablations = study.finextract.ablations
        recipe = next(item.options for item in study.finetune if (item.world, item.options.method) == (ablations.world, ablations.methods[-1]))
        figures_ablations.figures(metrics, folder, ablations.drawn(recipe))
    if "finextract-attacker" in systems:
        clusters = scores("clusters")
        figures_attacker.figures(metrics, folder, [clusters] if clusters else [])
        missing |= {} if clusters else {"certainty": "scores of single clusters are not recorded"}
    if "lora-weights" in systems:
        figures_lora_weights.figures(metrics, None, None, folder)
    if "dp-ldm" in systems:
        figures_dp_ldm.figures(metrics, [], [], folder, out / "tables")
    if "defences" in systems:
        figures_defences.figures(metrics, folder, out / "tables")
    if "shake-to-leak" in systems:
        found = scores("membership")
        figures_shake.figures(metrics, [found] if found else [], folder)
        missing |= {} if found else {"shake_roc": "scores of single pictures are not recorded"}
    return missing


def remark_missing(sources, out):
    """Put a remark in the place of every figure and table that the paper shows and that is not there; returns {name: why}."""
    missing = {}
    for source in sorted((sources / "sections").glob("*.tex")):
        # \IfFileExists{figures/x.pdf}{...}{} is typeset only if that figure is there
        first, *guarded = re.split(r"\\IfFileExists\{([^}]+)\}", source.read_text(encoding="utf-8"))
        shown = [first]
        for guard, text in zip(guarded[::2], guarded[1::2], strict=True):
            inside, _, after = text.partition("}{}")
            shown += [inside, after] if (out / guard).is_file() else [after]
        for name in re.findall(r"\\includegraphics(?:\[[^]]*\])?\{([^}]+)\}", "".join(shown)):
            if not (out / "figures" / f"{name}.pdf").is_file():
                missing[name] = "it shows pictures" if name in record.PICTURES else "not recorded"
                with style.figure(style.TEXT_WIDTH, 0.6) as figure:
                    style.note(figure.subplots(), f"not drawn: {missing[name]}")
                    style.save(figure, out / "figures", name)
        for name in re.findall(r"\\input\{tables/([^}]+)\}", "".join(shown)):
            if name not in _GENERATED and not (out / "tables" / f"{name}.tex").is_file():
                missing[f"table {name}"] = "not recorded"
                files.write_text(out / "tables" / f"{name}.tex", r"\emph{not recorded}" + "\n")
    return missing
