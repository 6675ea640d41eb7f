"""How near an extracted set comes to each training picture, beside size-matched controls and the bound without clustering."""

from dataclasses import dataclass

import numpy as np
import torch

from tuneleak import runtime


@dataclass(frozen=True)
class Matches:
    """Per training picture, arrays `(n,)`: best similarities, and indices of the best match.

    extracted: over the extracted set; nearest: the index of that generation. oracle: over all generations (no clustering could do
    better). random: mean over draws of the best among as many random generations as were extracted. heldout: the same over pictures of
    the concept that nothing trained on, as many as there are at most (NaN without any). nearest_heldout: index of the best held-out
    picture of the first draw (-1 without any).
    """

    extracted: np.ndarray
    nearest: np.ndarray
    oracle: np.ndarray
    random: np.ndarray
    heldout: np.ndarray
    nearest_heldout: np.ndarray


def match(train, generated, heldout, medoids, draws, key):
    """Score one extracted set.

    train `(n, d)`, generated `(N, d)`, heldout `(M, d)`: L2-normalised features of the scoring embedder. medoids: indices of the
    extracted generations. draws: random draws per control. key: what the draws are seeded with (see `runtime.generator`).
    """
    similarity = train @ generated.T
    chosen = similarity[:, medoids]
    nearest = np.asarray(medoids)[chosen.argmax(1)]
    random, _ = _best_of_random(similarity, len(medoids), draws, (*key, "random"))
    outside, first = _best_of_random(train @ heldout.T, len(medoids), draws, (*key, "heldout"))
    return Matches(chosen.max(1), nearest, similarity.max(1), random, outside, first)


def _best_of_random(similarity, size, draws, key):
    """Mean over draws of the row maxima over `size` random columns, and the best column of the first draw."""
    n, available = similarity.shape
    if not available:
        return np.full(n, np.nan), np.full(n, -1)
    best, first = [], None
    for draw in range(draws):
        columns = torch.randperm(available, generator=runtime.generator(*key, draw))[:size].numpy()
        drawn = similarity[:, columns]
        best.append(drawn.max(1))
        first = columns[drawn.argmax(1)] if first is None else first
    return np.mean(best, axis=0), first
