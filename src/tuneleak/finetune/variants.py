"""The verb `finetune-variants`: one recipe fine-tuned in many variants -- ablations and defences -- as one ModelSet.

The column `defence` names the variant. A variant changes knobs of the recipe, or finished LoRA weights, or both; one that changes weights only starts from the
models of the variant with the same knobs, which are trained once. The column `method` stays the recipe's, so that a variant is compared under its own method.
"""

import shutil
from pathlib import Path

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.defences import transforms
from tuneleak.errors import InputError
from tuneleak.finetune import loop
from tuneleak.models import modelset, weights
from tuneleak.models.modelset import LORA_FILE, ModelSet
from tuneleak.models.pipeline import load_base
from tuneleak.options import FinetuneOptions


def finetune_variants(base, images, world, split, out, options, start=0, stop=None, device="auto", dtype="float32"):
    """Fine-tune `base` on concepts `start:stop` of a split in every variant of `options` (`VariantsOptions`); arguments as of `tuneleak finetune`.

    Finished variants are kept when a killed job is started again. Raises `InputError` for a variant that is no valid recipe.
    """
    out, recipes = modelset.folder_of(out), {variant.name: changed(options.recipe, variant.change) for variant in options.variants}
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)
        rows, trained, where = [], {}, {"world": world, "split": split, "start": start, "stop": stop, "pictures": list(ImageSet.load(images).table.sha256)}
        where |= loop.circumstances(base, device, dtype)
        for variant in runtime.progress(options.variants, "variants"):
            recipe = recipes[variant.name]
            key = files.digest({"recipe": recipe.model_dump(mode="json"), **where})  # a finished set of this name was made under these circumstances
            if key not in trained:
                folder = out / f"trained-{key}"
                if not (folder / "manifest.csv").is_file():
                    loop.finetune(base, images, world, split, folder, recipe, start, stop, device, dtype)
                trained[key] = ModelSet.load(folder)
            for row in trained[key].rows():
                name = modelset.model_id(row["model_id"], variant.name)
                place = f"trained-{key}/{row['file']}"
                if variant.transform.kind != "none":
                    place = name
                    _transform(base, trained[key].path(row), out / name, variant.transform, row["model_id"])
                rows.append(row | {"model_id": name, "method": options.recipe.method, "defence": variant.name, "file": place})
        files.write_meta(out / "manifest.csv", options, models=len(rows), base=str(base), images=str(images), split=split, start=start, stop=stop)
        modelset.write(out, rows)
        kept = {Path(row["file"]).parts[0] for row in rows} | {f"trained-{key}" for key in trained}
        for left in out.glob("*"):
            if left.is_dir() and left.name not in kept:
                shutil.rmtree(left)  # of an earlier list of variants


def changed(recipe, change):
    """A recipe with some knobs changed, validated anew."""
    unknown = sorted(set(change) - set(FinetuneOptions.model_fields))
    if unknown:
        raise InputError(f"a variant changes {unknown[0]!r}, which is no knob of fine-tuning")
    return FinetuneOptions.model_validate(recipe.model_dump() | change)


def _transform(base, model, folder, options, key):
    if not (model / LORA_FILE).is_file():
        raise InputError(f"{model} is not a LoRA; changes to finished weights are for LoRAs")
    read = weights.read_lora(model / LORA_FILE, load_base(base).networks())
    with files.atomic_folder(folder) as temporary:
        weights.write_matrices(temporary, transforms.apply(read, options, key))
