"""From updates to evidence: how much of any direction of the text encoder's space the fine-tune is likely to have seen.

The stack of all layers' updates is signal plus noise: directions that Adam's normalisation and rounding stirred, and for a LoRA, whose update is a product
B A, the random start of A. In such a spiked covariance an eigenvector whose eigenvalue stands out has a known squared cosine with the true one, and one
within the bulk has none (Paul 2007, Statistica Sinica 17:1617; Benaych-Georges and Nadakuditi 2011). Those cosines are the weights here. They are exact for
white noise; Adam's is not white, so what they keep is an upper bound of the signal, and the search compares captions under one and the same evidence.
"""

import numpy as np


def evidence(rows, common=None):
    """Symmetric `(d, d)` float64 with eigenvalues in [0, 1]; e^T M e is the share of a unit vector e that lies in the span the updates reveal.

    rows: list of `(n_i, d)` arrays; every layer is scaled to mean square 1, because layers learn at different speeds. common: orthonormal `(m, d)`
    directions in which nothing is looked for: they are taken out of the rows before noise is told from signal.
    """
    kept = np.eye(np.shape(rows[0])[1])
    if common is not None and len(common):
        kept = np.linalg.svd(np.asarray(common, dtype=np.float64))[2][len(common) :]
    parts = [np.asarray(item, dtype=np.float64) @ kept.T for item in rows]
    stack = np.concatenate([part / np.sqrt(np.mean(np.square(part))) for part in parts if part.any()])
    n, d = stack.shape
    values, vectors = np.linalg.eigh(stack.T @ stack / n)
    directions = kept.T @ vectors
    return (directions * squared_cosines(np.clip(values, 0, None), d / n)) @ directions.T


def squared_cosines(eigenvalues, aspect):
    """Squared cosines `(d,)` of sample and true eigenvectors for the eigenvalues of a sample covariance of noise plus spikes; aspect: d / n.

    The noise's variance is the median of the non-zero eigenvalues over the median of the Marchenko-Pastur law. An eigenvalue l (in units of it) above the
    law's edge (1 + sqrt(aspect))^2 belongs to a spike s with l = (1 + s)(1 + aspect / s), and its cosine^2 is (1 - aspect / s^2) / (1 + aspect / s).
    """
    eigenvalues = np.asarray(eigenvalues, dtype=float)
    positive = eigenvalues[
        len(eigenvalues) - min(len(eigenvalues), int(np.floor(len(eigenvalues) / aspect + 1e-9))) :
    ]  # fewer rows than columns: the rest is zero
    noise = np.median(np.sort(positive)) / marchenko_pastur_median(min(aspect, 1 / aspect)) / max(1.0, aspect)
    scaled = eigenvalues / max(noise, np.finfo(float).tiny)
    half = (scaled - 1 - aspect) / 2
    spike = half + np.sqrt(np.clip(half**2 - aspect, 0, None))
    above = scaled > (1 + np.sqrt(aspect)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (1 - aspect / spike**2) / (1 + aspect / spike)
    return np.where(above, np.clip(cosines, 0, 1), 0.0)


def marchenko_pastur_median(aspect):
    """Median of the Marchenko-Pastur law of unit variance and 0 < aspect <= 1."""
    low, high = (1 - np.sqrt(aspect)) ** 2, (1 + np.sqrt(aspect)) ** 2
    grid = low + (high - low) * (1 - np.cos(np.linspace(0, np.pi, 4001))) / 2  # dense at both ends, where the density has square roots
    middle = (grid[1:] + grid[:-1]) / 2
    mass = np.cumsum(np.sqrt((high - middle) * (middle - low)) / (2 * np.pi * aspect * middle) * np.diff(grid))
    return float(np.interp(mass[-1] / 2, mass, grid[1:]))
