"""Clustering: the greedy clique partition against networkx's enumeration, and the two modes' rules."""

import itertools

import networkx as nx
import numpy as np
import pytest

from tuneleak.attacks.extraction.cliques import BudgetExceeded, greedy_clique_partition, partition_or_approximate
from tuneleak.attacks.extraction.clustering import cluster, medoid, similarity
from tuneleak.errors import InputError
from tuneleak.options import ClusterOptions


def random_graph(nodes, density, seed):
    upper = np.triu(np.random.default_rng(seed).random((nodes, nodes)) < density, 1)
    return upper | upper.T


def bunches(sizes, spread=0.05, seed=0, dimensions=32):
    """Features around orthogonal centres, `sizes[i]` of them around centre i."""
    random = np.random.default_rng(seed)
    centres = np.repeat(np.eye(dimensions)[: len(sizes)], sizes, axis=0)
    return (centres + spread * random.normal(size=centres.shape)).astype(np.float32)


def assert_is_partition_into_cliques(adjacency, cliques):
    assert sorted(itertools.chain(*cliques)) == list(range(len(adjacency)))
    for clique in cliques:
        block = adjacency[np.ix_(clique, clique)]
        assert block.sum() == len(clique) * (len(clique) - 1)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(6))
def test_each_clique_taken_is_a_largest_one(density, seed):
    adjacency = random_graph(int(np.random.default_rng(seed).integers(5, 41)), density, seed)
    cliques = greedy_clique_partition(adjacency)
    assert_is_partition_into_cliques(adjacency, cliques)
    graph = nx.from_numpy_array(adjacency)
    for clique in cliques:
        assert len(clique) == max(map(len, nx.find_cliques(graph)))
        graph.remove_nodes_from(clique)


@pytest.mark.parametrize("adjacency", [np.zeros((5, 5)), np.ones((5, 5)), np.ones((1, 1)), np.zeros((0, 0))], ids=["empty", "complete", "one", "none"])
def test_extreme_graphs(adjacency):
    expected = [list(range(5))] if adjacency.sum() == 25 else [[node] for node in range(len(adjacency))]
    assert greedy_clique_partition(adjacency) == expected


def test_a_large_clique_does_not_exhaust_the_stack():
    assert list(map(len, greedy_clique_partition(np.ones((2000, 2000))))) == [2000]


def test_limit_and_min_size():
    adjacency = random_graph(60, 0.2, 1)
    everything = greedy_clique_partition(adjacency)
    assert greedy_clique_partition(adjacency, limit=3) == everything[:3]
    assert greedy_clique_partition(adjacency, min_size=3) == [clique for clique in everything if len(clique) >= 3]
    singles = [clique[0] for clique in everything if len(clique) == 1]
    assert singles == sorted(singles)
    assert greedy_clique_partition(np.zeros((6, 6)), limit=2) == [[0], [1]]


def test_the_partition_depends_on_nothing_but_the_graph():
    adjacency = random_graph(120, 0.4, 3)
    assert greedy_clique_partition(adjacency) == greedy_clique_partition(adjacency.astype(float))
    assert partition_or_approximate(adjacency, 3000) == partition_or_approximate(adjacency, 3000)


def test_without_nodes_the_approximation_still_partitions():
    adjacency = random_graph(90, 0.6, 4)
    with pytest.raises(BudgetExceeded):
        greedy_clique_partition(adjacency, node_budget=500)
    cliques, exact = partition_or_approximate(adjacency, 500)
    assert not exact
    assert_is_partition_into_cliques(adjacency, cliques)
    sizes = list(map(len, cliques))
    assert sizes == sorted(sizes, reverse=True)
    best = max(map(len, nx.find_cliques(nx.from_numpy_array(adjacency))))
    assert sizes[0] >= best - 3
    assert partition_or_approximate(adjacency, None)[1]


def test_the_approximation_finds_planted_cliques():
    adjacency = random_graph(300, 0.3, 5)
    for start, size in ((0, 30), (100, 25), (200, 20)):
        adjacency[start : start + size, start : start + size] = True
    cliques, exact = partition_or_approximate(adjacency, 0)
    assert not exact
    for clique, (start, size) in zip(cliques, ((0, 30), (100, 25), (200, 20)), strict=False):
        assert set(range(start, start + size)) <= set(clique)


def test_similarity_is_the_cosine_with_a_zero_diagonal():
    features = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(similarity(features), [[0, half, 0], [half, 0, -half], [0, -half, 0]], atol=1e-6)
    with pytest.raises(InputError):
        similarity(np.array([[np.nan, 1.0]]))


def test_medoid_is_the_member_nearest_to_the_mean():
    features = np.array([[9.0, 9.0], [0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    assert medoid(features, [1, 2, 3]) == 2
    assert medoid(features, [1, 2]) == 1


def test_fair_keeps_the_n0_largest():
    found = cluster(bunches([9, 4, 7, 2, 1]), 3, ClusterOptions())
    assert list(map(len, found.members)) == [9, 7, 4]
    assert found.threshold == 0.5 and found.exact
    assert found.members[0] == list(range(9))
    assert all(middle in members for middle, members in zip(found.medoids, found.members, strict=True))


def test_fair_raises_its_threshold_until_there_are_n0_cliques():
    """Two pairs of similarity .8, a pair of .62, and everything else at right angles."""

    def pair(axis, cosine):
        return [np.eye(8)[axis], cosine * np.eye(8)[axis] + np.sqrt(1 - cosine**2) * np.eye(8)[axis + 1]]

    features = np.stack([*pair(0, 0.8), *pair(2, 0.8), *pair(4, 0.62)])
    assert cluster(features, 3, ClusterOptions()).threshold == 0.5
    raised = cluster(features, 4, ClusterOptions())
    assert raised.threshold == pytest.approx(0.65)
    assert raised.members == [[0, 1], [2, 3], [4], [5]]
    assert len(cluster(features, 6, ClusterOptions()).members) == 6


def test_fair_counts_singletons_before_it_raises_its_threshold():
    found = cluster(bunches([5, 3, 1, 1, 1]), 4, ClusterOptions())
    assert list(map(len, found.members)) == [5, 3, 1, 1] and found.threshold == 0.5


def test_fair_with_equal_or_too_few_pictures_ends_at_one():
    equal = cluster(np.ones((4, 3)), 2, ClusterOptions())
    assert equal.threshold == 1 and len(equal.members) <= 2
    assert len(cluster(np.eye(3), 5, ClusterOptions()).members) == 3


def test_compat_raises_its_threshold_until_there_are_n0_cliques_and_keeps_all():
    features = bunches([6, 5, 4, 1], spread=0.1)
    options = ClusterOptions(mode="compat")
    values = similarity(features)
    start = max(np.quantile(values.ravel()[np.random.default_rng(0).integers(0, values.size, 1000)], 0.25), 0.01)
    found = cluster(features, 5, options)
    steps = round((found.threshold - start) / 0.01)
    assert found.threshold == pytest.approx(start + 0.01 * steps) and steps > 0
    assert len(found.members) >= 5
    assert_is_partition_into_cliques(values >= found.threshold, found.members)
    assert len(greedy_clique_partition(values >= start + 0.01 * (steps - 1))) < 5, "a lower threshold would have done"
    assert cluster(features, 5, options) == found


def test_compat_skips_thresholds_that_need_too_many_nodes():
    features = np.random.default_rng(0).normal(size=(80, 6))
    generous, strict = (cluster(features, 2, ClusterOptions(mode="compat", node_budget=budget)) for budget in (10_000_000, 1500))
    assert strict.threshold > generous.threshold
    assert len(strict.members) > len(generous.members)


def test_compat_with_fewer_pictures_than_n0_keeps_the_last_partition():
    found = cluster(bunches([2, 1]), 50, ClusterOptions(mode="compat"))
    assert len(found.members) <= 3 and found.threshold <= 1


def test_clustering_nothing_is_an_error():
    with pytest.raises(InputError):
        cluster(np.zeros((0, 4)), 3, ClusterOptions())
