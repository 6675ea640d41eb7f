"""The figures and tables of the DP-LDM study, drawn from its metrics and sampled pictures alone.

Figures: `dp_tradeoff` (utility against epsilon), `dp_samples`, `dp_weights` (change of attention weights per block), `dp_audit` (claimed against
audited epsilon). Tables (TeX): `dp_utility`, `dp_bars` (what each world can show), `dp_audit`, `dp_sigma` (noise of the published settings, computed),
`dp_weights` (trained weights per architecture).
"""

from pathlib import Path

import numpy as np

from tuneleak import files
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.metrics import dp_bars
from tuneleak.privacy import accounting
from tuneleak.privacy.auditing import CEILING
from tuneleak.report import names, rows, style, tex

COLOURS = {
    "attention": "#0072B2", "all": "#D55E00", "lora": "#009E73", "resblocks": "#CC79A7", "input": "#E69F00", "bias": "#56B4E9", "dp-mepf": "#000000",
    "dpagg-ti": "#999999",
}  # fmt: skip
# Training of the published settings (the authors' and DPImageBench's files): name, steps, q, delta, and the budgets at which sigma was also computed elsewhere
SETTINGS = [
    ("MNIST", 6000, 1 / 30, 1e-5, (10, 1)), ("CIFAR-10", 750, 0.04, 1e-5, (10, 5, 1)), ("CelebA 64", 1400, 0.05, 1e-6, (10, 5, 1)),
    ("CelebA-HQ text", 940, 1 / 94, 1e-5, (10,)), ("CIFAR-10 (DPImageBench)", 1650, 1 / 11, 1e-5, (10, 1)),
]  # fmt: skip
BUDGETS = (10, 5, 1)  # of the paper
DISTANCES = dp_bars.DISTANCES


def figures(metrics, samples, images, out, tables):
    """Write `<out>/dp_{tradeoff,samples,weights,audit}.{pdf,png}` and `<tables>/dp_{utility,bars,audit,sigma,weights}.tex`.

    metrics: table of `evaluate dp-ldm`; samples: ImageSets of `sample-classes`; images: ImageSets with the real pictures;
    without them `dp_samples` is not drawn.
    """
    out, tables = Path(out), Path(tables)
    measured = rows.read_metrics(metrics)
    measured = measured[measured.system == "dp-ldm"]
    if measured.empty:
        raise InputError(f"{metrics} has no row of the system dp-ldm")
    tradeoff(measured, out)
    if samples:
        pictures([ImageSet.load(folder) for folder in samples], [ImageSet.load(folder) for folder in images], out)
    weights(measured, out)
    audits(measured, out)
    files.write_text(tables / "dp_utility.tex", utility_table(measured))
    files.write_text(tables / "dp_bars.tex", bars_table(measured))
    files.write_text(tables / "dp_audit.tex", audit_table(measured))
    files.write_text(tables / "dp_sigma.tex", sigma_table())
    files.write_text(tables / "dp_weights.tex", weights_table(measured))
    files.write_meta(out / "figures", None, metrics=str(metrics), samples=[str(folder) for folder in samples])


def budget(defence):
    """`epsilon=10` -> 10.0 (`inf` included); nan for what is no single budget."""
    name, _, value = defence.partition("=")
    return float(value) if name == "epsilon" and "-minus-" not in value else float("nan")


def plain_utility(measured):
    """Rows of utility, without differences and single blocks, with the column `budget`."""
    kept = rows.plain(measured)
    kept = kept[kept.metric.str.startswith((*DISTANCES, "accuracy ", "precision", "recall"))]
    return kept.assign(budget=kept.defence.map(budget))


def tradeoff(measured, out):
    """One panel per world and metric: a line per trained set over the budgets, the base and real pictures as levels."""
    table = plain_utility(measured)
    table = table[table.metric.str.startswith((*DISTANCES, "accuracy "))]
    worlds, metrics = worlds_with_budgets(table), sorted(set(table.metric), key=lambda name: (not name.startswith(DISTANCES), name))
    budgets = sorted({value for value in table.budget if value > 0})
    with style.figure(style.TEXT_WIDTH, 1.75 * len(worlds) + 0.5) as figure:
        grid = figure.subplots(len(worlds), len(metrics), squeeze=False)
        for line, world in zip(grid, worlds, strict=True):
            for axes, metric in zip(line, metrics, strict=True):
                _panel(axes, table[(table.world == world) & (table.metric == metric)], budgets)
                axes.set_title(f"{names.world_name(world)}: {metric}")
            for axes in grid[-1]:
                axes.set_xlabel(r"$\varepsilon$")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
        style.save(figure, out, "dp_tradeoff")


def worlds_with_budgets(table):
    """The worlds in which something was trained with noise, in their order; one without has no curve to draw, and is left to the tables."""
    private = table[(table.budget > 0) & np.isfinite(table.budget)]
    return names.worlds_in_order(private.world if len(private) else table.world)


def _panel(axes, table, budgets):
    for offset, method in enumerate(names.methods_in_order(set(table.method) - {"base", "real"})):
        mine = table[(table.method == method) & (table.budget > 0)].sort_values("budget")
        x = np.array([budgets.index(value) for value in mine.budget]) + 0.08 * offset
        error = np.nan_to_num(np.clip([mine.value - mine.ci_low, mine.ci_high - mine.value], 0, None))
        axes.errorbar(x, mine.value, yerr=error, marker="o", capsize=2, color=COLOURS.get(method, "#000000"), label=names.method_name(method))
    for method, dashes, label in (("base", "--", "public base"), ("real", ":", "real pictures")):
        level = table[table.method == method]
        if len(level):
            axes.axhline(level.value.iloc[0], color="#555555", linestyle=dashes, linewidth=0.9, label=label)
    axes.set_xticks(range(len(budgets)), [r"$\infty$" if np.isinf(value) else f"{value:g}" for value in budgets])


def pictures(samples, images, out, columns=10):
    """A row of real held-outs of the first world, then one per sampled model of it; a column per class."""
    groups = [(facts, drawn, group) for drawn in samples for facts, group in drawn.table.groupby(["method", "defence", "seed"], sort=False)]
    labels = sorted(set(samples[0].table.label))[:columns]
    shown = [(facts, drawn, group) for facts, drawn, group in groups if set(labels) <= set(group.label)]
    real = next((item for item in images if "label" in item.table and set(labels) <= set(item.table.label)), None)
    lines = [("real", _first(real.where(fold=["test", "heldout"]), labels))] if real is not None else []
    seen = set()
    for (method, defence, _), drawn, group in shown:
        if (method, defence) not in seen:  # the first seed stands for its cell
            seen.add((method, defence))
            name = "public base" if method == "base" else f"{names.method_name(method)}, {defence.replace('epsilon=', 'ε = ')}"
            lines.append((name, _first(ImageSet(drawn.folder, group.reset_index(drop=True)), labels)))
    with style.figure(style.TEXT_WIDTH, 0.5 * len(lines) + 0.3) as figure:
        grid = figure.subplots(len(lines), len(labels), squeeze=False)
        for line, (name, cells) in zip(grid, lines, strict=True):
            for axes, picture in zip(line, cells, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        style.save(figure, out, "dp_samples")


def _first(images, labels):
    return [images.where(label=label).pixels()[0] if len(images.where(label=label)) else np.full((8, 8, 3), 255, np.uint8) for label in labels]


def weights(measured, out):
    """Relative change of W_q, W_k and W_v of every attention block, a line per budget of the reference method, first world."""
    table = measured[measured.metric.str.startswith("weight change")]
    with style.figure(style.TEXT_WIDTH, 2.1) as figure:
        grid = figure.subplots(1, 3, sharey=True)
        if table.empty:
            style.note(grid[0], "no weights were compared")
        else:
            world = names.worlds_in_order(table.world)[0]
            method = "attention" if "attention" in set(table.method) else sorted(set(table.method))[0]
            table = table[(table.world == world) & (table.method == method)]
        for axes, part in zip(grid, ("to_q", "to_k", "to_v"), strict=True):
            for (defence,), mine in table[table.metric == f"weight change {part}"].groupby(["defence"]):
                mine = mine.assign(block=mine.concept.str.removeprefix("block ").astype(int)).sort_values("block")
                axes.plot(mine.block, mine.value, marker="o", markersize=2.5, label=defence.replace("epsilon=", r"$\varepsilon$ = "))
            axes.set_title(f"$W_{part[-1]}$")
            axes.set_xlabel("attention block")
        grid[0].set_ylabel("relative change")
        if grid[0].get_legend_handles_labels()[0]:
            grid[0].legend()
        style.save(figure, out, "dp_weights")


def audits(measured, out):
    """Claimed epsilon beside what the audits show; nothing above the claim is allowed to appear."""
    table = measured[measured.metric.str.startswith("audited epsilon")].assign(budget=lambda found: found.defence.map(budget))
    with style.figure(style.COLUMN_WIDTH, 2.3) as figure:
        axes = figure.subplots()
        if table.empty:
            style.note(axes, "no audit in this run")
        else:
            top = 1.1 * float(table.budget.max())
            axes.plot([0, top], [0, top], color="#555555", linestyle="--", linewidth=0.9, label="claimed")
            for (attack, metric), mine in table.groupby(["attack", "metric"]):
                axes.plot(mine.budget, mine.value, "o", label=f"{attack.removeprefix('audit-')}: {metric.partition(' (')[2].rstrip(')')}")
            axes.set_xlabel(r"claimed $\varepsilon$")
            axes.set_ylabel(r"lower bound of $\varepsilon$ (95%)")
            axes.legend()
        style.save(figure, out, "dp_audit")


def utility_table(measured):
    """TeX tabular: a block per world, a row per method and budget."""
    table = plain_utility(measured)
    metrics = sorted(set(table.metric), key=lambda name: (not name.startswith(DISTANCES), name))
    body = []
    for world in names.worlds_in_order(table.world):
        block = table[table.world == world]
        body.append(tex.heading(tex.escape(names.world_name(world)), len(metrics) + 2))
        order = {name: position for position, name in enumerate(["real", "base", *names.methods_in_order(set(block.method) - {"real", "base"})])}
        for (method, defence), cell in sorted(block.groupby(["method", "defence"]), key=lambda item: (order[item[0][0]], budget(item[0][1]))):
            value = budget(defence)
            shown = "" if np.isnan(value) else r"$\infty$" if np.isinf(value) else f"{value:g}"
            found = cell.set_index("metric")
            cells = [
                tex.with_interval(*found.loc[metric, ["value", "ci_low", "ci_high"]], 3, 2) if metric in found.index else tex.MISSING for metric in metrics
            ]
            name = {"real": "real pictures", "base": "public base"}.get(method, names.method_name(method))
            body.append([tex.escape(name), shown, *cells])
    return tex.tabular("@{}lr" + "l" * len(metrics) + "@{}", [["", r"$\varepsilon$", *map(tex.escape, metrics)]], body)


def bars_table(measured):
    """TeX tabular: per world, what real pictures, the base and training without noise must clear, and whether they do."""
    table, body = dp_bars.bars(measured), []
    for world in names.worlds_in_order(table.world):
        block = table[table.world == world]
        body.append(tex.heading(tex.escape(f"{names.world_name(world)}: {dp_bars.verdict(block.met)}"), 5))
        for row in block.itertuples():
            who = {"real": "", "base": ""}.get(row.method, names.method_name(row.method))
            limit = f"{row.side} {tex.number(row.limit)}" if np.isfinite(row.limit) else tex.MISSING
            cells = [tex.escape(", ".join(filter(None, (who, row.metric)))), tex.with_interval(row.value, row.ci_low, row.ci_high, 3, 2), limit]
            body.append([tex.escape(row.bar), *cells, row.met])
    return tex.tabular("@{}lllll@{}", [["bar", "of", "value", "limit", ""]], body or [[tex.MISSING] * 5])


def audit_table(measured):
    """TeX tabular: claimed and audited epsilon, each beside what it would be were every guess right, and the share of right guesses."""
    table, body = measured[measured.attack.str.startswith("audit-")], []
    for (world, attack, defence), cell in table.groupby(["world", "attack", "defence"]):
        found = cell.set_index("metric").value
        bounds = ("audited epsilon (one run)", "audited epsilon (many runs)")
        names_of = [name for bound in bounds for name in (bound, f"{CEILING}{bound}")] + ["correct guesses"]
        body.append(
            [
                tex.escape(names.world_name(world)),
                tex.escape(attack.removeprefix("audit-")),
                f"{budget(defence):g}",
                *(tex.number(found.get(name, np.nan), 2) for name in names_of),
            ]
        )
    body = body or [[tex.MISSING] * 8]
    head = ["world", "canaries", "claimed", "one run", "of at most", "many runs", "of at most", "right guesses"]
    return tex.tabular("@{}llrrrrrr@{}", [head], body)


def sigma_table():
    """TeX tabular: the noise multipliers of the published settings, and what both accountants say at them; a dash where nothing can check them."""
    body = []
    for name, steps, q, delta, known in SETTINGS:
        for target in BUDGETS:
            cells = [tex.escape(name), str(steps), tex.number(q, 4), rf"$10^{{{round(np.log10(delta))}}}$", str(target)]
            if target in known:
                sigma = accounting.noise_multiplier(target, delta, q, steps)
                cells += [f"{value:.3f}" for value in (sigma, *accounting.cross_check([(sigma, q, steps)], delta))]
            else:
                cells = [*cells[:1], tex.NOT_RECORDED, tex.NOT_RECORDED, tex.NOT_RECORDED, *cells[4:], *[tex.NOT_RECORDED] * 3]
            body.append(cells)
    return tex.tabular("@{}lrrrrrrr@{}", [["setting", "steps", "$q$", r"$\delta$", "budget", r"$\sigma$", "PRV", "PLD"]], body)


def weights_table(measured):
    """TeX tabular: trained weights and their share per architecture."""
    body = []
    for world, cell in measured[(measured.metric == "trained share")].groupby("world"):
        trained = measured[(measured.world == world) & (measured.metric == "trained weights") & (measured.attack == "")].iloc[0]
        body.append([tex.escape(world), f"{trained.n / 1e6:.1f}", f"{trained.value / 1e6:.2f}", tex.number(cell.value.iloc[0], 3)])
    return tex.tabular("@{}lrrr@{}", [["architecture", "weights (M)", "trained (M)", "share"]], body or [[tex.MISSING] * 4])
