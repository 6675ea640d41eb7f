"""The figures of the FineXtract study, drawn from its tables and pictures alone: pictures, similarity, guidance, theory."""

from itertools import product
from pathlib import Path

import numpy as np

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.report import names, pictures, rows, style

_DIFFERENCES = ("finextract-minus-cfg", "cfg-minus-direct")
_DASHES = ("-", "--", ":", "-.")


def figures(metrics, tuning, matches, images, out):
    """Write `<out>/{pictures,similarity,guidance,theory}.{pdf,png}` and `figures.meta.json`.

    metrics: the test concepts' metrics table; tuning: the same for tune concepts; matches: matches.csv files of the test concepts, each
    beside its extracted/ image set; images: the image sets with the training pictures; without them `pictures` is not drawn. Raises `InputError` for unreadable
    tables or pictures that the tables name and that are not there.
    """
    out = Path(out)
    measured, tuned, found = rows.read_metrics(metrics), rows.read_metrics(tuning), rows.read_matches(matches)
    found = found[found.defence == ""]
    if found.empty:
        raise InputError("the matches.csv files given hold no row without a defence: no attack was run on test concepts")
    measured = measured[(measured.system == "finextract") & (measured.defence == "")]
    tuned = tuned[(tuned.system == "finextract") & (tuned.metric == "AS")]
    if images:
        pictures.draw(found, images, out)
    similarity(measured, found, out)
    guidance(measured, tuned, out)
    theory(out)
    files.write_meta(out / "figures", None, inputs={"metrics": str(metrics), "tuning": str(tuning), "matches": [str(path) for path in matches]})


def similarity(measured, found, out):
    """AS of every concept under every attack, and below it the paired differences, each mean with its interval from the metrics table."""
    measured = measured[(measured.metric == "AS") & (measured.control == "") & (measured.bound == "") & (measured.concept == "")]
    concepts = found.groupby(["world", "method", "attack", "concept"], as_index=False).extracted.mean()
    panels = _panels(found)
    with style.figure(style.TEXT_WIDTH, 3.9) as figure:
        grid = figure.subplots(2, len(panels), squeeze=False, sharey="row", height_ratios=(3, 2.2))
        for column, (world, method) in enumerate(panels):
            panel = concepts[(concepts.world == world) & (concepts.method == method)].pivot(index="concept", columns="attack", values="extracted")
            means = measured[(measured.world == world) & (measured.method == method)].set_index("attack")
            _attacks(grid[0, column], panel, means)
            _differences(grid[1, column], panel, means)
            grid[0, column].set_title(f"{names.world_name(world)}, {names.method_name(method)}\n({len(panel)} concepts)")
        grid[0, 0].set_ylabel("AS")
        grid[1, 0].set_ylabel("difference of AS")
        style.save(figure, out, "similarity")


def _panels(table):
    pairs = set(zip(table.world, table.method, strict=True))
    return [pair for pair in product(names.worlds_in_order(table.world), names.methods_in_order(table.method)) if pair in pairs]


def _attacks(axes, panel, means):
    attacks = [name for name in names.attacks_in_order(panel.columns) if panel[name].notna().any()]
    for values in panel[attacks].to_numpy():
        axes.plot(range(len(attacks)), values, color="#BBBBBB", linewidth=0.5, zorder=1)
    for position, attack in enumerate(attacks):
        looks = {"color": style.colour(attack), "markersize": 3, "alpha": 0.55, "markeredgewidth": 0, "zorder": 2}
        axes.plot([position] * len(panel), panel[attack], style.marker(attack), **looks)
        _mean(axes, means, attack, position + 0.24)
    short = [names.attack_name(name).replace(", unconditional", ",\nuncond.").replace(" (", "\n(") for name in attacks]
    axes.set_xticks(range(len(attacks)), short, rotation=90)
    axes.set_xlim(-0.5, len(attacks) - 0.4)
    axes.grid(axis="x", visible=False)


def _differences(axes, panel, means):
    shown = [name for name in _DIFFERENCES if all(part in panel for part in name.split("-minus-"))]
    for position, name in enumerate(shown):
        first, second = name.split("-minus-")
        values = np.sort((panel[first] - panel[second]).dropna().to_numpy())
        spread = position - 0.12 + np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else [position - 0.12]
        axes.plot(spread, values, style.marker(first), color=style.colour(first), markersize=2.6, alpha=0.6, markeredgewidth=0)
        _mean(axes, means, name, position + 0.24)
    axes.axhline(0, color="black", linewidth=0.7)
    axes.set_xticks(range(len(shown)), [names.attack_name(name).replace(" minus", "\nminus") for name in shown])
    axes.set_xlim(-0.5, max(len(shown), 1) - 0.5)
    axes.grid(axis="x", visible=False)


def _mean(axes, means, attack, x):
    if attack in means.index:
        row = means.loc[[attack]].iloc[0]
        axes.errorbar(x, row.value, yerr=_whiskers(row.value, row.ci_low, row.ci_high), fmt="_", color="black", markersize=6, capsize=2, elinewidth=1, zorder=4)


def _whiskers(value, low, high):
    """Error bars from an interval, as matplotlib wants them: `(2, n)` distances, never negative, none where there is no interval."""
    value, low, high = (np.atleast_1d(np.asarray(item, float)) for item in (value, low, high))
    return np.nan_to_num(np.clip([value - low, high - value], 0, None))


def guidance(measured, tuned, out):
    """AS on tune concepts against w' (a line per k) and against the scale of CFG; a ring marks what was frozen for the test concepts."""
    tuned = rows.plain(tuned)
    chosen = rows.plain(measured[measured.metric == "AS"])
    panels = _panels(tuned)
    with style.figure(style.TEXT_WIDTH, 2.5) as figure:
        grid = figure.subplots(1, max(len(panels), 1), squeeze=False, sharey=True)[0]
        if not panels:
            style.note(grid[0], "no tuning in this run: the guidance was frozen beforehand")
        for axes, (world, method) in zip(grid, panels, strict=False):
            mine = tuned[(tuned.world == world) & (tuned.method == method)]
            frozen = chosen[(chosen.world == world) & (chosen.method == method)]
            _curves(axes, mine, frozen)
            axes.set_title(f"{names.world_name(world)}, {names.method_name(method)}")
            axes.set_xlabel("$w'$ or CFG scale")
        if panels:
            grid[0].set_ylabel("AS on tune concepts")
            handles = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 4))
        style.save(figure, out, "guidance")


def _curves(axes, mine, frozen):
    points = mine.assign(**{name: [rows.guidance_values(text).get(name, 0.0) for text in mine.guidance] for name in ("w", "k")})
    for _, row in mine[mine.attack == "direct"].iterrows():
        axes.axhline(row.value, color=style.colour("direct"), linewidth=1, linestyle=":", label="direct")
    scales = sorted(set(points.k), key=lambda k: (abs(k), k))  # the plain line for k = 0
    for attack in names.attacks_in_order(set(mine.attack) - {"direct", "base"}):
        curves = points[points.attack == attack]
        at_frozen = {row.guidance for row in frozen[frozen.attack == attack].itertuples()}
        for k, curve in curves.groupby("k"):
            curve = curve.sort_values("w")
            dashes = _DASHES[scales.index(k) % len(_DASHES)]
            name = names.attack_name(attack) + (f", $k$ = {k:g}" if curves.k.nunique() > 1 else "")
            axes.fill_between(curve.w, curve.ci_low, curve.ci_high, color=style.colour(attack), alpha=0.10, linewidth=0)
            axes.plot(curve.w, curve.value, style.marker(attack), color=style.colour(attack), linestyle=dashes, label=name)
            ring = curve[curve.guidance.isin(at_frozen)]
            axes.plot(ring.w, ring.value, "o", markersize=9, markerfacecolor="none", markeredgecolor="black", markeredgewidth=0.9, zorder=5)


def theory(out, ratios=(1.0, 0.5, 0.1), weights=(3.0, 5.0)):
    """How far guidance is from eps_q though p_theta' is exactly the assumed mixture of clean data, for Gaussians of unequal variance.

    ratios: variance of q over that of p; weights: w' = 1 / lambda (the two that the authors' code uses). The noise schedule is
    Stable Diffusion's.
    """
    from tuneleak.attacks.extraction.theory import geometric_mixture_error
    from tuneleak.models.schedule import alphas_cumprod

    schedule = alphas_cumprod({"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
    colours = [style.colour(name) for name in ("direct", "finextract", "finextract-unconditional")]
    with style.figure(style.TEXT_WIDTH * 0.86, 2.35) as figure:
        grid = figure.subplots(1, len(weights), squeeze=False, sharey=True)[0]
        for axes, weight in zip(grid, weights, strict=True):
            for ratio, colour in zip(ratios, colours, strict=True):
                table = geometric_mixture_error(schedule, variance_p=1.0, variance_q=ratio, lam=1 / weight)
                axes.plot(table.timestep, 100 * table.relative_error, color=colour, label=rf"$\sigma_q^2/\sigma_p^2$ = {ratio:g}")
                axes.plot(table.timestep, 100 * table.relative_error_unguided, color=colour, linestyle="--", linewidth=0.9)
            axes.set_title(rf"$w'$ = {weight:g} ($\lambda$ = 1/{weight:g})")
            axes.set_xlabel("timestep")
        grid[0].set_ylabel("relative error of $\\epsilon_q$ (%)")
        handles, texts = grid[0].get_legend_handles_labels()
        (dashed,) = grid[0].plot([], [], color="#555555", linestyle="--", linewidth=0.9)
        figure.legend([*handles, dashed], [*texts, "no guidance ($w'$ = 1)"], loc="outside lower center", ncols=len(texts) + 1)
        style.save(figure, out, "theory")
