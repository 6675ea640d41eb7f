"""The LoRA weights of many models as stacked tensors, whether they come one to a folder (`finetune`) or one to a row (`collect-weights`)."""

from dataclasses import dataclass, replace

import pandas as pd
import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import weights
from tuneleak.models.modelset import LORA_FILE, ModelSet, folder_of

STACK_FILE = "weights.safetensors"


@dataclass(frozen=True)
class WeightSet:
    """N models: their manifest rows, and pairs[layer] = (A `(N, r, in)`, B `(N, out, r)`) float32 with alpha / rank multiplied into B.

    Models of smaller rank are padded with zeros, which changes no update. Rows of a set that has none get `run` = `model_id`.
    """

    table: pd.DataFrame
    pairs: dict

    def __len__(self):
        return len(self.table)

    @property
    def layers(self):
        """Names of the adapted layers."""
        return list(self.pairs)

    @property
    def rank(self):
        """The largest rank."""
        return next(iter(self.pairs.values()))[0].shape[1]

    def take(self, rows):
        """The models of these row numbers, in that order."""
        rows = torch.as_tensor(rows)
        return WeightSet(self.table.iloc[rows.tolist()].reset_index(drop=True), self.chosen(rows))

    def chosen(self, rows):
        """pairs of these row numbers (a tensor)."""
        return {name: (a[rows], b[rows]) for name, (a, b) in self.pairs.items()}

    def with_pairs(self, pairs):
        """The same models with other weights."""
        return replace(self, pairs=pairs)


def load(folders, base, defences=()):
    """Read model sets (folders or their manifests) whose models are LoRAs of the UNet of `base`; layers must be the same in all.

    defences: only the models under these are read (empty: all). Raises `InputError` for anything but such LoRAs.
    """
    sets = [ModelSet.load(folder) for folder in folders]
    parts = [_read(models.where(defence=list(defences)) if defences else models, base) for models in sets]
    if not parts or not sum(map(len, parts)):
        raise InputError("there is no model to read weights of; give model sets with at least one LoRA")
    for part, folder in zip(parts, folders, strict=True):
        if set(part.layers) != set(parts[0].layers):
            odd = sorted(set(part.layers) ^ set(parts[0].layers))[0]
            raise InputError(f"{folder}: its LoRAs and those of {folders[0]} adapt different layers ({odd}, for one)")
    rank = max(part.rank for part in parts)
    order = {name: number for number, (name, _) in enumerate(base.unet.named_modules())}  # that of the network, in which adapters are drawn
    pairs = {name: tuple(torch.cat([_padded(part.pairs[name][side], rank, side) for part in parts]) for side in (0, 1))
             for name in sorted(parts[0].layers, key=order.get)}  # fmt: skip
    return WeightSet(pd.concat([part.table for part in parts], ignore_index=True), pairs)


def update(pair):
    """The dense update `B A (N, out, in)` of one layer."""
    return torch.bmm(pair[1], pair[0])


def _padded(matrix, rank, side):
    """A `(N, r, in)` (side 0) or B `(N, out, r)` (side 1) with zero rows or columns up to `rank`."""
    missing = rank - matrix.shape[1 + side]
    return torch.nn.functional.pad(matrix, (0, missing) if side else (0, 0, 0, missing)) if missing else matrix


def _read(modelset, base):
    if "index" in modelset.table:
        return _read_stack(modelset, base)
    read = [weights.read_lora(files.inside(modelset.path(row), LORA_FILE), {"unet": base.unet, "text_encoder": base.text_encoder}) for row in modelset.rows()]
    for lora, row in zip(read, modelset.rows(), strict=True):
        if "unet" not in lora or set(lora["unet"].matrices) != set(read[0]["unet"].matrices):
            raise InputError(f"{modelset.folder}: {row['model_id']} does not adapt the same layers of the UNet as the first model")
    rank = max(lora["unet"].rank for lora in read)
    pairs = {}
    for name in read[0]["unet"].matrices:
        stacks = [[lora["unet"].matrices[name][side] for lora in read] for side in (0, 1)]
        stacks[1] = [matrix * (lora["unet"].alpha / lora["unet"].rank) for matrix, lora in zip(stacks[1], read, strict=True)]
        pairs[name] = tuple(torch.cat([_padded(matrix[None], rank, side) for matrix in stacks[side]]) for side in (0, 1))
    return WeightSet(modelset.table.assign(run=modelset.table.model_id), pairs)


def _read_stack(modelset, base):
    """The shard of `collect-weights`, its shapes checked against the base."""
    from safetensors import SafetensorError, safe_open

    path = files.inside(modelset.folder, STACK_FILE)
    layers = dict(base.unet.named_modules())
    order = {name: number for number, name in enumerate(layers)}
    try:
        index = torch.tensor([int(value) for value in modelset.table["index"]])
        with safe_open(str(path), framework="pt", device="cpu") as handle:
            names = list(handle.keys())
            facts = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name).float()[index] for name in names}
        scale = float(facts.get("alpha", "nan")) / float(facts.get("rank", "nan"))
    except (SafetensorError, OSError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{path} is not the readable stack of weights its manifest speaks of ({error}); collect it again") from None
    pairs = {}
    for name in sorted({name.rpartition(".")[0] for name in names}, key=lambda name: order.get(name, -1)):
        layer, a, b = layers.get(name), tensors.get(f"{name}.lora_A"), tensors.get(f"{name}.lora_B")
        fits = isinstance(layer, torch.nn.Linear) and a is not None and b is not None and a.ndim == b.ndim == 3
        if not fits or a.shape[2] != layer.in_features or b.shape[1] != layer.out_features or a.shape[1] != b.shape[2] or not scale > 0:
            raise InputError(
                f"{path}: {name} is no LoRA of a linear layer of this base model, or the header lacks rank and alpha; collect the weights from it again"
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise InputError(f"{path}: {name} holds values that are not finite; collect the weights again")
        pairs[name] = a, b * scale
    return WeightSet(modelset.table, pairs)


def stack_or_manifest(path):
    """The file whose content stands for a model set: the tensors of a stack, else the manifest."""
    folder = folder_of(path)
    return folder / STACK_FILE if (folder / STACK_FILE).is_file() else folder / "manifest.csv"
