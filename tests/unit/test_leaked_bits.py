"""Leaked bits of decisions, what epsilon allows, LiRA and RMIA, and the public code's accounts, against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tuneleak.errors import InputError
from tuneleak.finetune import objective
from tuneleak.metrics import bits, roc, shadow_models
from tuneleak.privacy import published


def test_bits_of_a_decision():
    assert bits.decision_bits(1, 0) == 1 and bits.decision_bits(0.3, 0.3) == pytest.approx(0, abs=1e-12)
    error = 0.11  # a binary symmetric channel: 1 - H(error)
    capacity = 1 + error * math.log2(error) + (1 - error) * math.log2(1 - error)
    assert bits.decision_bits(1 - error, error) == pytest.approx(capacity)
    # a Gaussian shift of d, cut half way, is such a channel with error Phi(-d / 2)
    d = 1.4
    error = stats.norm.cdf(-d / 2)
    assert bits.decision_bits(stats.norm.cdf(d / 2), error) == pytest.approx(1 - bits.entropy(error))


def test_the_estimate_has_no_bias_to_first_order():
    rng = np.random.default_rng(0)
    for tpr, fpr in ((0.4, 0.4), (0.7, 0.3)):
        hits, alarms = rng.binomial(60, tpr, 20000), rng.binomial(200, fpr, 20000)
        plain = np.mean([bits.decision_bits(a / 60, b / 200) for a, b in zip(hits, alarms, strict=True)])
        corrected = np.mean([bits.decision_bits(a / 60, b / 200, 60, 200) for a, b in zip(hits, alarms, strict=True)])
        true = bits.decision_bits(tpr, fpr)
        assert abs(corrected - true) < 0.15 * abs(plain - true) and plain > true
    labels = np.array([True] * 3 + [False] * 4)
    decisions = np.array([True, True, False, True, False, False, False])
    assert bits.weighted_bits(labels, decisions, [1] * 7) == pytest.approx(bits.decision_bits(2 / 3, 1 / 4, 3, 4))
    assert bits.weighted_bits(labels, decisions, [2, 0, 1, 1, 1, 1, 1]) == pytest.approx(bits.decision_bits(2 / 3, 1 / 4, 3, 4))


def test_thresholds_come_from_other_concepts():
    labels, scores = np.array([1, 1, 0, 0] * 2, bool), np.array([5.0, 4, 3, 2, 0.5, 0.4, 0.3, 0.2])
    concepts = np.array(["a"] * 4 + ["b"] * 4)
    decided = bits.held_out_decisions(labels, scores, concepts)
    assert decided[:4].all() and not decided[4:].any()  # .4, best on b, lets all of a in; 4, best on a, none of b
    assert not bits.held_out_decisions(labels[:4], scores[:4], concepts[:4]).any()
    assert bits.best_threshold(labels[:4], scores[:4]) == 4.0
    with pytest.raises(InputError, match="members and non-members"):
        bits.best_threshold([True, True], [1, 2])


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (2.5, 1e-3), (10.0, 1e-5), (0.5, 0.2)])
def test_what_epsilon_allows(epsilon, delta):
    """The area under min(e^epsilon x + delta, 1 - e^-epsilon (1 - delta - x)), numerically; and the extreme mechanism's information."""
    x = np.linspace(0, 1, 200_001)
    curve = np.minimum.reduce([np.ones_like(x), np.exp(epsilon) * x + delta, 1 - np.exp(-epsilon) * np.maximum(1 - delta - x, 0)])
    assert bits.largest_auc(epsilon, delta) == pytest.approx(np.trapezoid(curve, x), abs=1e-6)
    kept = 1 / (1 + math.exp(-epsilon))
    assert bits.largest_bits(epsilon, delta) == pytest.approx(delta + (1 - delta) * bits.decision_bits(kept, 1 - kept))
    assert bits.largest_auc(800.0, 0.0) == 1.0


def shadows(models=400, pictures=50, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    inside = rng.random((models, pictures)) < 0.5
    hardness = rng.normal(0, 3, pictures)  # what a score without shadows drowns in
    return hardness + rng.normal(0, 1, inside.shape) - shift * inside, inside


def test_lira_is_the_likelihood_ratio_of_gaussians():
    """Losses N(h, 1) outside and N(h - 1, 1) inside: the log ratio is h - loss - 1/2, and the AUC Phi(1 / sqrt 2)."""
    losses, inside = shadows()
    scores = shadow_models.lira(losses, inside)
    hardness = np.array([losses[~inside[:, i], i].mean() for i in range(losses.shape[1])])
    assert np.abs(scores - (hardness[None] - losses - 0.5)).mean() < 0.15
    assert roc.auc(scores[inside], scores[~inside]) == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.01)
    assert roc.auc(-losses[inside], -losses[~inside]) < 0.62


def test_lira_leaves_the_target_out_and_asks_for_shadows():
    """Ten models, one picture, five of them trained on it: the target's means are those of the nine others, the deviations those of each side about
    its mean."""
    losses, inside = np.arange(10.0)[:, None] ** 1.5, (np.arange(10) % 2 == 0)[:, None]
    phi = -losses[:, 0]
    sides = [phi[inside[:, 0]], phi[~inside[:, 0]]]
    means = [(sides[0].sum() - phi[4]) / 4, sides[1].mean()]  # the fifth model is trained on the picture
    expected = [stats.norm.logpdf(phi[4], mean, side.std(ddof=1)) for mean, side in zip(means, sides, strict=True)]
    assert shadow_models.lira(losses, inside)[4, 0] == pytest.approx(expected[0] - expected[1])
    few = np.zeros((5, 1), bool)
    few[:2] = True
    assert np.isnan(shadow_models.lira(np.arange(5.0)[:, None], few)).all()
    with pytest.raises(InputError, match="do not vary"):
        shadow_models.lira(np.ones((8, 2)), np.arange(16).reshape(8, 2) % 4 < 2)


def test_rmia_by_hand():
    """Two models: each is the other's only shadow, so the ratio of a picture is the difference of its two losses, compared with those of the population."""
    losses, population = np.array([[1.0, 2.0], [3.0, 2.5]]), np.array([[0.0, 0.0, 0.0], [0.2, 1.0, 3.0]])
    inside = np.array([[True, False], [False, True]])
    found = shadow_models.rmia(losses, inside, population)
    # target 0: differences 2 and .5 against .2, 1, 3; target 1: -2 and -.5 against -.2, -1, -3
    np.testing.assert_allclose(found, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]])
    losses, inside = shadows(64, 40)
    scores = shadow_models.rmia(losses, inside, shadows(64, 30, 0, seed=1)[0])
    assert roc.auc(scores[inside], scores[~inside]) == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.03)


def test_the_public_codes_epsilon_ten():
    """Against numbers computed by hand in the analysis of that code: sigma 1.45, then about 36 (Renyi), 93 and 350 (Renyi) instead of 10."""
    rows = {row["how"]: row for row in published.accounts()}
    told, coin, visited, person = list(rows.values())[:4]
    assert told["sigma"] == pytest.approx(1.45, abs=0.005) and told["renyi"] == pytest.approx(10, abs=0.05)
    assert coin["renyi"] == pytest.approx(36.5, abs=0.7) and coin["epsilon"] < coin["renyi"]
    mu = math.sqrt(200) / told["sigma"]  # Gaussian DP: delta(epsilon) = Phi(-e/mu + mu/2) - e^e Phi(-e/mu - mu/2)
    delta = stats.norm.cdf(-visited["epsilon"] / mu + mu / 2) - math.exp(visited["epsilon"] + stats.norm.logcdf(-visited["epsilon"] / mu - mu / 2))
    assert delta == pytest.approx(1e-6, rel=1e-3) and visited["epsilon"] == pytest.approx(93.3, abs=0.2)
    assert person["epsilon"] == pytest.approx(341.5, abs=0.5) and person["renyi"] == pytest.approx(350, rel=0.03)
    for honest in list(rows.values())[4:]:
        assert honest["epsilon"] == pytest.approx(10, abs=0.01)


def test_the_discrepancy_by_hand():
    """One prediction and one target at squared distance 2: 2 * 5 - 2 sum exp(-1 / s^2)."""
    kernel = sum(math.exp(-1 / width**2) for width in objective.KERNEL_WIDTHS)
    assert float(objective.mmd_squared(torch.zeros(1, 2), torch.ones(1, 2))) == pytest.approx(10 - 2 * kernel, rel=1e-6)
    batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert float(objective.mmd_squared(batch, batch)) == pytest.approx(0, abs=1e-6)
    assert tuple(objective.KERNEL_WIDTHS) == published.KERNELS


def test_the_noise_of_dpgm_hides_nothing():
    """Whatever is drawn, the gradient lies on the line of the exact private gradient, and Adam's first step tells two neighbouring sets apart for certain."""
    abar = torch.tensor([0.0], dtype=torch.float64)  # x_t is the noise, the target: the network's answer is its weight
    exact, signs = None, set()
    for picture in ((1.0, 1.0), (1.0, -1.0)):
        target, directions = torch.tensor(picture).view(1, 2, 1, 1), []
        for xi in (0.0, -3.0, 0.7, -40.0, 25.0):
            weight = torch.zeros(2, requires_grad=True)

            def network(x, t, context, weight=weight):
                return weight.view(1, 2, 1, 1) + 0 * x

            batch = objective.Batch(torch.zeros(1, 2, 1, 1), target, torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, 1), torch.ones(1))
            objective.noisy_mmd(network, batch, abar, "epsilon", xi).backward()
            exact = weight.grad.clone() if xi == 0 else exact
            assert abs(float(torch.nn.functional.cosine_similarity(weight.grad, exact, dim=0))) == pytest.approx(1, abs=1e-6)
            optimizer = torch.optim.Adam([weight], lr=1.0)
            optimizer.step()
            np.testing.assert_allclose(weight.detach().numpy(), published.first_step(np.array(picture), np.array([xi]))[0], rtol=1e-4)
            directions.append(float(weight.detach().prod().sign()))
        assert len(set(directions)) == 1
        signs.add(directions[0])
    assert signs == {1.0, -1.0}
    claimed, shown = published.refute_dpgm()
    assert shown > claimed == 10
