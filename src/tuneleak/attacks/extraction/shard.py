"""The attack on one fine-tuned model after another, with what they share: texts, features of real pictures, starting noise, base generations."""

from functools import lru_cache

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.attacks.extraction.certainty import traits
from tuneleak.attacks.extraction.clustering import cluster
from tuneleak.attacks.extraction.conditions import caption_under
from tuneleak.attacks.extraction.generate import generate, starting_noise
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.attacks.extraction.scoring import match
from tuneleak.data import imageset
from tuneleak.models.modelset import image_ids
from tuneleak.models.pipeline import load_tuned

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed"]


class Concept:
    """The real pictures of one concept, seen through the instruments once, and its starting noise."""

    def __init__(self, name, pictures, instruments):
        self.name, self.table = name, pictures.table
        pixels = pictures.pixels()
        self.features = instruments.score.embed(pixels)
        self.read_factors = instruments.factors.read(pixels) if instruments.factors else {}
        self._noise = None

    def rows(self, trained_on):
        """Row numbers of the pictures with these image_ids, in the order given."""
        return pd.Index(self.table.image_id).get_indexer(trained_on)

    def heldout(self, trained_on):
        """Row numbers of the pictures of fold `heldout`, those a model trained on excepted."""
        return np.flatnonzero((self.table.fold == "heldout") & ~self.table.image_id.isin(trained_on))

    def noise(self, n, latent_shape, seed):
        """The first `n` starting noises of the concept."""
        if self._noise is None or len(self._noise) < n:
            self._noise = starting_noise(self.name, n, latent_shape, seed)
        return self._noise[:n]


class Shard:
    """Attacks the models of one ModelSet on one image set; pictures go to `out`, tables are returned."""

    def __init__(self, base, attack, settings, modelset, pictures, instruments, out, options, recovered=None):
        self.base, self.attack, self.settings, self.modelset, self.recovered = base, attack, settings, modelset, recovered or {}
        self.pictures, self.instruments, self.out, self.options = pictures, instruments, out, options
        self._encode_base = lru_cache(maxsize=None)(lambda text: base.encode_text([text]))
        self._concept, self._of_base = None, {}

    def run(self, row):
        """Attack the model of one manifest row in all settings: dict of tables `matches`, `extracted` and, if kept, `generated`."""
        if self._concept is None or self._concept.name != row["concept"]:
            self._concept, self._of_base = Concept(row["concept"], self.pictures.where(concept=row["concept"]), self.instruments), {}
        tables = {"matches": [], "extracted": []} | ({"generated": []} if self.options.save_generations else {})
        pair_under, unload = self._open(row)
        captions = list(dict.fromkeys(self.pictures.table.caption))
        try:
            for condition in self.options.conditions:
                told = row | {"caption": caption_under(condition, row, captions, self.recovered)}
                suffix = "" if condition == "known" else f",caption={condition}"
                for setting, guidance in self.settings.items():
                    for name, table in self._run_setting(told, pair_under(told["caption"]), setting + suffix, guidance).items():
                        tables[name].append(table)
        finally:
            unload()
        return {name: pd.concat(parts) for name, parts in tables.items()}

    def _open(self, row):
        """A function caption -> model pair of a row, and what frees the model; the control that asks the pretrained model only loads nothing."""
        asks_tuned = getattr(self.attack, "USES_FINETUNED", True)
        tuned = load_tuned(self.base, self.modelset, row) if asks_tuned else None
        noise_pred, unload = (tuned.noise_pred, tuned.unload) if tuned else (None, lambda: None)

        def pair_under(caption):
            texts = {"pretrained_null": self._encode_base(""), "pretrained_caption": self._encode_base(caption)}
            null, told = (tuned.encode_text([""]), tuned.encode_text([caption])) if tuned else (None, None)
            return ModelPair(self.base.noise_pred, noise_pred, **texts, finetuned_null=null, finetuned_caption=told)

        return pair_under, unload

    def _run_setting(self, row, pair, setting, guidance):
        concept, options, trained_on = self._concept, self.options, image_ids(row)
        train, heldout = concept.rows(trained_on), concept.heldout(trained_on)
        generated, calls = self._generate(row, pair, setting, guidance, options.generations_per_image * len(trained_on))
        clustered = self.instruments.cluster.embed(generated)
        clusters = cluster(clustered, len(trained_on), options.cluster)
        features = self.instruments.score.embed(generated)
        key = ("extraction-control", options.seed, row["model_id"], setting)
        found = match(concept.features[train], features, concept.features[heldout], clusters.medoids, options.control_draws, key)
        sizes = {medoid: len(members) for medoid, members in zip(clusters.medoids, clusters.members, strict=True)}
        told = traits(clustered, clusters, len(trained_on), options.cluster).set_axis(clusters.medoids)
        written = {"extracted": self._write("extracted", row, setting, generated, sizes, told)}
        if options.save_generations:
            written["generated"] = self._write("generated", row, setting, generated, dict.fromkeys(range(len(generated)), 1))
        file_of = dict(zip(clusters.medoids, written["extracted"].file, strict=True))
        written["matches"] = pd.DataFrame(
            {column: row[column] for column in MODEL_COLUMNS}
            | {"attack": options.attack, "setting": setting, "image_id": trained_on, "extracted": found.extracted}
            | {"match_file": [file_of[i] for i in found.nearest], "match_size": [sizes[i] for i in found.nearest]}
            | {"oracle": found.oracle, "random": found.random, "heldout": found.heldout}
            | {"n_extracted": len(clusters.medoids), "threshold": clusters.threshold, "exact": clusters.exact}
            | {"n_generated": len(generated), "n_images": len(trained_on), "model_calls": calls}
            | self._factors(train, heldout, generated, found)
        )
        return written

    def _generate(self, row, pair, setting, guidance, n):
        """Generations and the model calls they took; those of the pretrained model alone are shared by the models of a concept."""
        key = None if getattr(self.attack, "USES_FINETUNED", True) else (row["caption"], setting, n)
        if key not in self._of_base:
            before, noise = pair.calls, self._concept.noise(n, self.base.latent_shape, self.options.seed)
            generated = generate(self.base, pair, self.attack.guide, guidance, noise, self.options, f"{row['model_id']} {setting}")
            if key is None:
                return generated, pair.calls - before
            self._of_base[key] = generated, pair.calls - before
        return self._of_base[key]

    def _write(self, name, row, setting, generated, sizes, told=None):
        prefix = f"{row['model_id']}.{self.options.attack}.{setting.replace('=', '').replace(',', '_')}"
        rows = [
            {column: row[column] for column in ("concept", "caption", "model_id")}
            | {"image_id": f"{prefix}.{i:05d}", "attack": self.options.attack, "setting": setting, "generation": i, "cluster_size": size}
            | ({} if told is None else told.loc[i].to_dict())
            for i, size in sizes.items()
        ]
        return imageset.write(self.out / name, rows, [generated[i] for i in sizes]).table

    def _factors(self, train, heldout, generated, found):
        reader, concept = self.instruments.factors, self._concept
        if reader is None:
            return {}
        read, columns = reader.read(generated[found.nearest]), {}
        for factor in reader.factors:
            columns[f"true_{factor}"] = concept.table[f"factor_{factor}"].to_numpy()[train]
            columns[f"read_extracted_{factor}"] = read[factor]
            nearest = concept.read_factors[factor][heldout[found.nearest_heldout]] if len(heldout) else [""] * len(train)
            columns[f"read_heldout_{factor}"] = nearest
        return columns


def save(folder, model_id, tables):
    """Keep the tables of a finished model in `folder`, `matches` last: its presence means the model is finished."""
    for name in sorted(tables, key=lambda name: name == "matches"):
        files.write_csv(folder / f"{model_id}.{name}.csv", tables[name])
