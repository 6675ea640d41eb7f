"""The "epsilon 10" of the public code of the LoRA-weights attack (arXiv 2409.08482), accounted again, and why its other defence, DPGM, bounds nothing.

DP-AdamW ("DPDM"): the code tells its accountant of 200 pictures (class pictures of the base, which are not private), batch 1 and 1,000 epochs: q = 1/200 for
200,000 steps, delta 1e-6, which a Renyi accountant answers with sigma = 1.45 for epsilon 10. What is trained: 1,000 steps on five private pictures. Three
ways to count that:

- were each picture drawn by a coin with q = 1/5: 1,000 subsampled Gaussian steps
- as the code really goes through the pictures, in passes without a coin: each is in every fifth step for certain, 200 Gaussian steps, no amplification
- a person, all five pictures being of one: in every step, 1,000 Gaussian steps (clipping every picture to the norm that is noised)

Where every step counts, T Gaussian steps are one with sigma / sqrt(T), exactly; the others are accounted by privacy loss distributions, with the Renyi answer
beside it, which is what the code would print.

DPGM trains on (MMD^2 + xi)^2, xi a Gaussian number. Its gradient is 2 (MMD^2 + xi) grad MMD^2: the exact private gradient times a random number. Clipping and
Adam take the size away and leave the exact direction up to its sign, so a first step from public weights tells two neighbouring sets apart for certain.
"""

import contextlib
import functools
import math
import warnings

import numpy as np

from tuneleak.privacy import accounting, auditing, release

CLAIMED, DELTA = 10.0, 1e-6
DECLARED = (1 / 200, 200_000)  # sampling rate and steps that the public code's accountant is told
PICTURES, STEPS = 5, 1000  # private pictures and steps of a training
KERNELS = (1.0, 2.0, 4.0, 8.0, 16.0)  # widths of DPGM's kernels
DPGM = (10.0, 1e-5, 0.6)  # claimed epsilon, delta, and the noise that the code takes for it
RUNS = 200_000  # simulated first steps; enough for a bound above 10


@functools.cache
def declared_sigma():
    """The noise multiplier that the public code's accountant (Renyi) gives for its claim."""
    from opacus.accountants.utils import get_noise_multiplier

    with _quiet():
        rate, steps = DECLARED
        return float(get_noise_multiplier(target_epsilon=CLAIMED, target_delta=DELTA, sample_rate=rate, steps=steps, accountant="rdp"))


def renyi(sigma, rate, steps, delta):
    """epsilon by Renyi differential privacy, as Opacus computes it."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(sigma, rate, steps)]
    with _quiet():
        return float(accountant.get_epsilon(delta, alphas=[1 + x / 100 for x in range(1, 1000)] + list(range(11, 300))))


def epsilon(sigma, rate, steps, delta):
    """epsilon of `steps` Gaussian steps: in closed form where every record takes part in each, else by privacy loss distributions."""
    if rate == 1:
        return release.epsilon(sigma / math.sqrt(steps), delta)
    return accounting.epsilon([(sigma, rate, steps)], delta, "pld")


def accounts():
    """Rows (dicts `how`, `unit`, `rate`, `steps`, `sigma`, `delta`, `epsilon`, `renyi`) of the public code's training, and of the noise that an honest
    10 needs."""
    sigma = declared_sigma()
    ways = [
        ("as the code tells its accountant", "picture", *DECLARED),
        ("were pictures drawn by a coin", "picture", 1 / PICTURES, STEPS),
        ("as pictures are really visited", "picture", 1.0, STEPS // PICTURES),
        ("all pictures are of one person", "person", 1.0, STEPS),
    ]
    found = [_row(how, unit, rate, steps, sigma) for how, unit, rate, steps in ways]
    for how, unit, rate, steps in ways[2:]:
        needed = release.noise_multiplier(CLAIMED, DELTA) * math.sqrt(steps)
        found.append(_row(f"an honest {CLAIMED:g}: {how}", unit, rate, steps, needed))
    return found


def _row(how, unit, rate, steps, sigma):
    told = {"how": how, "unit": unit, "rate": rate, "steps": steps, "sigma": sigma, "delta": DELTA}
    return told | {"epsilon": epsilon(sigma, rate, steps, DELTA), "renyi": renyi(sigma, rate, steps, DELTA)}


def noise_deviation(batch, noise):
    """Deviation of DPGM's xi: 5 sqrt(2 * 5) / N * m, for five kernels (the first 5 is their largest sum), a batch of N and the code's factor m."""
    return len(KERNELS) * math.sqrt(2 * len(KERNELS)) / batch * noise


def refute_dpgm(runs=RUNS, seed=0):
    """(claimed epsilon, lower bound at 95 %): what first steps of DPGM on two neighbouring sets of one picture each show about its claim.

    The model is its own prediction w in R^2, from w = 0; the pictures ask for (1, 1) and (1, -1). grad K = K' (x - w), so the first Adam step, whatever xi,
    goes along the diagonal that the picture lies on: the product of the two signs tells which it was. xi decides the direction along it alone.
    """
    claimed, delta, noise = DPGM
    xi = np.random.default_rng(seed).normal(0, noise_deviation(1, noise), (2, runs))
    told = [first_step(np.array(picture), draws) for picture, draws in zip(((1.0, 1.0), (1.0, -1.0)), xi, strict=True)]
    positive = [int((np.prod(np.sign(steps), axis=1) > 0).sum()) for steps in told]
    return claimed, auditing.epsilon_many_runs(positive[0], runs, positive[1], runs, delta)


def first_step(picture, xi):
    """Adam's first step from w = 0, in units of its rate, `(runs, 2)`: the sign of the gradient of (MMD^2 + xi)^2 with one prediction w and one target."""
    distance = float(picture @ picture)
    kernel = sum(math.exp(-distance / (2 * width**2)) for width in KERNELS)
    slope = sum(math.exp(-distance / (2 * width**2)) / width**2 for width in KERNELS) * picture  # grad of K(w, x) in w, at 0
    squared = 2 * len(KERNELS) - 2 * kernel
    return -np.sign(2 * (squared + np.asarray(xi))[:, None] * (-2 * slope)[None])


@contextlib.contextmanager
def _quiet():
    """Without Opacus's remarks about the range of orders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
