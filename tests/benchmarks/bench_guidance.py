"""Guidance sampling against its floor and against the public way; reported, never asserted.

    python tests/benchmarks/bench_guidance.py [--generations 50] [--steps 20] [--batch 50] [--threads 1] [--device cpu]

Networks of the embedded size (half-width UNet, 8x8x8 latents, 32 tokens of width 128) with random weights: time does not depend on them.
`bare` is two model calls per step and nothing else; `public` is the public code's way: two float32 networks side by side, batches of five,
gradients off, the scheduler's tensors indexed in every step. All runs are interleaved and the fastest of `--repeats` counts.
"""

import argparse
import json
import time

import torch

from tuneleak.attacks.extraction import cfg, direct, finextract
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.models.samplers import sample
from tuneleak.models.schedule import alphas_cumprod, ddim_timesteps
from tuneleak.options import Guidance

SD = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LATENT, TOKENS, WIDTH = (8, 8, 8), 32, 128


def half_width_unet(seed):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=LATENT[1],
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    ).eval()


def with_lora(unet, rank=8):
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    return unet


def ask(unet):
    return lambda x, t, context: unet(x, t, encoder_hidden_states=context).sample.float()


def ask_switched(unet, layers, on):
    """As `models.pipeline.Tuned` switches a LoRA: one network, its adapter off or on."""

    def noise_pred(x, t, context):
        for layer in layers:
            layer._disable_adapters = not on
        return ask(unet)(x, t, context)

    return noise_pred


def guided(attack, pretrained, finetuned, noise, context, timesteps, abar, batch):
    pair = ModelPair(pretrained, finetuned, pretrained_null=context, pretrained_caption=context, finetuned_null=context, finetuned_caption=context)
    for start in range(0, len(noise), batch):
        sample(lambda x, t: attack.guide(pair, x, t, Guidance(w=3, k=-0.02)), noise[start : start + batch], timesteps, abar)


@torch.inference_mode()
def bare(pretrained, finetuned, noise, context, timesteps, batch):
    for start in range(0, len(noise), batch):
        x = noise[start : start + batch]
        expanded = context.expand(len(x), -1, -1)
        for t, _ in timesteps:
            pretrained(x, t, expanded)
            finetuned(x, t, expanded)


@torch.no_grad()
def public(pretrained, finetuned, noise, context, timesteps, abar):
    for start in range(0, len(noise), 5):
        x = noise[start : start + 5]
        null, caption = context.repeat(len(x), 1, 1), context.repeat(len(x), 1, 1)
        for t, previous in timesteps:
            eps_null, eps_caption = pretrained(x, t, null), finetuned(x, t, caption)
            eps = eps_null + 3.0 * (eps_caption - eps_null) - 0.02 * eps_null
            x0 = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            x = abar[max(previous, 0)].sqrt() * x0 + (1 - abar[max(previous, 0)]).sqrt() * eps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("generations", 50), ("steps", 20), ("batch", 50), ("threads", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    networks = half_width_unet(0).to(device), half_width_unet(1).to(device)
    pretrained, finetuned = map(ask, networks)
    adapted = with_lora(half_width_unet(0)).to(device).eval()
    layers = [module for module in adapted.modules() if hasattr(module, "_disable_adapters")]
    lora = ask_switched(adapted, layers, False), ask_switched(adapted, layers, True)
    abar = alphas_cumprod(SD)
    single = abar.float().to(device)
    noise = torch.randn(args.generations, *LATENT, generator=torch.Generator().manual_seed(0)).to(device)
    context = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).to(device)
    timesteps = ddim_timesteps(1000, args.steps)
    common = noise, context, timesteps, abar, args.batch
    runs = {
        "bare": lambda: bare(*networks, noise, context, timesteps, args.batch),
        "finextract, two networks": lambda: guided(finextract, pretrained, finetuned, *common),
        "finextract, LoRA switched": lambda: guided(finextract, *lora, *common),
        "cfg, one doubled batch": lambda: guided(cfg, pretrained, finetuned, *common),
        "direct": lambda: guided(direct, pretrained, finetuned, *common),
        "public": lambda: public(pretrained, finetuned, noise, context, timesteps, single),
    }
    seconds = {name: [] for name in runs}
    for _ in range(args.repeats + 1):  # the first round warms up and is dropped
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    for name, value in best.items():
        ratios = f"{value / best['bare']:6.3f} x bare  {best['public'] / value:6.2f} x faster than public"
        print(f"{name:28s} {value:8.3f} s  {args.generations / value:8.2f} generations/s  {ratios}")
    print(json.dumps({"seconds": best, **vars(args), "torch": torch.__version__, "parameters": sum(p.numel() for p in networks[0].parameters())}))


if __name__ == "__main__":
    main()
