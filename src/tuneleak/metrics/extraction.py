"""What an extracted set gives away: average similarity, extraction success rate, leaked bits, and the threshold of a match."""

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from tuneleak.errors import InputError
from tuneleak.metrics.intervals import mean_of_concepts


@dataclass(frozen=True)
class Threshold:
    """A similarity threshold, the rate of false matches reached at it, and how many training pictures, held-outs (of the concept with
    fewest) and concepts it rests on."""

    tau: float
    achieved_rate: float
    n_training: int
    n_heldout: int
    n_concepts: int


def average_similarity(similarities, concepts=None):
    """AS(X0, X') = mean over training pictures of max_j s(x_i, x'_j) (dossier section 3); `similarities` `(n,)` are those maxima.

    With `concepts` `(n,)` the mean is taken within each concept first, then over concepts.
    """
    return mean_of_concepts(similarities, np.zeros(len(similarities)) if concepts is None else concepts)


def a_esr(similarities, tau, concepts=None):
    """A-ESR_tau(X0, X') = share of training pictures with max_j s(x_i, x'_j) >= tau, averaged as in `average_similarity`."""
    return average_similarity((np.asarray(similarities, dtype=float) >= tau).astype(float), concepts)


def mutual_information(first, second, weights=None):
    """Mutual information in bits of two discrete columns `(n,)`: plug-in estimate with the Miller-Madow correction of each entropy.

    I = H(X) + H(Y) - H(X, Y), each entropy raised by (occupied cells - 1) / 2n nats (Miller 1955). May be slightly negative.
    With four labels it is nearly unbiased from about 100 rows; at 60 rows up to .07 bits of upward bias remain for a noisy channel.
    weights: how often each row counts, whole numbers `(n,)`.
    """
    x, y = _codes(first), _codes(second)
    if not len(x) or len(x) != len(y):
        raise InputError(f"a mutual information needs two columns of one length, not {len(x)} and {len(y)}")
    shape = x.max() + 1, y.max() + 1
    joint = np.bincount(x * shape[1] + y, weights, shape[0] * shape[1]).reshape(shape)
    return _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint.ravel())


def leaked_bits(true, extracted, heldout, weights=None):
    """Bits about the training pictures' factors in the extracted matches beyond what other pictures of the concept give (paired control).

    Sum over factors of I(true; read on the extracted match) - I(true; read on the nearest of size-matched held-outs). Each argument maps a factor's name
    to its labels `(n,)`, one row per training picture and model. Rows of several seeds of one picture are not independent, which the
    correction ignores in both terms alike; the interval must cluster.
    """
    if not true or set(true) != set(extracted) or set(true) != set(heldout):
        raise InputError(f"leaked bits need the same factors three times, not {sorted(true)}, {sorted(extracted)} and {sorted(heldout)}")
    return float(sum(mutual_information(true[name], extracted[name], weights) - mutual_information(true[name], heldout[name], weights) for name in true))


def calibrate_tau(similarities, n_images, false_match_rate=0.01):
    """`Threshold`: the smallest tau at which N0 = `n_images` held-outs of a concept falsely match a training picture of it at no more than the rate.

    similarities: one array `(training pictures, held-outs)` per tune concept, of the score embedder. A false match is max over the set >= tau. The rate is the
    mean over concepts, their training pictures and *all* sets of N0 held-outs: of h held-outs of which a reach tau, a share
    1 - C(h - a, N0) / C(h, N0) of the sets matches, so nothing is drawn at random. A concept with fewer than N0 held-outs uses them all.
    """
    similarities = [np.asarray(block, dtype=float) for block in similarities]
    if not similarities or n_images < 1 or any(block.ndim != 2 or 0 in block.shape or not np.isfinite(block).all() for block in similarities):
        raise InputError("the match threshold needs, for each tune concept, finite similarities of training pictures to held-out pictures of the same concept")
    blocks = [np.sort(block, axis=1) for block in similarities]
    levels = np.unique(np.concatenate([block.ravel() for block in blocks]))
    low, high = 0, len(levels)  # the rate falls with tau: first level at which it is low enough, or just above the last
    while low < high:
        middle = (low + high) // 2
        if _false_matches(blocks, levels[middle], n_images) <= false_match_rate:
            high = middle
        else:
            low = middle + 1
    tau = levels[0] if low == 0 else np.nextafter(levels[low - 1], np.inf)
    counts = sum(len(block) for block in blocks), min(block.shape[1] for block in blocks), len(blocks)
    return Threshold(float(tau), _false_matches(blocks, tau, n_images), *counts)


def _false_matches(blocks, tau, n_images):
    return float(np.mean([np.mean(_chance(block.shape[1], (block >= tau).sum(1), n_images)) for block in blocks]))


def _chance(total, reaching, drawn):
    """P(at least one of `drawn` out of `total` without replacement is among the `reaching`)."""
    drawn = min(drawn, total)
    others = total - np.asarray(reaching)
    possible = others >= drawn
    others = np.where(possible, others, drawn)
    missed = np.exp(_log_choose(others, drawn) - _log_choose(total, drawn))
    return np.where(np.asarray(reaching) == 0, 0.0, 1 - np.where(possible, missed, 0.0))


def _log_choose(total, drawn):
    return gammaln(total + 1) - gammaln(drawn + 1) - gammaln(total - drawn + 1)


def _codes(labels):
    labels = np.asarray(labels)
    if labels.dtype.kind == "i" and len(labels) and labels.min() >= 0 and labels.max() < 256:
        return labels  # small whole numbers already: a bootstrap calls this thousands of times
    return np.unique(labels, return_inverse=True)[1]


def _entropy(counts):
    counts = counts[counts > 0]
    total = counts.sum()
    share = counts / total
    return float(-(share * np.log2(share)).sum() + (len(counts) - 1) / (2 * total * np.log(2)))
