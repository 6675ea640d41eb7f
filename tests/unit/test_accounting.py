import math

import pytest
from scipy import stats

from tuneleak.errors import InputError
from tuneleak.privacy import accounting
from tuneleak.report import figures_dp_ldm

# steps, q, epsilon, delta, sigma: the authors' settings (yaml files of DP-LDM and DPImageBench), sigma as computed with Opacus 1.6.0
TABLE = [
    (6000, 1 / 30, 10, 1e-5, 1.4719), (6000, 1 / 30, 1, 1e-5, 9.775), (750, 0.04, 10, 1e-5, 0.8578), (750, 0.04, 5, 1e-5, 1.2317), (750, 0.04, 1, 1e-5, 4.2432),
    (1400, 0.05, 10, 1e-6, 1.2450), (1400, 0.05, 5, 1e-6, 2.0050), (1400, 0.05, 1, 1e-6, 8.0615), (940, 1 / 94, 10, 1e-5, 0.5516),
    (1650, 1 / 11, 10, 1e-5, 1.9934), (1650, 1 / 11, 1, 1e-5, 13.965),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "q", "target", "delta", "sigma"), [row for row in TABLE if row[2] == 1])
def test_sigma_of_a_budget_is_that_of_the_published_settings(steps, q, target, delta, sigma):
    found = accounting.noise_multiplier(target, delta, q, steps)
    assert found == pytest.approx(sigma, rel=0.01)
    prv, pld = accounting.cross_check([(found, q, steps)], delta)
    assert prv <= target and abs(prv - pld) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "q", "target", "delta", "sigma"), TABLE)
def test_the_sigma_table_within_one_percent_and_both_accountants_within_two_hundredths(steps, q, target, delta, sigma):
    """One percent more noise keeps the budget, one percent less exceeds it: so the smallest sigma lies between."""
    assert accounting.epsilon([(1.01 * sigma, q, steps)], delta) <= target < accounting.epsilon([(0.99 * sigma, q, steps)], delta)
    prv, pld = accounting.cross_check([(sigma, q, steps)], delta)
    assert abs(prv - pld) < 0.02


def test_the_paper_s_table_holds_every_setting_of_it():
    shown = {(steps, round(q, 6), target, delta) for _, steps, q, delta, known in figures_dp_ldm.SETTINGS for target in known}
    assert shown == {(steps, round(q, 6), target, delta) for steps, q, target, delta, _ in TABLE}
    assert {target for _, _, target, _ in shown} == set(figures_dp_ldm.BUDGETS)


def test_without_subsampling_epsilon_is_that_of_the_gaussian_mechanism():
    """delta(epsilon) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2) with mu = sqrt(steps) / sigma (Dong, Roth & Su 2019)."""
    sigma, steps, delta = 2.0, 9, 1e-5
    mu = math.sqrt(steps) / sigma
    for accountant in ("prv", "pld"):
        found = accounting.epsilon([(sigma, 1.0, steps)], delta, accountant)
        exact = stats.norm.cdf(-found / mu + mu / 2) - math.exp(found) * stats.norm.cdf(-found / mu - mu / 2)
        slack = stats.norm.cdf(-(found - 0.02) / mu + mu / 2) - math.exp(found - 0.02) * stats.norm.cdf(-(found - 0.02) / mu - mu / 2)
        assert exact <= delta <= slack, accountant


def test_a_ledger_knows_every_step_and_survives_being_written_down():
    ledger = accounting.Ledger()
    assert ledger.steps == 0 and ledger.epsilon(1e-5) == 0.0
    ledger.step(1.0, 0.1, 3)
    ledger.step(1.0, 0.1)
    ledger.step(2.0, 0.1, 2)
    assert ledger.history == [[1.0, 0.1, 4], [2.0, 0.1, 2]] and ledger.steps == 6
    assert accounting.Ledger([list(item) for item in ledger.history]).epsilon(1e-5) == ledger.epsilon(1e-5)
    assert accounting.epsilon([(1.0, 0.1, 4)], 1e-5) < ledger.epsilon(1e-5)
    ledger.step(0.0, 0.1)
    assert math.isinf(ledger.epsilon(1e-5))


def test_a_group_of_two_and_of_many():
    """For k = 2 the sum is delta (1 + e^epsilon); 50 pictures of one person at epsilon 1 leave no bound at all."""
    epsilon, delta = accounting.group_privacy(0.5, 1e-6, 2)
    assert epsilon == 1.0 and delta == pytest.approx(1e-6 * (1 + math.exp(0.5)))
    assert accounting.group_privacy(3.0, 1e-5, 1) == (3.0, pytest.approx(1e-5))
    assert accounting.group_privacy(1.0, 1e-5, 50) == (50.0, 1.0)
    assert accounting.group_privacy(math.inf, 1e-5, 3) == (math.inf, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1e-5, 0.1, 10), "epsilon > 0"), ((1, 0, 0.1, 10), "delta"), ((1, 1e-5, 1.5, 10), "q=1.5"), ((1, 1e-5, 0.1, 0), "at least one step")],
)
def test_what_no_noise_can_give_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        accounting.noise_multiplier(*arguments)
    assert accounting.noise_multiplier(math.inf, 1e-5, 0.1, 10) == 0.0


def test_accountants_that_disagree_stop_a_run(monkeypatch):
    monkeypatch.setattr(accounting, "_pld", lambda history, delta: 0.5)
    with pytest.raises(InputError, match="disagree"):
        accounting.cross_check([(4.0, 0.04, 750)], 1e-5)
