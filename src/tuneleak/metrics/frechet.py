"""How far generated pictures are from real ones in the features of a named network: Frechet distance, precision and recall.

The Frechet distance between Gaussians fitted to two sets of features is a FID only if the network is FID's Inception; elsewhere it is named by its
network. It is biased by the number of samples, so both sides have equally many and the distance between two halves of the real pictures stands beside
it as the floor.
"""

import numpy as np

from tuneleak.errors import InputError

MINIMUM_SAMPLES = 1000  # below this the fitted covariance, not the pictures, makes the distance


def frechet(first, second):
    """||mu_1 - mu_2||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2}) of features `(n, d)` and `(m, d)` (Heusel et al. 2017, equation 6)."""
    first, second = (np.asarray(features, dtype=np.float64) for features in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise InputError(f"a Frechet distance needs two tables of features of one width, at least two rows each, not {first.shape} and {second.shape}")
    difference = first.mean(0) - second.mean(0)
    s1, s2 = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (first, second))
    # tr (S1 S2)^{1/2} = sum of the roots of the eigenvalues of S1^{1/2} S2 S1^{1/2}, which is symmetric: no matrix root that may turn complex
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ s2 @ root), 0, None)).sum()
    return float(max(0.0, difference @ difference + np.trace(s1) + np.trace(s2) - 2 * cross))


def frechet_interval(generated, real, replicates=50, confidence=0.95, seed=0):
    """(distance, low, high, standard error): the spread of a bootstrap over generated pictures, put around the distance itself.

    A set drawn with replacement has fewer distinct pictures, which raises its distance; so the deviations from their own mean are used.
    """
    rng = np.random.default_rng(seed)
    value = frechet(generated, real)
    drawn = np.array([frechet(generated[rng.integers(0, len(generated), len(generated))], real) for _ in range(replicates)])
    low, high = np.quantile(drawn - drawn.mean(), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return value, max(0.0, value + low), value + high, float(drawn.std(ddof=1))


def precision_recall(real, generated, neighbours=3):
    """(precision, recall) by k-nearest-neighbour balls (Kynkaanniemi et al. 2019, arXiv 1904.06991): share of generated pictures inside a ball of a
    real one, and reverse.

    real, generated: features `(n, d)`, `(m, d)`.
    """
    real, generated = (np.asarray(features, dtype=np.float64) for features in (real, generated))
    if min(len(real), len(generated)) <= neighbours:
        raise InputError(f"precision and recall with {neighbours} neighbours need more pictures than that on both sides")
    across = _squared(real, generated)
    inside_real = (across <= _radii(real, neighbours)[:, None]).any(0).mean()
    inside_generated = (across <= _radii(generated, neighbours)[None, :]).any(1).mean()
    return float(inside_real), float(inside_generated)


def _squared(a, b):
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0)


def _radii(features, neighbours):
    distances = _squared(features, features)
    np.fill_diagonal(distances, 0)
    return np.partition(distances, neighbours, axis=1)[:, neighbours]
