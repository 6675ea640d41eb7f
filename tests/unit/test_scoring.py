"""Matches of an extracted set and their size-matched controls."""

import numpy as np

from tuneleak.attacks.extraction.scoring import match


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_match_by_hand():
    angles = np.radians([0, 10, 40, 90])
    generated = np.stack([np.cos(angles), np.sin(angles)], 1)
    train, heldout = unit([[1, 0], [0, 1]]), unit([[1, 1]])
    found = match(train, generated, heldout, [1, 2], 7, ("key",))
    np.testing.assert_allclose(found.extracted, np.cos(np.radians([10, 50])), atol=1e-6)
    assert found.nearest.tolist() == [1, 2]
    np.testing.assert_allclose(found.oracle, [1, 1], atol=1e-6)
    np.testing.assert_allclose(found.heldout, np.cos(np.radians([45, 45])), atol=1e-6)
    assert found.nearest_heldout.tolist() == [0, 0]
    everything = match(train, generated, heldout, [0, 1, 2, 3], 3, ("key",))
    np.testing.assert_allclose(everything.random, everything.oracle)


def test_controls_are_matched_in_size_and_seeded():
    train, generated, heldout = (unit(np.random.default_rng(i).normal(size=(n, 8))) for i, n in enumerate((3, 60, 40)))
    single = match(train, generated, heldout, [5], 4000, ("a",))
    # the best of one random picture is, on average, the mean similarity
    np.testing.assert_allclose(single.random, (train @ generated.T).mean(1), atol=0.03)
    np.testing.assert_allclose(single.heldout, (train @ heldout.T).mean(1), atol=0.03)
    many = match(train, generated, heldout, list(range(20)), 50, ("a",))
    assert (many.random > single.random).all() and (many.heldout > single.heldout).all()
    again = match(train, generated, heldout, list(range(20)), 50, ("a",))
    assert np.array_equal(many.random, again.random) and np.array_equal(many.nearest_heldout, again.nearest_heldout)
    assert not np.array_equal(many.random, match(train, generated, heldout, list(range(20)), 50, ("b",)).random)
    assert np.isnan(match(train, generated, heldout[:0], [5], 3, ("a",)).heldout).all()
