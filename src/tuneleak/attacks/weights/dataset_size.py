"""The verb `dataset-size`: how many pictures a LoRA was trained on, from singular values alone (DSiRe, arXiv 2406.19395; dossier section 6.3).

Per layer the singular values of A, of B and of B A, scaled to [0, 1] by the training models' extremes, find the training model that is nearest; the
layers then vote. `dsire` uses all three spectra, `dsire-update` that of B A alone, which no change of factors touches; `median` is the control that always
says the median of the training models.

Output: a CSV with one row per attack and model of people that the classifier has not seen: attack, steps (`total` or `per-image`: what was the same
for all numbers of pictures), model_id, world, base, concept, method, seed, n_images, predicted.
"""

from collections import Counter

import numpy as np
import pandas as pd
import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import lora_algebra, weightset
from tuneleak.models.pipeline import load_base

ATTACKS = {"dsire": ("a", "b", "update"), "dsire-update": ("update",)}


def dataset_size(models, base, steps, out, options):
    """Train on the models of a share of the people and predict for the others. models: folders of model sets; steps: `total` or `per-image`, noted."""
    if steps not in ("total", "per-image"):
        raise InputError(f"--steps is {steps!r}; say which of the two was the same for all numbers of pictures: total or per-image")
    weights = weightset.load(models, load_base(base))
    weights = weights.take(_last_steps(weights.table))
    counts = np.array([int(value) for value in weights.table.n_images])
    people = list(dict.fromkeys(weights.table.concept))
    known = set(people[: max(1, round(options.train_share * len(people)))])
    inside = weights.table.concept.isin(known).to_numpy()
    if inside.all():
        raise InputError("every person's models would be trained on; there must be people left to test on (more people, or a smaller train_share)")
    found, parts = spectra(weights.pairs), []
    kept = ["model_id", "world", "base", "concept", "method", "seed", "n_images"]
    for attack, names in ATTACKS.items():
        features = np.concatenate([found[name] for name in names], -1)
        predicted = vote(features[inside], counts[inside], features[~inside])
        parts.append(weights.table[~inside][kept].assign(attack=attack, steps=steps, predicted=predicted))
    parts.append(parts[0].assign(attack="median", predicted=float(np.median(counts[inside]))))
    files.write_csv(out, pd.concat(parts)[["attack", "steps", *kept, "predicted"]])
    files.write_meta(out, options, models=[str(path) for path in models], trained_on=int(inside.sum()), tested_on=int((~inside).sum()))


def spectra(pairs):
    """Singular values falling, `(N, layers, r)`, of `a`, `b` and `update` (see the module's text)."""
    a, b = (torch.stack([torch.linalg.svdvals(pair[side].double()) for pair in pairs.values()], 1) for side in (0, 1))
    return {"a": a.numpy(), "b": b.numpy(), "update": lora_algebra.singular_values(pairs).numpy()}


def vote(known, counts, features):
    """Predicted counts `(M,)`: each layer takes that of its nearest model in `known (N, layers, k)`, the most frequent wins, of equal ones the nearest.

    Features are scaled by the extremes of `known` over all layers.
    """
    low, high = known.min((0, 1)), known.max((0, 1))
    known, features = ((part - low) / np.maximum(high - low, 1e-12) for part in (known, features))
    predicted = []
    for model in features:
        distance = np.linalg.norm(known - model, axis=-1)  # (N, layers)
        nearest = distance.argmin(0)
        votes = Counter(counts[nearest].tolist())
        most = max(votes.values())
        tied = [count for count, number in votes.items() if number == most]
        predicted.append(min(tied, key=lambda count: (distance.min(0)[counts[nearest] == count].mean(), count)))
    return np.array(predicted)


def _last_steps(table):
    steps = table.step.astype(int)
    return np.flatnonzero(steps == steps.groupby(table.run).transform("max"))
