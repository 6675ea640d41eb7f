"""Guidance sampling against its floor and against the public way, in one run; reported, never asserted.

    python tests/benchmarks/bench_guidance.py [--generations 50] [--steps 20] [--batch 50] [--threads 1] [--device cpu] [--unet resources/bases/H1]
        [--out FILE]

Networks of the shipped base's configuration with random weights: time does not depend on them. `bare` is two model calls per step and nothing else;
`public` is the public code's way: two float32 networks side by side, batches of five, gradients off, the scheduler's tensors indexed in every step.
All runs are interleaved and the fastest of `--repeats` counts; on the CPU seconds are of processor time, so that other work on the machine does not
count. Beside the times: the largest difference of the latents from the public way's, and the weights in memory.

Bars: at least 1.5 times the public way's pictures per second, the same latents to 1e-4, at most 1.2 times `bare`, and one copy of the base for a LoRA.
"""

import argparse
import json
import time

import torch
from recording import Results, add_out

from tuneleak.attacks.extraction import cfg, direct, finextract
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.models.samplers import sample
from tuneleak.models.schedule import alphas_cumprod, ddim_timesteps
from tuneleak.options import Guidance

SD = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TOKENS = 32


def random_unet(folder, seed):
    """A UNet of the configuration in `folder`, its weights drawn from `seed`."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder)).eval()


def with_lora(unet, rank=8):
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    unet.add_adapter(config)
    return unet


def merged(unet, adapted):
    """`unet` with the LoRA of `adapted` added to its weights: the second network of the public way."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = dict(unet.named_modules())
    for name, layer in adapted.named_modules():
        if isinstance(layer, BaseTunerLayer):
            layers[name].weight.data += layer.get_delta_weight("default")
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
    guidance = Guidance(w=3, k=-0.02)
    return torch.cat([sample(lambda x, t: attack.guide(pair, x, t, guidance), part, timesteps, abar) for part in noise.split(batch)])


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
    made = []
    for start in range(0, len(noise), 5):
        x = noise[start : start + 5]
        null, caption = context.repeat(len(x), 1, 1), context.repeat(len(x), 1, 1)
        for t, previous in timesteps:
            eps_null, eps_caption = pretrained(x, t, null), finetuned(x, t, caption)
            eps = eps_null + 3.0 * (eps_caption - eps_null) - 0.02 * eps_null
            x0 = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            x = abar[max(previous, 0)].sqrt() * x0 + (1 - abar[max(previous, 0)]).sqrt() * eps
        made.append(x)
    return torch.cat(made)


def _ratios(first, second):
    """Of each repeat; the first round warmed up."""
    return [a / b for a, b in zip(first[1:], second[1:], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("generations", 50), ("steps", 20), ("batch", 50), ("threads", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--unet", default="resources/bases/H1")
    add_out(parser)
    args = parser.parse_args()
    results = Results("guidance", args)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    adapted = with_lora(random_unet(args.unet, 0)).to(device)
    adapted.requires_grad_(False)
    networks = random_unet(args.unet, 0).to(device), merged(random_unet(args.unet, 0).to(device), adapted)
    pretrained, finetuned = map(ask, networks)
    layers = [module for module in adapted.modules() if hasattr(module, "_disable_adapters")]
    lora = ask_switched(adapted, layers, False), ask_switched(adapted, layers, True)
    abar = alphas_cumprod(SD)
    single = abar.float().to(device)
    shape = networks[0].config.in_channels, networks[0].config.sample_size, networks[0].config.sample_size
    noise = torch.randn(args.generations, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    context = torch.randn(1, TOKENS, networks[0].config.cross_attention_dim, generator=torch.Generator().manual_seed(1)).to(device)
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
    seconds, latents = {name: [] for name in runs}, {}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(args.repeats + 1):  # the first round warms up and is dropped
        for name, run in runs.items():
            started = clock()
            latents[name] = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    for name, value in best.items():
        ratios = f"{value / best['bare']:6.3f} x bare  {best['public'] / value:6.2f} x faster than public"
        print(f"{name:28s} {value:8.3f} s  {args.generations / value:8.2f} generations/s  {ratios}")
        results.add(name, value, "s", seconds[name][1:])
        if name not in ("bare", "public"):
            results.add(f"{name} to bare", value / best["bare"], "ratio", _ratios(seconds[name], seconds["bare"]))
        if name != "public":
            results.add(f"public to {name}", best["public"] / value, "ratio", _ratios(seconds["public"], seconds[name]))
    scale = float(latents["public"].square().mean().sqrt())
    away = {name: float((latents[name] - latents["public"]).abs().max()) / scale for name in ("finextract, two networks", "finextract, LoRA switched")}
    one, two = (sum(p.numel() * p.element_size() for network in group for p in network.parameters()) for group in ((adapted,), networks))
    print(f"largest difference of latents from the public way's, in their root mean square: {', '.join(f'{name} {value:.1e}' for name, value in away.items())}")
    print(f"weights in memory: LoRA switched {one / 2**20:.2f} MiB, two networks {two / 2**20:.2f} MiB")
    for name, value in away.items():
        results.add(f"{name}: largest difference of latents from the public way's", value, "root mean squares of latents")
    results.add("weights of two networks to those of a LoRA switched", two / one, "ratio")
    results.write()
    told = {"seconds": best, "differences": away, "weights": [one, two], "parameters": sum(p.numel() for p in networks[0].parameters())}
    print(json.dumps({**told, **vars(args), "torch": torch.__version__}, default=str))


if __name__ == "__main__":
    main()
