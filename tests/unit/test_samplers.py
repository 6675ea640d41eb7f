"""Schedule, time lists and DDIM against diffusers and against the closed form for Gaussian data."""

import math

import pytest
import torch

from tuneleak.errors import InputError
from tuneleak.models.samplers import ddim_step, sample
from tuneleak.models.schedule import alphas_cumprod, compat_timesteps, ddim_timesteps, final_alpha_cumprod

SD = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ABAR = alphas_cumprod(SD)
CLEAN_VARIANCE, MEAN = 0.4, 1.5


def gaussian_noise_pred(x, t):
    """Exact noise prediction for data N(MEAN, CLEAN_VARIANCE)."""
    abar = float(ABAR[t])
    return math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) / (abar * CLEAN_VARIANCE + 1 - abar)


def starting_noise(n=8):
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", [{}, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, {"trained_betas": [0.1, 0.2, 0.3]}])
def test_alphas_cumprod_is_diffusers(changes):
    from diffusers import DDIMScheduler

    config = {**SD, **changes}
    torch.testing.assert_close(alphas_cumprod(config).float(), DDIMScheduler(**config).alphas_cumprod, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("wrong", [{"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True}])
def test_unknown_schedules_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        alphas_cumprod({**SD, **wrong})


@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("steps", [20, 50])
def test_ddim_agrees_with_diffusers(steps, to_one):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD, steps_offset=1, set_alpha_to_one=to_one, clip_sample=False)
    scheduler.set_timesteps(steps)
    timesteps = ddim_timesteps(1000, steps)
    assert [t for t, _ in timesteps] == scheduler.timesteps.tolist()
    expected = x = starting_noise()
    for t in scheduler.timesteps:
        expected = scheduler.step(gaussian_noise_pred(expected, int(t)), t, expected).prev_sample
    result = sample(gaussian_noise_pred, x, timesteps, ABAR, final_alpha_cumprod(scheduler.config, ABAR))
    assert (result - expected).abs().max() < 1e-5


@pytest.mark.parametrize("timesteps", [ddim_timesteps(1000, 20), ddim_timesteps(1000, 50), compat_timesteps(1000, 50)])
def test_ddim_of_gaussian_data_is_the_affine_map_in_closed_form(timesteps):
    # with d = x - sqrt(abar) m and v = abar s + 1 - abar, one step gives d' = (sqrt(abar abar') s + sqrt((1 - abar)(1 - abar'))) d / v
    factor, abar = 1.0, float(ABAR[timesteps[0][0]])
    for t, previous in timesteps:
        a, b = float(ABAR[t]), float(ABAR[max(previous, 0)])
        factor *= (math.sqrt(a * b) * CLEAN_VARIANCE + math.sqrt((1 - a) * (1 - b))) / (a * CLEAN_VARIANCE + 1 - a)
    x, end = starting_noise(), timesteps[-1][1]
    repeated = len({t for t, _ in timesteps}) < len(timesteps)
    result = sample(gaussian_noise_pred, x, timesteps, ABAR)
    if repeated:
        # applied twice, a jump misplaces the mean too; only the spread keeps the closed form
        torch.testing.assert_close(result - result[0], factor * (x - x[0]), rtol=1e-4, atol=1e-5)
        assert abs(float((result - factor * x).mean()) - MEAN * (math.sqrt(float(ABAR[end])) - factor * math.sqrt(abar))) > 1e-3
    else:
        expected = math.sqrt(float(ABAR[0])) * MEAN + factor * (x - math.sqrt(abar) * MEAN)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_many_steps_approach_the_probability_flow():
    # the exact flow maps N(sqrt(abar_T) m, abar_T s + 1 - abar_T) onto the end's Gaussian by the ratio of standard deviations
    x, (first, _) = starting_noise(), ddim_timesteps(1000, 500)[0]
    top, end = float(ABAR[first]), float(ABAR[0])
    ratio = math.sqrt((end * CLEAN_VARIANCE + 1 - end) / (top * CLEAN_VARIANCE + 1 - top))
    exact = math.sqrt(end) * MEAN + ratio * (x - math.sqrt(top) * MEAN)
    coarse, fine = (float((sample(gaussian_noise_pred, x, ddim_timesteps(1000, n), ABAR) - exact).abs().max()) for n in (20, 500))
    assert fine < coarse / 10


def test_compat_list_is_the_first_fifty_of_pndm():
    from diffusers import PNDMScheduler

    scheduler = PNDMScheduler(**SD, steps_offset=1, skip_prk_steps=True)
    scheduler.set_timesteps(50)
    assert len(scheduler.timesteps) == 51
    timesteps = compat_timesteps(1000, 50)
    assert [t for t, _ in timesteps] == scheduler.timesteps.tolist()[:50]
    assert timesteps[:4] == [(981, 961), (961, 941), (961, 941), (941, 921)]
    assert timesteps[-1] == (21, 1)
    assert all(previous == max(1, t - 20) for t, previous in timesteps)


def test_ddim_step_with_the_true_noise_lands_on_the_noised_picture():
    clean, noise = starting_noise(), torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    noised = [math.sqrt(float(ABAR[t])) * clean + math.sqrt(1 - float(ABAR[t])) * noise for t in (700, 300)]
    torch.testing.assert_close(ddim_step(noised[0], noise, float(ABAR[700]), float(ABAR[300])), noised[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ddim_step(noised[0], noise, float(ABAR[700]), 1.0), clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 1000, 1001])
def test_too_many_or_no_steps_are_refused(steps):
    with pytest.raises(InputError, match="sampler steps"):
        ddim_timesteps(1000, steps)
