"""One noisy release: closed forms, their inverse, and a second accountant."""

import math

import pytest
from scipy import integrate
from scipy.stats import norm

from tuneleak.errors import InputError
from tuneleak.options import BudgetOptions
from tuneleak.privacy import accounting, record, release


@pytest.mark.parametrize(("epsilon", "sigma"), [(0.5, 2.0), (1.0, 3.73), (10.0, 0.5)])
def test_without_sampling_it_is_the_analytic_gaussian_mechanism(epsilon, sigma):
    """Balle & Wang 2018, theorem 8 with sensitivity 1."""
    expected = norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)
    assert release.delta(epsilon, sigma) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("epsilon", "sigma", "q"), [(0.05, 1.0, 0.5), (0.3, 0.8, 0.2), (2.0, 0.5, 0.6)])
def test_with_sampling_it_is_the_hockey_stick_divergence_of_the_mixture(epsilon, sigma, q):
    def present(x):
        return (1 - q) * norm.pdf(x, 0, sigma) + q * norm.pdf(x, 1, sigma)

    def stick(p, r):
        return integrate.quad(lambda x: max(0.0, p(x) - math.exp(epsilon) * r(x)), -12, 12, limit=500, points=[0, 1])[0]

    def absent(x):
        return norm.pdf(x, 0, sigma)

    assert release.delta(epsilon, sigma, q) == pytest.approx(max(stick(present, absent), stick(absent, present)), rel=1e-4)


@pytest.mark.parametrize(("epsilon", "q"), [(1.0, 1.0), (10.0, 1.0), (1.0, 0.025), (10.0, 0.025)])
def test_noise_and_epsilon_are_inverse_and_agree_with_privacy_loss_distributions(epsilon, q):
    sigma = release.noise_multiplier(epsilon, 1e-5, q)
    assert release.epsilon(sigma, 1e-5, q) == pytest.approx(epsilon, abs=1e-5)
    assert accounting.epsilon([(sigma, q, 1)], 1e-5, "pld") == pytest.approx(epsilon, abs=0.02)


def test_sampling_needs_less_noise_and_no_noise_promises_nothing():
    assert release.noise_multiplier(1.0, 1e-5, 0.1) < release.noise_multiplier(1.0, 1e-5)
    assert release.noise_multiplier(math.inf, 1e-5) == 0 and release.epsilon(0.0, 1e-5) == math.inf
    with pytest.raises(InputError, match="protect nobody"):
        release.noise_multiplier(1.0, 1e-3, 1e-4)


def test_the_record_of_a_release_says_what_it_promises():
    budget = BudgetOptions(epsilon=2, delta=1e-4, public_size=100, unit="person", pictures_per_unit=3)
    facts = record.released(release.noise_multiplier(2, 1e-4), 1.0, budget)
    assert facts["epsilon"] == pytest.approx(2, abs=1e-4) and facts["steps"] == 1 and facts["unit_epsilon"] == pytest.approx(6, abs=1e-3)
    assert "one noisy release" in facts["statement"] and "up to 3 pictures" in facts["statement"]
    open_ended = record.released(0.0, 1.0, BudgetOptions(noiseless=True))
    assert open_ended["epsilon"] == "infinity" and open_ended["statement"].startswith("No privacy is promised")
