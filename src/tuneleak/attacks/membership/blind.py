"""The control that sees no model: can members be told from non-members by their looks alone? If so, a membership score may measure the split."""

import numpy as np

from tuneleak.errors import InputError


def blind_scores(features, labels, concepts, asked, penalty=1.0):
    """Scores `(n,)` of the pictures of concept `asked` by a classifier that learned from all other concepts.

    features `(n, d)`: of an embedder; labels `(n,)`: 1 for members; concepts `(n,)`. Features are centred within each concept, so that who is shown
    says nothing. The classifier is ridge regression to the labels; `penalty` is relative to the mean variance of a feature.
    """
    features, labels, concepts = np.asarray(features, dtype=float), np.asarray(labels, dtype=float), np.asarray(concepts)
    centred = features.copy()
    for concept in np.unique(concepts):
        centred[concepts == concept] -= features[concepts == concept].mean(0)
    others = concepts != asked
    if len(np.unique(labels[others])) < 2:
        raise InputError(f"the model-blind classifier needs members and non-members of other concepts than {asked!r}")
    return linear_scores(centred[others], labels[others], centred[~others], penalty)


def linear_scores(known, labels, asked, penalty=1.0):
    """Ridge regression of centred labels `(n,)` on known `(n, d)`, evaluated at asked `(m, d)`."""
    middle = known.mean(0)
    x, y = known - middle, labels - labels.mean()
    weight = penalty * max(float(np.square(x).sum()) / x.shape[1], 1e-12) / 10
    return (asked - middle) @ np.linalg.solve(x.T @ x + weight * np.eye(x.shape[1]), x.T @ y)
