"""What an attacker needs to know, and knows afterwards: figures `captions`, `certainty` and `people`, drawn from tables alone."""

from pathlib import Path

import numpy as np

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics.attacker_captions import ATTACK, CONTROL
from tuneleak.metrics.attacker_rows import SYSTEM
from tuneleak.report import names, rows, style

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito
_MARKERS = "osDv^P"
_GREY = "#8A8A8A"
CONDITIONS = ("known", "partial", "class", "recovered", "none", "wrong")


def figures(metrics, out, clusters=()):
    """Write `<out>/{captions,certainty,people}.{pdf,png}` and `figures.meta.json`.

    metrics: table of `tuneleak evaluate attacker` (or the joined one); clusters: clusters.csv files behind it. Raises `InputError` for tables without it.
    """
    out, measured = Path(out), rows.read_metrics(metrics)
    measured = measured[measured.system == SYSTEM]
    if measured.empty:
        raise InputError(f"{metrics} holds no row of {SYSTEM}; run `tuneleak evaluate attacker` first")
    captions(measured, out)
    certainty(clusters, out)
    people(measured, out)
    inputs = {"metrics": str(metrics), "clusters": [str(path) for path in clusters]}
    files.write_meta(out / "figures", None, inputs=inputs)


def captions(measured, out):
    """Left: accuracy of captions read from weights against their length, a line per way to train, with the control. Right: AS under what is known."""
    read = measured[(measured.attack == ATTACK) & (measured.metric == "word accuracy")]
    told = read.guidance.str.extract(r"^words=(?P<words>\d+),training=(?P<training>.+)$")
    read = read.assign(words=told.words.astype(float), training=told.training).dropna(subset=["words"])
    known = measured[measured.attack.isin(CONDITIONS) & (measured.metric == "AS")]
    with style.figure(style.TEXT_WIDTH, 2.7) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        ways = list(read.groupby(["method", "training"], sort=True))
        step = 0.02 * np.ptp(read.words) if ways else 0.0  # lines of one height stay apart
        for number, (key, lines) in enumerate(ways):
            colour, aside = _COLOURS[number % len(_COLOURS)], step * (number - (len(ways) - 1) / 2)
            mine, other = (lines[lines.control == control].sort_values("words") for control in ("", CONTROL))
            label = f"{names.method_name(key[0])}, {key[1]}"
            _errorbar(left, mine.words + aside, mine, fmt=f"-{_MARKERS[number % len(_MARKERS)]}", color=colour, label=label)
            left.plot(other.words + aside, other.value, ":", color=colour, linewidth=0.9)
        left.set(xlabel="words of the caption", ylabel="words right, in their places", ylim=(-0.04, 1.04))
        if ways:
            left.set_xticks(sorted(set(read.words)))
            style.legend_above(left, 2)
        else:
            style.note(left, "no caption was read in this run")
        cells = list(dict.fromkeys(zip(known.world, known.method, strict=True)))
        shown = [name for name in CONDITIONS if name in set(known.attack)]
        for number, (world, method) in enumerate(cells):
            mine = known[(known.world == world) & (known.method == method)].set_index("attack").reindex(shown)
            places = np.arange(len(shown)) + 0.16 * (number - (len(cells) - 1) / 2)
            label = f"{names.world_name(world)}, {names.method_name(method)}"
            _errorbar(right, places, mine, fmt=_MARKERS[number % len(_MARKERS)], color=_COLOURS[number % len(_COLOURS)], label=label)
        right.set_xticks(range(len(shown)), shown, rotation=30)
        right.set_ylabel("AS of FineXtract")
        if cells:
            style.legend_above(right, 1)
        style.save(figure, out, "captions")


def certainty(clusters, out):
    """Left: precision against recall of the score on test concepts, beside ranking by size alone. Right: truth against certainty."""
    from tuneleak.metrics import attacker_certainty as study

    with style.figure(style.TEXT_WIDTH, 2.4) as figure:
        left, right = figure.subplots(1, 2)
        if clusters:
            table = study.read_clusters(clusters)
            tested = table.assign(certainty=study.certainties(table))
            tested = tested[tested.split == "test"]
            for name, column, colour in (("certainty", "certainty", _COLOURS[0]), ("size of the cluster", "share", _GREY)):
                recall, precision = study.precision_recall(tested.correct.to_numpy(), tested[column].to_numpy())
                left.step([0, *recall], [precision[0], *precision], where="post", color=colour, label=name)
            left.axhline(tested.correct.mean(), linestyle=":", color="black", linewidth=0.8, label="share of correct ones")
            left.legend(loc="best")
            bins = study.calibration(tested.correct.to_numpy(), tested.certainty.to_numpy())
            right.plot([0, 1], [0, 1], ":", color="black", linewidth=0.8)
            right.plot(bins.certainty, bins.correct, "-o", color=_COLOURS[0])
        else:
            style.note(left, "no clusters in this run")
        left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.04))
        right.set(xlabel="certainty of the attacker", ylabel="share of correct ones", xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
        style.save(figure, out, "certainty")


def people(measured, out):
    """AUC of people against the number of photographs they are judged by, a panel per kind of caption; dashed: the base's own loss."""
    chosen = measured[(measured.attack == "people") & (measured.metric == "AUC")]
    told = chosen.guidance.str.extract(r"^photographs=(?P<photographs>\d+),caption=(?P<kind>.+)$")
    chosen = chosen.assign(photographs=told.photographs.astype(float), kind=told.kind)
    kinds = sorted(set(chosen.kind))
    with style.figure(style.TEXT_WIDTH, 2.4) as figure:
        grid = figure.subplots(1, max(len(kinds), 1), squeeze=False, sharey=True)[0]
        if not kinds:
            style.note(grid[0], "no people were judged in this run")
        for axes, kind in zip(grid, kinds, strict=False):
            for number, (key, lines) in enumerate(chosen[chosen.kind == kind].groupby(["world", "method"], sort=True)):
                colour = _COLOURS[number % len(_COLOURS)]
                mine, base = (lines[lines.control == control].sort_values("photographs") for control in ("", "base"))
                _errorbar(axes, mine.photographs, mine, fmt="-o", color=colour, label=f"{names.world_name(key[0])}, {names.method_name(key[1])}")
                axes.plot(base.photographs, base.value, "--", color=colour, linewidth=0.9)
            axes.axhline(0.5, linestyle=":", color="black", linewidth=0.8)
            axes.set(title=f"caption {kind}", xlabel="photographs of the person", ylim=(0, 1.04))
        if kinds:
            grid[0].set_ylabel("AUC, person against strangers")
            grid[0].legend(loc="lower right")
        style.save(figure, out, "people")


def _errorbar(axes, places, table, **look):
    whiskers = np.nan_to_num(np.clip([table.value - table.ci_low, table.ci_high - table.value], 0, None))
    axes.errorbar(np.asarray(places), table.value, whiskers, markersize=3, capsize=1.5, elinewidth=0.9, **look)
