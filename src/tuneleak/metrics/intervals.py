"""Intervals that respect who is independent of whom: bootstrap by concept, paired differences, Wilson, power.

The unit of inference is the concept. With at least `MINIMUM_CLUSTERS` concepts they are resampled with replacement, and within each one drawn its
model seeds (this counts seed noise twice, so it errs on the wide side). With fewer concepts their bootstrap is unreliable: then the
images of each concept are resampled, and the result says so in `unit`; it speaks of these concepts only. Few numbers, one per model, have Student's interval.
Intervals are percentile intervals, expanded for few units (Hesterberg 2015, "What teachers should know about the bootstrap"): of a mean of eight, plain ones
miss the truth in 11 % instead of 5 %, because they are too narrow by sqrt((n - 1) / n) and know no t. BCa's acceleration is ill-determined with so few.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from tuneleak.errors import InputError

MINIMUM_CLUSTERS = 8
ROUNDING = 1e-7  # a standard error of no more is none: tables have six decimals


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `n` rows, `units` of the kind `unit` (concepts, images or models) taken for independent, `p` two-sided against 0."""

    value: float
    low: float
    high: float
    n: int
    unit: str
    units: int
    standard_error: float
    p: float


def mean_of_concepts(values, concepts):
    """Mean over concepts of the mean over each concept's rows; values `(n,)`, concepts `(n,)`."""
    values, (_, concept) = _finite(values), _codes(concepts)
    return float(np.mean(np.bincount(concept, values) / np.bincount(concept)))


def bootstrap(values, concepts, seeds, images, replicates=2000, confidence=0.95, seed=0, unit=None):
    """Interval of `mean_of_concepts` over rows `(n,)` labelled by concept, model seed and image.

    unit: `concepts` or `images` forces what is resampled; None follows the rule above. An image keeps the rows of all its seeds
    together, because they are not independent.
    """
    values = _finite(values)
    names, concept = _codes(concepts)
    unit = unit or ("concepts" if len(names) >= MINIMUM_CLUSTERS else "images")
    within = _codes(images if unit == "images" else seeds)[1]
    sums, counts, sizes = _nested(values, concept, within)
    rng = np.random.default_rng(seed)
    shape = replicates, len(sizes)
    top = rng.integers(0, len(sizes), shape) if unit == "concepts" else np.broadcast_to(np.arange(len(sizes)), shape)
    lower = (rng.random((*shape, sums.shape[1])) * sizes[top][..., None]).astype(int)
    drawn = np.arange(sums.shape[1]) < sizes[top][..., None]  # concepts with fewer units than the largest draw no more than they have
    picked = top[..., None], lower
    means = ((sums[picked] * drawn).sum(2) / (counts[picked] * drawn).sum(2)).mean(1)
    return _percentile(mean_of_concepts(values, concepts), means, confidence, len(values), unit, len(sizes) if unit == "concepts" else int(sizes.sum()))


def per_model(values, concepts, seeds, span=None, replicates=2000, confidence=0.95, seed=0):
    """Interval of a mean of `values` `(n,)`, one of each model: `bootstrap` over concepts from `MINIMUM_CLUSTERS` on, with fewer `student` over models.

    span: least and greatest possible value, which no end passes; it gives ends to values that are all alike (`within`), which have none (NaN) otherwise if
    they are of few concepts.
    """
    values = _finite(values)
    if len(set(concepts)) >= MINIMUM_CLUSTERS:
        found = bootstrap(values, concepts, seeds, seeds, replicates, confidence, seed)
    else:
        found = student(values, confidence)
        varied = found.standard_error >= ROUNDING
        ends = (max(found.low, span[0]), min(found.high, span[1])) if span else (found.low, found.high)
        found = replace(found, low=ends[0] if varied else np.nan, high=ends[1] if varied else np.nan)
    return within(found, values, confidence, span) if span else found


def student(values, confidence=0.95):
    """Student's interval of the mean of `values` `(n,)` of independent models, NaN ends of a single one. A bootstrap of three would end at the least and the
    greatest of them, beyond which the mean lies in one of four cases."""
    values = _finite(values)
    mean, count = float(values.mean()), len(values)
    error = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else np.nan
    half = stats.t.ppf(0.5 + confidence / 2, count - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, count - 1) if error > 0 else np.nan
    return Interval(mean, float(mean - half), float(mean + half), count, "models", count, error, float(p))


def bootstrap_statistic(statistic, concepts, images, replicates=2000, confidence=0.95, seed=0, span=None):
    """Interval of `statistic(weights)`, a function of how often each row `(n,)` was drawn (all ones: the estimate).

    Concepts are resampled, or images within concepts below `MINIMUM_CLUSTERS`. The percentile interval is recentred at the estimate, because rows
    drawn twice bias plug-in statistics such as a mutual information, which the estimate itself has been corrected for. span: least and greatest possible value,
    which no end may pass.
    """
    names, concept = _codes(concepts)
    by_concept = len(names) >= MINIMUM_CLUSTERS
    _, cluster = _codes(concepts if by_concept else [f"{a}\0{b}" for a, b in zip(concepts, images, strict=True)])
    owner = np.zeros(cluster.max() + 1, dtype=int) if by_concept else concept[np.unique(cluster, return_index=True)[1]]
    strata = [np.flatnonzero(owner == code) for code in np.unique(owner)]
    estimate = float(statistic(np.ones(len(cluster), dtype=int)))
    rng = np.random.default_rng(seed)
    drawn = np.empty(replicates)
    for index in range(replicates):
        times = np.zeros(len(owner), dtype=int)
        for members in strata:
            times[members] = np.bincount(rng.integers(0, len(members), len(members)), minlength=len(members))
        drawn[index] = statistic(times[cluster])
    found = _percentile(estimate, drawn - drawn.mean() + estimate, confidence, len(cluster), "concepts" if by_concept else "images", len(owner))
    return replace(found, low=max(found.low, span[0]), high=min(found.high, span[1])) if span else found


def paired_difference(first, second, concepts, seeds, images, **settings):
    """Bootstrap interval and p-value of the mean of `first - second`, row by row: two attacks on the same pictures, tested against 0."""
    first, second = _finite(first), _finite(second)
    if first.shape != second.shape:
        raise InputError(f"a paired difference needs as many first as second values, not {len(first)} and {len(second)}")
    return bootstrap(first - second, concepts, seeds, images, **settings)


def within(found, values, confidence=0.95, span=(0.0, 1.0)):
    """The interval `found` of a mean of `values` that lie within `span`, as it is where they differ. Where all are alike nothing could be resampled; then as
    many others as Wilson's bound of none in as many trials as there are units allows may lie at either end of the span."""
    values = _finite(values)
    if values.min() < values.max():
        return found
    others = wilson(0, found.units, confidence)[1]
    return replace(found, low=found.value - others * (found.value - span[0]), high=found.value + others * (span[1] - found.value))


def wilson(successes, trials, confidence=0.95):
    """Wilson score interval `(low, high)` of a proportion of *independent* trials."""
    if trials < 1 or not 0 <= successes <= trials:
        raise InputError(f"a Wilson interval needs 0 <= successes <= trials, not {successes} of {trials}")
    z = stats.norm.ppf(0.5 + confidence / 2)
    rate, scale = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    half = z / scale * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def minimum_detectable_effect(standard_error, clusters, confidence=0.95, power=0.8):
    """Smallest true mean that a two-sided t test against 0 at level `1 - confidence` finds with probability `power` (central-t approximation); NaN where
    nothing varied, which tells of no spread."""
    if clusters < 2 or standard_error < ROUNDING:
        return float("nan")
    freedom = clusters - 1
    return float((stats.t.ppf(0.5 + confidence / 2, freedom) + stats.t.ppf(power, freedom)) * standard_error)


def _finite(values):
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError("an interval needs at least one value, and finite ones only")
    return values


def _codes(labels):
    return np.unique(np.asarray(labels).astype(str), return_inverse=True)


def _nested(values, concept, within):
    """Sums and row counts `(concepts, largest number of units)` of each concept's units, zero padded, and the number of units."""
    pairs, unit = np.unique(np.stack([concept, within]), axis=1, return_inverse=True)
    sizes = np.bincount(pairs[0])
    column = np.arange(pairs.shape[1]) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    sums, counts = np.zeros((len(sizes), sizes.max())), np.zeros((len(sizes), sizes.max()))
    sums[pairs[0], column] = np.bincount(unit, values)
    counts[pairs[0], column] = np.bincount(unit)
    return sums, counts, sizes


def tails(confidence, units):
    """The two quantiles of bootstrap replicates between which an expanded percentile interval lies: as far out as Student's t of `units` - 1 degrees of freedom
    and the bootstrap's own standard error, too small by sqrt((units - 1) / units), ask for. One unit: the plain ones."""
    if units < 2:
        return 0.5 - confidence / 2, 0.5 + confidence / 2
    outside = float(stats.norm.sf(stats.t.ppf(0.5 + confidence / 2, units - 1) * np.sqrt(units / (units - 1))))
    return outside, 1 - outside


def _percentile(value, replicates, confidence, n, unit, units):
    low, high = np.quantile(replicates, tails(confidence, units))
    tail = min((replicates <= 0).sum(), (replicates >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(replicates) + 1))
    if units > 1:  # the same expansion backwards
        p = float(2 * stats.t.sf(stats.norm.isf(p / 2) * np.sqrt((units - 1) / units), units - 1))
    return Interval(float(value), float(low), float(high), n, unit, units, float(replicates.std()), float(p))
