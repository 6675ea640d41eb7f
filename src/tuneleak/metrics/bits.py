"""One unit for attacks that answer yes or no: leaked bits of a membership score, and what (epsilon, delta) allows any such attack at most.

The bit is whether the picture (or person) was in, by a fair coin; what is recovered is a decision by a threshold that was set on other concepts. The leaked
bits are the mutual information of the two, between 0 and 1 per candidate. A threshold set elsewhere can only lose information (data processing), so this is a
lower bound of what the score itself tells, and no choice is made on the pictures that are counted. It stands beside the leaked bits of extraction (per
training picture, about its factors, beyond held-outs) and of weights (per person, about the factors of identity, beyond another person's reading): same unit,
other secrets, so a membership attack can never show more than 1 where an extraction can show several.
"""

import math

import numpy as np

from tuneleak.errors import InputError


def entropy(share):
    """H(p) of a coin in bits."""
    return 0.0 if share <= 0 or share >= 1 else float(-(share * math.log2(share) + (1 - share) * math.log2(1 - share)))


def decision_bits(tpr, fpr, members=None, nonmembers=None):
    """I(membership; decision) in bits for a decision with these rates, membership being a fair coin: H((tpr + fpr) / 2) - (H(tpr) + H(fpr)) / 2.

    members, nonmembers: numbers behind the rates; given, the first-order bias of the plug-in estimate is taken off (each entropy is low by
    var / (2 p (1 - p) ln 2) on average), after which it may be slightly negative.
    """
    middle = (tpr + fpr) / 2
    value = entropy(middle) - (entropy(tpr) + entropy(fpr)) / 2
    if members is None:
        return value
    spread = (tpr * (1 - tpr) / members + fpr * (1 - fpr) / nonmembers) / 4
    rise = spread / (middle * (1 - middle)) if 0 < middle < 1 else 0.0
    fall = sum(1 / count for rate, count in ((tpr, members), (fpr, nonmembers)) if 0 < rate < 1) / 2
    return value + (rise - fall) / (2 * math.log(2))


def weighted_bits(labels, decisions, weights):
    """`decision_bits` of rows `(n,)` that count `weights` times each."""
    labels, decisions, weights = np.asarray(labels, bool), np.asarray(decisions, bool), np.asarray(weights, float)
    m, n = weights[labels].sum(), weights[~labels].sum()
    if not m or not n:
        return 0.0
    return decision_bits(weights[labels & decisions].sum() / m, weights[~labels & decisions].sum() / n, m, n)


def best_threshold(labels, scores):
    """The threshold (score >= threshold is `in`) with the most information on these rows; ties: the highest."""
    labels, scores = np.asarray(labels, bool), np.asarray(scores, float)
    m, n = int(labels.sum()), int((~labels).sum())
    if not m or not n:
        raise InputError("a threshold is set on members and non-members; one of them is missing")
    best, value = np.inf, -1.0
    for candidate in np.unique(scores)[::-1]:
        chosen = scores >= candidate
        tpr, fpr = chosen[labels].mean(), chosen[~labels].mean()
        found = decision_bits(tpr, fpr) if tpr > fpr else 0.0  # scores are higher for members: no other direction counts
        if found > value:
            best, value = candidate, found
    return float(best)


def held_out_decisions(labels, scores, concepts):
    """Decisions `(n,)` bool, each concept's by the threshold that is best on the *other* concepts together; all False with a single concept.

    scores should be standardised within a model, or comparable across models otherwise.
    """
    labels, scores, concepts = np.asarray(labels, bool), np.asarray(scores, float), np.asarray(concepts).astype(str)
    decided = np.zeros(len(labels), bool)
    for concept in np.unique(concepts):
        mine = concepts == concept
        if not mine.all():
            decided[mine] = scores[mine] >= best_threshold(labels[~mine], scores[~mine])
    return decided


def largest_auc(epsilon, delta):
    """The largest AUC that an (epsilon, delta)-DP release allows an attacker on one record: 1 - (1 - delta)^2 / (1 + e^epsilon).

    Area under the highest ROC curve with TPR <= e^epsilon FPR + delta and, the other way round, 1 - FPR <= e^epsilon (1 - TPR) + delta (Kairouz et al. 2015):
    two lines that meet at FPR = (1 - delta) / (1 + e^epsilon). Over records that a coin lets in it holds for their common curve too.
    """
    return 1.0 - (1 - delta) ** 2 * _logistic(-epsilon)


def largest_bits(epsilon, delta):
    """The largest I(membership; anything computed from the release) in bits for one record under a fair coin: (1 - delta)(1 - H(e^epsilon / (1 +
    e^epsilon))) + delta.

    The extreme mechanism of (epsilon, delta) tells the record outright with probability delta, else runs randomised response (Kairouz et al. 2015).
    """
    return (1 - delta) * (1 - entropy(_logistic(epsilon))) + delta


def _logistic(value):
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
