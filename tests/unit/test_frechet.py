import numpy as np
import pytest
from scipy import linalg

from tuneleak.errors import InputError
from tuneleak.metrics import frechet


def test_of_two_gaussians_with_diagonal_covariance_it_is_the_closed_form():
    """||mu_1 - mu_2||^2 + sum (s_1 - s_2)^2, on samples whose moments are made exact."""
    random = np.random.default_rng(0)
    raw = random.normal(size=(500, 4))
    white = (raw - raw.mean(0)) @ np.linalg.inv(linalg.sqrtm(np.cov(raw, rowvar=False)).real)
    first, second = white * [1, 2, 3, 4] + [0, 1, 0, 0], white * [2, 2, 1, 4] + [0, 0, 0, 3]
    assert frechet.frechet(first, second) == pytest.approx(1 + 9 + 1 + 4, abs=1e-6)
    assert frechet.frechet(first, first) == pytest.approx(0, abs=1e-6)


def test_it_agrees_with_the_matrix_root():
    random = np.random.default_rng(1)
    first, second = random.normal(size=(300, 6)) @ random.normal(size=(6, 6)), random.normal(size=(200, 6)) + 1
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert frechet.frechet(first, second) == pytest.approx(expected, rel=1e-8)


def test_the_interval_holds_the_distance_and_narrows_with_samples():
    random = np.random.default_rng(2)
    widths = []
    for n in (200, 3200):
        value, low, high, error = frechet.frechet_interval(random.normal([0.5, 0, 0], 1, (n, 3)), random.normal(size=(3200, 3)))
        assert low <= value <= high and error > 0
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_precision_and_recall_of_sets_that_overlap_by_half():
    random = np.random.default_rng(3)
    left, right = random.normal(size=(400, 2)), random.normal(size=(400, 2)) + 100
    assert frechet.precision_recall(np.concatenate([left[:200], right[:200]]), left[200:]) == pytest.approx((1, 0.5), abs=0.05)
    assert frechet.precision_recall(left, right) == (0, 0)
    assert frechet.precision_recall(left[:200], left[:200]) == (1, 1)


def test_too_few_pictures_are_refused():
    with pytest.raises(InputError, match="at least two rows"):
        frechet.frechet(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="more pictures"):
        frechet.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
