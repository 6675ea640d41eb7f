"""The guidance equations against closed-form noise predictions, at every timestep of Stable Diffusion's schedule."""

import math

import pytest
import torch

from tuneleak.attacks.extraction import theory
from tuneleak.attacks.extraction.guidance import classifier_free_guidance, finextract, model_guidance
from tuneleak.models.schedule import alphas_cumprod

SD = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ABAR = alphas_cumprod(SD)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian_eps(x, abar, mean, covariance):
    """Noise prediction for data N(mean, covariance): sqrt(1 - abar) (abar S + (1 - abar) I)^-1 (x - sqrt(abar) m)."""
    noised = abar * covariance + (1 - abar) * torch.eye(len(mean), dtype=x.dtype)
    return math.sqrt(1 - abar) * torch.linalg.solve(noised, (x - math.sqrt(abar) * mean).T).T


def mixture_log_density(x, abar, means, variances, weights):
    """log density of a noised mixture of isotropic Gaussians, up to a constant common to all mixtures; x (n, d)."""
    variances = abar * variances + 1 - abar
    distances = (x[:, None] - math.sqrt(abar) * means).square().sum(-1)
    return torch.logsumexp(weights.log() - distances / (2 * variances) - x.shape[1] / 2 * variances.log(), dim=1)


def mixture_eps(x, abar, means, variances, weights):
    """The same mixture's noise prediction, by responsibilities."""
    variances = abar * variances + 1 - abar
    offsets = x[:, None] - math.sqrt(abar) * means
    log_parts = weights.log() - offsets.square().sum(-1) / (2 * variances) - x.shape[1] / 2 * variances.log()
    return math.sqrt(1 - abar) * (log_parts.softmax(1)[..., None] * offsets / variances[:, None]).sum(1)


def eps_by_autograd(x, abar, log_density):
    x = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(x).sum(), x)
    return -math.sqrt(1 - abar) * score


def test_identities_of_equation_star():
    null, caption = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1)
    torch.testing.assert_close(finextract(null, caption, 1.0, 0.0), caption)
    assert torch.equal(finextract(null, caption, 0.0, 0.0), null)
    torch.testing.assert_close(finextract(null, null, 0.0, -0.02), 0.98 * null)
    torch.testing.assert_close(finextract(null, caption, 3.0, -0.02), 3 * caption - (3 - 1 + 0.02) * null)
    # with theta' = theta both predictions come from one model, and k = 0 leaves ordinary classifier-free guidance
    assert torch.equal(finextract(null, caption, 5.0, 0.0), classifier_free_guidance(null, caption, 5.0))
    assert torch.equal(model_guidance(null, caption, 0.0), null)
    torch.testing.assert_close(model_guidance(null, caption, 1.0), caption)


def test_guidance_is_float32_whatever_the_networks_are():
    null, caption = normal(2, 4, 8, 8).bfloat16(), normal(2, 4, 8, 8, seed=1).bfloat16()
    guided = finextract(null, caption, 3.0, -0.02)
    assert guided.dtype == torch.float32
    assert torch.equal(guided, finextract(null.float(), caption.float(), 3.0, -0.02))


@pytest.mark.parametrize("lam", [0.2, 0.5, 1.0])
def test_model_guidance_is_exact_for_gaussians_of_one_covariance(lam):
    # p^(1-lam) q^lam has the same covariance and the mean (1-lam) m_p + lam m_q, before and after noise
    root = normal(4, 4, dtype=torch.float64)
    covariance = root @ root.T / 4 + 0.3 * torch.eye(4, dtype=torch.float64)
    mean_p, mean_q = normal(4, seed=1, dtype=torch.float64), normal(4, seed=2, dtype=torch.float64)
    x = normal(5, 4, seed=3, dtype=torch.float64)
    for abar in ABAR.tolist():
        eps_p, eps_q, eps_tuned = (gaussian_eps(x, abar, m, covariance) for m in (mean_p, mean_q, (1 - lam) * mean_p + lam * mean_q))
        guided = model_guidance(eps_p.float(), eps_tuned.float(), 1 / lam)
        assert (guided - eps_q).abs().max() < 1e-5
        assert (model_guidance(eps_p, eps_tuned, 1 / lam) - eps_q).abs().max() < 1e-12


@pytest.fixture
def mixtures():
    """p, q and q(.|c) as mixtures of three Gaussians in four dimensions: (means, variances, weights)."""
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    variances = torch.tensor([[1.0, 0.5, 2.0], [0.2, 0.1, 0.4], [0.05, 0.1, 0.02]], dtype=torch.float64)
    return [(2 * normal(3, 4, seed=i, dtype=torch.float64), variances[i], weights[i]) for i in range(3)]


def test_model_guidance_is_exact_for_mixtures_taken_at_every_timestep(mixtures):
    p, q, _ = mixtures
    x, lam = normal(6, 4, seed=9, dtype=torch.float64), 0.3
    for abar in ABAR[::50].tolist():
        eps_tuned = eps_by_autograd(x, abar, lambda x, a=abar: (1 - lam) * mixture_log_density(x, a, *p) + lam * mixture_log_density(x, a, *q))
        guided = model_guidance(mixture_eps(x, abar, *p), eps_tuned, 1 / lam)
        torch.testing.assert_close(guided, mixture_eps(x, abar, *q), rtol=1e-10, atol=1e-10)


def test_conditional_guidance_needs_exactly_the_correction_of_the_derivation(mixtures):
    p, q, q_caption = mixtures
    x, lam, lam_caption = normal(6, 4, seed=9, dtype=torch.float64), 0.3, 0.4
    w = 1 / lam_caption
    for abar in ABAR[::50].tolist():

        def log_tuned(x, a=abar):
            null = (1 - lam) * mixture_log_density(x, a, *p) + lam * mixture_log_density(x, a, *q)
            return (1 - lam_caption) * null + lam_caption * mixture_log_density(x, a, *q_caption)

        eps_p, eps_q, eps_q_caption = (mixture_eps(x, abar, *parts) for parts in mixtures)
        eps_tuned = eps_by_autograd(x, abar, log_tuned)
        torch.testing.assert_close(theory.finetuned_caption_noise_pred(eps_p, eps_q, eps_q_caption, lam, lam_caption), eps_tuned, rtol=1e-10, atol=1e-10)
        corrected = finextract(eps_p, eps_tuned, w, 0.0) + theory.exact_correction(eps_p, eps_q, lam, w)
        torch.testing.assert_close(corrected, eps_q_caption, rtol=1e-9, atol=1e-9)
        # and it is needed: without it, or with the middle weight lambda' (1 - lambda') as a summary prints it, the answer is another
        assert (finextract(eps_p, eps_tuned, w, 0.0) - eps_q_caption).abs().max() > 1e-3
        misprint = (1 - lam) * (1 - lam_caption) * eps_p + lam_caption * (1 - lam_caption) * eps_q + lam_caption * eps_q_caption
        assert (misprint - eps_tuned).abs().max() > 1e-3


def test_k_is_exact_only_where_the_bracket_is_a_multiple_of_the_null_prediction():
    # zero-mean Gaussians: eps_q(0) = c eps_theta(0), so k = lam (w' - 1) (1 - c) is the correction, and negative when q is the narrower
    x, abar, lam, w = normal(5, 1, dtype=torch.float64), 0.5, 0.3, 3.0
    eye, zero = torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    eps_p, eps_q = gaussian_eps(x, abar, zero, eye), gaussian_eps(x, abar, zero, 0.2 * eye)
    eps_q_caption = gaussian_eps(x, abar, zero + 0.7, 0.1 * eye)
    eps_tuned = theory.finetuned_caption_noise_pred(eps_p, eps_q, eps_q_caption, lam, 1 / w)
    k = lam * (w - 1) * (1 - 1 / 0.6)
    assert k < 0
    torch.testing.assert_close(finextract(eps_p, eps_tuned, w, k), eps_q_caption)


def test_unequal_variances_break_the_premise_by_the_computed_amount():
    table = theory.geometric_mixture_error(ABAR, 1.0, 0.2, 0.3)
    assert list(table.timestep) == list(range(1000))
    half = theory.geometric_mixture_error([0.5], 1.0, 0.2, 0.3).iloc[0]
    # at abar = 1/2 the predictions are x times 1, 5/3 and 11/8: guided 9/4, off by .35 of eps_q (.58 of eps_theta)
    assert half.relative_error == pytest.approx(0.35, abs=1e-12)
    assert half.relative_error_unguided == pytest.approx(0.175, abs=1e-12)
    assert table.relative_error.max() == pytest.approx(0.364, abs=2e-3)
    assert table.relative_error.iloc[-1] < 0.02 and table.relative_error.iloc[0] < 0.02
    # the same number by the noise predictions themselves, at other points of the schedule
    x, eye, zero = normal(7, 1, dtype=torch.float64), torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in (0, 300, 700, 999):
        eps_p, eps_q, eps_tuned = (gaussian_eps(x, float(ABAR[t]), zero, v * eye) for v in (1.0, 0.2, 1 / 2.2))
        error = (model_guidance(eps_p, eps_tuned, 1 / 0.3) - eps_q).norm() / eps_q.norm()
        assert table.relative_error[t] == pytest.approx(float(error), rel=1e-9)


def test_equal_variances_or_full_fine_tuning_have_no_error():
    assert theory.geometric_mixture_error(ABAR, 0.7, 0.7, 0.3).relative_error.max() < 1e-12
    assert theory.geometric_mixture_error(ABAR, 1.0, 0.2, 1.0).relative_error.max() < 1e-12
    with pytest.raises(ValueError, match="positive variances"):
        theory.geometric_mixture_error(ABAR, 1.0, 0.0, 0.3)


def test_guided_sampling_is_the_public_code_written_out():
    """Two networks in batches of five, x0 and all, as the public code has it: the same latents to 1e-4."""
    from tuneleak.attacks.extraction import finextract as attack
    from tuneleak.attacks.extraction.pair import ModelPair
    from tuneleak.models.samplers import sample
    from tuneleak.models.schedule import alphas_cumprod, ddim_timesteps
    from tuneleak.options import Guidance

    abar, generator = alphas_cumprod({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}), torch.Generator().manual_seed(0)
    first, second = (torch.randn(3, 3, generator=generator) * 0.3 for _ in range(2))

    def network(mixing):
        return lambda x, t, context: torch.tanh(torch.einsum("ij,njhw->nihw", mixing, x)) + 1e-4 * t

    noise, null = torch.randn(12, 3, 4, 4, generator=generator), torch.zeros(1, 1, 1)
    pair = ModelPair(network(first), network(second), pretrained_null=null, pretrained_caption=null, finetuned_null=null, finetuned_caption=null)
    steps = ddim_timesteps(1000, 20)
    ours = sample(lambda x, t: attack.guide(pair, x, t, Guidance(w=3.0, k=-0.02)), noise, steps, abar)
    single, theirs = abar.float(), []
    for x in noise.split(5):
        for t, previous in steps:
            eps_null, eps_caption = network(first)(x, t, None), network(second)(x, t, None)
            eps = eps_null + 3.0 * (eps_caption - eps_null) - 0.02 * eps_null
            x0 = (x - (1 - single[t]).sqrt() * eps) / single[t].sqrt()
            x = single[max(previous, 0)].sqrt() * x0 + (1 - single[max(previous, 0)]).sqrt() * eps
        theirs.append(x)
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-4, atol=1e-4)
