"""What an attacker without an encoder may try: guessed prompts, and update matching.

Update matching in its fair form (dossier section 2.8: in the public code the matching loss sends no gradient to the unknowns). From B_0 = 0 and
the released A, one simulated gradient step on an unknown picture x under an unknown conditioning z moves every B by -eta dL/dB. That step is
differentiated: x and z are changed until its direction is that of the released B in every layer. Only directions are compared, because the unknown number
of steps and AdamW, which divides each entry by its own size, make lengths meaningless.

One step stands for all of a fine-tune on several pictures, whose AdamW bends directions too and moves A, so no guess comes near a cosine of 1. On twelve
LoRAs of the default recipe (A moved by .17 of its norm, 48 draws each) the truth, a training picture under the training caption, reaches .34, an unseen
picture of the person under it .31, the training picture under another person's caption .19 (under the empty one .14), another's picture under the
victim's caption .12, both another's .05; the truth beats each kind of wrong guess in all of 24 pairs. So the objective tells victims apart, by the picture
more than by z. Many steps of few timesteps, spread over the schedule, make more of as many calls than few steps of many: at 240 calls of twelve of the
attacker's own people two timesteps a step reach .31 on draws that the search never saw, four .32, eight .27. A rate that falls to zero leaves less (of eight of
them, with two timesteps, .27 for .32).
"""

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tuneleak import runtime
from tuneleak.finetune.objective import Batch, denoising_errors

SEARCH_TIMESTEPS = (0.6, 0.8, 0.95)  # shares of the schedule: x_t is almost noise there, so that no picture is needed


@torch.inference_mode()
def searched_prompts(studio, prompts):
    """For each victim the guessed prompt under which its UNet differs most from the base's: indices `(V,)`."""
    base, options = studio.base, studio.options
    contexts = base.encode_text(prompts)
    found = []
    for number in range(len(studio.weights)):
        noise = studio.noise[number].to(base.device)
        x = noise.repeat(len(prompts), 1, 1, 1)
        context = contexts.repeat_interleave(len(noise), 0)
        total = torch.zeros(len(prompts), device=base.device)
        for share in SEARCH_TIMESTEPS:
            t = int(share * len(base.alphas_cumprod))
            predicted = []
            for rows in (torch.tensor([number]), None):
                studio.use(studio.weights, rows)
                predicted.append(torch.cat([studio._ask(part, t, c) for part, c in zip(x.split(options.batch), context.split(options.batch), strict=True)]))
            total += (predicted[0] - predicted[1]).square().flatten(1).mean(1).view(len(prompts), -1).mean(1)
        found.append(total.argmax())
    studio.lora.use(None)
    return torch.stack(found).cpu()


def match_updates(studio, start):
    """(latents `(V, C, h, w)`, conditioning `(V, L, d)`, final cosine `(V,)`) whose simulated update points where each victim's does. start: z at first."""
    options, weights = studio.options, studio.weights
    at_once = options.matching_models
    results = []
    for first in range(0, len(weights), at_once):
        results.append(_match(studio, torch.arange(first, min(first + at_once, len(weights))), start.to(studio.base.device)))
    studio.lora.use(None)
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _match(studio, rows, start):
    """Adam on both unknowns, from an empty latent and `start`; the cosine returned is that of the last step's few draws."""
    base, options = studio.base, studio.options
    picture = torch.zeros(len(rows), *base.latent_shape, device=base.device, requires_grad=True)
    z = start.expand(len(rows), -1, -1).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([picture, z], lr=options.matching_lr)
    for step in runtime.progress(range(options.matching_steps), "update matching"):
        keys = [("matching", options.seed, studio.weights.table.concept.iloc[row], step) for row in rows.tolist()]
        found = cosine(studio, rows, picture, z, *draws(base, options.matching_batch, keys))
        optimizer.zero_grad()
        (1 - found).sum().backward()
        optimizer.step()
    return picture.detach(), z.detach(), found.detach().cpu()


def draws(base, n, keys):
    """Noise `(V * n, C, h, w)` and timesteps `(V * n,)` of a simulated update of each victim, whose n timesteps come from as many equal parts of the schedule.

    keys: one per victim, so that its numbers do not depend on who is attacked beside it.
    """
    noise, shares, count = [], [], len(base.alphas_cumprod)
    for key in keys:
        generator = runtime.generator(*key)
        noise.append(torch.randn(n, *base.latent_shape, generator=generator))
        shares.append((torch.arange(n) + torch.rand(n, generator=generator)) / n)
    timesteps = (torch.cat(shares) * count).long().clamp(max=count - 1)
    return torch.cat(noise).to(base.device), timesteps.to(base.device)


def cosine(studio, rows, pictures, z, noise, timesteps):
    """Cosine `(V,)` of the released B and of -dL/dB at B = 0, where L is the denoising loss of a picture under a conditioning; the mean over layers.

    rows: victims `(V,)`; pictures: latents `(V, C, h, w)`; z `(V, L, d)`; noise and timesteps: see `draws`. Differentiable in pictures and z.
    """
    base, n = studio.base, len(noise) // len(rows)
    pairs = {name: tuple(side.to(base.device) for side in pair) for name, pair in studio.weights.chosen(rows).items()}
    fresh = {name: torch.zeros_like(b, requires_grad=True) for name, (_, b) in pairs.items()}
    studio.lora.use({name: (a, fresh[name]) for name, (a, _) in pairs.items()})
    batch = Batch(pictures.repeat_interleave(n, 0), noise, timesteps, z.repeat_interleave(n, 0), torch.empty(0))
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel that can be differentiated twice
        loss = denoising_errors(base.output, batch, base.alphas_cumprod, base.prediction_type).sum()
    studio.calls += len(noise)
    gradients = torch.autograd.grad(loss, list(fresh.values()), create_graph=True)
    cosines = [F.cosine_similarity(-g.flatten(1), b.flatten(1)) for g, (_, b) in zip(gradients, pairs.values(), strict=True)]
    return torch.stack(cosines).mean(0)
