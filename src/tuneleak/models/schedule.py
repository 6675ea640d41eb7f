"""The noise schedule of a scheduler folder, and the time lists a sampler walks, as pure functions.

A time list is a list of pairs `(timestep, previous_timestep)`, noisiest first; a previous timestep of -1 is the end of the walk, where
alpha-bar is `final_alpha_cumprod`. It is a list of pairs because the public FineXtract code's list does not step from one entry to the next.
"""

import torch

from tuneleak.errors import InputError
from tuneleak.models.parameterisation import FLOW_SCHEDULER


def alphas_cumprod(scheduler_config):
    """alpha-bar of every training timestep as a float64 tensor `(T,)`, from a diffusers `scheduler_config.json` read as a dict.

    Computed in double precision: the cumulated product of a thousand float32 factors is off by up to 1e-5. Schedules `linear`,
    `scaled_linear` (Stable Diffusion), `squaredcos_cap_v2` and explicit `trained_betas` are known, and flow matching with a fixed shift; any other, and
    zero terminal SNR (where a noise prediction says nothing about the picture), is an `InputError`.
    """
    timesteps = scheduler_config.get("num_train_timesteps", 1000)
    if not isinstance(timesteps, int) or not 1 <= timesteps <= 100_000:
        raise InputError("scheduler_config.json needs num_train_timesteps from 1 to 100000; get it again")
    if scheduler_config.get("_class_name") == FLOW_SCHEDULER:
        return _of_flow(scheduler_config, timesteps)
    name = scheduler_config.get("beta_schedule", "linear")
    start, end = scheduler_config.get("beta_start", 0.0001), scheduler_config.get("beta_end", 0.02)
    numbers = all(isinstance(value, int | float) and 0 <= value <= 1 for value in (start, end))
    if not numbers:
        raise InputError("scheduler_config.json needs beta_start and beta_end between 0 and 1; get it again")
    if scheduler_config.get("rescale_betas_zero_snr"):
        raise InputError("scheduler_config.json asks for rescale_betas_zero_snr; a schedule that ends at zero signal is not supported, use another base")
    if scheduler_config.get("trained_betas") is not None:
        try:
            betas = torch.tensor(scheduler_config["trained_betas"], dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            betas = torch.empty(0)
    elif name == "linear":
        betas = torch.linspace(start, end, timesteps, dtype=torch.float64)
    elif name == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
    elif name == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, equation 17
        bars = torch.cos((torch.arange(timesteps + 1, dtype=torch.float64) / timesteps + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - bars[1:] / bars[:-1]).clamp(max=0.999)
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
        raise InputError(f"scheduler_config.json: beta_schedule {name!r} is not supported; use {known}")
    if betas.ndim != 1 or not 1 <= len(betas) <= 100_000 or not bool(((betas >= 0) & (betas < 1)).all()):  # NaN fails as well
        raise InputError("scheduler_config.json: its betas must be a list of numbers from 0 to below 1; get it again")
    return torch.cumprod(1.0 - betas, dim=0)


def _of_flow(scheduler_config, timesteps):
    """alpha-bar of the straight path's noise levels sigma = shift u / (1 + (shift - 1) u), u = 1 / T, ..., 1 (Esser et al. 2024, equation 23).

    (1 - sigma) : sigma is the ratio of signal to noise, so alpha-bar = (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2). The last one is 0.
    """
    for key in ("use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal"):
        if scheduler_config.get(key):
            raise InputError(f"scheduler_config.json sets {key}; only flow matching with a fixed shift is supported")
    u, shift = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps, float(scheduler_config.get("shift", 1.0))
    sigma = shift * u / (1 + (shift - 1) * u)
    return (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)


def final_alpha_cumprod(scheduler_config, alphas_cumprod):
    """alpha-bar at the end of a walk: 1 if the scheduler sets `set_alpha_to_one` or always ends there, else that of timestep 0 (Stable Diffusion)."""
    ends_at_one = scheduler_config.get("_class_name") in ("DDPMScheduler", FLOW_SCHEDULER)
    return 1.0 if scheduler_config.get("set_alpha_to_one", ends_at_one) else float(alphas_cumprod[0])


def ddim_timesteps(T, steps, steps_offset=1):
    """The `leading` time list of diffusers' DDIMScheduler: `steps` pairs, each one stride of T // steps below the one before.

    T: training timesteps. Raises `InputError` if the schedule is too short for that many steps.
    """
    starts, stride = _leading(T, steps, steps_offset)
    return [(t, max(t - stride, -1)) for t in reversed(starts)]


def compat_timesteps(T, steps, steps_offset=1):
    """The time list of FineXtract's public code: `steps` pairs.

    It takes the list of a PNDM scheduler, which has steps + 1 entries, the second of them twice (981, 961, 961, 941, ..., 21, 1 for 50
    steps of 1000), and walks only the first `steps`, each to `max(1, t - T // steps)`. So one jump is applied twice, the lowest
    timestep is never evaluated, and the walk ends at alpha-bar of timestep 1.
    """
    starts, stride = _leading(T, steps, steps_offset)
    pndm = (starts[:-1] + starts[-2:-1] + starts[-1:])[::-1]
    return [(t, max(1, t - stride)) for t in pndm[:steps]]


def _leading(T, steps, steps_offset):
    if steps < 1 or steps > T or (steps - 1) * (T // steps) + steps_offset >= T:
        raise InputError(f"{steps} sampler steps (offset {steps_offset}) do not fit a schedule of {T} timesteps; use fewer")
    return [step * (T // steps) + steps_offset for step in range(steps)], T // steps
