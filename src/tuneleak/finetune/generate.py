"""Pictures drawn under a caption by deterministic DDIM with classifier-free guidance (Ho & Salimans 2022)."""

import torch

from tuneleak import runtime


def guided_latents(base, noise_pred, null, context, x_T, steps, guidance_scale):
    """Latents `(n, C, h, w)` from starting noise `x_T` of that shape: epsilon(null) + guidance_scale (epsilon(context) - epsilon(null)).

    noise_pred: that of `Base` or `Tuned`; null, context: `(1, L, d)` from the text encoder that belongs to it.
    """
    contexts = torch.cat([null.expand(len(x_T), -1, -1), context.expand(len(x_T), -1, -1)])

    def guided(x, t):
        unconditional, conditional = noise_pred(torch.cat([x, x]), t, contexts).chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return base.sample(guided, x_T, steps)


def starting_noise(shape, *keys):
    """Standard normal `(len(keys), *shape)`, each item from a generator of its own key (a tuple)."""
    return torch.stack([torch.randn(shape, generator=runtime.generator(*key)) for key in keys])


def class_latents(base, prompt, count, steps, guidance_scale, batch=8):
    """Latents `(count, C, h, w)` of class pictures for prior preservation: drawn by the base, decoded and encoded again."""
    null, context = base.encode_text([""]), base.encode_text([prompt])
    made = []
    for first in runtime.progress(range(0, count, batch), "class pictures"):
        noise = starting_noise(base.latent_shape, *(("prior", prompt, i) for i in range(first, min(first + batch, count))))
        latents = guided_latents(base, base.noise_pred, null, context, noise, steps, guidance_scale)
        made.append(base.encode_images(base.decode(latents).clamp(-1, 1)))
    return torch.cat(made)
