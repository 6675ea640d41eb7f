"""The attacker's own certainty: a score, learned on tune concepts, that a cluster of generations is a training picture, judged on test concepts.

Clusters of tune concepts teach a logistic regression what correct extractions look like (their truth is known to whoever prepares the attack, on models of
their own making); on test concepts nothing but the traits is used. A cluster is correct if its medoid reaches the world's threshold tau.

- attack `certainty`, metrics `average precision`, `AUC`, `Brier score`, `calibration error` (mean gap between certainty and truth over bins of equal count)
  and `correct share`; `; control=<trait>`: clusters ranked by one trait alone (`share`: by size, as FineXtract does); `; control=chance`: in random order
- attack `certainty-minus-chance` and `certainty-minus-share`: paired differences of average precision

World and base `all`, no method: every cluster of the study together.
"""

import numpy as np
import pandas as pd
from scipy import optimize, special

from tuneleak.errors import InputError
from tuneleak.metrics import intervals, reading, roc
from tuneleak.metrics.attacker_rows import BLOCK, DIFFERENCE, SHARE, row

FEATURES = ("share", "tightness", "isolation", "agreement", "novelty")
BINS = 5
ORDERS = 100  # random ones behind the average precision of chance
_TEXT = [*BLOCK, "model_id", "concept", "seed", "split", "image_id"]
_PENALTY = 1.0  # on standardised features


def certainty(paths, options):
    """Rows of clusters.csv files (of tune and test concepts)."""
    table = read_clusters(paths)
    table = table.assign(certainty=certainties(table))
    tested = table[table.split == "test"]
    groups = [(dict(zip(BLOCK, key, strict=True)), group) for key, group in tested.groupby(BLOCK, sort=True)]
    if len(groups) > 1:
        every = {"world": "all", "base": "all", "method": "", "defence": ""}
        groups.append((every, tested.assign(concept=tested.world + "/" + tested.concept)))
    return [item for key, group in groups for item in _of_group(key | {"attack": "certainty", "setting": "clusters"}, group, options)]


def read_clusters(paths):
    """clusters.csv files as one table; `correct` as bool."""
    numbers = [*FEATURES, "similarity", "tau"]
    table = reading.joined(paths, "clusters.csv", "certainty", _TEXT, numbers, complete=numbers)
    return table.assign(correct=table.similarity >= table.tau)


def certainties(table):
    """Probability `(n,)` of each cluster to be correct, from a logistic regression fitted on the clusters of split `tune`.

    Where tune clusters are all correct or all false there is nothing to learn: then it is their (smoothed) share of correct ones for everybody.
    """
    known = (table.split == "tune").to_numpy()
    if not known.any() or known.all():
        raise InputError("certainty is learned on clusters of tune concepts and judged on test concepts; give clusters of both")
    features, truth = table[list(FEATURES)].to_numpy(dtype=float), table.correct.to_numpy()
    centre, spread = features[known].mean(0), features[known].std(0)
    features = (features - centre) / np.where(spread > 0, spread, 1)
    if truth[known].all() or not truth[known].any():
        return np.full(len(table), (truth[known].sum() + 1) / (known.sum() + 2))
    weights = logistic_regression(features[known], truth[known])
    return special.expit(features @ weights[1:] + weights[0])


def logistic_regression(features, truth, penalty=_PENALTY):
    """Intercept and weights `(1 + d,)` that minimise the sum of log losses plus penalty / 2 times the squared weights (not the intercept).

    features: `(n, d)`, standardised; truth: bool `(n,)`.
    """
    with_one = np.column_stack([np.ones(len(features)), features])
    ridge = np.append(0.0, np.full(features.shape[1], penalty))

    def loss(weights):
        scores = with_one @ weights
        value = np.logaddexp(0, scores).sum() - scores[truth].sum() + (ridge * weights**2).sum() / 2
        return value, with_one.T @ (special.expit(scores) - truth) + ridge * weights

    return optimize.minimize(loss, np.zeros(with_one.shape[1]), jac=True, method="BFGS").x


def precision_recall(correct, scores, weights=None):
    """Recall and precision `(k,)` when everything from a score on is taken, the highest first; equal scores are taken together."""
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=float)
    order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    scores, weights = np.asarray(scores, dtype=float)[order], weights[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    hits, taken = np.cumsum(weights * np.asarray(correct, dtype=float)[order])[last], np.cumsum(weights)[last]
    return hits / max(hits[-1], 1e-300), hits / np.maximum(taken, 1e-300)


def average_precision(correct, scores, weights=None):
    """Sum over thresholds of precision times the gain in recall; NaN without a correct cluster."""
    recall, precision = precision_recall(correct, scores, weights)
    return float((np.diff(recall, prepend=0.0) * precision).sum()) if recall[-1] > 0 else float("nan")


def chance_precision(correct, weights=None, orders=ORDERS):
    """Average precision of a score that knows nothing: the mean over random orders. With few clusters it is well above the share of correct ones, towards
    which it falls with their number: of one correct in two it is 3/4."""
    correct = np.asarray(correct, dtype=float)
    weights = np.ones(len(correct)) if weights is None else np.asarray(weights, dtype=float)
    random = np.random.default_rng(0)
    turn = random.permuted(np.tile(np.arange(len(correct)), (orders, 1)), axis=1)
    hits = (weights * correct)[turn]
    precision = np.cumsum(hits, 1) / np.maximum(np.cumsum(weights[turn], 1), 1e-300)
    return float((precision * hits).sum(1).mean() / hits[0].sum()) if hits[0].sum() else float("nan")


def calibration(correct, scores, weights=None, bins=BINS):
    """Table of bins of equal count, by certainty: `certainty` and `correct` (means), `n` (total weight)."""
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=float)
    order = np.argsort(scores, kind="stable")
    place = np.cumsum(weights[order]) - weights[order] / 2
    cell = np.minimum((place / weights.sum() * bins).astype(int), bins - 1)
    total = np.bincount(cell, weights[order], bins)
    means = [np.bincount(cell, weights[order] * np.asarray(values, dtype=float)[order], bins) / np.maximum(total, 1e-12) for values in (scores, correct)]
    return pd.DataFrame({"certainty": means[0], "correct": means[1], "n": total})[total > 0]


def _of_group(key, group, options):
    correct, score = group.correct.to_numpy(), group.certainty.to_numpy()
    share = group["share"].to_numpy()

    def over(statistic, span=SHARE):
        settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed, "span": span}
        return intervals.bootstrap_statistic(statistic, group.concept, group.image_id, **settings)

    def gap(weights):
        bins = calibration(correct, score, weights)
        return float(np.average((bins.certainty - bins.correct).abs(), weights=bins.n))

    right = intervals.within(over(lambda weights: np.average(correct, weights=weights)), correct.astype(float), options.confidence)
    rows = [row(key, "correct share", right, group)]
    rows.append(row(key, "Brier score", over(lambda weights: np.average(np.square(score - correct), weights=weights)), group))
    rows.append(row(key, "calibration error", over(gap), group))
    if correct.all() or not correct.any():
        return rows  # nothing to rank
    ranked = {"": score} | {f"; control={name}": group[name].to_numpy() for name in FEATURES}

    def precision(values, weights):
        value = average_precision(correct, values, weights)
        return value if np.isfinite(value) else 1.0 * correct.mean()  # a replicate without a correct cluster

    def chance(weights):
        value = chance_precision(correct, weights)
        return value if np.isfinite(value) else 1.0 * correct.mean()

    for qualifier, values in ranked.items():
        rows.append(row(key, "average precision", over(lambda weights, values=values: precision(values, weights)), group, qualifier))
        rows.append(row(key, "AUC", over(lambda weights, values=values: _auc(correct, values, weights)), group, qualifier))
    rows.append(row(key, "average precision", over(chance), group, "; control=chance"))
    for other, of_other in (("chance", chance), ("share", lambda weights: precision(share, weights))):
        difference = over(lambda weights, of_other=of_other: precision(score, weights) - of_other(weights), DIFFERENCE)
        rows.append(row(key | {"attack": f"certainty-minus-{other}"}, "average precision", difference, group))
    return rows


def _auc(correct, scores, weights):
    repeated = np.repeat(np.arange(len(scores)), weights)
    correct, scores = correct[repeated], scores[repeated]
    return roc.auc(scores[correct], scores[~correct]) if 0 < correct.sum() < len(correct) else 0.5
