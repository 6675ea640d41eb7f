"""How much privacy a run of DP-SGD spends: a ledger of its noisy steps, epsilon by two accountants, and the noise that a budget asks for.

The mechanism is the Poisson-subsampled Gaussian under add/remove adjacency (two data sets differ in one record): each step takes every record
independently with probability `q`, clips each record's gradient to norm C and adds N(0, sigma^2 C^2). epsilon is given by the PRV accountant (Gopi et
al. 2021, arXiv 2106.02848, as Opacus implements it, an upper estimate), and cross-checked with privacy loss distributions (connect-the-dots,
Doroshenko et al. 2022, arXiv 2207.04380, as dp-accounting implements it, an upper bound up to its discretisation).
"""

import math
import warnings
from dataclasses import dataclass, field

from tuneleak.errors import InputError

EPSILON_ERROR = 0.01  # of the PRV accountant
TOLERANCE = 1e-3  # in epsilon, relative above 1: how closely a budget is used up
PLD_INTERVAL = 1e-4  # discretisation of privacy losses
AGREEMENT = 0.02  # in epsilon: by how much the two accountants may differ before a run is refused


@dataclass
class Ledger:
    """What a run has spent so far: `(sigma, q, steps)` in the order taken. It is saved with every checkpoint, so that nothing is forgotten."""

    history: list = field(default_factory=list)

    def step(self, noise_multiplier, sample_rate, count=1):
        """Note `count` noisy steps; an empty batch is one too, since adding noise to nothing is what hides that it was empty."""
        if count < 1:
            return
        if self.history and self.history[-1][:2] == [noise_multiplier, sample_rate]:
            self.history[-1][2] += count
        else:
            self.history.append([noise_multiplier, sample_rate, count])

    @property
    def steps(self):
        """Number of noisy steps taken."""
        return sum(count for _, _, count in self.history)

    def epsilon(self, delta):
        """epsilon of everything noted, by the PRV accountant: 0 before the first step, infinite once a step had no noise."""
        return epsilon(self.history, delta)


def epsilon(history, delta, accountant="prv"):
    """epsilon spent by `history`, a list of (noise multiplier, sample rate, steps), at `delta`.

    accountant: `prv` or `pld`. Returns 0 for no steps and infinity if a step had no noise. Raises `InputError` for values that make no mechanism.
    """
    _check_delta(delta)
    taken = [(float(sigma), float(q), int(steps)) for sigma, q, steps in history if steps]
    for sigma, q, _ in taken:
        if not 0 < q <= 1 or sigma < 0:
            raise InputError(f"a noisy step needs a sampling rate above 0 and up to 1 and a noise multiplier of 0 or more, not q={q:g} and sigma={sigma:g}")
    if not taken:
        return 0.0
    if any(sigma == 0 for sigma, _, _ in taken):
        return math.inf
    return _prv(taken, delta) if accountant == "prv" else _pld(taken, delta)


def noise_multiplier(target_epsilon, delta, sample_rate, steps):
    """The smallest sigma (to `TOLERANCE` in epsilon, on the safe side) with which `steps` steps at rate `sample_rate` stay within `target_epsilon`,
    by the PRV accountant.

    0 for an infinite epsilon. Raises `InputError` for a budget of 0, which no number of steps can keep.
    """
    _check_delta(delta)
    if math.isinf(target_epsilon):
        return 0.0
    if not target_epsilon > 0 or not 0 < sample_rate <= 1 or steps < 1:
        raise InputError(f"noise can be found for epsilon > 0, 0 < q <= 1 and at least one step, not epsilon={target_epsilon}, q={sample_rate}, steps={steps}")
    high = _renyi_noise(target_epsilon, delta, sample_rate, steps)  # a few percent too much: a start at which the PRV accountant is fast

    def spent(sigma):
        return epsilon([(sigma, sample_rate, steps)], delta)

    at_high = spent(high)
    while at_high > target_epsilon:
        high *= 1.1
        at_high = spent(high)
    low = 0.92 * high
    at_low = spent(low)
    while at_low <= target_epsilon:
        high, at_high, low = low, at_low, 0.85 * low
        at_low = spent(low)
    while target_epsilon - at_high > TOLERANCE * max(1.0, target_epsilon) and high / low > 1 + 1e-6:
        share = (math.log(at_low) - math.log(target_epsilon)) / (math.log(at_low) - math.log(at_high))  # log epsilon is nearly linear in log sigma
        middle = low * (high / low) ** min(0.98, share + 0.02)  # a little to the safe side, so that both ends move
        at_middle = spent(middle)
        if at_middle <= target_epsilon:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return high


def _renyi_noise(target_epsilon, delta, sample_rate, steps):
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus's, about the range of orders
            settings = {"target_epsilon": target_epsilon, "target_delta": delta, "sample_rate": sample_rate, "steps": steps}
            return float(get_noise_multiplier(**settings, accountant="rdp", epsilon_tolerance=0.01 * target_epsilon))
    except ValueError as error:
        raise InputError(f"no noise multiplier keeps epsilon={target_epsilon:g} at delta={delta:g}, q={sample_rate:g}, {steps} steps: {error}") from None


def group_privacy(epsilon, delta, size):
    """(epsilon, delta) for `size` records at once, from those for one: k epsilon and delta (e^{k epsilon} - 1) / (e^epsilon - 1), at most 1.

    Dwork & Roth 2014, lemma 2.2 with its sum kept (theirs rounds it up to k e^{(k-1) epsilon} delta). What holds for one picture holds for a
    person with `size` pictures in this weaker form only.
    """
    if size < 1:
        raise InputError(f"a group has at least one record, not {size}")
    if math.isinf(epsilon):
        return math.inf, 1.0
    exponents = [position * epsilon for position in range(size)]
    top = exponents[-1] + math.log(sum(math.exp(value - exponents[-1]) for value in exponents)) if exponents else 0.0
    return size * epsilon, min(1.0, math.exp(min(0.0, math.log(delta) + top)) if delta > 0 else 0.0)


def cross_check(history, delta):
    """(epsilon by PRV, epsilon by PLD); raises `InputError` if they differ by more than `AGREEMENT`: then neither is to be trusted."""
    first, second = epsilon(history, delta), epsilon(history, delta, "pld")
    if math.isfinite(first) and abs(first - second) > AGREEMENT * max(1.0, first / 10):
        raise InputError(f"the accountants disagree: epsilon is {first:.4f} by PRV and {second:.4f} by PLD; this setting is outside what they can compute")
    return first, second


def _prv(history, delta):
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(max(0.0, accountant.get_epsilon(delta, eps_error=EPSILON_ERROR)))


def _pld(history, delta):
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    for sigma, q, steps in history:
        accountant.compose(dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(sigma)), steps)
    return float(accountant.get_epsilon(delta))


def _check_delta(delta):
    if not 0 < delta < 1:
        raise InputError(f"delta must lie between 0 and 1, not {delta}")
