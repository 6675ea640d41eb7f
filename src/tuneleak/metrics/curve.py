"""The verb `trace-base`: quality, obedience and memory of a base along its training, so that where it was stopped is a visible decision."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.metrics import bases, intervals, roc
from tuneleak.metrics.fidelity import kernel_distance
from tuneleak.metrics.world import DOSES, sample
from tuneleak.models import embedders
from tuneleak.models.pipeline import load_base

COLUMNS = ["base", "step", "measure", "value", "ci_low", "ci_high", "n"]


def snapshots_of(unet):
    """The snapshots of a training, by step; not what a job that was killed while it wrote one has left, whose name begins with a dot."""
    return sorted(Path(unet).glob("snapshots/[0-9]*.safetensors"))


@torch.inference_mode()
def trace(base, unet, resources, data, out, captions=120):
    """Measure every snapshot of a training (`<unet>/snapshots/<step>.safetensors`) and write `out` (CSV; columns `COLUMNS`).

    base: pipeline folder of that base. resources: folder with `embedders/`. data: folder of the rendered sets. captions: pictures drawn from
    captions per snapshot. Measures: `caption accuracy` (mean over factors; not of a base told by classes, which knows names only), `name accuracy`,
    `KID` of those pictures to the photographs the captions describe (copy-b's features), and the loss AUC of members overall and by dose.
    """
    snapshots = snapshots_of(unet)
    if not snapshots:
        raise InputError(f"{unet}/snapshots holds no snapshot; they are written by `train-base` with snapshots > 0 and are not shipped")
    world = load_base(base, "cpu", "float32")
    load = {name: embedders.load_embedder(f"{resources}/embedders/{name}") for name in ("copy-b", "identity-b", "factors")}
    faces = sample(ImageSet.load(f"{data}/private-identities"), captions)
    real, people = load["copy-b"].embed(faces.pixels()), faces.table.concept.to_numpy()
    members, others = bases.named_photographs(base, data)
    rows = []
    for path in runtime.progress(snapshots, f"trace {world.name}"):
        world.unet.load_state_dict({name: value.float() for name, value in load_file(path).items()})

        def note(measure, value, low, high, n, step=int(path.stem)):
            rows.append((world.name, step, measure, value, low, high, n))

        obeyed, drawn = bases.caption_hits(world, faces, load["factors"])
        told = [("name accuracy", *bases.name_hits(world, load["identity-b"], others, per_person=2)[:2])]
        told += [("caption accuracy", np.mean(list(obeyed.values()), 0), people)] if world.text_encoder is not None else []
        for measure, values, owners in told:
            found = intervals.bootstrap(values, owners, np.zeros(len(values)), np.arange(len(values)))
            note(measure, found.value, found.low, found.high, len(values))
        features = load["copy-b"].embed(drawn)
        replicates = [_resampled(features, real, people, number) for number in range(200)]
        distance = kernel_distance(features, real)
        low, high = np.quantile(replicates, [0.025, 0.975]) - np.mean(replicates) + distance  # pictures drawn twice bias the replicates
        note("KID", distance, float(low), float(high), len(features))
        inside, outside = bases.negative_losses(world, members, "members", 1), bases.negative_losses(world, others, "others", 1)
        for dose in ("all", *DOSES):
            chosen = np.full(len(inside), True) if dose == "all" else members.table.dose.astype(str).to_numpy() == dose
            labels = np.repeat([True, False], [chosen.sum(), len(outside)])
            found = roc.delong(labels, np.concatenate([inside[chosen], outside]), np.concatenate([members.concepts[chosen], others.concepts]))
            note(f"loss AUC, dose {dose}", found.value, found.low, found.high, len(labels))
        files.write_csv(out, pd.DataFrame(rows, columns=COLUMNS))
    files.write_meta(out, None, base=str(base), unet=str(unet))


def _resampled(drawn, real, people, number):
    """KID with the people of both sides drawn anew with replacement."""
    rng = np.random.default_rng(number)
    by_person = {person: np.flatnonzero(people == person) for person in np.unique(people)}
    rows = np.concatenate([by_person[person] for person in rng.choice(list(by_person), len(by_person))])
    return kernel_distance(drawn[rows], real[rows])
