"""What a private run promises, as numbers and in plain words: written beside every model as `privacy.json`."""

import math

from tuneleak.privacy import accounting

ADJACENCY = "add/remove one record, Poisson sampling"
NOT_COVERED = (
    "Not covered: the choice of hyper-parameters on private pictures (in this study they are chosen on a public style), the declared size of the set, "
    "anything the public base was trained on, and whatever else is published about the same pictures. The noise comes from a seeded generator "
    "so that runs repeat; for a real release the seed must be drawn at random and kept secret."
)


def record(ledger, options, pictures_per_person, trained_weights, selection):
    """The record of a run, a dict ready for JSON (an infinite epsilon is the string "infinity").

    ledger: `Ledger` of the noisy steps taken; options: `PrivateFinetuneOptions`; pictures_per_person: most pictures that one concept has in the training set;
    trained_weights: their number; selection: `trainable.Selection`. Raises `InputError` if the two accountants disagree.
    """
    privacy = options.privacy
    prv, pld = accounting.cross_check(ledger.history, privacy.delta)
    group = pictures_per_person if privacy.unit == "person" else 1
    person_epsilon, person_delta = accounting.group_privacy(max(prv, pld), privacy.delta, group)
    sigma = ledger.history[-1][0] if ledger.history else 0.0
    facts = {
        "epsilon": _number(max(prv, pld)), "epsilon_prv": _number(prv), "epsilon_pld": _number(pld), "delta": privacy.delta,
        "budget": "infinity" if privacy.noiseless else privacy.epsilon, "history": ledger.history, "noise_multiplier": sigma,
        "sample_rate": sample_rate(privacy), "steps": ledger.steps, "expected_batch": privacy.expected_batch, "public_size": privacy.public_size,
        "clip": privacy.clip, "multiplicity": privacy.multiplicity, "adjacency": ADJACENCY, "unit": privacy.unit, "pictures_per_unit": group,
        "unit_epsilon": _number(person_epsilon), "unit_delta": person_delta, "trainable": selection.kind, "attention_blocks": list(selection.blocks),
        "conditioning": options.conditioning, "trained_weights": trained_weights,
    }  # fmt: skip
    return facts | {"statement": statement(facts)}


def sample_rate(privacy):
    """q, a public constant: the expected batch over the declared size of the set (never over its true size)."""
    return privacy.expected_batch / privacy.public_size


def statement(facts):
    """The record in words."""
    if facts["epsilon"] == "infinity":
        return "No privacy is promised: gradients were clipped but no noise was added. " + NOT_COVERED
    text = f"For one picture, ({facts['epsilon']:.3g}, {facts['delta']:g})-differential privacy under {facts['adjacency']}, over {facts['steps']} noisy steps. "
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


def _number(value):
    return "infinity" if math.isinf(value) else value
