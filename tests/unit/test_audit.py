"""Audits of the mechanism itself: honest runs stay below what they claim, two broken ones are caught."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak import files
from tuneleak.finetune import private
from tuneleak.options import AuditOptions, PrivacyOptions, PrivateFinetuneOptions
from tuneleak.privacy import accounting, audit, auditing, canaries

PRIVACY = PrivacyOptions(epsilon=1, delta=1e-5, expected_batch=100, public_size=1000, steps=30)


def bound(privacy, sigma, kind=canaries.DiracCanaries, count=1000, guesses=200):
    found = canaries.train_on_canaries_alone(kind(count, 2 * count, privacy, "test"), sigma)
    made, correct = auditing.guess(found.scores.numpy(), found.members.numpy(), guesses // 2, guesses // 2)
    return auditing.epsilon_one_run(count, made, correct, privacy.delta)


@pytest.fixture(scope="module")
def sigma():
    return accounting.noise_multiplier(PRIVACY.epsilon, PRIVACY.delta, 0.1, PRIVACY.steps)


def test_an_honest_run_stays_below_its_claim(sigma):
    assert accounting.epsilon([(sigma, 0.1, 30)], 1e-5) <= 1
    assert bound(PRIVACY, sigma) <= 1
    assert bound(PRIVACY.model_copy(update={"multiplicity": 8}), sigma) <= 1


def test_a_weak_but_honest_run_gives_a_bound_that_means_something():
    claimed = accounting.epsilon([(0.6, 0.1, 30)], 1e-5)
    assert 0.5 < bound(PRIVACY, 0.6) <= claimed


def test_no_noise_is_caught():
    assert bound(PRIVACY, 0.0) > 3


def test_repeating_a_record_and_clipping_each_copy_is_caught(sigma):
    """The mistake of public DP-LoRA code at a claimed epsilon of 1 and K = 8, with 1,000 Dirac canaries."""

    class Repeated(canaries.DiracCanaries):
        def clipped(self, count):
            return self.privacy.multiplicity * super().clipped(count)  # K rows of one record, each clipped to C by itself

    assert bound(PRIVACY.model_copy(update={"multiplicity": 8}), sigma, Repeated) > 2


def told(runs, **changes):
    """{metric: value} of an audit's table; a run is (scores, members)."""
    options = AuditOptions(count=100, guesses=40, runs=len(runs))
    return {row["metric"]: row["value"] for row in audit.table(runs, PRIVACY.model_copy(update=changes), options, {})}


def perfect(count):
    """Runs in which every canary's score tells whether it is in; the first one is in every other run."""
    members = [torch.arange(100) % 2 == run % 2 for run in range(count)]
    return [(inside.float().numpy(), inside.numpy()) for inside in members]


def test_a_bound_stands_beside_the_largest_that_the_audit_could_show():
    """r guesses right are refuted up to ln(.05^(1/r) / (1 - .05^(1/r))) where delta is 0; many runs up to ln((1 - u) / u) with u = 1 - .025^(1/n)."""
    found = told(perfect(1), delta=1e-12)
    right = 0.05 ** (1 / 40)
    assert found["audited epsilon (one run)"] == found["ceiling of audited epsilon (one run)"] == pytest.approx(math.log(right / (1 - right)), abs=1e-3)
    found = told(perfect(100), delta=1e-12, epsilon=10)
    missed = 1 - 0.025 ** (1 / 50)
    assert found["audited epsilon (many runs)"] == found["ceiling of audited epsilon (many runs)"] == pytest.approx(math.log((1 - missed) / missed), abs=1e-3)
    blind = [(np.zeros(100), members) for _, members in perfect(100)]
    assert told(blind, epsilon=10)["audited epsilon (many runs)"] == 0 < 2.5 < told(blind, epsilon=10)["ceiling of audited epsilon (many runs)"]


def test_more_runs_leave_the_bound_of_one_run_as_it_is():
    """Split over 500 runs, a confidence of .95 would leave no room beside the failures that delta allows for: any number of right guesses gave 0."""
    assert told(perfect(500), delta=1e-5)["audited epsilon (one run)"] == told(perfect(1), delta=1e-5)["audited epsilon (one run)"] > 2


def test_a_bound_that_could_not_reach_a_quarter_of_the_claim_is_left_out():
    assert "audited epsilon (many runs)" not in told(perfect(20), epsilon=10)
    assert "audited epsilon (many runs)" in told(perfect(20), epsilon=3)
    assert "audited epsilon (many runs)" in told(perfect(20), noiseless=True), "against no promise at all every bound says something"


def audited(base, images, folder, kind, **privacy):
    """What the verb writes about a training on eight pictures, {metric: value}: 200 canaries, of which 100 are guessed about."""
    prompts = {name: f"picture of person {name}" for name in ("ada", "bob", "cyd", "dee")}
    privacy = PrivacyOptions(**{"epsilon": 1, "delta": 1e-5, "expected_batch": 8, "public_size": 16, "steps": 6} | privacy)
    files.write_json(folder / "training.json", PrivateFinetuneOptions(prompts=prompts, privacy=privacy, gradients="ghost").model_dump(mode="json"))
    options = AuditOptions(canaries=kind, count=200, guesses=100, pictures=8, draws=1)
    audit.audit(base, images, "w", folder / "training.json", folder / "audit.csv", options, device="cpu")
    table = pd.read_csv(folder / "audit.csv").set_index("metric")
    assert set(table.attack) == {f"audit-{kind}"} and table.n["correct guesses"] == 100
    assert set(table.defence) == {"epsilon=inf" if privacy.noiseless else "epsilon=1"}
    return table.value


def test_the_verb_catches_a_training_without_noise_and_keeps_below_an_honest_claim(tiny_base, tiny_images, tmp_path):
    caught = audited(tiny_base, tiny_images, tmp_path, "dirac", noiseless=True)
    assert caught["audited epsilon (one run)"] > 3 and caught["correct guesses"] > 0.95
    honest = audited(tiny_base, tiny_images, tmp_path, "dirac")
    assert honest["audited epsilon (one run)"] <= 1 and honest["correct guesses"] < 0.75


@pytest.mark.parametrize("remembers", [True, False], ids=["a network that remembers", "a network that does not"])
def test_the_verb_looks_for_the_pictures_that_were_trained_on(tiny_base, tiny_images, tmp_path, monkeypatch, remembers):
    """A tiny network remembers no noise picture, so its memory is made up: the error of a record falls by one if steps could draw it."""
    seen, step = set(), private.Trainer.step

    def watched(trainer):
        step(trainer)
        seen.update(record.numpy().tobytes() for record in trainer.data.latents if remembers)

    def losses(data, network, chosen, key, options):
        assert len(real(data, network, chosen, key, options)) == len(chosen) == 200
        return torch.tensor([0.0 if record.numpy().tobytes() in seen else 1.0 for record in data.latents[chosen]])

    real = audit._losses
    monkeypatch.setattr(private.Trainer, "step", watched)
    monkeypatch.setattr(audit, "_losses", losses)
    found = audited(tiny_base, tiny_images, tmp_path, "pictures", steps=1)
    if remembers:
        assert found["correct guesses"] == 1 and found["audited epsilon (one run)"] == found["ceiling of audited epsilon (one run)"] > 3
    else:
        assert found["correct guesses"] < 0.75 and found["audited epsilon (one run)"] < 1
