"""The verb `import-models`: what people share -- a LoRA file or folder, several to be used together, a merged checkpoint -- as a ModelSet of one model.

Every attack then runs on it as on a model trained here. What the file's own header tells (base, number of pictures, steps, captions) is read first, because
that is a leak of its own: kohya's trainers write all of it unless told not to.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models import adapters, modelset, weights
from tuneleak.models.modelset import LORA_FILE

FACTS_FILE = "shared.json"
_UNET_PREFIX, _TEXT_PREFIX = "model.diffusion_model.", "cond_stage_model.transformer."  # of a checkpoint in one file, as Stable Diffusion 1.x was published


@dataclass(frozen=True)
class Facts:
    """What a shared model says about itself; empty or 0 where it says nothing.

    base: name of the base model (a hub id or a file's name); n_images: training pictures; repeats: how often one pass shows them all; steps: optimiser steps;
    rank; captions: words or tags of the training captions, the most frequent first.
    """

    base: str = ""
    n_images: int = 0
    repeats: int = 0
    steps: int = 0
    rank: int = 0
    captions: tuple = ()


def facts(path):
    """`Facts` of a shared file or folder: from a safetensors header (kohya's `ss_...`, `modelspec...`), `adapter_config.json` and the model card."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    found = Facts()
    for name in (adapters.CONFIG_FILE, *(f"{part}/{adapters.CONFIG_FILE}" for part in ("unet", "transformer"))):
        if path.is_dir() and (folder / name).is_file():
            config = files.read_json(folder / name)
            if isinstance(config, dict) and isinstance(config.get("base_model_name_or_path"), str):
                found = replace(found, base=config["base_model_name_or_path"])
    if path.is_dir() and not found.base and (folder / "README.md").is_file():
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:100_000]
        match = re.search(r"^base_model:\s*[\"']?([\w./-]+)", card.split("\n---", 1)[0], re.MULTILINE)
        found = replace(found, base=match[1] if match else "")
    file = path if path.is_file() else folder / LORA_FILE
    return _of_header(found, weights.header(file)) if file.is_file() and file.suffix == ".safetensors" else found


def _of_header(found, header):
    def number(name):
        text = str(header.get(name, ""))
        return int(text) if re.fullmatch(r"\d{1,9}", text) else 0

    tags = {}
    for folder in _json(header.get("ss_tag_frequency")).values():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            tags[tag.strip()] = tags.get(tag.strip(), 0) + (count if isinstance(count, int) else 0)
    shown = number("ss_num_train_images")  # kohya counts a picture once per repeat
    counts = [value.get("img_count") for value in _json(header.get("ss_dataset_dirs")).values() if isinstance(value, dict)]
    single = sum(count for count in counts if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 10**9)
    base = header.get("ss_sd_model_name") or header.get("base_model") or header.get("modelspec.architecture") or ""
    return replace(
        found,
        base=found.base or str(base),
        n_images=single or shown,
        repeats=round(shown / single) if single and shown else 0,
        steps=number("ss_steps") or number("ss_max_train_steps"),
        rank=number("ss_network_dim"),
        captions=tuple(sorted(tags, key=lambda tag: (-tags[tag], tag))),
    )


def _json(text):
    try:
        value = json.loads(text or "{}")
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def find_base(base, told):
    """The pipeline folder to use: `base` itself, or among the folders in it the one that the shared model names (`told`: its `Facts`).

    Raises `InputError` saying which base to fetch if it is not there; nothing is ever downloaded here.
    """
    named = f" (the model names {told.base!r})" if told.base else " (the model names none)"
    if base is None:
        if told.base and (Path(told.base) / "model_index.json").is_file():
            return Path(told.base)
        raise InputError(f"give the base this model was tuned from with --base{named}; `tuneleak fetch` downloads one from the hub")
    base = modelset.folder_of(base, "model_index.json")
    if (base / "model_index.json").is_file():
        return base
    inside = sorted(path.parent for path in base.glob("*/model_index.json"))
    wanted = Path(told.base).name.removesuffix(".safetensors").lower()
    matching = [path for path in inside if path.name.lower() == wanted]
    if len(matching) != 1:
        listed = ", ".join(path.name for path in inside) or "none"
        raise InputError(f"{base} is no pipeline folder, and of those in it ({listed}) {len(matching)} are the base of this model{named}; name one with --base")
    return matching[0]


def import_models(source, out, base=None, caption=None, n_images=0, images=None, concept="", scales=(), world="shared"):
    """Write a ModelSet of one model from what was shared; returns it.

    source: LoRA files or folders (several are used together), or one merged checkpoint: a folder with `unet/` or `transformer/`, or one file of Stable
    Diffusion 1.x; base: pipeline folder, or a folder of pipeline folders; caption, n_images: those of the training, where the model does not tell; images,
    concept: the training pictures, if the one who asks has them (fold train of that concept; with one concept only, that one). scales: one per source.
    Files are linked, or copied if that fails.
    """
    from tuneleak.models.pipeline import load_base, load_tuned

    sources, out = [Path(path) for path in source], modelset.folder_of(out)
    if missing := [path for path in sources if not path.exists()]:
        raise InputError(f"{missing[0]}: no such file or folder")
    told = facts(sources[0])
    folder = find_base(base, told)
    row = _row(sources, told, caption, n_images, images, concept) | {"world": world, "base": folder.resolve().name}
    loaded = load_base(folder)
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)
        with files.atomic_folder(out / row["file"]) as model:
            _copy(sources, model, scales, loaded)
            files.write_json(model / FACTS_FILE, vars(told) | {"captions": list(told.captions)})
        made = modelset.ModelSet(out, modelset.table_of([row]))
        load_tuned(loaded, made, made.rows()[0]).unload()  # refused now, if it does not fit the base
        files.write_meta(
            out / "manifest.csv", None, source=[str(path) for path in sources], base=str(folder), facts=vars(told) | {"captions": list(told.captions)}
        )
        return modelset.write(out, [row])


def _row(sources, told, caption, n_images, images, concept):
    pictures = []
    if images:
        table = ImageSet.load(images).table
        names = list(dict.fromkeys(table.concept))
        concept = concept or (names[0] if len(names) == 1 else "")
        pictures = list(table[(table.concept == concept) & table.fold.isin(["train", ""])].image_id)
        if not pictures:
            raise InputError(f"{images} holds no training pictures of concept {concept!r}; name one of {', '.join(names[:5])} with --concept")
        caption = table[table.concept == concept].caption.iloc[0] if caption is None else caption
    if caption is None:
        hint = f"; its header has the tags {', '.join(told.captions[:8])}" if told.captions else ""
        raise InputError(f'give the training caption with --caption ("" attacks without one){hint}')
    count = len(pictures) or n_images or told.n_images
    if count < 1:
        raise InputError("the model does not say on how many pictures it was trained; give --n-images")
    method = "merged" if _is_whole(sources[0]) else "+".join(["adapter"] * len(sources))
    name = modelset.model_id(*(path.stem if path.is_file() else path.name for path in sources))
    return {
        "model_id": name, "concept": concept or name, "method": method, "defence": "", "seed": 0, "step": told.steps, "caption": caption, "n_images": count,
        "images": ";".join(pictures), "file": name,
    }  # fmt: skip


def _is_whole(path):
    """Whether a folder or file holds whole networks rather than an adapter: a merged checkpoint."""
    if path.is_file():
        return path.suffix == ".safetensors" and any(name.startswith(_UNET_PREFIX) for name in _names(path))
    parts = [path / part for part in ("unet", "transformer") if (path / part).is_dir()]
    return any(not (part / adapters.CONFIG_FILE).is_file() for part in parts)


def _names(path):
    with weights.opened(path) as handle:
        return list(handle.keys())


def _split(path, model, unet_config):
    """Write the UNet and the text encoder of a checkpoint in one file as the folder's `unet/` and `text_encoder/`; diffusers knows the names."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from safetensors.torch import save_file

    names = _names(path)
    if foreign := [name for name in names if name.startswith(("conditioner.", "cond_stage_model.model."))]:
        raise InputError(f"{path} holds a text encoder in a layout that is not read ({foreign[0]}); convert it to a pipeline folder with diffusers first")
    with weights.opened(path) as handle:
        unet = convert_ldm_unet_checkpoint({name: handle.get_tensor(name) for name in names if name.startswith(_UNET_PREFIX)}, unet_config)
        text = {name.removeprefix(_TEXT_PREFIX): handle.get_tensor(name) for name in names if name.startswith(_TEXT_PREFIX)}
    for folder, file, tensors in (("unet", "diffusion_pytorch_model.safetensors", unet), ("text_encoder", "model.safetensors", text)):
        if tensors:
            (model / folder).mkdir()
            save_file({name: value.contiguous() for name, value in tensors.items() if not name.endswith("position_ids")}, model / folder / file)


def _copy(sources, model, scales, base):
    if scales and len(scales) != len(sources):
        raise InputError(f"{len(sources)} shared models need as many --scales, not {len(scales)}")
    if _is_whole(sources[0]):
        if len(sources) > 1:
            raise InputError(f"{sources[0]} is a whole network; it cannot be combined with others")
        if sources[0].is_file():
            _split(sources[0], model, base.unet.config)
            return
        for part in ("unet", "transformer", "text_encoder", "text_encoder_2"):
            if (sources[0] / part).is_dir():
                shutil.copytree(sources[0] / part, model / part, copy_function=_link)
        return
    stack = []
    for number, (path, scale) in enumerate(zip(sources, scales or [1.0] * len(sources), strict=True)):
        target = model / f"{number}{path.suffix if path.is_file() else ''}"
        _link(path, target) if path.is_file() else shutil.copytree(path, target, copy_function=_link)
        stack.append({"file": target.name, "scale": scale, "name": path.name})
    files.write_json(model / adapters.STACK_FILE, stack)


def _link(source, target):
    """A hard link where the file system allows one: a checkpoint has gigabytes."""
    source = Path(source).resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
