"""The verb `import-weights`: LoRAs that others published become a ModelSet that the weights attacks read.

Takes a folder (say one of `tuneleak fetch`) with LoRAs in the layout of diffusers, one `<person>.safetensors` or `<person>/<any name>.safetensors`
each, and optionally a `metadata.csv` with the columns `file` and any of concept, caption, step, seed, n_images. Every tensor's name and shape is
checked against the base before it is read, and nothing but safetensors is opened: pickled collections (`.pt`, `.bin`) have to be converted by whoever
trusts them. The files are written anew, so what arrives is this project's own layout.

Or a folder with the principal components of LoRAs (`tuneleak.models.principal_components`): then a LoRA is a row of their coefficients, is called by
its number, and `metadata.csv` has a column `row` in place of `file`.
"""

from pathlib import Path

from tuneleak import files, runtime
from tuneleak.errors import InputError
from tuneleak.models import modelset, principal_components, weights
from tuneleak.models.pipeline import load_base

METADATA = "metadata.csv"


def import_weights(folder, base, world, out, options, start=0, stop=None):
    """Read the LoRAs `start:stop` (by path, or by row of the coefficients) below `folder` and write them as a ModelSet.

    base: pipeline folder that they were trained on; world: name noted in the manifest; options: `ImportWeightsOptions`. Raises `InputError` for a folder
    without LoRAs, two LoRAs of one name, and files that are no LoRA of this base.
    """
    folder, out = Path(folder), modelset.folder_of(out)
    by_components = principal_components.found_in(folder, options.names)
    rows = None if by_components else _chosen(plan(folder, world, options), start, stop, folder)
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)  # its presence says that the set is complete
        loaded, skipped = load_base(base), {}
        if by_components:
            held = principal_components.PrincipalComponents(folder, loaded, options)
            rows = _chosen(plan_rows(folder, len(held), world, options), start, stop, folder)
            held.check_space(out, len(rows))
            numbers = [number for _, number in rows]
            loras = ((row, {"unet": lora}) for (row, _), lora in zip(rows, held.loras(numbers), strict=True))
        else:
            loras = _read(rows, loaded, folder, skipped if options.skip_broken else None)
        kept = []
        for row, lora in runtime.progress(loras, "import weights", total=len(rows)):
            with files.atomic_folder(out / row["file"]) as target:
                weights.write_matrices(target, lora)
            kept.append(row | {"base": loaded.name, "rank": lora["unet"].rank, "alpha": lora["unet"].alpha})
        if not kept:
            raise InputError(f"{folder}: none of its {len(rows)} files is a LoRA of {base}; the first says: {next(iter(skipped.values()))}")
        facts = {"folder": str(folder), "base": str(base), "start": start, "stop": stop, "models": len(kept), "skipped": skipped}
        files.write_meta(out / "manifest.csv", options, **facts)
        modelset.write(out, kept)


def _read(rows, base, folder, skipped):
    """(row, {part: Lora}) of each readable file; skipped: a dict that takes what the others' faults are (None: the first one is raised)."""
    networks = {"unet": base.unet, "text_encoder": base.text_encoder}
    for row, path in rows:
        try:
            loras = weights.read_lora(path, networks)
            if "unet" not in loras:
                raise InputError(f"{path} adapts the text encoder only; the attacks read LoRAs of the UNet")
        except InputError as error:
            if skipped is None:
                raise
            skipped[str(path.relative_to(folder))] = str(error)
            continue
        yield row, loras


def plan(folder, world, options):
    """[(manifest row without base, path)] of the LoRAs of a folder, sorted by path."""
    paths = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())
    if not paths:
        pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in weights.PICKLES)
        reason = f"; {pickles[0]} is a pickle, and loading one can run any code: convert it on a machine you can lose" if pickles else ""
        raise InputError(f"{folder} holds no LoRA as safetensors{reason}")
    known, rows = _metadata(folder, "file"), []
    for path in paths:
        place = path.relative_to(folder)
        concept = place.stem if len(place.parts) == 1 else place.parts[-2]
        rows.append((_row(known.get(place.as_posix(), {}), concept, world, options), files.inside(folder, place)))
    return _distinct(rows, folder)


def plan_rows(folder, count, world, options):
    """[(manifest row without base, row of the coefficients)] of `count` LoRAs that are given by their coefficients."""
    known = _metadata(folder, "row")
    unknown = next((name for name in known if not name.isdecimal() or not name.isascii() or int(name) >= count), None)
    if unknown is not None:
        raise InputError(f"{folder / METADATA}: there is no row {unknown!r} among {count} LoRAs; rows must be numbers from 0")
    known = {int(name): told for name, told in known.items()}
    return _distinct([(_row(known.get(number, {}), f"{number:05d}", world, options), number) for number in range(count)], folder)


def _row(told, concept, world, options):
    """A manifest row without base; told: what the metadata say of it."""
    concept, seed = told.get("concept") or concept, told.get("seed") or "0"
    name = modelset.model_id(world, concept, "lora", f"s{seed}")
    row = {"model_id": name, "world": world, "concept": concept, "method": "lora", "defence": "", "seed": seed, "images": "", "file": name}
    row |= {"step": told.get("step") or options.step, "caption": told.get("caption") or options.caption.format(concept=concept)}
    return row | {"n_images": told.get("n_images") or options.n_images}


def _distinct(rows, folder):
    seen = set()
    for row, _ in rows:
        if row["model_id"] in seen:
            raise InputError(f"{folder}: two LoRAs would be called {row['model_id']!r}; give each a concept or seed of its own in {METADATA}")
        seen.add(row["model_id"])
    return rows


def _chosen(rows, start, stop, folder):
    chosen = rows[max(0, start) : stop]
    if not chosen:
        raise InputError(f"{folder} holds {len(rows)} LoRAs; give a --start and --stop that leave some of them")
    return chosen


def _metadata(folder, key):
    """{value of the column `key`: row} of the metadata, empty without any."""
    path = folder / METADATA
    if not path.is_file():
        return {}
    table = files.read_table(path, [key], f"it needs a column {key} and any of concept, caption, step, seed, n_images")
    for name in ("step", "seed", "n_images"):
        if name in table and not table[name].str.fullmatch(r"\d*").all():
            raise InputError(f"{path}: column {name} holds something that is no whole number")
    return {row[key]: row for row in table.to_dict("records")}
