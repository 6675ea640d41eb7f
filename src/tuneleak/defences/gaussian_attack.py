"""The verb `perturb`: the Gaussian attack of Shake-to-Leak, random perturbation of a published model's weights without any data.

What the paper did numerically is unknown. Here noise is relative to each tensor: theta' = theta + sigma RMS(theta_l) xi, xi ~ N(0, I), for every tensor l of
the UNet. One seed draws the same xi for every sigma. The maximum over seeds is what selection noise looks like: choose on one half of the pictures and
report on the other.
"""

from pathlib import Path

import torch

from tuneleak import files, runtime
from tuneleak.models import modelset
from tuneleak.models.pipeline import load_base


def perturb(base, out, options, device="auto"):
    """Write a ModelSet of perturbed copies of a base's UNet, one per sigma and seed of `options` (`PerturbOptions`), the manifest last.

    base: pipeline folder. The rows have no concept (they are about all), method `gaussian` and world `sigma=<sigma>`.
    """
    out, loaded = Path(out), load_base(base, runtime.pick_device(device))
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)
        original = {name: value.clone() for name, value in loaded.unet.state_dict().items()}
        rows = []
        for sigma in options.sigmas:
            for seed in options.seeds:
                loaded.unet.load_state_dict(perturbed(original, sigma, seed))
                name = modelset.model_id("gaussian", f"{sigma:g}", f"s{seed}")
                with files.atomic_folder(out / name) as folder:
                    loaded.unet.save_pretrained(folder / "unet", safe_serialization=True)
                row = {"model_id": name, "world": f"sigma={sigma:g}", "base": loaded.name, "concept": "", "method": "gaussian", "defence": "", "seed": seed}
                rows.append(row | {"step": 0, "caption": "", "n_images": 0, "images": "", "file": name})
        files.write_meta(out / "manifest.csv", options, base=str(base), models=len(rows))
        modelset.write(out, rows)


def perturbed(tensors, sigma, seed):
    """name -> tensor plus sigma RMS(tensor) xi, where xi is drawn for the seed and the tensor's name."""
    noisy = {}
    for name, value in tensors.items():
        noise = torch.randn(value.shape, generator=runtime.generator("gaussian-attack", seed, name)).to(value)
        noisy[name] = value + sigma * value.square().mean().sqrt() * noise
    return noisy
