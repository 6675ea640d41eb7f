"""Every parameterisation against the Gaussian closed form, and guidance in each of them."""

import math

import pytest
import torch

from tuneleak.attacks.extraction import finextract_unconditional
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.errors import InputError
from tuneleak.models import parameterisation, samplers, schedule
from tuneleak.options import Guidance

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SCHEDULERS = {
    "epsilon": SD,
    "v_prediction": SD | {"prediction_type": "v_prediction"},
    "sample": SD | {"prediction_type": "sample"},
    "flow_prediction": FLOW,
}


class GaussianNetwork:
    """The optimal network for data N(mean, variance I), in its own coordinates z = a x_0 + s noise, written from Gaussian conditioning alone.

    E[x_0 | z] = mean + a variance (z - a mean) / (a^2 variance + s^2), E[noise | z] = s (z - a mean) / (a^2 variance + s^2).
    """

    def __init__(self, kind, abar, mean, variance):
        self.kind, self.abar, self.mean, self.variance = kind, abar, mean, variance

    def __call__(self, z, time):
        if self.kind == "flow_prediction":  # the time is sigma T
            noise = (time.double() / len(self.abar)).view(-1, 1, 1, 1)
            signal = 1 - noise
        else:
            signal, noise = self.abar[time].sqrt().view(-1, 1, 1, 1), (1 - self.abar[time]).sqrt().view(-1, 1, 1, 1)
        whitened = (z - signal * self.mean) / (signal**2 * self.variance + noise**2)
        x0, eps = self.mean + signal * self.variance * whitened, noise * whitened
        return {"epsilon": eps, "v_prediction": signal * eps - noise * x0, "sample": x0, "flow_prediction": eps - x0}[self.kind]


def ask(network, x_t, t, abar, kind):
    t = torch.as_tensor(t).expand(len(x_t))
    z, time = parameterisation.network_input(x_t, t, abar, kind)
    return parameterisation.to_epsilon(network(z, time), x_t, t, abar, kind)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_optimal_network_becomes_the_optimal_noise_prediction(kind):
    config = SCHEDULERS[kind]
    abar, mean, variance = schedule.alphas_cumprod(config), 0.7, 0.3
    assert parameterisation.kind_of(config) == kind
    t = torch.tensor([3, 250, 600, 980])
    x_t = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = abar[t].view(-1, 1, 1, 1)
    expected = (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * variance + 1 - a)  # E[noise | x_t] in variance-preserving coordinates
    found = ask(GaussianNetwork(kind, abar, mean, variance), x_t, t, abar, kind)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    if kind != "epsilon":  # the bare output would have been something else
        z, time = parameterisation.network_input(x_t, t, abar, kind)
        assert float((GaussianNetwork(kind, abar, mean, variance)(z, time) - expected).abs().max()) > 0.1


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_model_guidance_finds_the_private_mean_in_every_parameterisation(kind):
    """p = N(0, I), q = N(2, I), fine-tuned = N(.5, I), their geometric mixture at lambda = 1/4, which is exact at every timestep for equal covariances."""
    config = SCHEDULERS[kind]
    abar = schedule.alphas_cumprod(config)
    final = schedule.final_alpha_cumprod(config, abar)

    def model(mean):
        return lambda x, t, context: ask(GaussianNetwork(kind, abar, mean, 1.0), x.double(), t, abar, kind).float()

    null = torch.zeros(1, 4, 2)
    pair = ModelPair(model(0.0), model(0.5), pretrained_null=null, pretrained_caption=null, finetuned_null=null, finetuned_caption=null)
    x, steps = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)), schedule.ddim_timesteps(1000, 50, 0)
    guided = samplers.sample(lambda x, t: finextract_unconditional.guide(pair, x, t, Guidance(w=4.0)), x, steps, abar, final)
    known = samplers.sample(lambda x, t: model(2.0)(x, t, None), x, steps, abar, final)
    plain = samplers.sample(lambda x, t: model(0.5)(x, t, None), x, steps, abar, final)
    torch.testing.assert_close(guided, known, rtol=1e-4, atol=1e-4)
    # variance one everywhere: a walk moves the mean by mean times the difference of sqrt(abar), and nothing else
    gained = math.sqrt(final) - math.sqrt(float(abar[980]))
    assert float((guided - plain).mean()) == pytest.approx(1.5 * gained, abs=0.03) and gained > 0.85


def test_ddim_walks_a_flow_as_euler_does():
    """The same steps in z = (1 - sigma) x_0 + sigma noise by Euler's method, with the scheduler's own sigmas."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    abar = schedule.alphas_cumprod(FLOW)
    sigmas = scheduler.sigmas.double().flip(0)  # rising, as our table's rows
    assert len(abar) == len(sigmas) and float(abar[-1]) == 0
    own = (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())
    torch.testing.assert_close(own, sigmas, rtol=1e-6, atol=1e-7)
    velocity = GaussianNetwork("flow_prediction", abar, 0.4, 0.2)
    steps = schedule.ddim_timesteps(1000, 25, 0)
    x_T = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = samplers.sample(lambda x, t: ask(velocity, x.double(), t, abar, "flow_prediction"), x_T, steps, abar, 1.0)
    start = float(abar[steps[0][0]])
    z = x_T / (math.sqrt(start) + math.sqrt(1 - start))
    for t, previous in steps:
        sigma, below = float(own[t]), float(own[previous]) if previous >= 0 else 0.0
        z = z + (below - sigma) * velocity(z, torch.full((3,), sigma * 1000, dtype=torch.float64))
    torch.testing.assert_close(ours.double(), z, rtol=1e-4, atol=1e-5)


def test_a_walk_cannot_start_without_signal():
    abar = schedule.alphas_cumprod(FLOW)
    with pytest.raises(InputError, match="zero signal"):
        samplers.sample(lambda x, t: x, torch.zeros(1, 1, 2, 2), [(999, -1)], abar)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"prediction_type": "noise"}, "'noise'"),
        (FLOW | {"prediction_type": "epsilon"}, "'epsilon' with the scheduler"),
    ],
)
def test_unknown_predictions_are_refused(config, reason):
    with pytest.raises(InputError, match=reason):
        parameterisation.kind_of(config)


def test_schedules_agree_with_diffusers():
    from diffusers import DDPMScheduler

    for name in ("linear", "squaredcos_cap_v2"):
        theirs = DDPMScheduler(beta_schedule=name).alphas_cumprod.double()
        torch.testing.assert_close(schedule.alphas_cumprod({"beta_schedule": name}), theirs, rtol=2e-4, atol=2e-6)
    with pytest.raises(InputError, match="use_dynamic_shifting"):
        schedule.alphas_cumprod(FLOW | {"use_dynamic_shifting": True})
