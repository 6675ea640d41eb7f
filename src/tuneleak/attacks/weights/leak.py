"""How the public code trains the paper's encoder, its gradient leak included (dossier, bug B1): `compat: [gradient-leak]`.

Fine-tunes and encoder are trained at the same time: each step of a fine-tune is followed by one of the encoder on the weights as they now are.
In the public code the encoder's loss also leaves its gradient in the LoRA, which nothing clears before the next step of the fine-tune. So the LoRAs that the
encoder learns from are pulled to obey its z, which no victim's is. The attack that follows sees ordinary victims; what the leak costs or
gains is the difference to the same encoder trained on stored fine-tunes.
"""

from dataclasses import dataclass

import torch

from tuneleak import runtime
from tuneleak.attacks.weights import checkpoint
from tuneleak.errors import InputError
from tuneleak.finetune import many
from tuneleak.finetune.loop import BatchSource
from tuneleak.finetune.objective import Batch, denoising_errors
from tuneleak.models import batched_lora


@dataclass
class Group:
    """K fine-tunes under way: `flat (K, P)` with its gradient, views `pairs` of it, their batches and contexts `(K, L, d)`."""

    flat: torch.nn.Parameter
    pairs: dict
    initial: dict
    sources: list
    contexts: torch.Tensor
    optimizer: torch.optim.Optimizer

    @classmethod
    def start(cls, base, layers, latents, captions, concepts, recipe, seed):
        """layers: {name: (in, out)} of what is adapted; latents: per person `(n, C, h, w)`; seed: that of their A_0, order, timesteps and noise."""
        generators = [runtime.generator("finetune", name, recipe.method, seed) for name in concepts]
        flat, pairs = many.initial_weights(layers, recipe.rank, generators, torch.float32, base.device)
        sources = [
            BatchSource(mine[: recipe.images_per_concept], None, (name, recipe.method, seed), recipe, generator, len(base.alphas_cumprod))
            for mine, name, generator in zip(latents, concepts, generators, strict=True)
        ]
        optimizer = torch.optim.AdamW([flat], lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        initial = {name: tuple(side.detach().clone() for side in pair) for name, pair in pairs.items()}
        return cls(flat, pairs, initial, sources, base.encode_text(captions), optimizer)

    def step(self, base, number, recipe):
        """One step of all fine-tunes, with whatever gradient lies in `flat` already."""
        batch = many.stack([source.batch(number, self.contexts[i : i + 1]) for i, source in enumerate(self.sources)], torch.float32)
        many.step(base.output, self.flat, self.optimizer, batch, len(self.sources), base.alphas_cumprod, base.prediction_type, recipe.max_grad_norm)

    def released(self, scale, known):
        """The weights as an encoder reads them: alpha / rank in B; known: minus A_0, an oracle."""
        found = {name: [side.detach().clone() for side in pair] for name, pair in self.pairs.items()}
        if known:
            found = {name: (a - self.initial[name][0], b) for name, (a, b) in found.items()}
        return {name: (a, b * scale) for name, (a, b) in found.items()}


def fit(encoder, table, people, base, options, recipe, folder, leak=True):
    """Train `encoder` while fine-tunes run; returns rows of the log and the number of samples sent through a UNet.

    table: manifest rows of the attacker's people (concept, caption); people: `People`; recipe: `FinetuneOptions` of the fine-tunes. A killed job
    continues after the last group of fine-tunes that was done. leak=False clears what the public code leaves, for comparison.
    """
    captions = dict(zip(table.concept, table.caption, strict=True))
    length = recipe.steps_per_image * recipe.images_per_concept
    parameters = [value for value in encoder.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
    encoder.train()
    first, log, _ = checkpoint.load(folder, encoder, optimizer)
    per_group, step, calls = min(options.batch, len(people.names)), first, 0
    layers = batched_lora.linear_modules(base.unet, recipe.target_modules)
    with batched_lora.BatchedLora(base.unet, layers) as lora, runtime.progress(None, "train while fine-tuning", total=options.steps - first) as bar:
        while step < options.steps:
            number = step // length
            order = torch.randperm(len(people.names), generator=runtime.generator("leak-group", options.seed, number))[:per_group].tolist()
            names = [people.names[person] for person in order]
            group = Group.start(base, layers, [people.latents[person] for person in order], [captions[name] for name in names], names, recipe, number)
            for taken in range(min(length, options.steps - step)):
                lora.use(group.pairs, recipe.alpha / recipe.rank)
                group.step(base, taken, recipe)
                loss = _encoder_step(encoder, optimizer, group, taken + 1, order, people, base, options, recipe, (options.seed, step + taken))
                calls += per_group * (recipe.batch + 1)
                if not leak:
                    group.flat.grad.zero_()
                log.append((step + taken + 1, loss, loss, 0.0, 0.0, 0.0))
                bar.update()
            step += length
            if step < options.steps:
                checkpoint.save(folder, step, encoder, optimizer, log, [0.0] * checkpoint.TERMS)
    encoder.eval()
    checkpoint.drop(folder)
    return log, calls


def _encoder_step(encoder, optimizer, group, taken, order, people, base, options, recipe, key):
    """One step of the encoder on the group's weights after `taken` steps; its loss's gradient stays in `group.flat` as the public code's does."""
    generator = runtime.generator("weights-train", *key)
    features = type(encoder).features(group.released(recipe.alpha / recipe.rank, "initial-known" in options.compat), options)
    steps = torch.full((len(order),), taken, device=base.device)
    encoded = encoder(features, steps, generator)
    latents = torch.stack([people.latents[person][torch.randint(len(people.latents[person]), (1,), generator=generator)[0]] for person in order])
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    timesteps = torch.randint(len(base.alphas_cumprod), (len(order),), generator=generator).to(latents.device)
    errors = denoising_errors(base.output, Batch(latents, noise, timesteps, encoded.z, torch.empty(0)), base.alphas_cumprod, base.prediction_type)
    loss = options.denoise_weight * errors + (options.kl_weight * encoded.kl / encoded.z[0].numel() if encoded.kl is not None else 0)
    loss.sum().backward()  # a sum over people: each fine-tune is left the gradient of its own loss
    if not bool(torch.isfinite(loss).all()):
        raise InputError(f"the loss is not finite after {taken} steps of a fine-tune; lower lr")
    parameters = [value for value in encoder.parameters() if value.requires_grad]
    for value in parameters:
        if value.grad is not None:
            value.grad /= len(order)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(errors.mean().detach())
