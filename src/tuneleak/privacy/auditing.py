"""Lower bounds on epsilon from attacks: what a run leaks for certain, beside what its accountant claims.

One run (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846): m canaries, each put in by a fair coin; after training the k+ highest scores are guessed
`in`, the k- lowest `out`. Many runs: false positive and false negative rates of a fixed test over independent runs with and without a canary, bounded
by Clopper & Pearson. Scores must be higher for members. k+, k- and thresholds are fixed beforehand, or the confidence is split over what was tried
(Bonferroni).
"""

import math

import numpy as np
from scipy import stats

from tuneleak.errors import InputError

LARGEST = 50.0  # epsilon at which the search for a bound ends
CEILING = "ceiling of "  # before the name of a bound: what it would be were every guess right


def p_value(m, guesses, correct, epsilon, delta):
    """Largest probability with which an (epsilon, delta)-DP algorithm lets `correct` of `guesses` guesses on m canaries be right (theorem 5.2 of the paper).

    beta = P[Bin(r, p) >= v] with p = e^epsilon / (1 + e^epsilon), and the failure of delta: 2 m delta max_i P[v > Bin(r, p) >= v - i] / i.
    """
    _check(m, guesses, correct)
    q = 1 / (1 + math.exp(-epsilon))
    beta = stats.binom.sf(correct - 1, guesses, q)
    alpha, below = 0.0, 0.0
    if correct and delta:
        masses = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, q)
        below = np.cumsum(masses)
        alpha = float((below / np.arange(1, correct + 1)).max())
    return float(min(1.0, beta + 2 * m * delta * alpha))


def epsilon_one_run(m, guesses, correct, delta, confidence=0.95):
    """The largest epsilon refuted by one run: p-value below 1 - confidence; 0 if none is."""
    return _largest(lambda epsilon: p_value(m, guesses, correct, epsilon, delta) < 1 - confidence)


def guess(scores, members, k_plus, k_minus):
    """(guesses, correct): the k+ highest scores are guessed members, the k- lowest non-members; scores and members (bool) `(m,)`."""
    scores, members = np.asarray(scores, dtype=float), np.asarray(members, dtype=bool)
    if len(scores) != len(members) or k_plus < 0 or k_minus < 0 or not 0 < k_plus + k_minus <= len(scores) or not np.isfinite(scores).all():
        raise InputError(f"a one-run audit of {len(scores)} finite scores cannot guess {k_plus} in and {k_minus} out of {len(members)} canaries")
    order = np.argsort(-scores, kind="stable")
    hits = int(members[order[:k_plus]].sum()) + int((~members[order[len(order) - k_minus :]]).sum())
    return k_plus + k_minus, hits


def epsilon_many_runs(true_positives, n_in, false_positives, n_out, delta, confidence=0.95, tests=1):
    """Lower bound of epsilon from one threshold: of `n_in` runs with the canary `true_positives` reach it, of `n_out` without `false_positives` do.

    max(ln((1 - delta - FPR) / FNR), ln((1 - delta - FNR) / FPR), 0) at the upper ends of Clopper-Pearson intervals of both rates, which hold together
    with `confidence`, over `tests` runs or thresholds (Bonferroni).
    """
    if min(n_in, n_out) < 1 or not 0 <= true_positives <= n_in or not 0 <= false_positives <= n_out or tests < 1:
        raise InputError("a bound from many runs needs counts between 0 and the number of runs, and at least one run on either side")
    tail = (1 - confidence) / (2 * tests)
    fnr = upper_rate(n_in - true_positives, n_in, tail)
    fpr = upper_rate(false_positives, n_out, tail)
    bounds = [math.log((1 - delta - fpr) / fnr) if 1 - delta > fpr else 0.0, math.log((1 - delta - fnr) / fpr) if 1 - delta > fnr else 0.0]
    return max(0.0, *bounds)


def epsilon_gaussian(true_positives, n_in, false_positives, n_out, delta, confidence=0.95):
    """The same under the assumption that the mechanism is mu-Gaussian DP, which is tighter for DP-SGD of many steps and false if it is not."""
    tail = (1 - confidence) / 2
    fnr, fpr = upper_rate(n_in - true_positives, n_in, tail), upper_rate(false_positives, n_out, tail)
    mu = stats.norm.ppf(1 - fpr) - stats.norm.ppf(fnr)
    if not mu > 0:
        return 0.0

    def delta_of(epsilon):
        return stats.norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * stats.norm.cdf(-epsilon / mu - mu / 2)

    return _largest(lambda epsilon: delta_of(epsilon) > delta)


def upper_rate(events, trials, tail):
    """One-sided Clopper-Pearson upper end of a rate."""
    return 1.0 if events == trials else float(stats.beta.ppf(1 - tail, events + 1, trials - events))


def _largest(refuted):
    """Largest epsilon in [0, LARGEST] up to which `refuted` holds (it is monotone), by bisection; 0 if nowhere."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, LARGEST
    if refuted(high):
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _check(m, guesses, correct):
    if not 0 <= correct <= guesses <= m or m < 1:
        raise InputError(f"an audit has correct <= guesses <= canaries, not {correct}, {guesses}, {m}")
