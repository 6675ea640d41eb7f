"""What a private run promises, as numbers and in plain words: written beside every model as `privacy.json`."""

import math

from tuneleak.errors import InputError
from tuneleak.privacy import accounting, release

ADJACENCY = "add/remove one record, Poisson sampling"
NOT_COVERED = (
    "Not covered: the choice of hyper-parameters on private pictures (presets choose them on a public style, or on people that nothing is reported of), the "
    "declared size of the set, anything the public base was trained on, how long steps took, that a training stopped because it diverged, rounding where "
    "pictures are summed, and whatever else is published about the same pictures. The noise comes from a seeded generator so that runs repeat, and anybody "
    "can compute it: so far the promise is one on paper. For a real release set TUNELEAK_NOISE_SECRET to a long random text, and keep it secret."
)


def record(ledger, options, trained_weights, selection):
    """The record of a run, a dict ready for JSON (an infinite epsilon is the string "infinity").

    ledger: `Ledger` of the noisy steps taken; options: `PrivateFinetuneOptions`; trained_weights: their number; selection: `trainable.Selection`. Nothing in
    it is read off the private pictures. Raises `InputError` if the two accountants disagree.
    """
    privacy = options.privacy
    prv, pld = accounting.cross_check(ledger.history, privacy.delta)
    facts = {"epsilon": _number(max(prv, pld)), "epsilon_prv": _number(prv), "epsilon_pld": _number(pld)}
    facts |= _promise(max(prv, pld), ledger, privacy) | {
        "sample_rate": sample_rate(privacy), "expected_batch": privacy.expected_batch, "clip": privacy.clip, "multiplicity": privacy.multiplicity,
        "trainable": selection.kind, "attention_blocks": list(selection.blocks), "conditioning": options.conditioning, "trained_weights": trained_weights,
    }  # fmt: skip
    return facts | {"statement": statement(facts)}


def released(sigma, q, privacy, **further):
    """The record of one release with noise `sigma` at sampling rate `q`; `further` facts join it. Its epsilon is exact, and checked by a second accountant.

    privacy: `BudgetOptions`.
    """
    ledger = release.ledger(sigma, q)
    exact, pld = release.epsilon(sigma, privacy.delta, q), accounting.epsilon(ledger.history, privacy.delta, "pld")
    if math.isfinite(exact) and abs(exact - pld) > accounting.AGREEMENT * max(1.0, exact / 10):
        raise InputError(f"epsilon of one release is {exact:.4f} exactly and {pld:.4f} by PLD; this setting is outside what can be computed")
    facts = {"epsilon": _number(exact), "epsilon_exact": _number(exact), "epsilon_pld": _number(pld)}
    facts |= _promise(exact, ledger, privacy) | {"sample_rate": q} | further
    return facts | {"statement": statement(facts)}


def of_people(facts, pictures):
    """The record of a run whose one record was all `pictures` of a person, clipped as one gradient: what it bounds is that person, directly."""
    facts = facts | {"unit": "person", "pictures_per_unit": pictures, "adjacency": ADJACENCY.replace("record", "person")}
    if facts["epsilon"] == "infinity":
        return facts
    text = f"For one person with all {pictures} pictures, ({facts['epsilon']:.3g}, {facts['delta']:g})-differential privacy under {facts['adjacency']}, over "
    return facts | {"statement": f"{text}{_steps(facts['steps'])}. " + NOT_COVERED}


def _promise(epsilon, ledger, privacy):
    """What every record says: budget, history, and the unit's bound by group privacy."""
    group = privacy.pictures_per_unit if privacy.unit == "person" else 1
    unit_epsilon, unit_delta = accounting.group_privacy(epsilon, privacy.delta, group)
    return {
        "delta": privacy.delta, "budget": "infinity" if privacy.noiseless else privacy.epsilon, "history": ledger.history,
        "noise_multiplier": ledger.history[-1][0] if ledger.history else 0.0, "steps": ledger.steps, "public_size": privacy.public_size,
        "adjacency": ADJACENCY, "unit": privacy.unit, "pictures_per_unit": group, "unit_epsilon": _number(unit_epsilon), "unit_delta": unit_delta,
    }  # fmt: skip


def sample_rate(privacy):
    """q, a public constant: the expected batch over the declared size of the set (never over its true size)."""
    return privacy.expected_batch / privacy.public_size


def statement(facts):
    """The record in words."""
    if facts["epsilon"] == "infinity":
        return "No privacy is promised: gradients were clipped but no noise was added. " + NOT_COVERED
    text = f"For one picture, ({facts['epsilon']:.3g}, {facts['delta']:g})-differential privacy under {facts['adjacency']}, over {_steps(facts['steps'])}. "
    if facts["unit"] == "person":
        count, epsilon, delta = facts["pictures_per_unit"], facts["unit_epsilon"], facts["unit_delta"]
        if delta >= 1:
            text += f"A person has up to {count} pictures here, and for all of them at once nothing is promised: delta is 1 at epsilon {epsilon:.3g}. "
        else:
            text += f"For a person with up to {count} pictures it is ({epsilon:.3g}, {delta:.2g}) by group privacy. "
        text += "If all pictures are of one person, a useful bound and a useful model exclude each other: what is learned about the set is about that person. "
    else:
        text += "A person or artist with several pictures is protected less, by group privacy. "
    return text + NOT_COVERED


def _steps(count):
    return "one noisy release" if count == 1 else f"{count} noisy steps"


def _number(value):
    return "infinity" if math.isinf(value) else value
