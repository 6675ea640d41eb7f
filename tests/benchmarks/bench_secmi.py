"""SecMI with the calls that its definition needs against the public code's 38; reported, never asserted.

    python tests/benchmarks/bench_secmi.py [--unet resources/bases/H1] [--pictures 50] [--batch 50] [--threads 1] [--device cpu] [--repeats 3]
        [--out FILE]

The public code carries a picture up through 19 steps, comes down through as many, and compares what it had at t = 140: 38 calls. The same
number takes 14 calls up to t = 140, one up and one down. Both run the network described by `<unet>/config.json` with random weights (time does
not depend on them), interleaved, on the same latents and with batches of one size; the fastest of `--repeats` counts. The largest relative
difference of the two scores is printed beside the ratio of times.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from recording import Results, add_out

from tuneleak.attacks.membership import secmi_stat
from tuneleak.models.samplers import ddim_step
from tuneleak.models.schedule import alphas_cumprod
from tuneleak.options import MembershipOptions

SD = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OPTIONS = MembershipOptions(secmi_timestep=140, secmi_stride=10)
TOKENS = 32


class Asked:
    """What an attack asks a model: the part of `tuneleak.attacks.membership.query.Query` that SecMI uses."""

    def __init__(self, unet, latents, context, abar, batch):
        self.unet, self.latents, self.context, self.abar, self.batch, self.calls = unet, latents, context, abar, batch, 0

    def alpha_bar(self, timestep):
        return float(self.abar[timestep])

    def noise_pred(self, x, timestep):
        self.calls += len(x)
        parts = zip(x.split(self.batch), self.context.split(self.batch), strict=True)
        return torch.cat([self.unet(part, timestep, encoder_hidden_states=text).sample.float() for part, text in parts])


@torch.inference_mode()
def ours(asked):
    return -secmi_stat.score(asked, OPTIONS)


@torch.inference_mode()
def public(asked):
    """All of the public code's steps, of which it uses one pair."""

    def step(x, t, to):
        return ddim_step(x, asked.noise_pred(x, t), asked.alpha_bar(t), asked.alpha_bar(to))

    reverse = [asked.latents]
    for t in range(0, 190, 10):
        reverse.append(step(reverse[-1], t, t + 10))
    denoised = [step(reverse[19 - index], 190 - 10 * index, 180 - 10 * index) for index in range(19)]
    return (denoised[-15] - reverse[14]).double().square().flatten(1).sum(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", type=Path, default=Path(__file__).resolve().parents[2] / "resources" / "bases" / "H1")
    for name, default in (("pictures", 50), ("batch", 50), ("threads", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    add_out(parser)
    args = parser.parse_args()
    results = Results("secmi", args)
    torch.set_num_threads(args.threads)
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(args.unet)).eval().to(args.device)
    side = unet.config.sample_size
    latents = torch.randn(args.pictures, unet.config.in_channels, side, side).to(args.device)
    context = torch.randn(1, TOKENS, unet.config.cross_attention_dim).to(args.device).expand(args.pictures, -1, -1)
    seconds, values, calls = {"ours": [], "public": []}, {}, {}
    for _ in range(args.repeats + 1):  # the first round warms up and is dropped
        for name, run in (("ours", ours), ("public", public)):
            asked = Asked(unet, latents, context, alphas_cumprod(SD), args.batch)
            started = time.perf_counter()
            values[name] = run(asked)
            if asked.latents.is_cuda:
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
            calls[name] = asked.calls // args.pictures
    best = {name: min(times[1:]) for name, times in seconds.items()}
    difference = float(((values["ours"] - values["public"]) / values["public"]).abs().max())
    for name, value in best.items():
        print(f"{name:8s} {calls[name]:3d} calls  {value:8.3f} s  {args.pictures / value:8.2f} pictures/s")
        results.add(f"{name}, {calls[name]} calls", value, "s", seconds[name][1:])
    print(f"{best['public'] / best['ours']:.2f} times as fast, largest relative difference {difference:.1e}")
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"][1:], seconds["public"][1:], strict=True)]
    results.add("public to ours", best["public"] / best["ours"], "ratio", ratios)
    results.add("largest difference of scores", difference, "share of the score")
    results.write()
    print(json.dumps({"seconds": best, "calls": calls, "difference": difference, **vars(args), "torch": torch.__version__}, default=str))


if __name__ == "__main__":
    main()
