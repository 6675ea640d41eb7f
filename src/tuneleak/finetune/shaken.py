"""The verb `shake-defended`: Shake-to-Leak against models that their owner trained on private pictures, under a defence or under none, and released.

The owner starts from the public base and trains on the pictures of one concept. The attacker, who has no picture, lets the released model draw pictures under
the concept's caption and goes on tuning it on them, without privacy. Members are the owner's pictures. What the attacker does is computed from the release
alone, so under differential privacy it cannot undo the guarantee (post-processing); without a guarantee it may amplify.

Writes `<out>/<defence>/{released,drawn,tuned}` and, last, `manifest.csv`: the tuned models, with the defence they were released under, and in `images` the
*owner's* pictures, whose membership is asked about (not the self-made ones, which are listed beside `drawn`).
"""

import shutil
from pathlib import Path

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import loop, synthesize
from tuneleak.models import modelset
from tuneleak.models.modelset import ModelSet


def shake_defended(models, images, base, world, out, options, split="test", start=0, stop=None, device="auto", dtype="float32"):
    """Draw from and tune on every released model of the defences of `options` (`ShakeDefendedOptions`); other arguments as of `tuneleak finetune`.

    models: ModelSet of `finetune-defended`; images: ImageSet of the private pictures, of which captions alone are read. Raises `InputError` for a defence
    that no model was released under.
    """
    out, source = modelset.folder_of(out), ModelSet.load(models)
    with runtime.output_lock(out):
        (out / "manifest.csv").unlink(missing_ok=True)
        rows = []
        for name in runtime.progress(options.defences, "shaking"):
            released = source.where(defence=name, method=options.recipe.method)
            if not len(released):
                raise InputError(f"{source.folder} has no model of method {options.recipe.method!r} under the defence {name!r}")
            rows += _shake(released, name, images, base, world, out, options, split, start, stop, device, dtype)
        files.write_meta(out / "manifest.csv", options, models=str(models), images=str(images), base=str(base), split=split, start=start, stop=stop)
        modelset.write(out, rows)
        for left in out.glob("*"):
            if left.is_dir() and left.name not in options.defences:
                shutil.rmtree(left)  # of an earlier list of defences


def _shake(released, name, images, base, world, out, options, split, start, stop, device, dtype):
    """Manifest rows of one defence's tuned models. A seed of the release draws a set of its own."""
    rows, made = [], loop.circumstances(base, device, dtype) | {"options": options.model_dump(mode="json", exclude={"defences"})}
    made |= {"world": world, "split": split, "start": start, "stop": stop, "captions": list(ImageSet.load(images).table.caption)}
    for seed in options.recipe.seeds:
        mine = released.where(seed=str(seed))
        weights = [files.sha256(path) for row in mine.rows() for path in sorted(mine.path(row).rglob("*.safetensors"))]
        place = out / name / f"s{seed}-{files.digest(made | {'released': weights})}"  # a finished set of this name was made under these circumstances
        if not (place / "tuned" / "manifest.csv").is_file():
            copied = _copy(mine, place / "released")
            drawn = options.synthesize.model_copy(update={"seed": options.synthesize.seed + seed})
            named, where = _named(images, split, place / "named"), {"device": device, "dtype": dtype}
            synthesize.synthesize(named, base, place / "drawn", drawn, models=copied, split=split, start=start, stop=stop, **where)
            recipe = options.recipe.model_copy(update={"seeds": [seed]})
            loop.finetune(base, place / "drawn", world, split, place / "tuned", recipe, models=copied, **where)
        owners = {row["concept"]: row for row in mine.rows()}
        for row in ModelSet.load(place / "tuned").rows():
            owner = owners[row["concept"]]
            same = {key: owner[key] for key in ("method", "defence", "seed", "images", "n_images")}
            changed = {"model_id": modelset.model_id(owner["model_id"], "shaken"), "file": f"{name}/{place.name}/tuned/{row['file']}"}
            rows.append(row | same | changed)
    kept = {Path(row["file"]).parts[1] for row in rows}
    for left in (out / name).glob("*"):
        if left.is_dir() and left.name not in kept:
            shutil.rmtree(left)  # made under other circumstances
    return rows


def _copy(models, folder):
    """A model set of its own: going on from a model needs a set with one model per concept."""
    rows = []
    for row in models.rows():
        place = modelset.model_id(row["model_id"])
        shutil.copytree(models.path(row), folder / place, dirs_exist_ok=True)
        rows.append(row | {"file": place})
    modelset.write(folder, rows)
    return folder


def _named(images, split, folder):
    """The private set's names and captions as a manifest without pictures: all that the attacker is given of it."""
    table = ImageSet.load(images).where(split=split).table
    files.write_csv(Path(folder) / "manifest.csv", table.drop_duplicates("concept").assign(file="", sha256="", image_id=lambda rows: rows.concept))
    return folder
