"""The verb `attack sweep`: one attack with many settings on each model of a ModelSet -- the ablations.

`matches.csv` has the columns of `attack extraction` (no picture is kept: `match_file` is empty) and `noise_norm, agreement` (see `criteria.py`; NaN for rows
from part of the generations). The guidance settings are run on every model. On models of the variant `reference` the first of them is also clustered from
fewer generations and at other thresholds, and sampled in other numbers of steps; the column `defence` of these rows says `generations-<k>`, `threshold-<t>`
or `sampler-<n>`, as if it were a variant of training.
"""

import importlib
import shutil
from pathlib import Path

import pandas as pd

from tuneleak import files, runtime
from tuneleak.attacks.extraction.clustering import cluster, similarity
from tuneleak.attacks.extraction.criteria import NoiseNorm, agreement
from tuneleak.attacks.extraction.generate import generate, starting_noise
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.attacks.extraction.run import settings_of
from tuneleak.attacks.extraction.scoring import match
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models.embedders import load_embedder
from tuneleak.models.modelset import ModelSet, image_ids
from tuneleak.models.pipeline import load_base, load_tuned

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed"]
REFERENCE = "reference"


def sweep(models, images, base, copy_cluster, copy_score, out, options, device="auto", dtype="float32"):
    """Attack every model of a ModelSet in all settings of `options` (`SweepOptions`); arguments as of `attack extraction`; writes `<out>/matches.csv`.

    An interrupted run continues after its last finished model.
    """
    out, device = Path(out), runtime.pick_device(device)
    with runtime.output_lock(out / "matches.csv"):
        modelset, pictures = ModelSet.load(models), ImageSet.load(images)
        attack = importlib.import_module(f"tuneleak.attacks.extraction.{options.attack.replace('-', '_')}")
        loaded, embedders = load_base(base, device, dtype), [load_embedder(folder, device) for folder in (copy_cluster, copy_score)]
        stamps = files.stamps([modelset.folder, pictures.folder / "manifest.csv", loaded.folder, copy_cluster, copy_score])
        run = files.digest([options.model_dump(mode="json"), str(dtype), stamps])
        partial = out / f".partial-{run}"
        for old in out.glob(".partial-*"):
            if old != partial:
                shutil.rmtree(old)
        (out / "matches.csv").unlink(missing_ok=True)
        sweeper = _Sweeper(loaded, attack, modelset, pictures, embedders, options)
        for row in runtime.progress(modelset.rows(), f"sweep {options.attack}"):
            if not (partial / f"{row['model_id']}.csv").exists():
                files.write_csv(partial / f"{row['model_id']}.csv", pd.concat(sweeper.run(row)))
        parts = [pd.read_csv(partial / f"{row['model_id']}.csv", dtype=str, keep_default_na=False) for row in modelset.rows()]
        files.write_meta(out / "matches.csv", options, models=str(models), images=str(images), model_calls=sweeper.calls)
        files.write_csv(out / "matches.csv", pd.concat(parts))
        shutil.rmtree(partial)


class _Sweeper:
    def __init__(self, base, attack, modelset, pictures, embedders, options):
        self.base, self.attack, self.modelset, self.pictures, self.options = base, attack, modelset, pictures, options
        self.guidance = list(settings_of(attack, options).values())
        self.copier, self.scorer = embedders
        self.calls, self._known = 0, {}

    def run(self, row):
        """Tables of one model, one per setting and change."""
        options, guidances = self.options, self.guidance
        tuned = load_tuned(self.base, self.modelset, row)
        try:
            texts = {"pretrained_null": self.base.encode_text([""]), "pretrained_caption": self.base.encode_text([row["caption"]])}
            texts |= {"finetuned_null": tuned.encode_text([""]), "finetuned_caption": tuned.encode_text([row["caption"]])}
            self._pair = ModelPair(self.base.noise_pred, tuned.noise_pred, **texts)
            chosen = guidances[:1] if row["defence"] in options.only_first else guidances
            drawn = {guidance: self._draw(row, guidance, options.steps) for guidance in chosen}
            tables = [self._table(row, guidance, *made) for guidance, made in drawn.items()]
            if row["defence"] == REFERENCE:
                tables += self._changes(row, guidances[0], drawn[guidances[0]])
        finally:
            tuned.unload()
        return tables

    def _changes(self, row, guidance, made):
        options, n_images = self.options, len(image_ids(row))
        for count in options.fewer_generations:
            if count >= options.generations_per_image:
                raise InputError(f"fewer_generations: {count} is not less than generations_per_image, {options.generations_per_image}")
            part = tuple(values[: count * n_images] for values in made[:2])
            yield self._table(row | {"defence": f"generations-{count}"}, guidance, *part, None)
        for threshold in options.thresholds:
            cluster_options = options.cluster.model_copy(update={"threshold": threshold})
            yield self._table(row | {"defence": f"threshold-{threshold:g}"}, guidance, *made, cluster_options)
        for steps in options.other_steps:
            yield self._table(row | {"defence": f"sampler-{steps}"}, guidance, *self._draw(row, guidance, steps))

    def _draw(self, row, guidance, steps):
        """(features for clustering, features for scores, noise norm) of the generations under one setting."""
        options, count = self.options, self.options.generations_per_image * len(image_ids(row))
        noise = starting_noise(row["concept"], count, self.base.latent_shape, options.seed)
        guide, before = NoiseNorm(self.attack.guide, steps), self._pair.calls
        setting = options.model_copy(update={"steps": steps})
        generated = generate(self.base, self._pair, guide, guidance, noise, setting, f"{row['model_id']} {self.attack.setting(guidance)}")
        self.calls += self._pair.calls - before
        return self.copier.embed(generated), self.scorer.embed(generated), guide.value

    def _table(self, row, guidance, near, features, norm, cluster_options=None):
        options, trained_on = self.options, image_ids(row)
        train, heldout = self._real(row["concept"], trained_on)
        clusters = cluster(near, len(trained_on), cluster_options or options.cluster)
        name = self.attack.setting(guidance)
        found = match(train, features, heldout, clusters.medoids, options.control_draws, ("sweep-control", options.seed, row["model_id"], name, row["defence"]))
        return pd.DataFrame(
            {column: row[column] for column in MODEL_COLUMNS}
            | {"attack": options.attack, "setting": name, "image_id": trained_on, "extracted": found.extracted, "match_file": ""}
            | {"oracle": found.oracle, "random": found.random, "heldout": found.heldout}
            | {"n_extracted": len(clusters.medoids), "threshold": clusters.threshold, "exact": clusters.exact}
            | {"n_generated": len(features), "n_images": len(trained_on)}
            | {"noise_norm": float("nan") if norm is None else norm, "agreement": float("nan") if norm is None else agreement(similarity(near))}
        )

    def _real(self, concept, trained_on):
        """Features of the training pictures, in order, and of the concept's held-outs."""
        if concept not in self._known:
            mine = self.pictures.where(concept=concept)
            self._known = {concept: (mine.table, self.scorer.embed(mine.pixels()))}
        table, features = self._known[concept]
        rows = pd.Index(table.image_id).get_indexer(trained_on)
        if (rows < 0).any() or not len(rows):
            raise InputError(f"a model of {concept!r} trained on pictures that {self.pictures.folder} does not hold")
        return features[rows], features[((table.fold == "heldout") & ~table.image_id.isin(trained_on)).to_numpy()]
