"""AUC, TPR at a low FPR, and the clustered DeLong variance against hand calculation, plain DeLong and simulation."""

import numpy as np
import pytest
from scipy import stats

from tuneleak.errors import InputError
from tuneleak.metrics import roc


def plain_delong(labels, scores):
    """DeLong et al. 1988 written out: AUCs and covariance by all pairs."""
    values, tens, ones = [], [], []
    for row in scores:
        wins = (row[labels][:, None] > row[~labels]) + 0.5 * (row[labels][:, None] == row[~labels])
        values.append(wins.mean())
        tens.append(wins.mean(1))
        ones.append(wins.mean(0))
    return np.array(values), np.atleast_2d(np.cov(tens)) / labels.sum() + np.atleast_2d(np.cov(ones)) / (~labels).sum()


def test_auc_by_hand():
    assert roc.auc([3.0, 1.0], [2.0, 0.0]) == 0.75
    assert roc.auc([1.0], [1.0]) == 0.5
    assert roc.auc([2.0, 3.0], [0.0]) == 1.0


def test_variance_by_hand():
    """Members 3, 1; non-members 2, 0: V10 = (1, .5), V01 = (.5, 1), both sample variances .125, so var = .125 / 2 + .125 / 2."""
    found = roc.delong([True, True, False, False], [3.0, 1.0, 2.0, 0.0])
    assert found.value == 0.75
    assert found.standard_error**2 == pytest.approx(0.125)


def test_singleton_clusters_give_plain_delong():
    random = np.random.default_rng(0)
    labels = random.random(80) < 0.4
    scores = np.round(random.normal(size=(2, 80)) + labels * 0.8, 1)
    values, covariance = roc.auc_covariance(labels, scores)
    expected = plain_delong(labels, scores)
    np.testing.assert_allclose(values, expected[0])
    np.testing.assert_allclose(covariance, expected[1])
    difference = roc.delong_difference(labels, *scores)
    assert difference.value == pytest.approx(values[0] - values[1])
    assert difference.standard_error**2 == pytest.approx(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def test_copies_within_a_cluster_carry_no_information():
    random = np.random.default_rng(1)
    labels = np.arange(30) % 2 == 0
    scores = random.normal(size=30) + labels
    once = roc.delong(labels, scores)
    copied = roc.delong(np.repeat(labels, 3), np.repeat(scores, 3), np.repeat(np.arange(30), 3))
    assert copied.standard_error == pytest.approx(once.standard_error)
    assert roc.delong(np.repeat(labels, 3), np.repeat(scores, 3)).standard_error < 0.7 * once.standard_error


@pytest.mark.parametrize("shared", [True, False])
def test_clustered_variance_matches_simulation(shared):
    """Members and non-members of one concept share its shift, which cancels; when the shift is theirs alone, it inflates the variance."""
    random = np.random.default_rng(2)
    labels = np.tile([True, True, True, False, False, False], 30)
    clusters = np.repeat(np.arange(30), 6)
    values, errors = [], []
    for _ in range(300):
        shift = np.repeat(random.normal(size=30), 6) * (1 if shared else np.where(labels, 1, -1))
        found = roc.delong(labels, labels * 0.5 + shift + random.normal(size=180), clusters)
        values.append(found.value)
        errors.append(found.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_the_interval_and_p_value_are_normal():
    random = np.random.default_rng(3)
    labels = np.arange(100) < 50
    found = roc.delong(labels, random.normal(size=100) + labels * 0.5)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * found.standard_error)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.value - 0.5) / found.standard_error))
    assert roc.delong_difference(labels, labels * 1.0, labels * 1.0).p == 1.0


def test_tpr_at_fpr():
    nonmembers = np.arange(1000.0)
    members = np.array([985.0, 989.5, 990.5, 5000.0])
    assert roc.tpr_at_fpr(members, nonmembers, 0.01) == 0.75, "10 non-members, 990 to 999, may pass, so the threshold is just above 989"
    assert roc.tpr_at_fpr(members, nonmembers, 0.0) == 0.25
    assert roc.tpr_at_fpr(members, nonmembers, 1.0) == 1.0
    assert roc.tpr_at_fpr(np.full(5, 999.0), np.full(1000, 999.0)) == 0.0, "ties count against the attack"


def test_tpr_needs_enough_nonmembers():
    with pytest.raises(InputError, match="500"):
        roc.tpr_at_fpr([1.0], np.zeros(499))


def test_bad_input():
    with pytest.raises(InputError):
        roc.auc([], [1.0])
    with pytest.raises(InputError):
        roc.delong([True, False], [np.nan, 1.0])
    with pytest.raises(InputError, match="two clusters"):
        roc.delong([True, True, False, False], [1.0, 2.0, 0.0, 1.0], ["a", "a", "b", "c"])
