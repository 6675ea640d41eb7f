"""The figures of the Shake-to-Leak study: amplification, ROC curves, dose here; studies and regeneration in modules of their own."""

from pathlib import Path

import numpy as np

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics.cell_rows import standardised
from tuneleak.metrics.shake_scores import read_scores
from tuneleak.metrics.shake_to_leak import SELF, SYSTEM
from tuneleak.report import figures_regeneration, figures_shake_studies, names, rows, style

_BASES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe & Ito: one colour per base, twins beside each other
_CONTROL = "#8A8A8A"


def figures(metrics, scores, out, pairs=(), images=()):
    """Write `<out>/shake_{amplification,roc,dose}.{pdf,png}` and `figures.meta.json`; `shake_studies` if the table has studies; with regenerations
    also `shake_regeneration`, and with `pairs` their pictures, `shake_pairs`.

    metrics: table of `tuneleak evaluate shake-to-leak` (or the joined one); scores: the scores.csv files behind it; pairs: image sets of `attack
    regeneration`; images: the image sets with members. Raises `InputError` for tables without the study.
    """
    out = Path(out)
    measured = rows.read_metrics(metrics)
    measured = measured[measured.system == SYSTEM]
    if measured.empty:
        raise InputError(f"{metrics} holds no row of {SYSTEM}; run `tuneleak evaluate shake-to-leak` first")
    amplification(measured, out)
    if scores:
        roc_curves(read_scores(scores), out)
    dose(measured, out)
    if measured.defence.str.contains("=").any():
        figures_shake_studies.studies(measured, out)
    if pairs or measured.attack.str.startswith("regeneration-").any():
        figures_regeneration.numbers(measured, out)
    if pairs:
        figures_regeneration.pictures(pairs, images, out)
    files.write_meta(out / "figures", None, inputs={"metrics": str(metrics), "scores": [str(path) for path in scores]})


def _attacks(measured):
    plain = measured[(measured.metric == "amplification") & (measured.base == "all") & (measured.control == "")]
    return sorted(set(plain.attack))


def _bases(measured):
    """The single bases, then all of them together if there are several."""
    single = sorted(set(measured.base[measured.metric == "amplification"]) - {"all"})
    return single if len(single) == 1 else [*single, "all"]


def amplification(measured, out):
    """Tuned minus base AUC per method, a colour per base, black for all bases together; in grey the same recipe on control sets."""
    chosen = measured[(measured.metric == "amplification") & (measured.concept == "") & (measured.defence == "") & ~measured.method.str.contains("-minus-")]
    attacks, bases = _attacks(measured), _bases(measured)
    lines = [(method, "") for method in names.methods_in_order(chosen[chosen.control == ""].method)]
    lines += sorted(set(zip(chosen.method, chosen.control, strict=True)) - set(lines))
    with style.figure(style.TEXT_WIDTH, 0.9 + 0.27 * len(lines)) as figure:
        grid = figure.subplots(1, len(attacks), squeeze=False, sharey=True, sharex=True)[0]
        for axes, attack in zip(grid, attacks, strict=True):
            axes.axvline(0, color="black", linewidth=0.7)
            for number, base in enumerate(bases):
                mine = chosen[(chosen.attack == attack) & (chosen.base == base)].set_index(["method", "control"])
                for place, line in enumerate(lines):
                    if line not in mine.index:
                        continue
                    row = mine.loc[[line]].iloc[0]
                    colour = _CONTROL if line[1] else "black" if base == "all" else _BASES[number % len(_BASES)]
                    height = place + 0.22 * (number - (len(bases) - 1) / 2)
                    whiskers = np.clip([[row.value - row.ci_low], [row.ci_high - row.value]], 0, None)
                    axes.errorbar(row.value, height, xerr=whiskers, fmt="osDv^"[number % 5], color=colour, markersize=3, capsize=1.5, elinewidth=0.9)
            axes.set_title(names.attack_name(attack))
            axes.set_xlabel("amplification of AUC")
        told = [names.method_name(method) + (f"\non {control}" if control else "") for method, control in lines]
        grid[0].set_yticks(range(len(lines)), told)
        grid[0].invert_yaxis()
        handles = [
            grid[0].plot([], [], "osDv^"[number % 5], color="black" if base == "all" else _BASES[number % len(_BASES)], markersize=3)[0]
            for number, base in enumerate(bases)
        ]
        figure.legend(handles, ["all bases" if base == "all" else base for base in bases], loc="outside lower center", ncols=len(bases))
        style.save(figure, out, "shake_amplification")


def roc_curves(scores, out):
    """ROC curves on logarithmic axes, all domains and bases together, of scores standardised within domain; dotted: guessing."""
    scores = scores[(scores.caption == "true") & (scores.world.isin(["", SELF])) & (scores.model_id != "none")].copy()
    scores["method"] = scores.method.where(scores.model_id != "base", "base")
    keys = ["base", "attack", "method", "seed", "image_concept"]
    scores["standard"] = scores.groupby(keys).score.transform(lambda values: standardised(values.to_numpy()))
    attacks = sorted(set(scores.attack))
    with style.figure(style.TEXT_WIDTH, 2.2) as figure:
        grid = figure.subplots(1, len(attacks), squeeze=False, sharey=True)[0]
        for axes, attack in zip(grid, attacks, strict=True):
            mine = scores[scores.attack == attack]
            others = [name for name in names.methods_in_order(mine.method) if name != "base"]
            for number, method in enumerate(["base", *others]):
                block = mine[mine.method == method].sort_values("standard", ascending=False)
                member = (block.pretrained == "1").to_numpy()
                rates = [np.cumsum(hit) / max(hit.sum(), 1) for hit in (~member, member)]
                colour = "black" if method == "base" else _BASES[(number - 1) % len(_BASES)]
                axes.plot(*rates, color=colour, linewidth=1, label="base" if method == "base" else names.method_name(method))
            floor = 1 / max((mine.pretrained == "0").groupby([mine.method, mine.base]).sum().max(), 10)
            axes.plot([floor, 1], [floor, 1], ":", color="#888888", linewidth=0.8)
            axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1), title=names.attack_name(attack), xlabel="false-positive rate")
        grid[0].set_ylabel("true-positive rate")
        handles = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
        style.save(figure, out, "shake_roc")


def of_all_domains(rows):
    """Rows of methods that as many pictures were attacked with as with any, not of those that were tried on a few domains."""
    pictures = rows.groupby("method").n.transform("max")
    return rows[pictures == pictures.max()]


def dose(measured, out):
    """AUC of the base, and amplification by each method of the main study, of members that the base saw once or more often."""
    known = of_all_domains(measured[measured.metric.str.contains(" at dose ") & (measured.base == "all")])
    known = known.assign(dose=known.metric.str.split(" ").str[-1].astype(float), what=known.metric.str.split(" at dose").str[0])
    attacks = sorted(set(known.attack))
    with style.figure(style.TEXT_WIDTH, 3.2) as figure:
        grid = figure.subplots(2, max(len(attacks), 1), squeeze=False, sharex=True, sharey="row")
        if not attacks:
            style.note(grid[0, 0], "the pictures of this run carry no dose")
            grid[1, 0].set_axis_off()
        for column, attack in enumerate(attacks):
            for axes, what in ((grid[0, column], "AUC"), (grid[1, column], "amplification")):
                block = known[(known.attack == attack) & (known.what == what)]
                for number, method in enumerate(names.methods_in_order(block.method)):
                    line = block[block.method == method].sort_values("dose")
                    colour = "black" if method == "base" else _BASES[number % len(_BASES)]
                    whiskers = np.clip([line.value - line.ci_low, line.ci_high - line.value], 0, None)
                    axes.errorbar(
                        line.dose * 1.06**number, line.value, whiskers, fmt="-o", color=colour, markersize=3, capsize=1.5, label=names.method_name(method)
                    )
                axes.axhline(0.5 if what == "AUC" else 0, color="#888888", linewidth=0.8, linestyle=":")
                axes.set_xscale("log", base=2)
            grid[0, column].set_title(names.attack_name(attack))
            grid[1, column].set_xlabel("times seen (dose)")
        if attacks:
            grid[0, 0].set_ylabel("AUC of the base")
            grid[1, 0].set_ylabel("amplification")
            figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        style.save(figure, out, "shake_dose")
