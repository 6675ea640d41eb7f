"""What one noisy release costs: the Gaussian mechanism used once, on all records or on a Poisson sample of them, in closed form.

A sum to which every record adds a vector of length 1 at most is released with N(0, sigma^2) noise in every coordinate; each record takes part
independently with probability q (q = 1: all do). Under add/remove adjacency the worst case is one-dimensional: P = (1 - q) N(0, sigma^2) +
q N(1, sigma^2) against Q = N(0, sigma^2), and delta(epsilon) is the larger of their two hockey-stick divergences. For q = 1 that is the
analytic Gaussian mechanism (Balle & Wang 2018, arXiv 1805.06530, theorem 8). Composed mechanisms are in `tuneleak.privacy.accounting`.
"""

import math

from scipy.stats import norm

from tuneleak.errors import InputError
from tuneleak.privacy import accounting

ACCURACY = 1e-9  # relative, of the bisections
LARGEST = 512.0  # epsilon beyond which a release is said to promise nothing


def delta(epsilon, sigma, q=1.0):
    """The smallest delta with which one release is (epsilon, delta)-private."""
    scale = math.exp(epsilon)
    point = sigma**2 * (math.log(scale - 1 + q) - math.log(q)) + 0.5
    present = (1 - q) * norm.sf(point / sigma) + q * norm.sf((point - 1) / sigma) - scale * norm.sf(point / sigma)
    absent, least = 0.0, 1 / scale - 1 + q  # Q exceeds e^epsilon P only where the sampled part has all but vanished
    if least > 0:
        point = sigma**2 * (math.log(least) - math.log(q)) + 0.5
        absent = norm.cdf(point / sigma) - scale * ((1 - q) * norm.cdf(point / sigma) + q * norm.cdf((point - 1) / sigma))
    return max(0.0, present, absent)


def noise_multiplier(epsilon, target_delta, q=1.0):
    """The smallest sigma with which one release at rate q stays within (epsilon, target_delta); 0 for an infinite epsilon."""
    if math.isinf(epsilon):
        return 0.0
    if not epsilon > 0 or not 0 < target_delta < 1 or not 0 < q <= 1:
        raise InputError(f"noise can be found for epsilon > 0, 0 < delta < 1 and 0 < q <= 1, not epsilon={epsilon}, delta={target_delta}, q={q}")
    if q <= target_delta:
        raise InputError(f"a sampling rate of {q:g} is below delta {target_delta:g}: the release would need no noise and protect nobody who is drawn")
    low, high = 1e-3, 1.0
    while delta(epsilon, high, q) > target_delta:
        low, high = high, 2 * high
    while high / low > 1 + ACCURACY:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if delta(epsilon, middle, q) > target_delta else (low, middle)
    return high


def epsilon(sigma, target_delta, q=1.0):
    """The smallest epsilon of one release at `target_delta`; infinite without noise."""
    if sigma == 0:
        return math.inf
    if delta(0.0, sigma, q) <= target_delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta(high, sigma, q) > target_delta:
        low, high = high, 2 * high
        if high > LARGEST:
            return math.inf
    while high - low > ACCURACY * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle, sigma, q) > target_delta else (low, middle)
    return high


def ledger(sigma, q):
    """The `Ledger` of one release, for the record and the second accountant."""
    spent = accounting.Ledger()
    spent.step(sigma, q)
    return spent
