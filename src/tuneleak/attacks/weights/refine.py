"""Refinement of a conditioning for one victim, from its weights alone: z moves to where the victim's UNet and the base differ most.

Fine-tuning changed what the network says about the trained person and little else, so among conditionings near the encoder's z those matter under which the
two disagree. For each victim, by gradient ascent on a shift s from z,

    log E || epsilon_victim(x_t, t, z + s) - epsilon_base(x_t, t, z + s) ||^2  -  prior * mean(s^2) / mean(z^2),

with x_t the attack's own drawings under z, noised to random timesteps: no private picture, no caption, no training set. The prior keeps z where the
encoder put it, for far away from any caption networks disagree about nothing in particular. A constant z is refined alike, as the control.
"""

import torch

from tuneleak import runtime
from tuneleak.data.imageset import as_tensor
from tuneleak.finetune.objective import add_noise

TIMESTEPS = (0.2, 0.9)  # shares of the schedule


def refined(studio, z, drawn):
    """z `(V, L, d)` after `options.refine_steps` steps. studio: `Studio`; drawn: uint8 `(V, n, h, w, 3)`, what was drawn under z."""
    options = studio.options
    at_once = max(1, options.batch // (2 * drawn.shape[1]))
    parts = []
    for first in range(0, len(studio.weights), at_once):
        rows = torch.arange(first, min(first + at_once, len(studio.weights)))
        parts.append(_refine(studio, rows, z[rows.to(z.device)].to(studio.base.device), drawn[rows.numpy()]))
    studio.lora.use(None)
    return torch.cat(parts)


def disagreement(studio, rows, z, x_t, timesteps):
    """Mean squared difference of the victims' and the base's epsilon, `(V,)`; x_t `(V * n, C, h, w)`, timesteps `(V * n,)`, z `(V, L, d)`."""
    context = z.repeat_interleave(len(x_t) // len(z), 0)
    studio.use(studio.weights, rows)
    tuned = studio._ask(x_t, timesteps, context)
    studio.use(studio.weights, None)
    return (tuned - studio._ask(x_t, timesteps, context)).square().flatten(1).mean(1).view(len(z), -1).mean(1)


@torch.enable_grad()
def _refine(studio, rows, z, drawn):
    base, options, n = studio.base, studio.options, drawn.shape[1]
    latents = base.encode_images(as_tensor(drawn.reshape(-1, *drawn.shape[2:])))
    z = z.detach().clone()
    shift = torch.zeros_like(z).requires_grad_(True)
    scale = z.square().flatten(1).mean(1)
    optimizer = torch.optim.Adam([shift], lr=options.refine_lr)
    low, high = (int(share * len(base.alphas_cumprod)) for share in TIMESTEPS)
    for step in runtime.progress(range(options.refine_steps), "refine z"):
        noise, timesteps = [], []
        for row in rows.tolist():  # a victim's numbers do not depend on who is refined beside it
            generator = runtime.generator("refine", options.seed, studio.weights.table.concept.iloc[row], step)
            noise.append(torch.randn(n, *base.latent_shape, generator=generator))
            timesteps.append(torch.randint(low, high, (n,), generator=generator))
        noise, timesteps = torch.cat(noise).to(base.device), torch.cat(timesteps).to(base.device)
        difference = disagreement(studio, rows, z + shift, add_noise(latents, noise, timesteps, base.alphas_cumprod), timesteps)
        penalty = options.refine_prior * shift.square().flatten(1).mean(1) / scale
        optimizer.zero_grad()
        (penalty - difference.clamp_min(1e-20).log()).sum().backward()
        optimizer.step()
    return (z + shift).detach()
