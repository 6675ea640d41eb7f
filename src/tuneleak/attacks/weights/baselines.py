"""What an attacker without an encoder may try: guessed prompts, and update matching.

Update matching in its fair form (dossier section 2.8: in the public code the matching loss sends no gradient to the unknowns). From B_0 = 0 and
the released A, which short training leaves close to A_0, one simulated gradient step on an unknown picture x under an unknown conditioning z
moves every B by -eta dL/dB. That step is differentiated: x and z are changed until its direction is that of the released B in every layer.
Only directions are compared: AdamW's scaling and the unknown number of steps make lengths meaningless.
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
    base, options, weights = studio.base, studio.options, studio.weights
    at_once = max(1, options.batch // options.matching_batch)
    results = []
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel that can be differentiated twice
        for first in range(0, len(weights), at_once):
            results.append(_match(studio, torch.arange(first, min(first + at_once, len(weights))), start.to(base.device)))
    studio.lora.use(None)
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _match(studio, rows, start):
    base, options, n = studio.base, studio.options, studio.options.matching_batch
    pairs = {name: tuple(side.to(base.device) for side in pair) for name, pair in studio.weights.chosen(rows).items()}
    unknown = torch.zeros(len(rows), *base.latent_shape, device=base.device, requires_grad=True)
    z = start.expand(len(rows), -1, -1).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([unknown, z], lr=options.matching_lr)
    cosine = None
    for step in runtime.progress(range(options.matching_steps), "update matching"):
        generator = runtime.generator("matching", options.seed, int(rows[0]), step)
        noise = torch.randn(len(rows) * n, *base.latent_shape, generator=generator).to(base.device)
        timesteps = torch.randint(len(base.alphas_cumprod), (len(rows) * n,), generator=generator).to(base.device)
        fresh = {name: torch.zeros_like(b, requires_grad=True) for name, (_, b) in pairs.items()}
        studio.lora.use({name: (a, fresh[name]) for name, (a, _) in pairs.items()})
        batch = Batch(unknown.repeat_interleave(n, 0), noise, timesteps, z.repeat_interleave(n, 0), torch.empty(0))
        loss = denoising_errors(base.output, batch, base.alphas_cumprod, base.prediction_type).sum()
        gradients = torch.autograd.grad(loss, list(fresh.values()), create_graph=True)
        cosine = torch.stack([F.cosine_similarity(-g.flatten(1), b.flatten(1)) for g, (_, b) in zip(gradients, pairs.values(), strict=True)]).mean(0)
        optimizer.zero_grad()
        (1 - cosine).sum().backward()
        optimizer.step()
        studio.calls += len(noise)
    cosine = torch.zeros(len(rows)) if cosine is None else cosine.detach().cpu()
    return unknown.detach(), z.detach(), cosine
