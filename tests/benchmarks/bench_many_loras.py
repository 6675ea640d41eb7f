"""Many LoRAs trained side by side against one at a time with peft; reported, never asserted.

    python tests/benchmarks/bench_many_loras.py [--models 16] [--steps 30] [--batch 4] [--threads 1] [--repeats 3] [--unet resources/bases/H1] [--out FILE]

A UNet of the shipped base's configuration with random weights: time does not depend on them. `peft` is what the verb `finetune` runs per step (one adapter,
its parameters in one vector); `batched` is what `collect-weights` runs. The two are interleaved in one process; the fastest of the repeats counts, in
processor time per model and step, which other work on the machine disturbs least.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from bench_guidance import SD, TOKENS, random_unet
from recording import Results, add_out

from tuneleak.finetune import many, methods, objective
from tuneleak.models import batched_lora, weights
from tuneleak.models.schedule import alphas_cumprod
from tuneleak.options import FinetuneOptions


def draw(unet, n, generator):
    side = unet.config.sample_size
    latents, noise = torch.randn(2, n, unet.config.in_channels, side, side, generator=generator).unbind()
    context = torch.randn(n, TOKENS, unet.config.cross_attention_dim, generator=generator)
    return objective.Batch(latents, noise, torch.randint(1000, (n,), generator=generator), context, torch.full((n,), 1 / n))


def answer(unet, x, t, context):
    """What the UNet says under a context."""
    return unet(x, t, encoder_hidden_states=context, return_dict=False)[0]


def one_at_a_time(unet, abar, models, steps, recipe):
    """Processor seconds of `models` fine-tunes with peft."""
    seconds = 0.0
    for model in range(models):
        generator = torch.Generator().manual_seed(model)
        base = SimpleNamespace(unet=unet)
        trainee = methods.prepare(base, recipe, generator)
        optimizer = torch.optim.AdamW([trainee.parameters.vector], lr=recipe.lr, fused=True)
        start = time.process_time()
        for _ in range(steps):
            objective.training_step(partial(answer, unet), [trainee.parameters.vector], optimizer, draw(unet, recipe.batch, generator), abar)
        seconds += time.process_time() - start
        weights.detach_lora(unet)
    return seconds


def side_by_side(unet, abar, models, steps, recipe):
    """Processor seconds of the same fine-tunes in one batch."""
    generators = [torch.Generator().manual_seed(model) for model in range(models)]
    layers = batched_lora.linear_modules(unet, recipe.target_modules)
    flat, pairs = many.initial_weights(layers, recipe.rank, generators, torch.float32, "cpu")
    optimizer = torch.optim.AdamW([flat], lr=recipe.lr, fused=True)
    with batched_lora.BatchedLora(unet, layers) as lora:
        lora.use(pairs, recipe.alpha / recipe.rank)
        start = time.process_time()
        for _ in range(steps):
            batch = many.stack([draw(unet, recipe.batch, generator) for generator in generators], torch.float32)
            many.step(partial(answer, unet), flat, optimizer, batch, models, abar, "epsilon", recipe.max_grad_norm)
        return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("models", 16), ("steps", 30), ("batch", 4), ("rank", 4), ("threads", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--unet", type=Path, default=Path(__file__).resolve().parents[2] / "resources" / "bases" / "H1")
    add_out(parser)
    arguments = parser.parse_args()
    results = Results("many-loras", arguments)
    torch.set_num_threads(arguments.threads)
    unet, abar = random_unet(arguments.unet, 0).requires_grad_(False), alphas_cumprod(SD)
    recipe = FinetuneOptions(batch=arguments.batch, rank=arguments.rank, alpha=arguments.rank, target_modules=["to_q", "to_v"])
    found = {"peft": [], "batched": []}
    for _ in range(arguments.repeats):
        found["peft"].append(one_at_a_time(unet, abar, min(arguments.models, 4), arguments.steps, recipe) / min(arguments.models, 4) / arguments.steps)
        found["batched"].append(side_by_side(unet, abar, arguments.models, arguments.steps, recipe) / arguments.models / arguments.steps)
    best = {name: min(seconds) for name, seconds in found.items()}
    for name, seconds in best.items():
        print(f"{name:8s} {1000 * seconds:7.2f} ms per model and step")
        results.add(name, 1000 * seconds, "ms per model and step", [1000 * value for value in found[name]])
    ratios = [a / b for a, b in zip(found["peft"], found["batched"], strict=True)]
    print(f"ratio    {best['peft'] / best['batched']:7.2f} (of each repeat: {', '.join(f'{ratio:.2f}' for ratio in ratios)}); {vars(arguments)}")
    results.add("peft to batched", best["peft"] / best["batched"], "ratio", ratios)
    results.write()


if __name__ == "__main__":
    main()
