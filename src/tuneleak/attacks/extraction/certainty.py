"""What a cluster of generations looks like to an attacker who has no training picture: the traits behind a score of certainty.

A training picture that a model memorised is drawn again and again, from whatever noise; what the base draws anyway was not learned from the private set.
"""

import numpy as np
import pandas as pd

from tuneleak.attacks.extraction.clustering import cluster

TRAITS = ("share", "tightness", "isolation", "agreement")


def traits(features, clusters, n_images, options):
    """Traits of each cluster, a table with a row per medoid (columns `TRAITS`), from copy features `(n, d)` of all generations.

    share: members over generations, times N0 (1: a fair share). tightness: mean similarity of the medoid to the other members (0 alone). isolation:
    tightness minus the medoid's mean similarity to as many of its nearest non-members. agreement: generations of even and of odd noise are clustered
    apart; the medoid's best similarity to a medoid of the half in which it has less of a match.
    """
    features = np.asarray(features, dtype=np.float32)
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    everything, halves = np.arange(len(features)), []
    for half in (everything[::2], everything[1::2]):
        if len(half):
            found = cluster(features[half], n_images, options)
            halves.append(features[half[found.medoids]])
    rows = []
    for medoid, members in zip(clusters.medoids, clusters.members, strict=True):
        similar = features @ features[medoid]
        others = [member for member in members if member != medoid]
        outside = np.sort(np.delete(similar, members))[::-1][: max(len(others), 1)]
        tightness = float(similar[others].mean()) if others else 0.0
        matches = [float((half @ features[medoid]).max()) for half in halves]
        told = (len(members) / len(features) * n_images, tightness, tightness - float(outside.mean()) if len(outside) else tightness, min(matches))
        rows.append(dict(zip(TRAITS, told, strict=True)))
    return pd.DataFrame(rows, columns=TRAITS)
