"""Clustering of generations into candidate training pictures (FineXtract; dossier section 2).

Two generations are joined when their copy-detection features are similar; a clique of the graph is taken for the generations of one
training picture, and the member in its middle for the extracted picture. The public code enumerates all maximal cliques behind a 30 s
time-out, so its result depends on the processor. Here the partition is the same greedy one, but the effort is counted in search nodes
(`cliques.py`), so that every machine gives the same cliques. Both modes use the same graph: edge if and only if similarity >= threshold.
"""

from dataclasses import dataclass

import numpy as np

from tuneleak.attacks.extraction.cliques import BudgetExceeded, greedy_clique_partition, partition_or_approximate
from tuneleak.errors import InputError
from tuneleak.options import ClusterOptions


@dataclass(frozen=True)
class Clusters:
    """Cliques in the order they were taken. `medoids[i]` and `members[i]` are row numbers of the features; `threshold` is the similarity
    used; `exact` is False when a search ran out of nodes and greedy cliques stand in for largest ones (fair mode only)."""

    medoids: list[int]
    members: list[list[int]]
    threshold: float
    exact: bool = True


def similarity(features):
    """Cosine similarities `(n, n)` float32 of features `(n, d)`, with a zero diagonal (as in the public code)."""
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise InputError("clustering needs finite features of shape (n, d)")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    result = unit @ unit.T
    np.fill_diagonal(result, 0)
    return result


def cluster(features, n_images, options: ClusterOptions, seed=0):
    """Cluster generations with copy features `(n, d)` into `Clusters` for `n_images` training pictures (N0).

    fair: the N0 largest cliques, singletons last; where the partition has fewer, the threshold rises by `step` until it has N0. Every attack
    thus names N0 pictures: with fewer for the one whose generations are more alike, the score, a maximum over them, would compare counts.
    compat: the public code's threshold, rising by .01 from the 25 % quantile of 1,000 similarities drawn with `seed` (diagonal included, at
    least .01) until the exact partition takes no more than `node_budget` nodes and has at least N0 cliques; all are kept. If no threshold up to 1
    gives N0 cliques (fewer generations, or equal ones), the last partition that finished is kept, in both modes.
    """
    features = np.asarray(features, dtype=np.float32)
    if n_images < 1 or len(features) < 1:
        raise InputError(f"clustering needs at least one generation and one training picture, not {len(features)} and {n_images}")
    similarities = similarity(features)
    find = _fair if options.mode == "fair" else _compat
    cliques, threshold, exact = find(similarities, n_images, options, seed)
    return Clusters([medoid(features, clique) for clique in cliques], cliques, threshold, exact)


def medoid(features, members):
    """The member whose feature is nearest (L2) to the mean of the members' features; ties go to the first."""
    chosen = features[members]
    return members[int(np.argmin(np.linalg.norm(chosen - chosen.mean(0), axis=1)))]


def _fair(similarities, n_images, options, seed):
    threshold = options.threshold
    while True:
        cliques, exact = partition_or_approximate(similarities >= threshold, options.node_budget, limit=n_images)
        if len(cliques) >= n_images or threshold >= 1:
            return cliques, threshold, exact
        threshold = min(round(threshold + options.step, 10), 1.0)


def _compat(similarities, n_images, options, seed):
    drawn = np.random.default_rng(seed).integers(0, similarities.size, 1000)
    start = max(float(np.quantile(similarities.ravel()[drawn], 0.25)), 0.01)
    found = None
    for index in range(101):
        threshold = start + 0.01 * index
        if threshold > 1:
            break
        try:
            found = greedy_clique_partition(similarities >= threshold, options.node_budget), threshold, True
        except BudgetExceeded:
            continue
        if len(found[0]) >= n_images:
            break
    if found is None:
        raise InputError(f"no threshold up to 1 could be clustered within {options.node_budget} search nodes; raise cluster.node_budget")
    return found
