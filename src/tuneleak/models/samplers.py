"""Deterministic DDIM (Song et al. 2021, equation 12 with sigma = 0): one solver for every attack, so that attacks differ in guidance only."""

import math

import torch

from tuneleak.errors import InputError


def ddim_step(x, eps, abar_t, abar_prev):
    """One deterministic step from alpha-bar `abar_t` to `abar_prev` (floats); x, eps and the result are float32 of one shape.

    x0 = (x - sqrt(1 - abar_t) eps) / sqrt(abar_t), and the result is sqrt(abar_prev) x0 + sqrt(1 - abar_prev) eps; the two coefficients
    are computed in double precision before they meet a tensor. Nothing is clipped.
    """
    scale = math.sqrt(abar_prev / abar_t)
    return scale * x + (math.sqrt(1.0 - abar_prev) - scale * math.sqrt(1.0 - abar_t)) * eps


@torch.inference_mode()
def sample(noise_pred_fn, x_T, timesteps, alphas_cumprod, final_alpha_cumprod=None):
    """Walk the starting noise down a time list of `tuneleak.models.schedule`.

    noise_pred_fn: `(x_t (n, C, h, w) float32, t int) -> epsilon` of the same shape. x_T: `(n, C, h, w)`. alphas_cumprod: `(T,)`.
    final_alpha_cumprod: alpha-bar where a previous timestep is -1; that of timestep 0 unless given. Returns float32 `(n, C, h, w)`. Raises `InputError`
    for a walk that starts where there is no signal: there a noise prediction says nothing about the picture.
    """
    abar = [float(value) for value in alphas_cumprod]
    final = abar[0] if final_alpha_cumprod is None else float(final_alpha_cumprod)
    if any(abar[t] <= 0 for t, _ in timesteps):
        raise InputError("the sampler would start at zero signal, which the last timestep of this schedule is; use fewer steps")
    x = x_T.float()
    for t, previous in timesteps:
        x = ddim_step(x, noise_pred_fn(x, t).float(), abar[t], final if previous < 0 else abar[previous])
    return x
