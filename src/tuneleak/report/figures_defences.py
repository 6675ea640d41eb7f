"""The figures, tables and summary of the matrix, drawn from its metrics alone: `matrix` (heat map), `matrix.html`, `planes`, `budgets`, `summary.md`."""

from pathlib import Path

import numpy as np
from matplotlib.patches import Rectangle

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.privacy import published
from tuneleak.report import labels, matrix, names, practice, shades, style, tex

_MARKERS = "os^DvPX*<>"
_PRIVATE, _PLAIN = "#0072B2", "#E69F00"


def figures(metrics, out, tables):
    """Write `<out>/{matrix,planes,budgets}.{pdf,png}`, `<out>/matrix.html`, `<out>/summary.md`
    and `<tables>/defences_{matrix,rankings,accounting,summary}.tex`.

    metrics: table of `evaluate defences`, or the joined one. Raises `InputError` for a table without rows of the matrix.
    """
    out, tables = Path(out), Path(tables)
    table = matrix.read(metrics)
    if table.empty:
        raise InputError(f"{metrics} holds no row of {matrix.SYSTEM}; run `tuneleak evaluate defences` first")
    heat(table, out)
    planes(table, out)
    budgets(table, out)
    files.write_text(out / "matrix.html", matrix.html(table))
    said = practice.sentences(table)
    files.write_text(out / "summary.md", practice.markdown(said))
    files.write_text(tables / "defences_matrix.tex", matrix.tex_table(table))
    files.write_text(tables / "defences_rankings.tex", matrix.rankings_table(table))
    files.write_text(tables / "defences_accounting.tex", accounting_table())
    files.write_text(tables / "defences_summary.tex", practice.typeset(said))
    files.write_meta(out / "figures", None, metrics=str(metrics))


def heat(table, out):
    """A panel per method: rows are defences, columns attacks; text and colour are leaked bits, pale where their interval includes 0 or there is none. Without
    bits the own metric stands in brackets, on grey; what was not run is hatched."""
    shown, methods = matrix.columns(table), matrix.methods(table)
    lines = [(method, matrix.defences(table, method)) for method in methods]
    height = sum(0.2 * len(names_) + 0.25 for _, names_ in lines) + 0.9
    with style.figure(style.TEXT_WIDTH, height) as figure:
        panels = figure.subplots(len(lines), 1, squeeze=False, height_ratios=[len(names_) for _, names_ in lines])[:, 0]
        for panel, (method, named) in zip(panels, lines, strict=True):
            panel.set(xlim=(-0.5, len(shown) - 0.5), ylim=(len(named) - 0.5, -0.5))
            for i, defence in enumerate(named):
                for j, column in enumerate(shown):
                    _box(panel, j, i, matrix.cell(table, method, defence, column))
            panel.set_yticks(range(len(named)), named, fontsize=6)
            panel.set_xticks(range(len(shown)), [column[3] for column in shown], rotation=35, ha="right", fontsize=6)
            panel.tick_params(labelbottom=panel is panels[-1])
            panel.grid(visible=False)
            panel.set_title(names.method_name(method), loc="left")
        shades.scale(figure, panels)
        figure.supxlabel(matrix.scope(table), fontsize=6, color=shades.FAINT)
        style.save(figure, out, "matrix")


def _box(panel, x, y, found):
    """One cell of the heat map."""
    look, text = {"facecolor": "#FFFFFF", "hatch": "/////", "edgecolor": "#DDDDDD"}, {"s": ""}
    if found.bits is not None:
        look = {"facecolor": shades.colour(found.bits.value, found.clear), "edgecolor": "#FFFFFF"}
        text = {"s": found.text, "color": shades.ink(found.bits.value, found.clear), "fontweight": "bold" if found.clear else "normal"}
    elif found.own is not None:
        look, text = {"facecolor": "#EEEEEE", "edgecolor": "#FFFFFF"}, {"s": f"({found.text})", "color": shades.FAINT}
    panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, linewidth=0.5, **look))
    panel.text(x, y, ha="center", va="center", fontsize=5.5, **text)


def planes(table, out):
    """A panel per attack: its own metric (down is private) over the likeness that is kept (right is useful); the front of the means is joined."""
    shown = [column for column in matrix.columns(table) if _points(table, column)]
    with style.figure(style.TEXT_WIDTH, 1.9 * max(1, -(-len(shown) // 3))) as figure:
        grid = figure.subplots(max(1, -(-len(shown) // 3)), 3, squeeze=False).ravel()
        for panel in grid[len(shown) :]:
            panel.set_axis_off()
        if not shown:
            style.note(grid[1], "no attack has both leakage and utility in this run")
        kept = [use.value for column in shown for points in _points(table, column).values() for _, use, _ in points]
        limits = min([0, *kept]) - 0.1, max([1, *kept]) + 0.15  # of all panels, that they can be compared
        named = {}
        for panel, column in zip(grid, shown, strict=False):
            named[panel] = []
            for number, (method, points) in enumerate(_points(table, column).items()):
                _scatter(panel, points, _MARKERS[number % len(_MARKERS)], names.method_name(method))
                named[panel] += [(use.value, leak.value, name) for name, use, leak in points]
            panel.set_title(column[3])
            panel.set(xlabel="likeness kept", ylabel=column[2], xlim=limits)
        if shown:
            figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
            labels.label(figure, named)
        style.save(figure, out, "planes")


def _points(table, column):
    """{method: [(defence, row of use, row of leakage)]} of the defences that have both."""
    found = {}
    for method in matrix.methods(table):
        rows = [(name, matrix.row_of(table, method, name, "", "similarity kept"), matrix.cell(table, method, name, column).own)
                for name in matrix.defences(table, method)]  # fmt: skip
        points = [row for row in rows if row[1] is not None and row[2] is not None]
        if len(points) > 1:
            found[method] = points
    return found


def _scatter(panel, points, marker, label):
    from tuneleak.metrics.defended_use import pareto

    use, leak = np.array([use.value for _, use, _ in points]), np.array([leak.value for _, _, leak in points])
    for name, x, y in points:
        whiskers = [np.maximum([[row.value - row.ci_low], [row.ci_high - row.value]], 0) for row in (y, x)]
        colour = _PRIVATE if name.startswith("dp") else _PLAIN
        look = {"markersize": 3, "elinewidth": 0.4, "color": colour, "label": label if name == matrix.NONE else None}
        panel.errorbar(x.value, y.value, whiskers[0], whiskers[1], fmt=marker, **look)
    front = np.flatnonzero(pareto(leak, use))
    order = front[np.argsort(use[front])]
    panel.plot(use[order], leak[order], color="#555555", linewidth=0.7, zorder=0)


def budgets(table, out):
    """Likeness kept, and AUC of the loss with the base as reference, over epsilon: a line per private defence; dotted: what epsilon allows per picture."""
    lines = _families(table)
    with style.figure(style.TEXT_WIDTH, 2.4) as figure:
        left, right = figure.subplots(1, 2)
        if not lines:
            style.note(left, "no private training in this run")
        for number, ((method, family), points) in enumerate(sorted(lines.items())):
            look = {"fmt": f"-{_MARKERS[number % len(_MARKERS)]}", "markersize": 3, "elinewidth": 0.5, "capsize": 1.5}
            for panel, attack, metric in ((left, "", "similarity kept"), (right, "reference-loss", "AUC")):
                found = [(epsilon, matrix.row_of(table, method, name, attack, metric)) for epsilon, name in sorted(points)]
                found = [(epsilon, row) for epsilon, row in found if row is not None]
                if found:
                    whiskers = np.maximum([[row.value - row.ci_low for _, row in found], [row.ci_high - row.value for _, row in found]], 0)
                    panel.errorbar([at for at, _ in found], [row.value for _, row in found], whiskers, label=f"{names.method_name(method)}, {family}", **look)
        allowed = sorted({(round(epsilon, 3), name, method) for (method, _), points in lines.items() for epsilon, name in points})
        bound = [(epsilon, matrix.row_of(table, method, name, "", "AUC allowed")) for epsilon, name, method in allowed]
        bound = [(epsilon, row.value) for epsilon, row in bound if row is not None and row.guidance == "unit=image"]
        if bound:
            right.plot(*zip(*bound, strict=True), ":", color="black", linewidth=0.9, label="allowed")
        for panel, label in ((left, "likeness kept"), (right, "AUC, loss with reference")):
            panel.set(xlabel=r"$\varepsilon$ (per picture, or per person where it says so)", ylabel=label, xscale="log")
            panel.axhline(1.0 if panel is left else 0.5, linestyle="--", color="#8A8A8A", linewidth=0.7)
        if lines:
            left.legend(loc="best", fontsize=5)
        style.save(figure, out, "budgets")


def _families(table):
    """{(method, family): [(epsilon, defence)]} of private defences that differ in epsilon alone: their names without it."""
    found = {}
    for row in table[table.metric == "epsilon"].itertuples():
        family = row.defence.replace(f"-{round(row.value, 3):g}", "", 1)
        found.setdefault((row.method, family), []).append((row.value, row.defence))
    return found


def accounting_table():
    """TeX tabular: the public code's "epsilon 10" three ways, what noise an honest 10 needs, and what first steps of DPGM show about its claim."""
    body = []
    for row in published.accounts():
        numbers = [tex.number(row["rate"], 3), f"{row['steps']:,d}".replace(",", r"\,"), f"{row['sigma']:.2f}", f"{row['epsilon']:.1f}", f"{row['renyi']:.1f}"]
        body.append([tex.escape(row["how"]), row["unit"], *numbers])
    claimed, shown = published.refute_dpgm()
    body.append(tex.heading(rf"DPGM claims {claimed:g}; {published.RUNS:,d} simulated first steps show at least {shown:.1f}".replace(",", r"\,"), 7))
    head = [["counted", "unit", "$q$", "steps", r"$\sigma$", r"$\varepsilon$", r"$\varepsilon$ (R\'enyi)"]]
    return tex.tabular("@{}llrrrrr@{}", head, body)
