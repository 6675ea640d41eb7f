"""The verb `import-weights`: LoRAs that others published become a ModelSet that the weights attacks read.

Takes a folder (say one of `tuneleak fetch`) with LoRAs in the layout of diffusers, one `<person>.safetensors` or `<person>/<any name>.safetensors`
each, and optionally a `metadata.csv` with the columns `file` and any of concept, caption, step, seed, n_images. Every tensor's name and shape is
checked against the base before it is read, and nothing but safetensors is opened: pickled collections (`.pt`, `.bin`) have to be converted by whoever
trusts them. The files are written anew, so what arrives is this project's own layout.
"""

from pathlib import Path

import pandas as pd

from tuneleak import files, runtime
from tuneleak.errors import InputError
from tuneleak.models import modelset, weights
from tuneleak.models.pipeline import load_base

METADATA = "metadata.csv"


def import_weights(folder, base, world, out, options):
    """Read the LoRAs below `folder` and write them as a ModelSet.

    base: pipeline folder that they were trained on; world: name noted in the manifest; options: `ImportWeightsOptions`. Raises `InputError` for a folder
    without LoRAs, two LoRAs of one name, and files that are no LoRA of this base.
    """
    folder, out = Path(folder), modelset.folder_of(out)
    rows = plan(folder, world, options)
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)  # its presence says that the set is complete
        loaded = load_base(base)
        networks, kept, skipped = {"unet": loaded.unet, "text_encoder": loaded.text_encoder}, [], {}
        for row, path in runtime.progress(rows, "import weights"):
            try:
                loras = weights.read_lora(path, networks)
                if "unet" not in loras:
                    raise InputError(f"{path} adapts the text encoder only; the attacks read LoRAs of the UNet")
            except InputError as error:
                if not options.skip_broken:
                    raise
                skipped[str(path.relative_to(folder))] = str(error)
                continue
            with files.atomic_folder(out / row["file"]) as target:
                weights.write_matrices(target, loras)
            kept.append(row | {"base": loaded.name, "rank": loras["unet"].rank, "alpha": loras["unet"].alpha})
        if not kept:
            raise InputError(f"{folder}: none of its {len(rows)} files is a LoRA of {base}; the first says: {next(iter(skipped.values()))}")
        files.write_meta(out / "manifest.csv", options, folder=str(folder), base=str(base), models=len(kept), skipped=skipped)
        modelset.write(out, kept)


def plan(folder, world, options):
    """[(manifest row without base, path)] of the LoRAs of a folder, sorted by path."""
    paths = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())
    if not paths:
        pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in weights.PICKLES)
        reason = f"; {pickles[0]} is a pickle, and loading one can run any code: convert it on a machine you can lose" if pickles else ""
        raise InputError(f"{folder} holds no LoRA as safetensors{reason}")
    known = _metadata(folder)
    rows = []
    for path in paths:
        place = path.relative_to(folder)
        told = known.get(place.as_posix(), {})
        concept = told.get("concept") or (place.stem if len(place.parts) == 1 else place.parts[-2])
        seed = told.get("seed") or "0"
        name = modelset.model_id(world, concept, "lora", f"s{seed}")
        row = {"model_id": name, "world": world, "concept": concept, "method": "lora", "defence": "", "seed": seed, "images": "", "file": name}
        row |= {"step": told.get("step") or options.step, "caption": told.get("caption") or options.caption.format(concept=concept)}
        rows.append((row | {"n_images": told.get("n_images") or options.n_images}, files.inside(folder, place)))
    names = [row["model_id"] for row, _ in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"{folder}: two LoRAs would be called {twice!r}; tell them apart by concept or seed in {METADATA}")
    return rows


def _metadata(folder):
    path = folder / METADATA
    if not path.is_file():
        return {}
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if "file" not in table:
        raise InputError(f"{path} lacks the column file")
    for name in ("step", "seed", "n_images"):
        if name in table and not table[name].str.fullmatch(r"\d*").all():
            raise InputError(f"{path}: column {name} holds something that is no whole number")
    return {row["file"]: row for row in table.to_dict("records")}
