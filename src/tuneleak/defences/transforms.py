"""The verb `transform`: changes to finished LoRA weights, made before they are published. Every attack then runs on the new model set unchanged.

A kind is a function `<kind>_transform(lora, strength, generator)` from a `Lora` to a `Lora`; its name is all that has to be added. Kinds whose seed or
strength means nothing ignore it.
"""

import dataclasses
import shutil
from pathlib import Path

import torch

from tuneleak import files, runtime
from tuneleak.errors import InputError
from tuneleak.models import modelset as modelsets
from tuneleak.models import weights
from tuneleak.models.lora_algebra import canonical
from tuneleak.models.lora_algebra import gauge as random_gauge
from tuneleak.models.modelset import LORA_FILE, ModelSet


def none_transform(lora, strength, generator):
    """Nothing: the reference."""
    return lora


def noise_transform(lora, strength, generator):
    """Gaussian noise on A and B, of `strength` times the root mean square of each matrix."""

    def noisy(matrix):
        drawn = torch.randn(matrix.shape, generator=generator).to(matrix.dtype)
        return matrix + strength * matrix.square().mean().sqrt() * drawn

    return _each(lora, lambda a, b: (noisy(a), noisy(b)))


def quantise_transform(lora, strength, generator):
    """A and B rounded to integers of `strength` bits, one symmetric scale for each matrix (8: int8; 4: int4)."""
    bits = int(strength)
    if bits != strength or not 2 <= bits <= 16:
        raise InputError(f"quantise takes a whole number of bits: --strength must be from 2 to 16, not {strength:g}")
    top = 2 ** (bits - 1) - 1

    def rounded(matrix):
        step = matrix.abs().amax().clamp_min(1e-30) / top
        return (matrix / step).round().clamp(-top, top) * step

    return _each(lora, lambda a, b: (rounded(a), rounded(b)))


def truncate_transform(lora, strength, generator):
    """The update's best approximation of rank `strength` (Eckart and Young 1936), in factors of the old shape."""
    keep = int(strength)
    if keep != strength or not 1 <= keep <= lora.rank:
        raise InputError(f"truncate keeps a whole number of ranks: --strength must be from 1 to {lora.rank}, not {strength:g}")

    def truncated(a, b):
        u, s, v = (part[0] for part in canonical((a[None], b[None])))
        root = torch.where(torch.arange(len(s)) < keep, s, 0.0).sqrt()
        return (root[:, None] * v.T).to(a.dtype), (u * root).to(b.dtype)

    return _each(lora, truncated)


def gauge_transform(lora, strength, generator):
    """Other factors of the very same update: (B R, R^-1 A) with random R of condition `strength` (1: R orthogonal). Obfuscation: no function changes."""
    changed = random_gauge({name: (a[None], b[None]) for name, (a, b) in lora.matrices.items()}, generator, max(strength, 1.0))
    return dataclasses.replace(lora, matrices={name: (a[0], b[0]) for name, (a, b) in changed.items()})


def drop_text_encoder_transform(lora, strength, generator):
    """The UNet's LoRA as it is: what is dropped is the text encoder's, which `apply` does not pass on for this kind."""
    return lora


def transform(models, base, out, options):
    """Write the model set `models` with every LoRA changed by `options.kind` (`TransformOptions`) to `out`, its manifest last.

    base: pipeline folder the LoRAs belong to, by which they are checked. The column `defence` becomes `<kind>` or `<kind>-<strength>`, after the old one
    and a plus sign if there was one. Raises `InputError` for models that are not LoRAs.
    """
    from tuneleak.models.pipeline import load_base

    source, out = ModelSet.load(models), modelsets.folder_of(out)
    if source.folder.resolve() == out.resolve():
        raise InputError(f"{out} is the model set that is read; choose another folder to write")
    loaded = load_base(base)
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)
        rows = []
        for row in runtime.progress(source.rows(), f"transform {options.kind}"):
            path = weights.safetensors_file(source.path(row), LORA_FILE)  # weight transforms are for LoRAs in folders of their own
            read = weights.read_lora(path, loaded.networks())
            with files.atomic_folder(out / row["file"]) as folder:
                weights.write_matrices(folder, apply(read, options, row["model_id"]))
            rows.append(row | {"defence": "+".join(filter(None, (row["defence"], options.name if options.kind != "none" else "")))})
        files.write_meta(out / "manifest.csv", options, models=len(rows), model_set=str(models), base=str(base))
        modelsets.write(out, rows)
    for left in Path(out).glob("*"):
        if left.is_dir() and left.name not in {row["file"] for row in rows}:
            shutil.rmtree(left)  # of an earlier, larger set


def apply(loras, options, key):
    """{part: Lora} changed; `key`: name of the model, so that each has noise of its own."""
    change = globals()[f"{options.kind}_transform"]
    kept = {part: lora for part, lora in loras.items() if part == "unet" or options.kind != "drop_text_encoder"}
    if not kept:
        raise InputError(f"{key} has a LoRA of the text encoder only; nothing would be left of it")
    return {part: change(lora, options.strength, runtime.generator("transform", options.kind, options.seed, key, part)) for part, lora in kept.items()}


def apply_to_set(weightset, options):
    """The same change to every model of a `WeightSet`, as an attacker does to models of his own."""
    if options.kind in ("none", "drop_text_encoder"):
        return weightset
    changed = {name: ([], []) for name in weightset.layers}
    for number, key in enumerate(weightset.table.model_id):
        lora = weights.Lora(weightset.rank, float(weightset.rank), {name: (a[number], b[number]) for name, (a, b) in weightset.pairs.items()})
        for name, pair in apply({"unet": lora}, options, key)["unet"].matrices.items():
            for side, matrix in enumerate(pair):
                changed[name][side].append(matrix)
    return weightset.with_pairs({name: tuple(torch.stack(side) for side in sides) for name, sides in changed.items()})


def _each(lora, change):
    return dataclasses.replace(lora, matrices={name: change(a, b) for name, (a, b) in lora.matrices.items()})
