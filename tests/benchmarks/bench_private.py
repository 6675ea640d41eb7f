"""A step of private training with ghost norms against Opacus's hooks: seconds and memory, in one run; reported, never asserted.

    python tests/benchmarks/bench_private.py [--pictures 32] [--draws 1] [--repeats 3] [--threads 1] [--device cpu] [--out FILE]

A UNet of the embedded size (half width, 8x8x8 latents, 32 tokens of width 128) with random weights. `backward` is the floor: loss and gradient of the whole
batch, no privacy. Memory is the peak of a fresh process per way (on a GPU: torch's own peak), minus that of `backward`. All ways of one set give the same sum.
"""

import argparse
import json
import multiprocessing
import resource
import time

from recording import Results, add_out

LATENT, TOKENS, WIDTH = (8, 8, 8), 32, 128
SETS = ("attention", "lora", "all", "bias")
WAYS = ("backward", "hooks", "ghost")


def problem(kind, pictures, draws, device):
    import torch
    from diffusers import UNet2DConditionModel

    from tuneleak.finetune.methods import add_lora
    from tuneleak.privacy import conditioned, trainable

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=LATENT[1], in_channels=LATENT[0], out_channels=LATENT[0], block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2, norm_num_groups=16,
        cross_attention_dim=WIDTH, attention_head_dim=4,
    ).eval()  # fmt: skip
    if kind == "lora":
        add_lora(unet, 8, 8, ["to_q", "to_k", "to_v", "to_out.0"], torch.Generator().manual_seed(0))
    parameters = trainable.apply(unet, trainable.select(unet, kind))
    network = conditioned.Conditioned(unet, None, lambda net, x_t, t, context: net(x_t, t, context, return_dict=False)[0]).to(device)
    rows = pictures * draws
    x, target = torch.randn(2, rows, *LATENT).to(device)
    t, context = torch.randint(1000, (rows,)).to(device), torch.randn(rows, TOKENS, WIDTH).to(device)
    return network, parameters, lambda module: (module(x, t, context) - target).square().flatten(1).mean(1)


def measure(way, kind, args, queue):
    import torch

    from tuneleak.privacy import gradients

    torch.set_num_threads(args.threads)
    network, parameters, errors = problem(kind, args.pictures, args.draws, args.device)
    sums = None if way == "backward" else gradients.make(way, network, parameters)
    seconds, total = [], 0.0
    for _ in range(args.repeats + 1):  # the first warms up and is dropped
        started = time.perf_counter()
        if sums is None:
            errors(network).sum().backward()
            for parameter in parameters:
                parameter.grad = None
        else:
            total = float(torch.cat([part.flatten() for part in sums.clipped(errors, args.pictures, 1e-3)[0]]).norm())
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if args.device.startswith("cuda") else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put({"seconds": min(seconds[1:]), "all": seconds[1:], "peak": peak, "norm": total})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pictures", 32), ("draws", 1), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    add_out(parser)
    args = parser.parse_args()
    results = Results("private", args)
    context, found = multiprocessing.get_context("spawn"), {}
    for kind in args.sets:
        for way in WAYS:
            queue = context.Queue()
            process = context.Process(target=measure, args=(way, kind, args, queue))
            process.start()
            found[kind, way] = queue.get()
            process.join()
        floor = found[kind, "backward"]
        for way in WAYS:
            one = found[kind, way]
            more = (one["peak"] - floor["peak"]) / 2**20
            print(
                f"{kind:10s} {way:9s} {one['seconds']:8.3f} s  {one['seconds'] / floor['seconds']:6.2f} x backward  {more:+9.1f} MiB  |sum| {one['norm']:.6f}",
                flush=True,
            )
            results.add(f"{kind}, {way}", one["seconds"], "s", one["all"])
            if way != "backward":
                results.add(f"{kind}, {way} to backward", one["seconds"] / floor["seconds"], "ratio")
                results.add(f"{kind}, {way}: memory beyond backward", more, "MiB")
    results.write()
    print(json.dumps({f"{kind}/{way}": values for (kind, way), values in found.items()} | vars(args), default=str))


if __name__ == "__main__":
    main()
