"""The verb `attack extraction`: generate with a fine-tuned model, cluster, and match what was extracted with what it was trained on.

`matches.csv`, one row per model, guidance setting and training picture: `model_id, world, base, concept, method, defence, seed` (of the
model); `attack, setting` (such as `w=3,k=-0.02`); `image_id` (the training picture); `extracted` (its best similarity in the extracted
set), `match_file` (that picture, relative to `extracted/`), `match_size` (members of its cluster); the controls `random, heldout` and the
bound `oracle` (see `scoring.Matches`); `n_extracted, threshold, exact` (of the clustering; False where greedy cliques stood in for largest
ones); `n_generated, n_images`; `model_calls` (samples through a UNet behind these generations). With a factor reader also
`true_<f>, read_extracted_<f>, read_heldout_<f>` per factor. Under another caption condition than `known` the setting ends in `,caption=<condition>`.
The extracted set's manifest also tells each cluster's traits (see `certainty.traits`) and the caption that was used.
"""

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tuneleak import files, runtime
from tuneleak.attacks.extraction.shard import Shard, save
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models import modelset as modelsets
from tuneleak.models import shared
from tuneleak.models.embedders import load_embedder
from tuneleak.models.modelset import ModelSet, image_ids
from tuneleak.models.pipeline import load_base


@dataclass(frozen=True)
class Instruments:
    """The measuring networks: `cluster` and `score` embed pictures, `factors` (or None) reads their true factors."""

    cluster: Any
    score: Any
    factors: Any = None


def extract(
    models, copy_cluster, out, options, images=None, base=None, copy_score=None, factors=None, caption=None, n_images=0, concept="", scales=(), captions=None,
    device="auto", dtype="float32",
):  # fmt: skip
    """Run one attack, in all its guidance settings, on every model of a ModelSet; the module's text says what it writes into `out`.

    models: ModelSet folder, or shared files and folders (list), which `tuneleak.models.shared` first makes a ModelSet of in `<out>/models`; caption, n_images,
    concept, scales: see there. images: ImageSet with the training and held-out pictures; None: nothing to match with, see `unmatched.py` for what is
    written then. base: pipeline folder of the pretrained model. copy_cluster, copy_score, factors: embedder folders. options: `ExtractionOptions`.
    captions: captions.csv of `recover-caption`, for the caption condition `recovered`. dtype: of the networks; guidance is float32. An interrupted run on a
    ModelSet continues after its last finished model. Raises `InputError` for inputs that do not fit together.
    """
    out, models = Path(out), [Path(path) for path in ([models] if isinstance(models, str | Path) else models)]
    if len(models) > 1 or not (modelsets.folder_of(models[0]) / "manifest.csv").is_file():
        base = shared.find_base(base, shared.facts(models[0]))
        shared.import_models(models, out / "models", base, caption, n_images, images, concept, scales)
        models = [out / "models"]
    if base is None:
        raise InputError("a model set needs the pipeline folder of its base: give it with --base")
    if images is None:
        _unmatched(models[0], base, copy_cluster, out, options, runtime.pick_device(device), dtype)
        return
    if copy_score is None:
        raise InputError("matching with training pictures needs an embedder for the scores: give it with --copy-score")
    _matched(models[0], images, base, (copy_cluster, copy_score, factors), out, options, runtime.pick_device(device), dtype, captions)


def _unmatched(models, base, copy_cluster, out, options, device, dtype):
    from tuneleak.attacks.extraction.unmatched import attack_unmatched

    with runtime.output_lock(out / "clusters.csv"):
        modelset, attack = ModelSet.load(models), importlib.import_module(f"tuneleak.attacks.extraction.{options.attack.replace('-', '_')}")
        attack_unmatched(load_base(base, device, dtype), modelset, load_embedder(copy_cluster, device), attack, settings_of(attack, options), out, options)
        files.write_meta(out / "clusters.csv", options, models=str(modelset.folder), base=str(base))


def _matched(models, images, base, instruments, out, options, device, dtype, captions=None):
    copy_cluster, copy_score, factors = instruments
    with runtime.output_lock(out / "matches.csv"):
        modelset, pictures = ModelSet.load(models), ImageSet.load(images)
        instruments = Instruments(*(load_embedder(folder, device) if folder else None for folder in (copy_cluster, copy_score, factors)))
        loaded = load_base(base, device, dtype)
        inputs = [modelset.folder / "manifest.csv", pictures.folder / "manifest.csv", loaded.folder, copy_cluster, copy_score, factors, captions]
        run = files.digest([options.model_dump(mode="json"), str(dtype), files.stamps(path for path in inputs if path)])
        attack_models(loaded, modelset, pictures, instruments, out, options, run, _recovered(captions))


def attack_models(base, modelset, pictures, instruments, out, options, run="run", recovered=None):
    """`extract` with everything loaded. run: a name that changes with the inputs; only unfinished work of the same name is continued."""
    attack = importlib.import_module(f"tuneleak.attacks.extraction.{options.attack.replace('-', '_')}")
    settings, rows = settings_of(attack, options), modelset.rows()
    _check(rows, pictures, instruments)
    partial = _prepare(out, f".partial-{run}")
    shard = Shard(base, attack, settings, modelset, pictures, instruments, out, options, recovered)
    for row in runtime.progress(rows, f"{options.attack} on models"):
        if not (partial / f"{row['model_id']}.matches.csv").exists():
            save(partial, row["model_id"], shard.run(row))
    facts = {"models": str(modelset.folder), "images": str(pictures.folder), "seeds": [options.seed]}
    for name in ("extracted", "generated") if options.save_generations else ("extracted",):
        files.write_meta(out / name / "manifest.csv", options, **facts)
        files.write_csv(out / name / "manifest.csv", _gather(partial, rows, name))
    matches = _gather(partial, rows, "matches")
    calls = matches.drop_duplicates(["model_id", "setting"]).model_calls.astype(int)
    files.write_meta(out / "matches.csv", options, **facts, calls_per_step=attack.CALLS_PER_STEP, model_calls=int(calls.sum()))
    files.write_csv(out / "matches.csv", matches)
    shutil.rmtree(partial)


def _recovered(path):
    """{model_id: caption} of a captions.csv; {} without one."""
    if path is None:
        return {}
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not {"model_id", "recovered"} <= set(table):
        raise InputError(f"{path} is no table of `tuneleak recover-caption`: it lacks the columns model_id and recovered")
    return dict(zip(table.model_id, table.recovered, strict=True))


def settings_of(attack, options):
    """Settings by name, in order; two points of the grid that an attack cannot tell apart are run once."""
    for guidance in options.guidance:
        if guidance.k and "k=" not in attack.setting(guidance):
            raise InputError(f"attack {options.attack!r} has no correction term, but its guidance sets k={guidance.k:g}; only finextract has one")
    return {attack.setting(guidance): guidance for guidance in options.guidance}


def _check(rows, pictures, instruments):
    if not rows:
        raise InputError("the model set is empty: there is nothing to attack")
    if len({row["base"] for row in rows}) > 1:
        raise InputError(f"the models come from several bases ({', '.join(sorted({row['base'] for row in rows}))}); attack them one base at a time")
    concept_of = dict(zip(pictures.table.image_id, pictures.table.concept, strict=True))
    for row in rows:
        for image_id in image_ids(row):
            if concept_of.get(image_id) != row["concept"]:
                raise InputError(f"model {row['model_id']} trained on {image_id!r} of {row['concept']!r}, which {pictures.folder} does not hold")
    missing = [name for name in getattr(instruments.factors, "factors", []) if f"factor_{name}" not in pictures.table]
    if missing:
        raise InputError(f"{pictures.folder} does not say the true {', '.join(missing)} of its pictures; leave out --factors")


def _prepare(out, name):
    """The folder of unfinished work: kept if it is this run's, else made anew, with whatever an earlier run left removed."""
    partial = out / name
    if not partial.exists():
        (out / "matches.csv").unlink(missing_ok=True)
        for old in (*out.glob(".partial-*"), out / "extracted", out / "generated"):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
    return partial


def _gather(partial, rows, name):
    tables = [pd.read_csv(partial / f"{row['model_id']}.{name}.csv", dtype=str, keep_default_na=False) for row in rows]
    return pd.concat(tables, ignore_index=True)
