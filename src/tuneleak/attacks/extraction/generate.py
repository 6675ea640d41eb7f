"""Generations of one attack on one model: the same starting noise for every attack, method and setting of a concept."""

import torch

from tuneleak import runtime
from tuneleak.data.imageset import from_tensor
from tuneleak.errors import InputError
from tuneleak.models.samplers import sample
from tuneleak.models.schedule import compat_timesteps, ddim_timesteps, final_alpha_cumprod

TIME_LISTS = {"ddim": ddim_timesteps, "finextract-compat": compat_timesteps}


def starting_noise(concept, n, latent_shape, seed):
    """Noise of generations 0 to n - 1 of a concept, `(n, C, h, w)` float32 on the CPU; generation i has its own seed, so n may grow."""
    return torch.stack([torch.randn(tuple(latent_shape), generator=runtime.generator("extraction", seed, concept, i)) for i in range(n)])


def time_list(sampler, steps, scheduler_config, T):
    """The pairs of timesteps of a sampler by name, with the scheduler's own offset (1 in Stable Diffusion, 0 if it names none)."""
    return TIME_LISTS[sampler](T, steps, scheduler_config.get("steps_offset", 0))


@torch.inference_mode()
def generate(base, pair, guide, guidance, noise, options, description="generations"):
    """Sample and decode every starting noise under `guide`, `options.batch` at a time.

    noise: `(n, C, h, w)`. Returns uint8 `(n, height, width, 3)`, decoded by the base's VAE; `pair.calls` grows by the model calls made.
    Raises `InputError` if a sample is not finite (a guidance scale far too large).
    """
    import numpy as np

    timesteps = time_list(options.sampler, options.steps, base.scheduler_config, len(base.alphas_cumprod))
    final = final_alpha_cumprod(base.scheduler_config, base.alphas_cumprod)
    pictures = []
    for start in runtime.progress(range(0, len(noise), options.batch), description):
        x_T = noise[start : start + options.batch].to(pair.pretrained_null.device)
        latents = sample(lambda x, t: guide(pair, x, t, guidance), x_T, timesteps, base.alphas_cumprod, final)
        if not torch.isfinite(latents).all():
            raise InputError(f"{description}: sampling diverged (not a number); use a smaller w than {guidance.w:g}")
        pictures.append(from_tensor(base.decode(latents)))
    return np.concatenate(pictures)
