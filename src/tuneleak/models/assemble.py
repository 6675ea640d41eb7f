"""The verbs `assemble` (parts to a StableDiffusionPipeline folder) and `promote` (what a run rebuilt to `resources/`)."""

import shutil
from pathlib import Path

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import train_pixel_base
from tuneleak.models.classes import CLASSES_FILE, Classes
from tuneleak.models.train_base import SCHEDULER, check_parts


def assemble(unet, out, autoencoder=None, text_encoder=None):
    """Write a folder that `StableDiffusionPipeline.from_pretrained` opens unchanged: unet, vae, text_encoder, tokenizer, scheduler.

    A UNet of pixels needs no other parts (they are not looked at) and becomes the folder of a `DDPMPipeline`, with `classes.json`.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    if (Path(unet) / "config.json").is_file() and files.read_object(Path(unet) / "config.json").get("_class_name") == "UNet2DModel":
        _assemble_pixel(Path(unet), Path(out))
        return
    if autoencoder is None or text_encoder is None:
        raise InputError("a base that works on latents is assembled with --autoencoder and --text-encoder")
    for folder in (autoencoder, unet, Path(text_encoder) / "text_encoder", Path(text_encoder) / "tokenizer"):
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is missing; the shipped parts lie under resources/, `snakemake resources` rebuilds them")
    for folder in (autoencoder, unet, text_encoder):
        files.check_digests(folder)
    parts = {
        "vae": AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float32, use_safetensors=True),
        "text_encoder": CLIPTextModel.from_pretrained(f"{text_encoder}/text_encoder", dtype=torch.float32, use_safetensors=True),
        "unet": UNet2DConditionModel.from_pretrained(unet, torch_dtype=torch.float32, use_safetensors=True),
    }
    check_parts(parts["vae"], parts["text_encoder"], parts["unet"])
    out = Path(out)
    for name, part in parts.items():
        part.save_pretrained(out / name, safe_serialization=True)
    shutil.copytree(Path(text_encoder) / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    if (Path(unet) / "members.csv").is_file():  # which named photographs it trained on: membership is known here
        shutil.copyfile(Path(unet) / "members.csv", out / "members.csv")
    DDIMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    files.write_meta(out / "model_index.json", None, autoencoder=str(autoencoder), text_encoder=str(text_encoder), unet=str(unet))
    files.write_json(out / "model_index.json", index)


def _assemble_pixel(unet, out):
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    files.check_digests(unet)
    network = UNet2DModel.from_pretrained(unet, torch_dtype=torch.float32, use_safetensors=True)
    if network.config.num_class_embeds:
        Classes.read(unet, network.config.num_class_embeds)
    network.save_pretrained(out / "unet", safe_serialization=True)
    DDPMScheduler(**train_pixel_base.SCHEDULER).save_pretrained(out / "scheduler")
    for name in (CLASSES_FILE, "members.csv"):
        if (unet / name).is_file():
            shutil.copyfile(unet / name, out / name)
    files.write_meta(out / "model_index.json", None, unet=str(unet))
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    files.write_json(out / "model_index.json", index)


KEPT = ("*.safetensors", "*.json", "*.csv", "*.md", "*.png", "*.txt")
UNUSED = ("text-encoder/model.safetensors", "embedders/*/text_encoder/*")  # a pipeline takes CLIP's text tower only, a measurement needs no copy of it


def promote(built, resources):
    """Copy what a run rebuilt under `built` over `resources`, unused files left out, and write `SHA256SUMS`; refused above 25 MB in all."""
    built, resources = Path(built), Path(resources)
    found = {path for pattern in KEPT for path in built.rglob(pattern)}
    chosen = sorted(path for path in found if _shipped(path.relative_to(built)))
    if not chosen:
        raise InputError(f"{built} holds nothing to promote; run `snakemake resources` first")
    size = sum(path.stat().st_size for path in chosen)
    if size > 25 * 2**20:
        raise InputError(f"{built} holds {size / 2**20:.1f} MiB; what is shipped must stay under 25 MiB")
    for path in chosen:
        target = resources / path.relative_to(built)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    write_checksums(resources)


def _shipped(path):
    """Whether a built file (relative path) is used by anything: no checkpoint, snapshot or second copy of a text tower."""
    return not any(part.startswith(".") or part == "snapshots" for part in path.parts) and not any(path.match(pattern) for pattern in UNUSED)


def write_checksums(resources):
    """Write `SHA256SUMS` of every shipped weight and configuration (the format of sha256sum)."""
    resources = Path(resources)
    paths = sorted(path for path in resources.rglob("*") if path.suffix in (".safetensors", ".json") and not path.name.endswith(".meta.json"))
    files.write_text(resources / "SHA256SUMS", "".join(f"{files.sha256(path)}  {path.relative_to(resources).as_posix()}\n" for path in paths))
