"""Checkpoints of one fine-tune, so that a killed job continues and ends with the same bits.

In a folder: `<model>.json` (step and name of the tensor file, written last, so what it names is complete) and `<model>-<step>.safetensors`
with `weights`, `generator` (the CPU generator's state, uint8), `losses` and, of AdamW, `exp_avg`, `exp_avg_sq` (one value per trained weight) and
`optimizer_step`.
"""

from pathlib import Path

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import weights


def save(folder, name, step, vector, optimizer, generator, losses):
    """Write the state after `step` optimiser steps, then drop the checkpoint before it.

    vector: the flat parameter; optimizer: AdamW, or SGD without momentum (which has no state), over it alone; losses: `(total,)` float32, filled up to `step`.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    adam = optimizer.state[vector]
    tensors = {"weights": vector.detach()}
    if adam:
        tensors |= {"exp_avg": adam["exp_avg"], "exp_avg_sq": adam["exp_avg_sq"], "optimizer_step": adam["step"]}
    tensors = {key: value.cpu().contiguous() for key, value in tensors.items()} | {"generator": generator.get_state(), "losses": losses.cpu()}
    path = folder / f"{name}-{step:06d}.safetensors"
    with files.atomic(path) as temporary:
        save_file(tensors, temporary)
    files.write_json(folder / f"{name}.json", {"step": step, "file": path.name})
    for old in folder.glob(f"{name}-*.safetensors"):
        if old != path and old.stem.removeprefix(f"{name}-").isdigit():
            old.unlink()


def load(folder, name, vector, optimizer, generator, losses):
    """Restore the state in place and return its step; 0 (and nothing touched) without a checkpoint."""
    folder = Path(folder)
    if not (folder / f"{name}.json").is_file():
        return 0
    state = files.read_object(folder / f"{name}.json", "step", "file")
    path = files.inside(folder, state["file"])
    tensors = weights.load_tensors(path, f"remove {folder} to begin again")
    adams = {"exp_avg", "exp_avg_sq", "optimizer_step"} if isinstance(optimizer, torch.optim.AdamW) else set()  # plain descent has no state
    fits = tensors.keys() >= {"weights", "losses", "generator", *adams}
    shaped = {"weights", *adams} - {"optimizer_step"}
    if not fits or any(tensors[key].shape != vector.shape for key in shaped) or tensors["losses"].shape != losses.shape:
        raise InputError(f"{path} is no checkpoint of this fine-tune; remove {folder} to begin again")
    with torch.no_grad():
        vector.copy_(tensors["weights"])
        losses.copy_(tensors["losses"])
    if adams:
        adam = {"step": tensors["optimizer_step"], "exp_avg": tensors["exp_avg"], "exp_avg_sq": tensors["exp_avg_sq"]}
        optimizer.load_state_dict({"state": {0: adam}, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(tensors["generator"])
    return state["step"]


def finish(folder, name, model_folder, row, losses, **facts):
    """Note that a model is complete: its manifest `row`, per-step `losses` (list), further `facts` and the digests of its files.

    Drops its checkpoint. Returns the note, a dict.
    """
    folder, model_folder = Path(folder), Path(model_folder)
    digests = {str(path.relative_to(model_folder)): files.sha256(path) for path in sorted(model_folder.rglob("*")) if path.is_file()}
    note = {"row": row, "losses": losses, "sha256": digests, **facts}
    files.write_json(folder / f"{name}.done.json", note)
    (folder / f"{name}.json").unlink(missing_ok=True)
    for old in folder.glob(f"{name}-*.safetensors"):
        if old.stem.removeprefix(f"{name}-").isdigit():
            old.unlink()
    return note


def finished(folder, name, model_folder):
    """What `finish` noted, as a dict, if the model's files are still exactly those; else None."""
    path, model_folder = Path(folder) / f"{name}.done.json", Path(model_folder)
    if not path.is_file():
        return None
    note = files.read_json(path)
    whole = all((model_folder / file).is_file() and files.sha256(model_folder / file) == digest for file, digest in note["sha256"].items())
    return note if whole else None
