"""Two questions of the Shake-to-Leak study that need more than one model at a time: the best of several random draws, and methods at equal loss.

Best of seeds. The maximum over random perturbations is what selection noise looks like, so three numbers stand beside the mean (`amplification`):

- amplification highest of seeds: of the seed with the highest mean over domains, on the very pictures that chose it (biased upwards)
- amplification held-out best: the seed is chosen on one half of each domain's pictures and judged on the other; mean of both ways round
- amplification sd over seeds: deviation of the mean over domains from seed to seed, with its interval (normal)

Matched loss. Methods differ in how far they go in as many steps. `amplification at matched loss` is the amplification where a method's trajectory reaches the
denoising loss (of the self-made set) that every method reaches: the highest of their lowest losses. Between two kept models it is interpolated linearly in
the loss; a trajectory begins with the base. `set loss` is the loss itself, of each kept model.
"""

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from tuneleak.metrics import roc

ROUNDING = 1e-9


def seeds(key, cells, made):
    """Rows about the seeds of one perturbation; cells: `cell_rows.Cell` of several seeds, domains and bases."""
    numbers = sorted({cell.seed for cell in cells})
    if len(numbers) < 2:
        return []
    halves = [half(cell, side) for side in (0, 1) for cell in cells]
    sides = [halves[: len(cells)], halves[len(cells) :]]
    whole = _means(cells)
    best = _best(whole)
    rows = [made.of(key, "amplification highest of seeds", [cell for cell in cells if cell.seed == best[cell.base]], gain)]
    chosen = [_best(_means(side)) for side in sides]
    judged = [cell for side, other in ((0, 1), (1, 0)) for cell in sides[other] if cell.seed == chosen[side][cell.base]]
    rows.append(made.of(key, "amplification held-out best", [replace(cell, seed="") for cell in judged], gain))
    spread = float(whole.value.groupby(level="base").std(ddof=1).mean())
    free = len(numbers) - 1
    level = 0.5 + np.array([-1, 1]) * made.options.confidence / 2
    low, high = np.sqrt(free / stats.chi2.ppf(level[::-1], free)) * spread
    rows.append(made.row(key, "amplification sd over seeds", (spread, float(low), float(high)), len(numbers), seeds=numbers))
    return rows


def gain(cell):
    """(amplification, variance) of a cell, paired (DeLong et al. 1988)."""
    value, covariance = roc.auc_covariance(cell.labels, [cell.tuned, cell.before])
    return value[0] - value[1], covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


def half(cell, side):
    """One half of a cell's pictures, the same for every model: drawn for the domain, members and held-outs apart so that both halves have both."""
    rng = np.random.default_rng(zlib.crc32(f"{cell.domain}".encode()))
    taken = np.zeros(len(cell.labels), dtype=bool)
    for label in (True, False):
        places = rng.permutation(np.flatnonzero(cell.labels == label))
        taken[places[: len(places) // 2]] = True
    keep = taken if side == 0 else ~taken
    return replace(cell, labels=cell.labels[keep], tuned=cell.tuned[keep], before=cell.before[keep], dose=cell.dose[keep])


def _means(cells):
    """Mean amplification over domains, a column `value` indexed by base and seed."""
    found = pd.DataFrame([(cell.base, cell.seed, gain(cell)[0]) for cell in cells], columns=["base", "seed", "value"])
    return found.groupby(["base", "seed"]).mean()


def _best(means):
    """{base: seed with the highest mean}."""
    return {base: block.value.idxmax()[1] for base, block in means.groupby(level="base")}


def matched(key, trajectories, losses, made):
    """Rows at the loss that all methods reach. trajectories: (method, `steps=<n>`) -> cells; losses: of `shake_to_leak.read_losses`."""
    methods = sorted({method for method, _ in trajectories})
    if not methods:
        return []
    cells = {(method, world, cell.base, cell.domain): cell for (method, world), found in trajectories.items() for cell in found}
    bases = {name[2] for name in cells}
    mine = losses[losses.base.isin(bases)]
    mean = mine.groupby(["method", "world"]).loss.mean()
    curves = {method: _curve(mean, method) for method in methods}
    level = max(min(loss for _, loss in curve) for curve in curves.values())
    rows = []
    for method, curve in curves.items():
        weights = blend(curve, level)
        last = next(reversed(weights))
        known = [cell for (name, world, *_), cell in cells.items() if (name, world) == (method, last)]

        def statistic(cell, method=method, weights=weights):
            scores = [cells[method, world, cell.base, cell.domain].tuned if world else cell.before for world in weights]
            value, covariance = roc.auc_covariance(cell.labels, [*scores, cell.before])
            share = np.array([*weights.values(), -1.0])
            return share @ value, share @ covariance @ share

        if not known:  # the level is that of the base itself
            continue
        told = key | {"method": method, "defence": "steps=matched"}
        rows.append(made.of(told, "amplification at matched loss", known, statistic))
    return rows


def loss_rows(losses, label, made):
    """Rows `set loss` of each kept model: mean over domains (and bases), interval over domains (normal)."""
    rows = []
    for (method, world), block in losses.groupby(["method", "world"], sort=True):
        values = block.groupby("image_concept").loss.mean()
        half_width = (
            stats.t.ppf(0.5 + made.options.confidence / 2, max(len(values) - 1, 1)) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
        )
        key = {"base": label, "method": method or "base", "attack": "loss", "setting": "self-made set", "defence": world}
        rows.append(made.row(key, "set loss", (values.mean(), values.mean() - half_width, values.mean() + half_width), len(values)))
    return rows


def _curve(mean, method):
    """[(world, loss)] along a trajectory: the base (world "") first, then by steps."""
    own = [(world, loss) for (name, world), loss in mean.items() if name == method and world]
    return [("", mean["", ""]), *sorted(own, key=lambda item: int(item[0].rpartition("=")[2]))]


def blend(curve, level):
    """{world: weight} of the first stretch of a curve [(world, loss)] that falls through `level`, linear in the loss; of a single point where it is met."""
    for (before, high), (after, low) in itertools.pairwise(curve):
        if high >= level - ROUNDING and low <= level + ROUNDING:
            share = 1.0 if high - low < ROUNDING else min(max((high - level) / (high - low), 0.0), 1.0)
            return {world: weight for world, weight in ((before, 1 - share), (after, share)) if weight > ROUNDING}
    return {min(curve, key=lambda item: abs(item[1] - level))[0]: 1.0}
