"""Intervals: closed forms, coverage, and what is resampled."""

import numpy as np
import pytest
from scipy import stats

from tuneleak.errors import InputError
from tuneleak.metrics import intervals


def study(concepts, seeds, images, concept_sd=0.0, image_sd=0.0, mean=0.0, random=0):
    """Rows of a balanced nested study: values, concept, seed and image labels."""
    random = np.random.default_rng(random)
    shape = concepts, seeds, images
    values = mean + concept_sd * random.normal(size=(concepts, 1, 1)) + image_sd * random.normal(size=shape)
    labels = [np.broadcast_to(axis, shape).ravel() for axis in np.ogrid[:concepts, :seeds, :images]]
    return values.ravel(), *labels


def test_mean_of_concepts_weighs_concepts_equally():
    assert intervals.mean_of_concepts([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]) == 0.5


def test_bootstrap_over_concepts_matches_the_closed_form():
    values, concepts, seeds, images = study(40, 1, 5, concept_sd=1.0)
    found = intervals.bootstrap(values, concepts, seeds, images, replicates=20000)
    means = values.reshape(40, -1).mean(1)
    assert found.unit == "concepts" and found.units == 40 and found.n == 200
    assert found.value == pytest.approx(means.mean())
    assert found.standard_error == pytest.approx(means.std() / np.sqrt(40), rel=0.03)
    assert found.high - found.low == pytest.approx(2 * 2.0227 * means.std(ddof=1) / np.sqrt(40), rel=0.03)  # Student's interval of 40


def test_seeds_are_resampled_within_a_drawn_concept():
    """With equal concept means only seeds vary: per concept variance s^2 / m of a mean of m seeds, over C concepts."""
    values = np.tile(np.repeat([-1.0, 1.0], 3), 10)
    concepts, seeds, images = (axis.ravel() for axis in np.broadcast_arrays(*np.ogrid[:10, :2, :3]))
    found = intervals.bootstrap(values, concepts, seeds, images, replicates=20000)
    assert found.standard_error == pytest.approx(np.sqrt(1 / 2 / 10), rel=0.03)


def test_images_are_resampled_with_few_concepts():
    values, concepts, seeds, images = study(3, 2, 6, concept_sd=10.0, image_sd=1.0)
    found = intervals.bootstrap(values, concepts, seeds, images, replicates=20000)
    assert found.unit == "images" and found.units == 18
    per_image = values.reshape(3, 2, 6).mean(1)
    assert found.standard_error == pytest.approx(np.sqrt((per_image.var(1) / 6).sum()) / 3, rel=0.03), "seeds of a picture stay together"


def test_unequal_concepts():
    values = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 5.0])
    found = intervals.bootstrap(values, list("aabbbc"), [0] * 6, [0, 1, 0, 1, 2, 0], replicates=50)
    assert found.value == found.low == found.high == 2.0


@pytest.mark.parametrize("concepts", [8, 12, 4])
def test_coverage(concepts):
    """Of 95 %: 570 of 600 +- 5.3; without the expansion some 535 of eight concepts."""
    hits = 0
    for trial in range(600):
        spread = {"concept_sd": 1.0} if concepts >= 8 else {"image_sd": 1.0}
        found = intervals.bootstrap(*study(concepts, 1, 10, mean=3.0, random=trial, **spread), replicates=300, seed=trial)
        hits += found.low <= 3.0 <= found.high
    assert 555 <= hits <= 590


def test_an_interval_excludes_zero_where_p_says_so():
    for trial in range(40):
        found = intervals.bootstrap(*study(9, 1, 2, concept_sd=1.0, mean=0.7, random=trial), replicates=4000, seed=trial)
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05) or abs(found.p - 0.05) < 0.01
    assert intervals.tails(0.95, 10**6) == pytest.approx((0.025, 0.975), abs=1e-5) and intervals.tails(0.9, 1) == pytest.approx((0.05, 0.95))


def test_paired_difference_cancels_what_is_shared():
    values, *labels = study(20, 1, 6, concept_sd=5.0)
    noise = np.random.default_rng(1).normal(size=values.shape)
    found = intervals.paired_difference(values + 0.3 + 0.1 * noise, values, *labels)
    assert found.low > 0.2 and found.high < 0.4 and found.p < 0.01
    assert intervals.paired_difference(values + 0.1 * noise, values, *labels).p > 0.01
    with pytest.raises(InputError):
        intervals.paired_difference(values[:-1], values, *labels)


def test_bootstrap_statistic_agrees_with_bootstrap_for_a_mean():
    values, concepts, seeds, images = study(12, 1, 4, concept_sd=1.0)
    one = intervals.bootstrap(values, concepts, seeds, images, replicates=4000)
    two = intervals.bootstrap_statistic(lambda weights: np.average(values, weights=weights), concepts, images, replicates=4000)
    assert two.value == pytest.approx(one.value) and two.unit == one.unit == "concepts" and two.units == 12
    assert two.standard_error == pytest.approx(one.standard_error, rel=0.05)
    few = intervals.bootstrap_statistic(lambda weights: np.average(values[:12], weights=weights), concepts[:12], images[:12], replicates=100)
    assert few.unit == "images" and few.units == 12
    assert few.standard_error == pytest.approx(0, abs=1e-9), "images of one concept are equal here and concepts are not resampled"


def test_bootstrap_statistic_keeps_the_seeds_of_an_image_together():
    seen = []
    intervals.bootstrap_statistic(lambda weights: seen.append(weights) or 0.0, ["a", "a", "b", "a"], ["0", "1", "0", "0"], replicates=30)
    assert all(weights[0] == weights[3] and weights[2] == 1 for weights in seen)
    assert len({tuple(weights) for weights in seen}) > 1


def test_values_that_are_all_alike_get_the_bounds_of_as_many_trials_as_units():
    labels = [str(k // 10) for k in range(200)], ["0"] * 200, [str(k) for k in range(200)]
    none = intervals.bootstrap(np.zeros(200), *labels)
    assert none.low == none.high == 0, "nothing to resample"
    found = intervals.within(none, np.zeros(200))
    assert (found.low, found.high) == pytest.approx((0.0, 0.1611), abs=5e-5), "Newcombe's 0 of 20: the concepts are what is independent"
    every = intervals.within(intervals.bootstrap(np.full(200, 50.0), *labels), np.full(200, 50.0), span=(0, 50))
    assert (every.value, every.low, every.high) == pytest.approx((50, 50 * (1 - 0.1611), 50), abs=5e-3)
    between = intervals.within(none, np.zeros(200), span=(-1, 1))
    assert (between.low, between.high) == pytest.approx((-0.1611, 0.1611), abs=5e-5), "a difference of shares: 0.1611 may differ, all one way"
    varied = np.arange(200) % 2.0
    plain = intervals.bootstrap(varied, *labels)
    assert intervals.within(plain, varied) is plain


def test_few_models_have_students_interval():
    """Of 1, 2, 4: mean 7/3, standard error sqrt(7)/3, t of two degrees of freedom 4.3027."""
    found = intervals.per_model([1, 2, 4], ["a", "a", "b"], [0, 1, 0])
    assert (found.value, found.standard_error) == pytest.approx((7 / 3, 7**0.5 / 3)) and (found.unit, found.units, found.n) == ("models", 3, 3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - 4.3027 * 7**0.5 / 3, 7 / 3 + 4.3027 * 7**0.5 / 3), abs=1e-4)
    assert found.p == pytest.approx(2 * stats.t.sf(7**0.5, 2))
    share = intervals.per_model([0, 0, 1, 0], list("abcd"), [0] * 4, span=(0, 1))
    assert (share.low, share.high) == (0, 1), "a quarter, give or take 3.18 quarters"
    alike = intervals.per_model([0.7, 0.7], ["a", "b"], [0, 0])
    assert alike.value == pytest.approx(0.7) and np.isnan([alike.low, alike.high]).all(), "two models that agree tell of no third"
    assert intervals.per_model([0.0, 0.0], ["a", "b"], [0, 0], span=(0, 1)).high == pytest.approx(0.6576, abs=1e-4)  # Wilson, 0 of 2
    single = intervals.per_model([0.7], ["a"], [0])
    assert single.value == 0.7 and np.isnan([single.low, single.high]).all()


def test_students_interval_covers_what_a_bootstrap_of_three_does_not():
    samples = np.random.default_rng(0).normal(size=(4000, 3))
    covers = [found.low < 0 < found.high for found in (intervals.student(values) for values in samples)]
    assert np.mean(covers) == pytest.approx(0.95, abs=0.012)
    assert np.mean((samples.min(1) < 0) & (samples.max(1) > 0)) == pytest.approx(0.75, abs=0.02)


def test_many_models_are_resampled_by_concept():
    values, concepts, seeds, images = study(10, 2, 1, concept_sd=1.0)
    assert intervals.per_model(values, concepts, seeds) == intervals.bootstrap(values, concepts, seeds, images)


def test_wilson_against_newcombe():
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263 and 0/20."""
    assert intervals.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert intervals.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(InputError):
        intervals.wilson(3, 2)


def test_minimum_detectable_effect_has_its_power():
    """Large samples: (1.96 + .84) standard errors; and a simulated t test at 10 clusters finds the effect about 80 % of the time."""
    assert intervals.minimum_detectable_effect(1.0, 10**6) == pytest.approx(2.8016, abs=1e-3)
    assert np.isnan(intervals.minimum_detectable_effect(1.0, 1))
    assert np.isnan(intervals.minimum_detectable_effect(1e-17, 10)), "a spread of zero is not known from ten values that are alike"
    effect = intervals.minimum_detectable_effect(1 / np.sqrt(10), 10)
    samples = np.random.default_rng(0).normal(effect, 1, (20000, 10))
    t = samples.mean(1) / samples.std(1, ddof=1) * np.sqrt(10)
    assert np.mean(np.abs(t) > 2.2622) == pytest.approx(0.8, abs=0.02)


def test_the_seed_decides():
    rows = study(10, 1, 3, concept_sd=1.0)
    assert intervals.bootstrap(*rows, seed=1) == intervals.bootstrap(*rows, seed=1) != intervals.bootstrap(*rows, seed=2)


@pytest.mark.parametrize("values", [[], [np.nan], [[1.0]]])
def test_bad_values(values):
    with pytest.raises(InputError):
        intervals.bootstrap(values, ["a"] * len(values), [0] * len(values), [0] * len(values))
