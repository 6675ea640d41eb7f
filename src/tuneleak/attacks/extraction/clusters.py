"""The verb `certainty`: what an attacker sees of each extracted cluster, beside the truth.

`clusters.csv`, one row per extracted picture: `model_id, world, base, concept, method, defence, seed` (of the model), `split`, `setting`, `image_id` (of the
extracted picture), the traits `share, tightness, isolation, agreement` (see `certainty.traits`), `novelty` (1 minus the best similarity to a medoid of the
base's own generations under the same caption), and the truth, which the attacker does not have: `similarity` (to the nearest training picture, by the scoring
embedder) and `tau` (of the world).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files, runtime
from tuneleak.attacks.extraction.certainty import TRAITS
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models.embedders import load_embedder
from tuneleak.models.modelset import folder_of

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed"]


def collect(matches, controls, images, copy_cluster, copy_score, tau, out, device="auto"):
    """Write clusters.csv (see above).

    matches: matches.csv of an attack, each beside its extracted/; controls: the same of the attack `base`, which tell what the base draws by itself;
    images: ImageSets with the training pictures; copy_cluster, copy_score: embedder folders; tau: tau.json of each world.
    """
    device = runtime.pick_device(device)
    cluster, score = load_embedder(copy_cluster, device), load_embedder(copy_score, device)
    taus = {facts["world"]: float(facts["tau"]) for facts in map(files.read_json, tau)}
    pictures = [ImageSet.load(folder) for folder in images]
    own = _own_medoids(controls, cluster)
    parts = [_of_file(path, own, pictures, cluster, score, taus) for path in runtime.progress(list(matches), "clusters")]
    files.write_csv(out, pd.concat(parts, ignore_index=True))
    files.write_meta(Path(out), None, matches=[*map(str, matches)], controls=[*map(str, controls)], images=[*map(str, images)], tau=taus)


def _own_medoids(controls, embedder):
    """{(world, concept): features of what the base's clusters of that concept show}."""
    found = {}
    for path in controls:
        table, extracted = _read(path)
        for (world, concept), group in table.groupby(["world", "concept"]):
            shown = extracted.where(model_id=list(group.model_id.unique()))
            found.setdefault((world, concept), []).append(embedder.embed(shown.pixels()))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def _of_file(path, own, pictures, cluster, score, taus):
    table, extracted = _read(path)
    missing = [name for name in TRAITS if name not in extracted.table]
    if missing:
        raise InputError(f"{extracted.folder / 'manifest.csv'} lacks the columns {', '.join(missing)}; run `tuneleak attack extraction` again")
    parts = []
    for (model_id, setting), group in table.groupby(["model_id", "setting"], sort=False):
        model = group.iloc[0]
        if (model.world, model.concept) not in own:
            raise InputError(f"no control tells what the base draws of {model.concept!r}; run the attack `base` on the models of {path}")
        if model.world not in taus:
            raise InputError(f"no tau.json was given for the world {model.world!r}; run `tuneleak calibrate` for it")
        shown = extracted.where(model_id=model_id, setting=setting)
        pixels = shown.pixels()
        source = next((item for item in pictures if set(group.image_id) <= set(item.table.image_id)), None)
        if source is None:
            raise InputError(f"the image sets do not hold the training pictures of {model_id}")
        training = source.where(image_id=list(group.image_id))
        near = cluster.embed(pixels) @ own[model.world, model.concept].T
        truth = score.embed(pixels) @ score.embed(training.pixels()).T
        columns = {name: model[name] for name in MODEL_COLUMNS} | {"split": training.table.split.iloc[0], "setting": setting}
        columns |= {"image_id": shown.table.image_id.to_numpy(), **{name: shown.table[name].to_numpy() for name in TRAITS}}
        parts.append(pd.DataFrame(columns | {"novelty": 1 - near.max(1), "similarity": truth.max(1), "tau": taus[model.world]}))
    return pd.concat(parts, ignore_index=True)


def _read(path):
    folder = folder_of(path, "matches.csv")
    table = pd.read_csv(folder / "matches.csv", dtype=str, keep_default_na=False)
    return table, ImageSet.load(folder / "extracted")
