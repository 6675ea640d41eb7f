"""The figures of the weights study: reconstructions, attacks beside controls, transforms against utility, and the scaling curve."""

import re
from pathlib import Path

import numpy as np

from tuneleak import files
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.metrics.lora_weights import SYSTEM, read_scores
from tuneleak.report import names, rows, style

_SHOWN = ("spectral", "autoencoder", "constant", "searched-prompt", "unconditional", "true-prompt")
_PEOPLE = 8
_OURS, _PAPERS = style.colour("finextract"), style.colour("cfg")


def figures(metrics, scores, images, out):
    """Write `<out>/weights-{reconstructions,attacks,defences,scaling}.{pdf,png}` and `figures.meta.json`.

    metrics: metrics table; scores: scores.csv on untouched weights, beside reconstructions/; images: ImageSet with the victims' pictures;
    without (None) the reconstructions are not drawn.
    """
    out, table = Path(out), rows.read_metrics(metrics)
    table = table[(table.system == SYSTEM)]
    if table.empty:
        raise InputError(f"{metrics} has no row of the system {SYSTEM!r}; run `tuneleak evaluate lora-weights` first")
    if images:
        reconstructions(read_scores([scores]), ImageSet.load(Path(scores).parent / "reconstructions"), ImageSet.load(images), out)
    attacks(table[table.defence == ""], out)
    defences(table, out)
    scaling(table[table.defence == ""], out)
    files.write_meta(out / "figures", None, inputs={"metrics": str(metrics), "scores": str(scores), "images": str(images)})


def reconstructions(scores, drawn, images, out):
    """A column per victim: a private photograph above what each attack draws. The victims shown are spread evenly over the ranks ours reaches."""
    shown = [name for name in _SHOWN if name in set(drawn.table.attack)]
    of = scores[(scores.attack == shown[0]) & scores.setting.isin(["pictures", "pictures; bound=true-prompt"])].sort_values(["rank", "concept"])
    people = of.concept.iloc[np.unique(np.linspace(0, len(of) - 1, min(_PEOPLE, len(of))).round().astype(int))].tolist()
    with style.figure(style.TEXT_WIDTH, 0.75 * (len(shown) + 1)) as figure:
        grid = figure.subplots(len(shown) + 1, len(people), squeeze=False)
        for column, person in enumerate(people):
            _show(grid[0, column], images.where(concept=person).pixels()[0])
            for line, attack in enumerate(shown, start=1):
                mine = drawn.where(concept=person, attack=attack)
                kept = mine.table[mine.table.setting.str.startswith("pictures")]
                _show(grid[line, column], ImageSet(mine.folder, kept.head(1)).pixels()[0])
                row = scores[(scores.attack == attack) & scores.setting.str.fullmatch(r"pictures(; bound=.*)?") & (scores.concept == person)]
                grid[line, column].set_title(f"rank {row['rank'].iloc[0]:g}", fontsize=6, pad=1.5)
        for line, name in enumerate(["private", *shown]):
            label = name if not line else names.attack_name(name).replace(" (", "\n(")
            grid[line, 0].text(-0.1, 0.5, label, ha="right", va="center", fontsize=7, transform=grid[line, 0].transAxes)
        style.save(figure, out, "weights-reconstructions")


def attacks(table, out):
    """MRR, rank-5, and cosine of every attack with its interval, controls below it in grey; what is neither ours nor the paper's in black."""
    table = table[~table.attack.str.contains("-minus-") & table.guidance.isin(["pictures", "embedding", "decoded"]) & (table.control != "stranger")]
    order = {name: number for number, name in enumerate(names.attacks_in_order(table.attack))}
    lines = sorted(set(zip(table.attack, table.guidance, table.control, strict=True)), key=lambda key: (key[1] != "embedding", order[key[0]], key[2]))
    metrics = ("MRR", "rank-5", "cosine")
    with style.figure(style.TEXT_WIDTH, 0.9 + 0.145 * len(lines)) as figure:
        for axes, metric in zip(figure.subplots(1, len(metrics), sharey=True), metrics, strict=True):
            for number, (attack, guidance, control) in enumerate(lines):
                found = table[(table.attack == attack) & (table.guidance == guidance) & (table.control == control) & (table.metric == metric)]
                if len(found):
                    row = found.iloc[0]
                    looks = {"color": "#8A8A8A" if control else _look(attack), "fmt": "o", "markersize": 2.5 if control else 4, "elinewidth": 0.9, "capsize": 0}
                    whiskers = np.clip([[row.value - row.ci_low], [row.ci_high - row.value]], 0, None)
                    axes.errorbar(row.value, -number, xerr=whiskers, **looks)
            axes.set_xlabel(metric)
            axes.axvline(0, color="black", linewidth=0.6)
        figure.axes[0].set_yticks([-number for number in range(len(lines))], [_line_name(*line) for line in lines], fontsize=6)
        style.save(figure, out, "weights-attacks")


def defences(table, out):
    """Privacy against utility: cosine that each attack reaches on changed weights against that under the true prompt; both attacks at each transform."""
    table = table[(table.metric == "cosine") & (table.control == "") & ~table.defence.str.contains("-minus-") & (table.guidance == "pictures")]
    useful = table[table.attack == "true-prompt"].set_index("defence")
    with style.figure(style.TEXT_WIDTH, 2.6) as figure:
        plane, bars = figure.subplots(1, 2, width_ratios=(1, 1.3))
        transforms = sorted(set(useful.index), key=lambda name: (name != "", name))
        for attack in ("spectral", "spectral-adaptive", "autoencoder", "autoencoder-adaptive"):
            mine = table[table.attack == attack].set_index("defence")
            shared = [name for name in transforms if name in mine.index]
            if not shared:
                continue
            look = {"color": _look(attack), "fillstyle": "none" if attack.endswith("adaptive") else "full"}
            marker = "s" if attack.startswith("autoencoder") else "o"
            plane.plot(useful.value[shared], mine.value[shared], marker, label=_short(attack), linestyle="none", **look)
            shift = {"spectral": -0.24, "spectral-adaptive": -0.08, "autoencoder": 0.08, "autoencoder-adaptive": 0.24}[attack]
            values = mine.loc[shared]
            whiskers = np.clip([values.value - values.ci_low, values.ci_high - values.value], 0, None)
            bars.errorbar([transforms.index(name) + shift for name in shared], values.value, yerr=whiskers, fmt=marker, elinewidth=0.9, **look)
        plane.set_xlabel("utility: cosine under the true prompt")
        plane.set_ylabel("cosine reached by the attack")
        bars.set_xticks(range(len(transforms)), [name or "none" for name in transforms], rotation=45, ha="right")
        plane.legend(fontsize=6)
        style.save(figure, out, "weights-defences")


def scaling(table, out):
    """MRR of encoders named <attack>-<people> against the number of people whose models trained them."""
    table = table[(table.metric == "MRR") & (table.control == "") & table.guidance.isin(["embedding", "pictures"])]
    points = [(match[1], int(match[2]), row) for row in table.itertuples() if (match := re.fullmatch(r"([a-z]+)-(\d+)", row.attack))]
    with style.figure(style.COLUMN_WIDTH, 2.3) as figure:
        axes = figure.subplots()
        if not points:
            style.note(axes, "no encoders of fewer people in this run")
        for attack in sorted({name for name, _, _ in points}):
            for guidance, dashes in (("embedding", "-"), ("pictures", ":")):
                curve = sorted((people, row.value, row.ci_low, row.ci_high) for name, people, row in points if name == attack and row.guidance == guidance)
                if curve:
                    people, value, low, high = zip(*curve, strict=True)
                    axes.fill_between(people, low, high, color=_look(attack), alpha=0.12, linewidth=0)
                    axes.plot(people, value, "o", linestyle=dashes, color=_look(attack), label=f"{_short(attack)}, {guidance}")
        if points:
            axes.set_xscale("log")
            axes.set_xlabel("people whose models the attacker trained")
            axes.set_ylabel("MRR")
            axes.legend(fontsize=6)
        style.save(figure, out, "weights-scaling")


def _show(axes, pixels):
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()


def _look(attack):
    return _OURS if attack.startswith("spectral") else _PAPERS if attack.startswith("autoencoder") else "black"


def _short(attack):
    base, adaptive, _ = attack.partition("-adaptive")
    return names.attack_name(base) + (", adaptive" if adaptive else "")


def _line_name(attack, guidance, control):
    if control:
        return names.control_name(control)
    return f"{names.attack_name(attack)}: {guidance}"
