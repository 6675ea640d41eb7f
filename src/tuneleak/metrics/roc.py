"""ROC numbers of scores that should be higher for members: AUC, true-positive rate at a low false-positive rate, clustered DeLong."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from tuneleak.errors import InputError

MINIMUM_NONMEMBERS = 500


@dataclass(frozen=True)
class AucInterval:
    """An AUC (or a difference of two) with standard error, normal interval and two-sided p-value against no effect (.5, or 0)."""

    value: float
    standard_error: float
    low: float
    high: float
    p: float


def auc(members, nonmembers):
    """P(a member scores higher than a non-member), ties counting half; scores `(m,)` and `(n,)`."""
    members, nonmembers = _scores(members), _scores(nonmembers)
    ranks = stats.rankdata(np.concatenate([members, nonmembers]))
    m, n = len(members), len(nonmembers)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def tpr_at_fpr(members, nonmembers, fpr=0.01, minimum_nonmembers=MINIMUM_NONMEMBERS):
    """Largest true-positive rate of a threshold (score >= threshold) whose false-positive rate is at most `fpr`.

    Raises `InputError` below `minimum_nonmembers` non-members: with few of them the rate at 1 % hangs on a handful of scores.
    """
    members, nonmembers = _scores(members), np.sort(_scores(nonmembers))[::-1]
    if len(nonmembers) < minimum_nonmembers:
        raise InputError(f"the true-positive rate at a false-positive rate of {fpr} needs at least {minimum_nonmembers} non-members, not {len(nonmembers)}")
    allowed = int(np.floor(fpr * len(nonmembers) + 1e-9))
    if allowed >= len(nonmembers):
        return 1.0
    return float(np.mean(members > nonmembers[allowed]))  # just above the first non-member that must stay out


def delong(labels, scores, clusters=None, confidence=0.95):
    """`AucInterval` of the AUC by DeLong et al. 1988, or for clustered rows by Obuchowski 1997 (Biometrics 53:567).

    labels: bool `(n,)`, True for members. clusters: `(n,)` labels of what is independent (None: every row).
    """
    value, covariance = auc_covariance(labels, [scores], clusters)
    return _interval(value[0], covariance[0, 0], 0.5, confidence, (0.0, 1.0))


def delong_difference(labels, first, second, clusters=None, confidence=0.95):
    """`AucInterval` of AUC(first) - AUC(second) for two scores of the same rows (paired), clustered as in `delong`."""
    value, covariance = auc_covariance(labels, [first, second], clusters)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return _interval(value[0] - value[1], variance, 0.0, confidence, (-1.0, 1.0))


def auc_covariance(labels, scores, clusters=None):
    """AUCs `(k,)` and their covariance `(k, k)` for `k` scores of the same rows (Obuchowski 1997, sums of components per cluster)."""
    labels = np.asarray(labels, dtype=bool)
    scores = np.stack([_scores(row) for row in scores])
    if scores.shape[1] != len(labels):
        raise InputError(f"{scores.shape[1]} scores but {len(labels)} labels")
    m, n = int(labels.sum()), int((~labels).sum())
    clusters = np.arange(len(labels)) if clusters is None else np.unique(np.asarray(clusters).astype(str), return_inverse=True)[1]
    values = np.array([auc(row[labels], row[~labels]) for row in scores])
    components = np.stack([_components(row, labels, m, n) for row in scores]) - values[:, None]
    total = clusters.max() + 1
    with_members, with_nonmembers = len(np.unique(clusters[labels])), len(np.unique(clusters[~labels]))
    if min(with_members, with_nonmembers) < 2:
        raise InputError("the variance of an AUC needs members in at least two clusters, and non-members too")
    positive = np.stack([np.bincount(clusters, row * labels, total) for row in components])
    negative = np.stack([np.bincount(clusters, row * ~labels, total) for row in components])
    crossed = positive @ negative.T * total / (total - 1) / (m * n)
    covariance = positive @ positive.T * with_members / (with_members - 1) / m**2 + negative @ negative.T * with_nonmembers / (with_nonmembers - 1) / n**2
    return values, covariance + crossed + crossed.T


def _components(scores, labels, m, n):
    """For a member the share of non-members below it, for a non-member the share of members above it (ties half), by ranks."""
    together = stats.rankdata(scores)
    result = np.empty(len(scores))
    result[labels] = (together[labels] - stats.rankdata(scores[labels])) / n
    result[~labels] = 1 - (together[~labels] - stats.rankdata(scores[~labels])) / m
    return result


def _interval(value, variance, null, confidence, bounds):
    error = float(np.sqrt(max(variance, 0.0)))
    half = stats.norm.ppf(0.5 + confidence / 2) * error
    p = 2 * stats.norm.sf(abs(value - null) / error) if error else float(value == null)
    return AucInterval(float(value), error, float(max(value - half, bounds[0])), float(min(value + half, bounds[1])), float(p))


def _scores(values):
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError("scores must be one-dimensional, finite and not empty")
    return values
