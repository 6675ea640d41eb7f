"""Two questions of the Shake-to-Leak study that need more than one model at a time: the best of several random draws, and methods at equal loss.

Best of seeds. The maximum over random perturbations is what selection noise looks like, so three numbers stand beside the mean (`amplification`):

- amplification highest of seeds: of the seed with the highest mean over domains, on the very pictures that chose it (biased upwards)
- amplification held-out best: the seed is chosen on one half of each domain's pictures and judged on the other; mean of both ways round
- amplification sd over seeds: deviation of the mean over domains from seed to seed, with its interval (normal)

Matched loss. Methods differ in how far they go in as many steps, so trajectories, which begin with the base, are compared at equal denoising loss of the
self-made set, down to the lowest that every method reaches (the highest of their lowest). Between two kept models the amplification is linear in the loss.

- amplification at matched loss: at that lowest loss
- amplification over matched losses: mean over all losses between the base's and that one, which no choice of a learning rate or of a moment decides
- both also of `a-minus-b`, every two methods, paired by picture; of `dreambooth+lora-minus-best-other`, the other that is highest on these very domains (of
  those on as many), which biases the difference against the first: one below zero refutes nothing (see `tuneleak.metrics.shake_to_leak`)
- set loss: the loss itself, of each kept model
"""

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from tuneleak.metrics import roc

ROUNDING = 1e-9
LEVELS = 200  # losses that a mean over a trajectory is taken at
BASE = ("", "")  # in place of (method, world)


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


def matched(key, trajectories, losses, best, made):
    """Rows at and over the losses that all methods reach, of methods and of every two of them. trajectories: (method, `steps=<n>`) -> cells; losses: of
    `shake_scores.read_losses`; best: the method that is held against the best of the others."""
    methods = sorted({method for method, _ in trajectories})
    cells = {(method, world, cell.base, cell.domain): cell for (method, world), found in trajectories.items() for cell in found}
    mine = losses[losses.base.isin({base for _, _, base, _ in cells})]
    mean = mine.groupby(["method", "world"]).loss.mean()
    curves = {method: _curve(mean, method) for method in methods}
    level = max((min(loss for _, loss in curve) for curve in curves.values()), default=0.0)
    rows = []
    for metric, levels in (("amplification at matched loss", 1), ("amplification over matched losses", LEVELS)):
        shares = {method: _shares(method, curve, level, levels) for method, curve in curves.items()}
        alone = {method: _matched_row(key, metric, method, share | {BASE: share.get(BASE, 0.0) - 1}, cells, made) for method, share in shares.items()}
        alone = {method: row for method, row in alone.items() if row}  # none where the level is that of the base itself
        pairs = {f"{a}-minus-{b}": (a, b) for a, b in itertools.combinations(sorted(methods, reverse=True), 2)}
        others = [method for method in alone if method != best and best in alone and alone[method]["n"] == alone[best]["n"]]  # not those on fewer domains
        if others:
            pairs[f"{best}-minus-best-other"] = best, max(others, key=lambda method: alone[method]["value"])
        compared = [_matched_row(key, metric, name, _less(shares[a], shares[b]), cells, made) for name, (a, b) in pairs.items()]
        rows += [*alone.values(), *filter(None, compared)]
    return rows


def _shares(method, curve, level, count):
    """{(method, world): weight} of a trajectory's mean over `count` losses, evenly between the base's and `level`; 1: at `level`."""
    start, found = curve[0][1], {}
    for part in range(count):
        aim = level if count == 1 else level + (start - level) * (part + 0.5) / count
        for world, weight in blend(curve, aim).items():
            model = (method, world) if world else BASE
            found[model] = found.get(model, 0.0) + weight / count
    return found


def _less(first, second):
    return {model: first.get(model, 0.0) - second.get(model, 0.0) for model in first | second}


def _matched_row(key, metric, method, share, cells, made):
    """A row of the sum of AUCs weighed by `share` {(method, world): weight}, on the domains and bases that have all of these models; None if no model has a
    weight."""
    share = {model: weight for model, weight in share.items() if abs(weight) > ROUNDING}
    models = [model for model in share if model != BASE]
    known = [cells[at] for at in cells if models and at[:2] == models[0] and all((*model, *at[2:]) in cells for model in models)]
    if not known:
        return None

    def statistic(cell):
        scores = [cell.before if model == BASE else cells[*model, cell.base, cell.domain].tuned for model in share]
        value, covariance = roc.auc_covariance(cell.labels, scores)
        weights = np.array([*share.values()])
        return weights @ value, weights @ covariance @ weights

    return made.of(key | {"method": method, "defence": "steps=matched"}, metric, known, statistic)


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
