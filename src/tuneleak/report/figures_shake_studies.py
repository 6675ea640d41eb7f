"""Studies of Shake-to-Leak: what changes when one thing about the recipe, or the size of a random perturbation, does."""

import numpy as np

from tuneleak.report import names, style

_COLUMNS = 4
LOSS = "set loss"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TITLES = {"sigma": "random perturbation", "steps": "steps", "rank": "rank", "size": "self-made pictures", "rounds": "rounds", "blend": "blended set"}


def studies(measured, out):
    """Write `shake_studies`: amplification against the value of each study, a panel per study, a colour per method, for the attack with most rows. Of
    trajectories a second panel, against the loss on the self-made set."""
    known = measured[measured.defence.str.contains("=") & (measured.metric == "amplification") & (measured.base == "all") & (measured.control == "")]
    known = known[known.defence != "steps=matched"]
    if known.empty:
        return
    attack = "secmi-stat" if "secmi-stat" in set(known.attack) else known.attack.value_counts().index[0]
    known = known[known.attack == attack].copy()
    known[["study", "point"]] = known.defence.str.split("=", n=1, expand=True)
    losses = measured[(measured.metric == "set loss") & (measured.base == "all")].set_index(["method", "defence"]).value
    found = sorted(set(known.study)) + ([LOSS] if len(losses) else [])
    rows = -(-len(found) // _COLUMNS)
    with style.figure(style.TEXT_WIDTH, 1.7 * rows + 0.5) as figure:
        grid = figure.subplots(rows, min(_COLUMNS, len(found)), squeeze=False, sharey=True).ravel()
        methods = names.methods_in_order(known.method)
        for axes, study in zip(grid, found, strict=False):
            if study == LOSS:
                _loss_panel(axes, known[known.study == "steps"], losses, methods)
            else:
                _panel(axes, known[known.study == study], study, methods)
        for axes in grid[len(found) :]:
            axes.set_axis_off()
        for axes in grid[:: min(_COLUMNS, len(found))]:
            axes.set_ylabel("amplification of AUC")
        handles = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.suptitle(names.attack_name(attack), fontsize=8)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        style.save(figure, out, "shake_studies")


def _panel(axes, block, study, methods):
    points = list(dict.fromkeys(block.point))
    numeric = all(_number(point) is not None for point in points)
    order = sorted(points, key=_number) if numeric else points
    for method in names.methods_in_order(block.method):
        line = block[block.method == method].set_index("point")
        line = line.loc[[point for point in order if point in line.index]]
        places = [_number(point) if numeric else order.index(point) for point in line.index]
        number = methods.index(method)
        whiskers = np.clip([line.value - line.ci_low, line.ci_high - line.value], 0, None)
        axes.errorbar(
            places, line.value, whiskers, fmt="-o", color=_COLOURS[number % len(_COLOURS)], markersize=3, capsize=1.5, label=names.method_name(method)
        )
    axes.axhline(0, color="#888888", linewidth=0.8, linestyle=":")
    values = [_number(point) for point in order] if numeric else []
    if numeric and min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log")
    if not numeric:
        axes.set_xticks(range(len(order)), order)
    axes.set_title(_TITLES.get(study, study.replace("-", " ")))


def _loss_panel(axes, block, losses, methods):
    """Trajectories from the base on, the loss falling to the right: what lies above another at one place amplifies more at equal loss."""
    for method in names.methods_in_order(block.method):
        line = block[block.method == method]
        line = line.assign(loss=[losses.get((method, defence), np.nan) for defence in line.defence]).dropna(subset="loss").sort_values("loss", ascending=False)
        places, values = [losses["base", ""], *line.loss], [0.0, *line.value]
        axes.plot(places, values, "-o", color=_COLOURS[methods.index(method) % len(_COLOURS)], markersize=3, label=names.method_name(method))
    axes.axhline(0, color="#888888", linewidth=0.8, linestyle=":")
    axes.locator_params(axis="x", nbins=3)  # four decimals are wide
    axes.invert_xaxis()
    axes.set_title("steps, by loss on the set")


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None
