import math

import numpy as np
import pytest
from scipy import stats

from tuneleak.errors import InputError
from tuneleak.privacy import auditing


@pytest.mark.parametrize(("m", "guesses", "correct", "delta", "expected"), [(1000, 100, 75, 1e-4, 0.673), (100000, 1510, 1439, 1e-5, 2.675)])
def test_one_run_bounds_are_those_published_with_the_papers_code(m, guesses, correct, delta, expected):
    assert auditing.epsilon_one_run(m, guesses, correct, delta) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("guesses", "ceiling"), [(100, 3.49), (500, 5.11), (1000, 5.81), (5000, 7.42)])
def test_the_ceiling_of_one_run_if_every_guess_is_right(guesses, ceiling):
    """p^r = .05 with p = e^epsilon / (1 + e^epsilon)."""
    p = 0.05 ** (1 / guesses)
    assert auditing.epsilon_one_run(guesses, guesses, guesses, 0.0) == pytest.approx(math.log(p / (1 - p)), abs=1e-6) == pytest.approx(ceiling, abs=0.005)


@pytest.mark.parametrize(("accuracy", "expected"), [(0.6, 0.16), (0.7, 0.58), (0.8, 1.09), (0.9, 1.80)])
def test_what_a_realistic_attack_shows(accuracy, expected):
    assert auditing.epsilon_one_run(1000, 200, round(200 * accuracy), 1e-5) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("runs", "ceiling"), [(100, 3.28), (500, 4.91), (1000, 5.60), (5000, 7.21)])
def test_the_ceiling_of_many_runs(runs, ceiling):
    assert auditing.epsilon_many_runs(runs, runs, 0, runs, 0.0) == pytest.approx(ceiling, abs=0.01)
    assert auditing.epsilon_many_runs(runs, runs, 0, runs, 0.0, tests=10) < ceiling


def test_guesses_are_counted_on_both_sides():
    scores, members = [5, 4, 3, 2, 1, 0], [True, False, True, False, True, False]
    assert auditing.guess(scores, members, 2, 2) == (4, 2)
    assert auditing.guess(scores, members, 0, 1) == (1, 1)
    for k_plus, k_minus in ((4, 3), (0, 0)):
        with pytest.raises(InputError, match="cannot guess"):
            auditing.guess(scores, members, k_plus, k_minus)


def test_randomised_response_is_never_refuted_at_its_own_epsilon():
    """Coverage: an exactly epsilon-DP answer per canary exceeds the bound in at most 5 % of runs."""
    epsilon, m, random = 1.0, 400, np.random.default_rng(0)
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    bounds = np.array([auditing.epsilon_one_run(m, m, int(random.binomial(m, right)), 0.0) for _ in range(400)])
    assert (bounds > epsilon).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert bounds.mean() > 0.7


def test_the_gaussian_bound_is_below_the_gaussian_mechanisms_epsilon_and_above_the_plain_one():
    sigma, n, delta, random = 1.0, 4000, 1e-5, np.random.default_rng(1)
    inside, outside = random.normal(1 / sigma, 1, n), random.normal(0, 1, n)
    counts = int((inside > 1.5).sum()), n, int((outside > 1.5).sum()), n
    found = auditing.epsilon_gaussian(*counts, delta)
    exact = max(epsilon for epsilon in np.linspace(0, 8, 801) if stats.norm.cdf(-epsilon + 0.5) - math.exp(epsilon) * stats.norm.cdf(-epsilon - 0.5) > delta)
    assert auditing.epsilon_many_runs(*counts, delta) < found < exact + 1e-9 and found > 0.8 * exact


def test_nothing_is_shown_by_chance_results():
    assert auditing.epsilon_one_run(1000, 200, 100, 1e-5) == 0.0
    assert auditing.epsilon_many_runs(5, 100, 5, 100, 1e-5) == 0.0
    with pytest.raises(InputError, match="correct <= guesses"):
        auditing.p_value(10, 5, 6, 1.0, 0.0)
