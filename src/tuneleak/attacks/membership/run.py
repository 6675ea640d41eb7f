"""The verb `attack membership`: scores that are higher for pictures a model has seen, for many models and attacks in one job.

`scores.csv`, one row per model, attack, caption and picture: `model_id` (`base` for the base model, which is one of the models and scored once), `world, base,
concept, method, defence, seed, step` (of the model; empty for the base, but for `base`), `attack, setting`, `caption` (which kind: true, neutral, swapped,
null), `image_id, image_concept, fold, dose` (of the picture), `pretrained` (1 if the base trained on it, 0 if not, empty if unknown), `finetuned` (1 if
this model was fine-tuned on it), `score` (higher: more likely a member; fixed in advance for each attack), `model_calls` (samples through a UNet behind it).

A model is asked about the pictures of its own concept (one without a concept: of all), so that members and non-members differ in nothing but
membership. With an embedder there is one more attack, `model-blind` (model_id `none`): the control that sees pictures and no model (see `blind`).
"""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.attacks.membership import blind
from tuneleak.attacks.membership.query import Pictures, Query
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models.embedders import load_embedder
from tuneleak.models.modelset import ModelSet, image_ids
from tuneleak.models.pipeline import load_base, load_tuned

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed", "step"]
COLUMNS = [*MODEL_COLUMNS, "attack", "setting", "caption", "image_id", "image_concept", "fold", "dose", "pretrained", "finetuned", "score", "model_calls"]
BLIND_CONCEPTS = 16  # a few hundred pictures of each kind suffice for a linear classifier


def infer(images, base, out, options, models=(), members=None, device="auto", dtype="float32", embedder=None):
    """Score pictures by every attack of `options.attacks` under the base and every model of the ModelSets `models`; see the module's text for `out`.

    images: ImageSets with the pictures to judge. base: pipeline folder. models: ModelSet folders (none: the base alone). members: CSV whose column image_id
    lists what the base was trained on. embedder: folder of an embedder, for the model-blind control. options: `MembershipOptions`. dtype: of the networks. An
    interrupted run continues after its last finished model. Raises `InputError` for inputs that do not fit together.
    """
    out, device = Path(out), runtime.pick_device(device)
    with runtime.output_lock(out):
        sets, pictures = [ModelSet.load(folder) for folder in models], [ImageSet.load(folder) for folder in images]
        jobs = plan(sets, pictures, options.concepts, options.first_concept)
        known = _members(members) if members else None
        loaded = load_base(base, device, dtype)
        weights = files.stamps([*(item.folder for item in sets), loaded.folder, *([members] if members else [])])
        stamped = [[row for _, row in jobs], [list(item.table.sha256) for item in pictures], weights]
        partial = out.with_name(f".{out.name}.partial-{files.digest([options.model_dump(mode='json'), str(dtype), stamped])}")
        for old in out.parent.glob(f".{out.name}.partial-*"):
            if old != partial:
                shutil.rmtree(old)
        table = Runner(loaded, pictures, known, options, partial).run(jobs)
        if embedder:
            if known is None:
                raise InputError("the model-blind control (--embedder) needs to know the members (--members)")
            asked = list(dict.fromkeys(row["concept"] for _, row in jobs))
            table = pd.concat([table, blind_rows(pictures, known, load_embedder(embedder, device), asked, loaded.name)], ignore_index=True)
        facts = {"models": [str(folder) for folder in models], "images": [str(folder) for folder in images], "members": str(members or "")}
        calls = table.drop_duplicates([*MODEL_COLUMNS, "attack", "caption", "image_id"]).model_calls.sum()
        files.write_meta(out, options, **facts, model_calls=int(calls), device=str(device), dtype=str(dtype))
        files.write_csv(out, table)
        shutil.rmtree(partial, ignore_errors=True)


def plan(sets, pictures, limit=None, first=0):
    """What is scored, in order: pairs of (ModelSet or None for the base, manifest row), the base first, concept by concept.

    limit: concepts from number `first` on, where no model says which (none: all).
    """
    known = {concept for item in pictures for concept in item.table.concept}
    rows = [(models, row) for models in sets for row in models.rows()]
    for _, row in rows:
        if row["concept"] and row["concept"] not in known:
            raise InputError(f"model {row['model_id']} is about {row['concept']!r}, of whom the image sets hold no picture")
    named = list(dict.fromkeys(row["concept"] for _, row in rows if row["concept"]))
    concepts = named or list(dict.fromkeys(concept for item in pictures for concept in item.table.concept))[first:][:limit]
    rows = [(models, row | {"concept": concept}) for models, row in rows for concept in ([row["concept"]] if row["concept"] else concepts)]
    if not concepts:
        raise InputError("the image sets are empty: there is nothing to score")
    keys = [tuple(row[name] for name in MODEL_COLUMNS) for _, row in rows]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"two models are the same by {', '.join(MODEL_COLUMNS)}: {', '.join(twice)}; was a model set given twice?")
    base = [(None, dict.fromkeys(MODEL_COLUMNS, "") | {"model_id": "base", "concept": concept}) for concept in concepts]
    return sorted(base + rows, key=lambda job: concepts.index(job[1]["concept"]))  # the pictures of one concept at a time


class Runner:
    """Scores one model after another; what belongs to the pictures is computed once per concept."""

    def __init__(self, base, sets, members, options, partial):
        self.base, self.sets, self.members, self.options, self.partial = base, sets, members, options, Path(partial)
        names = {name: importlib.import_module(f"tuneleak.attacks.membership.{name.replace('-', '_')}") for name in options.attacks}
        self.simple = {name: module for name, module in names.items() if hasattr(module, "score")}
        self.learned = {name: module for name, module in names.items() if name not in self.simple}
        self._concept, self._pictures, self.maps = None, None, {}

    def run(self, jobs):
        """All scores as one table with the columns of this module."""
        self.partial.mkdir(parents=True, exist_ok=True)
        tables = []
        for number, (models, row) in enumerate(runtime.progress(jobs, "membership of models")):
            path = self.partial / f"{number:05d}.csv"
            if not path.exists():
                table, maps = self._model(models, row)
                if maps:
                    from safetensors.torch import save_file

                    save_file({name: tensor.contiguous() for name, tensor in maps.items()}, path.with_suffix(".safetensors"))
                files.write_csv(path, table)
            tables.append(pd.read_csv(path, dtype={name: str for name in COLUMNS[:-2]}, keep_default_na=False))
        found = [table[table.attack.isin(self.simple)] for table in tables] + [self._learn(name, tables) for name in self.learned]
        return pd.concat([table[COLUMNS] for table in found], ignore_index=True)

    def _model(self, models, row):
        """Rows of one model; a learned attack gets its rows later and leaves its maps here, by caption kind."""
        if self._concept != row["concept"]:
            self._concept, self._pictures = row["concept"], self._load(row["concept"])
        pictures, tables, maps = self._pictures, [], {}
        if models is None:
            row = row | {"base": self.base.name, "concept": ""}
            tuned = None
        else:
            tuned = load_tuned(self.base, models, row)
        try:
            model = tuned or self.base
            if tuned and tuned.vae is not None:  # it has latents of its own, under the same noise
                pictures = Pictures(pictures.table, pictures.pixels, tuned.encode_images, self.options.seed)
            for kind in self.options.captions:
                query = Query(pictures, self._captions(kind), model.noise_pred, model.encode_text, self.base.alphas_cumprod, self.options.batch)
                for name, attack in {**self.simple, **self.learned}.items():
                    before = query.calls
                    with torch.inference_mode():
                        values = attack.score(query, self.options).cpu().double() if name in self.simple else torch.zeros(len(pictures))
                        if name in self.learned:
                            maps[f"{name}/{kind}"] = attack.maps(query, self.options)
                    if not bool(torch.isfinite(values).all()):
                        raise InputError(f"{row['model_id']}: attack {name!r} gave a score that is not finite; are the model's weights?")
                    made = (query.calls - before) // len(pictures)
                    tables.append(self._rows(row, name, attack, kind, values.numpy(), made))
        finally:
            if tuned:
                tuned.unload()
        return pd.concat(tables, ignore_index=True), maps

    def _load(self, concept):
        chosen = [item.where(concept=concept) for item in self.sets]
        pixels = [item.pixels() for item in chosen if len(item)]
        table = pd.concat([item.table for item in chosen if len(item)], ignore_index=True).fillna("")
        if table.image_id.duplicated().any():
            raise InputError(f"two pictures of {concept!r} are named {table.image_id[table.image_id.duplicated()].iloc[0]!r}; was an image set given twice?")
        return Pictures(table, np.concatenate(pixels), self.base.encode_images, self.options.seed)

    def _captions(self, kind):
        """The captions of the concept's pictures: true, the neutral one, those of another concept, or the empty one."""
        own = list(self._pictures.table.caption)
        if kind == "true":
            return own
        if kind == "neutral":
            return [self.options.neutral_caption] * len(own)
        if kind == "null":
            return [""] * len(own)
        known = list(dict.fromkeys(concept for item in self.sets for concept in item.table.concept))
        if len(known) < 2:
            raise InputError("swapped captions need pictures of at least two concepts")
        other = known[(known.index(self._concept) + 1) % len(known)]
        caption = next(item.where(concept=other).table.caption.iloc[0] for item in self.sets if other in set(item.table.concept))
        return [caption] * len(own)

    def _rows(self, row, name, attack, kind, values, made):
        table = self._pictures.table
        trained = set(image_ids(row)) if row.get("images") else set()
        columns = {column: row[column] for column in MODEL_COLUMNS}
        columns |= {"attack": name, "setting": attack.setting(self.options), "caption": kind, "image_id": table.image_id, "image_concept": table.concept}
        columns |= {"fold": table.fold, "dose": table.dose if "dose" in table else ""}
        columns["pretrained"] = "" if self.members is None else table.image_id.isin(self.members).astype(int)
        columns |= {"finetuned": table.image_id.isin(trained).astype(int), "score": values, "model_calls": made}
        return pd.DataFrame(columns, columns=COLUMNS)

    def _learn(self, name, tables):
        """Rows of an attack that learns: for each model, from the maps of the same kind of model (base, or method and world) on other concepts."""
        from safetensors.torch import load_file

        kept = {number: load_file(self.partial / f"{number:05d}.safetensors") for number in range(len(tables))}
        parts = []
        for kind in self.options.captions:
            blocks = []
            for number, table in enumerate(tables):
                block = table[(table.attack == name) & (table.caption == kind)]
                first = block.iloc[0]
                labels = block.pretrained if self.members is not None else block.finetuned
                group = tuple(first[column] for column in ("world", "method", "defence", "seed", "step"))
                if self.members is not None or first.model_id != "base":  # of fine-tuning pictures the base has no member to learn from
                    blocks.append((group, first.image_concept, block, kept[number][f"{name}/{kind}"], torch.tensor(labels.astype(int).to_numpy())))
            for group, concept, block, maps, _ in runtime.progress(blocks, f"{name} learns"):
                others = [(item[3], item[4]) for item in blocks if item[0] == group and item[1] != concept]
                labels = torch.cat([item[1] for item in others]) if others else torch.empty(0)
                if len(labels.unique()) < 2:
                    raise InputError(f"{name} learns from members and non-members of other concepts; {concept!r} has none beside it in this job")
                predict = self.learned[name].learn(torch.cat([item[0] for item in others]), labels, self.options, (self.options.seed, concept, *group))
                parts.append(block.assign(score=predict(maps).numpy()))
        if not parts:
            raise InputError(f"{name} learns from members and non-members, and without --members the base alone has none")
        return pd.concat(parts, ignore_index=True)


def blind_rows(sets, members, embedder, asked, base):
    """Rows of the model-blind control for the concepts `asked`, learned from `BLIND_CONCEPTS` other concepts of the image sets."""
    known = dict.fromkeys(concept for item in sets for concept in item.table.concept)
    chosen = [*asked, *[concept for concept in known if concept not in asked][:BLIND_CONCEPTS]]
    sets = [item.where(concept=chosen) for item in sets]
    table = pd.concat([item.table for item in sets], ignore_index=True).fillna("")
    features = np.concatenate([embedder.embed(item.pixels()) for item in sets])
    labels = table.image_id.isin(members).astype(int)
    parts = []
    for concept in asked:
        mine = table[table.concept == concept]
        values = blind.blind_scores(features, labels, table.concept, concept)
        columns = dict.fromkeys(COLUMNS, "") | {"model_id": "none", "base": base, "attack": "model-blind", "setting": "none", "caption": "true"}
        columns |= {"image_id": mine.image_id, "image_concept": mine.concept, "fold": mine.fold, "dose": mine.dose if "dose" in mine else ""}
        columns |= {"pretrained": labels[mine.index].astype(str), "finetuned": "0", "score": values, "model_calls": 0}
        parts.append(pd.DataFrame(columns, columns=COLUMNS))
    return pd.concat(parts, ignore_index=True)


def _members(path):
    return set(files.read_table(path, ["image_id"], "give the list of what the base was trained on (members.csv beside its UNet)").image_id)
