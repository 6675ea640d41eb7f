"""The figures of FineXtract's ablations and defences, drawn from the metrics table alone: ablations, defences."""

from pathlib import Path

import numpy as np

from tuneleak import files
from tuneleak.metrics.ablations import REFERENCE, SYSTEM
from tuneleak.report import names, rows, style

_AXES = {
    "steps": "training steps per picture",
    "pictures-total": "pictures, all steps fixed",
    "pictures-each": "pictures, steps of each fixed",
    "rank": "LoRA rank",
    "generations": "generations per picture",
    "threshold": "clustering threshold",
    "sampler": "sampler steps",
}
_ATTACK_SIDE = {"generations-": "generations", "threshold-": "threshold", "sampler-": "sampler"}  # variants that the sweep makes of the reference
_UTILITY = ("similarity", "caption accuracy", "KID")
_MARKERS = "os^DvPX"


def figures(metrics, out, options):
    """Write `<out>/{ablations,defences}.{pdf,png}` from the metrics table of a run; options: `VariantsOptions` with the variants and their axes.

    A run without ablations gives figures that say so.
    """
    out = Path(out)
    table = rows.read_metrics(metrics)
    table = table[(table.system == SYSTEM) & (table.control == "") & (table.bound == "")]
    ablations(table, {item.name: item for item in options.variants}, options.recipe, out)
    defences(table, {item.name for item in options.variants if not item.axis}, out)
    files.write_meta(out / "figures", None, inputs={"metrics": str(metrics)})


def _at_frozen(table):
    """The rows of AS at the guidance that was frozen before the ablations, which is that of the differences from the reference; the rest is the grid's."""
    found = table[(table.metric == "AS") & (table.attack == "finextract")]
    frozen = found[found.defence.str.endswith(f"-minus-{REFERENCE}")].drop_duplicates("method").set_index("method").guidance
    found = found[~found.defence.str.contains("-minus-")]
    return found[found.guidance == found.method.map(frozen).fillna(found.guidance)]


def ablations(table, variants, recipe, out):
    """AS against the guidance weight, the best weight against training length, and AS along each axis; a line per fine-tuning method."""
    plain = table[~table.defence.str.contains("-minus-") & (table.attack == "finextract")]
    placed = _placed(_at_frozen(table), variants, recipe)
    axes = ["w", *(["best w"] if "steps" in set(placed.axis) else []), *(name for name in _AXES if name in set(placed.axis))] if len(plain) else []
    with style.figure(style.TEXT_WIDTH, 1.75 * max(1, -(-len(axes) // 3))) as figure:
        grid = figure.subplots(max(1, -(-len(axes) // 3)), 3, squeeze=False).ravel()
        for panel in grid[len(axes) :]:
            panel.set_axis_off()
        if not axes:
            style.note(grid[1], "no ablation was run")
        for panel, axis in zip(grid, axes, strict=False):
            _panel(panel, axis, plain, placed)
        if axes:
            grid[0].legend(*grid[0].get_legend_handles_labels(), loc="best")
        style.save(figure, out, "ablations")


def _panel(panel, axis, plain, placed):
    ticks = set()
    for number, method in enumerate(names.methods_in_order(plain.method)):
        mine, look = plain[plain.method == method], {"marker": _MARKERS[number], "markersize": 3, "capsize": 1.5, "label": names.method_name(method)}
        if axis == "w":
            part = mine[(mine.metric == "AS") & (mine.defence == REFERENCE)]
            values = [rows.guidance_values(guidance) for guidance in part.guidance]
            part = part.assign(place=[value.get("w", np.nan) if not value.get("k") else np.nan for value in values]).dropna(subset="place")
        elif axis == "best w":
            part = mine[(mine.metric == "best w") & (mine.defence.isin(placed[placed.axis == "steps"].defence) | (mine.defence == REFERENCE))]
            part = part.merge(placed[(placed.axis == "steps") & (placed.method == method)][["defence", "place"]].drop_duplicates(), on="defence")
        else:
            part = placed[(placed.axis == axis) & (placed.method == method)]
        part = part.sort_values("place")
        ticks |= set(part.place)
        if len(part):
            spread = [part.value - part.ci_low, part.ci_high - part.value]
            panel.errorbar(part.place, part.value, np.maximum(spread, 0), linewidth=0.9, elinewidth=0.6, **look)
    panel.set_xlabel({"w": "$w'$", "best w": _AXES["steps"]}.get(axis) or _AXES[axis])
    panel.set_ylabel("best $w'$" if axis == "best w" else "AS")
    if axis != "threshold":
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xticks(sorted(ticks), [f"{place:g}" for place in sorted(ticks)])


def _placed(table, variants, recipe):
    """The rows (of `_at_frozen`) that lie on an axis, with columns `axis` and `place`; the reference, trained by `recipe`, lies on each axis of training."""
    first = table.drop_duplicates(["method", "defence"])
    at = {"steps": recipe.steps_per_image, "pictures-total": recipe.images_per_concept, "pictures-each": recipe.images_per_concept, "rank": recipe.rank}
    found = []
    for row in first.to_dict("records"):
        if row["defence"] == REFERENCE:
            used = {variant.axis for variant in variants.values() if row["method"] in (variant.methods or [row["method"]])}
            found += [row | {"axis": axis, "place": place} for axis, place in at.items() if axis in used]
        variant = variants.get(row["defence"])
        prefix = next((prefix for prefix in _ATTACK_SIDE if row["defence"].startswith(prefix) and not variant), None)
        if variant and variant.axis in _AXES:
            found.append(row | {"axis": variant.axis, "place": variant.value})
        elif prefix:
            found.append(row | {"axis": _ATTACK_SIDE[prefix], "place": float(row["defence"].removeprefix(prefix))})
    columns = [*table.columns, "axis", "place"]
    return first.iloc[:0].reindex(columns=columns) if not found else type(table)(found, columns=columns)


def defences(table, named, out):
    """Extraction against utility, a point per defence and a panel per measure of utility; arrows would lead right and down from the reference."""
    plain = table[~table.defence.str.contains("-minus-") & table.defence.isin(named)]
    scores = _at_frozen(table[table.defence.isin(named) | table.defence.str.endswith(f"-minus-{REFERENCE}")]).drop_duplicates(["method", "defence"])
    shown = [metric for metric in _UTILITY if (plain.metric == metric).any()] if len(scores) else []
    with style.figure(style.TEXT_WIDTH, 2.6) as figure:
        panels = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
        if not shown:
            style.note(panels[0], "no defence was run")
        for panel, metric in zip(panels, shown, strict=False):
            use = plain[plain.metric == metric]
            both = scores.merge(use[["method", "defence", "value", "ci_low", "ci_high"]], on=["method", "defence"], suffixes=("", "_use"))
            for number, (method, part) in enumerate(both.groupby("method", sort=True)):
                errors = [np.maximum([part[f"value{s}"] - part[f"ci_low{s}"], part[f"ci_high{s}"] - part[f"value{s}"]], 0) for s in ("_use", "")]
                look = {"fmt": _MARKERS[number], "markersize": 3.5, "elinewidth": 0.5, "label": names.method_name(method)}
                panel.errorbar(part.value_use, part.value, errors[1], errors[0], **look)
                for row in part.itertuples():
                    panel.annotate(row.defence, (row.value_use, row.value), xytext=(2, 2), textcoords="offset points", fontsize=5)
            panel.set_xlabel({"similarity": "similarity to held-outs", "KID": "KID to held-outs (low: good)"}.get(metric, metric))
            panel.set_ylabel("AS of the attack")
        if shown:
            panels[0].legend(loc="best")
        style.save(figure, out, "defences")
