"""The verb `attack people`: was this person in the set? Judged from photographs of them that nothing was trained on.

The score of a photograph is how much better the fine-tuned model denoises it than the base does, same noise and caption: base loss minus tuned loss. A
person's score is the mean over some of their photographs. Strangers -- people of the same image set that this model was not trained on -- tell what a score
is worth. Where a model has an autoencoder of its own, it is asked about that autoencoder's latents, and the base about the base's.

`people.csv`, one row per model, kind of caption, person and photograph: `model_id, world, base, concept, method, defence, seed` (of the model), `caption`
(known: the model's training caption, for everybody's photographs; none: the empty one), `person`, `role` (`member`: a photograph trained on; `other`: another
photograph of the person trained on; `stranger`), `image_id`, `base_loss`, `tuned_loss`, `model_calls` (samples through a UNet behind the two).
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.attacks.membership.query import Pictures, Query
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models.modelset import ModelSet, image_ids
from tuneleak.models.pipeline import load_base, load_tuned

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed"]


def judge(models, images, base, out, options, device="auto", dtype="float32"):
    """Write people.csv (see above). models: ModelSet folders; images: ImageSet with folds train and heldout; base: pipeline folder; options: `PeopleOptions`.

    Raises `InputError` if the image set has no stranger or a person has no photograph that nothing trains on.
    """
    sets, pictures, device = [ModelSet.load(folder) for folder in models], ImageSet.load(images), runtime.pick_device(device)
    jobs = [(modelset, row) for modelset in sets for row in modelset.rows()]
    judges = Judges(load_base(base, device, dtype), pictures, options)
    tables = [judges.table(modelset, row) for modelset, row in runtime.progress(jobs, "people")]
    table = pd.concat(tables, ignore_index=True)
    files.write_csv(out, table)
    facts = {"models": [str(folder) for folder in models], "images": str(images), "model_calls": int(table.model_calls.sum())}
    files.write_meta(Path(out), options, **facts, device=str(device), dtype=str(dtype))


class Judges:
    """Scores the people of one image set under one model after another; latents, noise and the base's losses are computed once."""

    def __init__(self, base, pictures, options):
        self.base, self.pictures, self.options = base, pictures, options
        self._loaded, self._base_losses = {}, {}

    def table(self, modelset, row):
        """Rows of one model."""
        people = self._people(row)
        parts = []
        with load_tuned(self.base, modelset, row) as tuned:
            for kind in self.options.captions:
                text = row["caption"] if kind == "known" else ""
                for role, person, names in people:
                    found = self._load(person, names)
                    before = self._of_base(person, names, text, found)
                    own = found if tuned.vae is None else Pictures(found.table, found.pixels, tuned.encode_images, self.options.seed)
                    after = self._losses(own, text, tuned.noise_pred, tuned.encode_text)
                    columns = {column: row[column] for column in MODEL_COLUMNS} | {"caption": kind, "person": person, "role": role, "image_id": names}
                    calls = 2 * len(self.options.timesteps) * self.options.draws
                    parts.append(pd.DataFrame(columns | {"base_loss": before, "tuned_loss": after, "model_calls": calls}))
        return pd.concat(parts, ignore_index=True)

    def _people(self, row):
        """(role, person, image_ids): the photographs trained on, others of the same person, and as many of every stranger."""
        table, trained = self.pictures.table, image_ids(row)
        mine = table[table.concept == row["concept"]]
        if not len(mine):
            raise InputError(f"model {row['model_id']} is about {row['concept']!r}, of whom {self.pictures.folder} holds no picture")
        split = mine.split.iloc[0]
        strangers = list(dict.fromkeys(table.concept[(table.split == split) & (table.concept != row["concept"])]))[: self.options.strangers]
        if not strangers:
            raise InputError(f"{self.pictures.folder} has nobody but {row['concept']!r} in split {split!r}: without strangers no score can be judged")
        found = [("member", row["concept"], trained)]
        for role, person in [("other", row["concept"]), *(("stranger", name) for name in strangers)]:
            free = table[(table.concept == person) & (table.fold == "heldout") & ~table.image_id.isin(trained)].image_id[: self.options.photographs]
            if not len(free):
                raise InputError(f"{self.pictures.folder} has no picture of {person!r} in fold heldout: there is nothing to judge them by")
            found.append((role, person, list(free)))
        return found

    def _load(self, person, names):
        key = person, tuple(names)
        if key not in self._loaded:
            chosen = self.pictures.where(concept=person, image_id=names)
            order = pd.Index(chosen.table.image_id).get_indexer(names)
            self._loaded[key] = Pictures(chosen.table.iloc[order], chosen.pixels()[order], self.base.encode_images, self.options.seed)
        return self._loaded[key]

    def _of_base(self, person, names, text, found):
        key = person, tuple(names), text
        if key not in self._base_losses:
            self._base_losses[key] = self._losses(found, text, self.base.noise_pred, self.base.encode_text)
        return self._base_losses[key]

    def _losses(self, found, text, noise_pred, encode_text):
        query = Query(found, [text] * len(found), noise_pred, encode_text, self.base.alphas_cumprod, self.options.batch)
        with torch.inference_mode():
            losses = [query.losses(timestep, draw) for timestep in self.options.timesteps for draw in range(self.options.draws)]
        values = torch.stack(losses).mean(0).cpu().numpy()
        if not np.isfinite(values).all():
            raise InputError("a loss is not finite; are the model's weights?")
        return values
