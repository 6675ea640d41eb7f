"""A ModelSet: a folder of fine-tuned models and a `manifest.csv` that says what each is.

Columns of the manifest: `model_id` (unique), `world`, `base` (name of the base it was tuned from), `concept`, `method`, `defence` (or
empty), `seed`, `step` (optimiser steps taken), `caption` (the training caption), `n_images`, `images` (image_ids trained on, joined by
`;`), `file` (a folder inside the ModelSet). That folder holds a LoRA as `pytorch_lora_weights.safetensors` in the layout of diffusers, or
fully tuned networks as `unet/diffusion_pytorch_model.safetensors` and, if it was trained, `text_encoder/model.safetensors`; beside or instead of
these, textual inversion's `learned_embeds.safetensors` and a `hypernetwork.safetensors`. Adapters other than LoRA are folders of peft
(`unet/adapter_config.json` and `adapter_model.safetensors`); `adapters.json` lists adapters of any kind as they were shared, each with its
scale (see `tuneleak.models.adapters`). Private models may hold a context
per class (`class_embedder.safetensors`, also alone), or a generator of pictures instead of a diffusion model (`generator.safetensors`).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError

COLUMNS = ("model_id", "world", "base", "concept", "method", "defence", "seed", "step", "caption", "n_images", "images", "file")
LORA_FILE = "pytorch_lora_weights.safetensors"
CLASS_FILE = "class_embedder.safetensors"
GENERATOR_FILE = "generator.safetensors"


@dataclass(frozen=True)
class ModelSet:
    """A folder and its manifest table (string columns; empty cells are empty strings)."""

    folder: Path
    table: pd.DataFrame

    @classmethod
    def load(cls, folder):
        """Read a ModelSet from its folder (or the path of its manifest); raises `InputError` if it is not one."""
        folder = folder_of(folder)
        manifest = folder / "manifest.csv"
        if not manifest.is_file():
            raise InputError(f"{folder} is not a model set: it has no manifest.csv (make one with `tuneleak finetune`)")
        table = files.read_table(manifest, COLUMNS, "make the model set again with `tuneleak finetune`")
        if table.model_id.duplicated().any():
            raise InputError(f"{manifest}: model_id {table.model_id[table.model_id.duplicated()].iloc[0]!r} occurs twice; make the model set again")
        return cls(folder, table)

    def __len__(self):
        return len(self.table)

    def rows(self):
        """The models as a list of dicts, in manifest order."""
        return self.table.to_dict("records")

    def where(self, **values):
        """The subset whose columns equal the given values (a list means any of them)."""
        table = self.table
        for column, value in values.items():
            table = table[table[column].isin([value] if isinstance(value, str) else list(value))]
        return ModelSet(self.folder, table.reset_index(drop=True))

    def path(self, row):
        """The folder of one model; an `InputError` if it is missing or lies outside the ModelSet."""
        path = files.inside(self.folder, row["file"])
        if not path.is_dir():
            raise InputError(f"{self.folder / 'manifest.csv'} names the model folder {row['file']!r}, which does not exist; copy the whole model set")
        return path


def write(folder, rows):
    """Write the manifest of a ModelSet whose model folders exist already; `rows` are dicts with the columns of this module (defence may be left out)."""
    table = table_of(rows)
    files.write_csv(Path(folder) / "manifest.csv", table)
    return ModelSet(Path(folder), table)


def table_of(rows):
    """The table of a manifest, all text, from dicts with the columns of this module (defence may be left out)."""
    table = pd.DataFrame([{"defence": "", **row} for row in rows])
    return table[[*COLUMNS, *(name for name in table if name not in COLUMNS)]].astype(str)


def folder_of(path, name="manifest.csv"):
    """The folder meant by `path`, which may be the folder itself or the file `name` in it: what a workflow passes is a file."""
    path = Path(path)
    return path.parent if path.name == name else path


def image_ids(row):
    """The image_ids a model was trained on, as a list."""
    return [name for name in row["images"].split(";") if name]


def model_id(*parts):
    """A folder name made of `parts` (world, concept, method, ...): any character that is not a letter, digit, dot or dash becomes a dash."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", str(part)).strip("-.") for part in parts)
