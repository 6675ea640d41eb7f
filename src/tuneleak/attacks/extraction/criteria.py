"""What an attacker can see of a guidance weight without the training pictures: two numbers by which w' can be chosen.

lambda, and with it the exact w = 1 / lambda, cannot be read off two models: theta' = (1 - lambda) theta + lambda q holds for every lambda with another q (for
Gaussians of one covariance every w gives a proper Gaussian). What too large a weight breaks are other things that a true q has:

- `noise_norm`: E|eps_hat|^2 / d over the noisier half of the walk. A noise prediction of concentrated data has nearly the norm of the noise itself, 1 per
  dimension; a guided one grows with the square of w'. Nearest to 1 (in its logarithm) is best.
- `agreement`: mean similarity of a generation to the nearest other one, which began from other noise. Memorised pictures are met again; most is best.
"""

import math

import numpy as np

RULES = ("noise-norm", "agreement")


class NoiseNorm:
    """Wraps an attack's `guide` and keeps the mean of |eps_hat|^2 per dimension over the first `calls` calls of each walk of `steps` calls."""

    def __init__(self, guide, steps):
        self._guide, self._steps, self._calls, self._sum, self._count = guide, steps, 0, 0.0, 0

    def __call__(self, pair, x, t, guidance):
        eps = self._guide(pair, x, t, guidance)
        if self._calls % self._steps < max(1, self._steps // 2):
            self._sum += float(eps.cpu().double().square().mean()) * len(eps)
            self._count += len(eps)
        self._calls += 1
        return eps

    @property
    def value(self):
        return self._sum / self._count


def agreement(similarities):
    """Mean over generations of the similarity to the nearest other one; similarities `(n, n)` with any diagonal."""
    similarities = np.array(similarities, dtype=float)
    if len(similarities) < 2:
        return float("nan")
    np.fill_diagonal(similarities, -np.inf)
    return float(similarities.max(1).mean())


def choose(rule, noise_norms, agreements):
    """Index of the weight that a rule chooses; noise_norms, agreements: one number per weight. Ties go to the first."""
    if rule == "noise-norm":
        return int(np.argmin([abs(math.log(max(value, 1e-300))) for value in noise_norms]))
    if rule == "agreement":
        return int(np.argmax(agreements))
    raise ValueError(f"rule {rule!r} is none of {', '.join(RULES)}")
