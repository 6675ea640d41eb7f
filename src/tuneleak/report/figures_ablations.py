"""The figures of FineXtract's ablations and defences, drawn from the metrics table alone: ablations, defences."""

from pathlib import Path

import numpy as np

from tuneleak import files
from tuneleak.metrics.ablations import REFERENCE, SYSTEM
from tuneleak.report import labels, names, rows, style

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
_XLABELS = _AXES | {"w": "$w'$", "best w": _AXES["steps"]}
_RING = {"markersize": 7, "markerfacecolor": "none", "markeredgecolor": "#444444", "markeredgewidth": 0.8}
_UTILITY = ("similarity", "caption accuracy", "KID")
_MARKERS = "os^DvPX"


def figures(metrics, out, options):
    """Write `<out>/{ablations,defences}.{pdf,png}` from the metrics table of a run; options: `AblationFigureOptions`, the variants, their axes and
    where the reference lies.

    A run without ablations gives figures that say so.
    """
    out = Path(out)
    table = rows.read_metrics(metrics)
    table = table[(table.system == SYSTEM) & (table.control == "") & (table.bound == "")]
    ablations(table, options, out)
    defences(table, {item.name for item in options.variants if not item.axis}, out)
    files.write_meta(out / "figures", None, inputs={"metrics": str(metrics)})


def _at_frozen(table):
    """The rows of AS at the guidance that was frozen before the ablations, which is that of the differences from the reference; the rest is the grid's."""
    found = table[(table.metric == "AS") & (table.attack == "finextract")]
    frozen = found[found.defence.str.endswith(f"-minus-{REFERENCE}")].drop_duplicates("method").set_index("method").guidance
    found = found[~found.defence.str.contains("-minus-")]
    return found[found.guidance == found.method.map(frozen).fillna(found.guidance)]


def ablations(table, options, out):
    """AS against the guidance weight, the best weight against training length, and AS along each axis; a line per fine-tuning method, a ring around what the
    variants are compared with."""
    plain = table[~table.defence.str.contains("-minus-") & (table.attack == "finextract")]
    placed = _placed(_at_frozen(table), options)
    axes = ["w", *(["best w"] if "steps" in set(placed.axis) else []), *(name for name in _AXES if name in set(placed.axis))] if len(plain) else []
    with style.figure(style.TEXT_WIDTH, 1.75 * max(1, -(-len(axes) // 3))) as figure:
        grid = figure.subplots(max(1, -(-len(axes) // 3)), 3, squeeze=False).ravel()
        for panel in grid[len(axes) :]:
            panel.set_axis_off()
        if not axes:
            style.note(grid[1], "no ablation was run")
        for panel, axis in zip(grid, axes, strict=False):
            _panel(panel, axis, plain, placed)
        handles, shown = _once(grid)
        if handles:
            figure.legend(handles, shown, loc="outside lower center", ncols=4)
        style.save(figure, out, "ablations")


def _once(grid):
    """Handles and labels of the legend, each label once."""
    found = {}
    for panel in grid:  # of some the first may be a remark
        found |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    order = sorted(found, key=lambda label: label == REFERENCE)
    return [found[label] for label in order], order


def _panel(panel, axis, plain, placed):
    shown = {}
    for number, method in enumerate(names.methods_in_order(plain.method)):
        part = _line(axis, plain[plain.method == method], placed[placed.method == method]).sort_values("place")
        if len(part):
            shown[method] = part, _MARKERS[number]
    ticks = sorted({place for part, _ in shown.values() for place in part.place})
    if len(ticks) < 2:
        return style.note(panel, "\n".join([_XLABELS[axis], *(_in_words(method, part) for method, (part, _) in shown.items())] if shown else ["not varied"]))
    for method, (part, marker) in shown.items():
        spread = np.maximum([part.value - part.ci_low, part.ci_high - part.value], 0)
        look = {"marker": marker, "markersize": 3, "capsize": 1.5, "linewidth": 0.9, "elinewidth": 0.6, "label": names.method_name(method)}
        panel.errorbar(part.place, part.value, spread, **look)
        ringed = part[part.defence == REFERENCE] if axis != "w" else part[:0]  # along w' all are the reference
        panel.plot(ringed.place, ringed.value, "o", label=REFERENCE, **_RING)
    panel.set_xlabel(_XLABELS[axis])
    panel.set_ylabel("best $w'$" if axis == "best w" else "AS")
    if axis != "threshold":
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xticks(ticks, [f"{place:g}" for place in ticks])


def _line(axis, mine, placed):
    """The points of one method in one panel: rows with the column `place`."""
    if axis == "w":
        part = mine[(mine.metric == "AS") & (mine.defence == REFERENCE)]
        values = [rows.guidance_values(guidance) for guidance in part.guidance]
        return part.assign(place=[value.get("w", np.nan) if not value.get("k") else np.nan for value in values]).dropna(subset="place")
    if axis == "best w":
        steps = placed[placed.axis == "steps"]
        part = mine[(mine.metric == "best w") & (mine.defence.isin(steps.defence) | (mine.defence == REFERENCE))]
        return part.merge(steps[["defence", "place"]].drop_duplicates(), on="defence")
    return placed[placed.axis == axis]


def _in_words(method, part):
    """The single point of a method in a panel where no other is to be compared with."""
    row = part.iloc[0]
    return f"{names.method_name(method)}, {row.place:g} alone: {row.value:z.3f} [{row.ci_low:z.3f}, {row.ci_high:z.3f}]"


def _placed(table, options):
    """The rows (of `_at_frozen`) that lie on an axis, with columns `axis` and `place`; the reference lies on each axis that is varied."""
    recipe, variants = options.recipe, {item.name: item for item in options.variants}
    first = table.drop_duplicates(["method", "defence"])
    at = {"steps": recipe.steps_per_image, "pictures-total": recipe.images_per_concept, "pictures-each": recipe.images_per_concept, "rank": recipe.rank}
    at |= {"generations": options.generations_per_image, "threshold": options.threshold, "sampler": options.steps}
    found = []
    for row in first.to_dict("records"):
        if row["defence"] == REFERENCE:
            used = {variant.axis for variant in variants.values() if row["method"] in (variant.methods or [row["method"]])}
            mine = first.defence[first.method == row["method"]]
            used |= {axis for prefix, axis in _ATTACK_SIDE.items() if mine.str.startswith(prefix).any()}
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
        places = {}
        for panel, metric in zip(panels, shown, strict=False):
            use = plain[plain.metric == metric]
            both = scores.merge(use[["method", "defence", "value", "ci_low", "ci_high"]], on=["method", "defence"], suffixes=("", "_use"))
            places[panel] = list(zip(both.value_use, both.value, both.defence, strict=True))
            for number, (method, part) in enumerate(both.groupby("method", sort=True)):
                errors = [np.maximum([part[f"value{s}"] - part[f"ci_low{s}"], part[f"ci_high{s}"] - part[f"value{s}"]], 0) for s in ("_use", "")]
                look = {"fmt": _MARKERS[number], "markersize": 3.5, "elinewidth": 0.5, "label": names.method_name(method)}
                panel.errorbar(part.value_use, part.value, errors[1], errors[0], **look)
            panel.set_xlabel({"similarity": "similarity to held-outs", "KID": "KID to held-outs (low: good)"}.get(metric, metric))
            panel.set_ylabel("AS of the attack")
        if shown:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
            labels.label(figure, places)
        style.save(figure, out, "defences")
