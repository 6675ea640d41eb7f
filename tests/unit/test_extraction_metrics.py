"""AS, A-ESR, leaked bits and the match threshold."""

from itertools import combinations

import numpy as np
import pytest

from tuneleak.errors import InputError
from tuneleak.metrics import extraction

# Per-picture similarities of the authors' own Van Gogh runs (N0 = 10, N = 500), with AS, and the counts at .7 and .6.
PUBLISHED = {
    "dreambooth-cfg": ([0.815, 0.743, 0.622, 0.608, 0.546, 0.533, 0.362, 0.335, 0.315, 0.291], 0.5170, 2, 4),
    "dreambooth-finextract": ([0.776, 0.746, 0.582, 0.581, 0.511, 0.486, 0.475, 0.456, 0.396, 0.274], 0.5285, 2, 2),
    "lora-cfg": ([0.657, 0.556, 0.531, 0.529, 0.501, 0.492, 0.425, 0.418, 0.335, 0.310], 0.4754, 0, 1),
    "lora-finextract": ([0.670, 0.622, 0.544, 0.502, 0.486, 0.423, 0.404, 0.294, 0.284, 0.245], 0.4474, 0, 2),
}


@pytest.mark.parametrize("run", PUBLISHED)
def test_published_similarities_give_the_published_aggregates(run):
    similarities, average, strict, loose = PUBLISHED[run]
    assert extraction.average_similarity(similarities) == pytest.approx(average, abs=2e-4)
    assert extraction.a_esr(similarities, 0.7) == pytest.approx(strict / 10)
    assert extraction.a_esr(similarities, 0.6) == pytest.approx(loose / 10)


def test_concepts_weigh_equally_and_the_threshold_is_included():
    assert extraction.average_similarity([1.0, 0.0, 0.0], ["a", "b", "b"]) == 0.5
    assert extraction.a_esr([0.7, 0.69, 0.7], 0.7, ["a", "b", "b"]) == 0.75


def test_mutual_information_of_known_joint_distributions():
    """Exact joint tables: plug-in value plus the Miller-Madow term (K_x + K_y - K_xy - 1) / 2n nats."""
    same = np.repeat(["a", "b", "c", "d"], 25)
    assert extraction.mutual_information(same, same) == pytest.approx(2 + (4 + 4 - 4 - 1) / (200 * np.log(2)))
    x, y = np.repeat(["a", "b"], 50), np.tile(["u", "v"], 50)
    assert extraction.mutual_information(x, y) == pytest.approx((2 + 2 - 4 - 1) / (200 * np.log(2)))
    x, y = np.array([0, 0, 0, 1] * 20), np.array([0, 0, 1, 1] * 20)  # joint 1/2, 1/4, 0, 1/4
    exact = 0.5 * np.log2(0.5 / (0.75 * 0.5)) + 0.25 * np.log2(0.25 / (0.75 * 0.5)) + 0.25 * np.log2(0.25 / (0.25 * 0.5))
    assert extraction.mutual_information(x, y) == pytest.approx(exact + (2 + 2 - 3 - 1) / (160 * np.log(2)))


def test_the_correction_removes_the_bias_of_the_plug_in_estimate():
    """A channel that is right with probability .7, else uniform over 4 labels, read 240 times."""
    random = np.random.default_rng(0)
    right, wrong = 0.7 + 0.3 / 4, 0.3 / 4
    truth = 2 + right * np.log2(right) + 3 * wrong * np.log2(wrong)
    corrected, plug_in = [], []
    for _ in range(1000):
        x = random.integers(0, 4, 240)
        y = np.where(random.random(240) < 0.7, x, random.integers(0, 4, 240))
        share = np.bincount(4 * x + y, minlength=16).reshape(4, 4) / 240
        independent = share.sum(1, keepdims=True) * share.sum(0)
        plug_in.append((share[share > 0] * np.log2(share[share > 0] / independent[share > 0])).sum())
        corrected.append(extraction.mutual_information(x, y))
    assert np.mean(corrected) == pytest.approx(truth, abs=0.01)
    assert np.mean(plug_in) > truth + 0.02


def test_weights_count_rows():
    x, y = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 1])
    times = np.array([3, 2, 0, 1])
    assert extraction.mutual_information(x, y, times) == pytest.approx(extraction.mutual_information(np.repeat(x, times), np.repeat(y, times)))


def test_leaked_bits_subtract_what_heldouts_tell():
    random = np.random.default_rng(0)
    mouth, eyes = (random.integers(0, 4, 4000) for _ in range(2))
    noise = random.integers(0, 4, 4000)
    true = {"mouth": mouth, "eyes": eyes}
    assert extraction.leaked_bits(true, true, {"mouth": noise, "eyes": noise}) == pytest.approx(4, abs=0.02)
    assert extraction.leaked_bits(true, true, {"mouth": mouth, "eyes": noise}) == pytest.approx(2, abs=0.02), "what the control tells is not leaked"
    assert extraction.leaked_bits(true, {"mouth": noise, "eyes": noise}, true) == pytest.approx(-4, abs=0.02)
    with pytest.raises(InputError):
        extraction.leaked_bits(true, {"mouth": mouth}, true)


def false_match_rate(block, n_images, tau):
    """By brute force over all sets of held-outs."""
    sets = list(combinations(range(block.shape[1]), n_images))
    return np.mean([[block[i, list(chosen)].max() >= tau for chosen in sets] for i in range(len(block))])


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_tau_is_the_smallest_threshold_with_the_rate(rate):
    random = np.random.default_rng(1)
    blocks = [random.random((5, 8)), random.random((3, 6)) * 0.9]
    found = extraction.calibrate_tau(blocks, 3, rate)

    def by_force(tau):
        return np.mean([false_match_rate(block, 3, tau) for block in blocks])

    assert found.achieved_rate == pytest.approx(by_force(found.tau)) and found.achieved_rate <= rate + 1e-12
    assert by_force(np.nextafter(found.tau, 0)) > rate
    assert (found.n_training, found.n_heldout, found.n_concepts) == (8, 6, 2)


def test_tau_agrees_with_random_draws():
    random = np.random.default_rng(2)
    block = random.normal(size=(40, 40))
    found = extraction.calibrate_tau([block], 6, 0.05)
    drawn = [block[:, random.choice(40, 6, replace=False)].max(1) for _ in range(2000)]
    assert np.mean(np.array(drawn) >= found.tau) == pytest.approx(found.achieved_rate, abs=0.005)


def test_tau_at_the_edges():
    assert extraction.calibrate_tau([np.array([[0.3, 0.5]])], 2, 0.0).tau == np.nextafter(0.5, 1)
    assert extraction.calibrate_tau([np.array([[0.3, 0.5]])], 2, 1.0).tau == 0.3
    assert extraction.calibrate_tau([np.array([[0.3, 0.5]])], 9, 0.0).achieved_rate == 0.0
    with pytest.raises(InputError):
        extraction.calibrate_tau([np.zeros((2, 0))], 2)
