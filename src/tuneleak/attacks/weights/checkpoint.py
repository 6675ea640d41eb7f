"""Checkpoints of an encoder's training: weights and AdamW's moments as safetensors, the log as JSON written last."""

import shutil
from pathlib import Path

import torch

from tuneleak import files
from tuneleak.models import weights

TERMS = 5


def save(folder, step, encoder, optimizer, log, sums):
    """Write the state after `step` steps over the one before."""
    from safetensors.torch import save_file

    folder = Path(folder)
    tensors = {f"model.{name}": value for name, value in encoder.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    path = folder / f"{step:07d}.safetensors"
    with files.atomic(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    files.write_json(folder / "state.json", {"step": step, "file": path.name, "log": log, "sums": sums})
    for old in folder.glob("*.safetensors"):
        if old != path:
            old.unlink()


def load(folder, encoder, optimizer):
    """Restore in place; (steps done, log, sums of the current row): (0, [], zeros) without a checkpoint."""
    folder = Path(folder)
    if not (folder / "state.json").is_file():
        return 0, [], [0.0] * TERMS
    state = files.read_object(folder / "state.json", "step", "file", "log", "sums")
    path = files.inside(folder, state["file"])
    tensors = weights.load_tensors(path, f"remove {folder} to begin again")
    moments = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".", 2)
            moments.setdefault(int(number), {})[key] = value if key != "step" else torch.as_tensor(value)
    with weights.restoring(path, folder):
        encoder.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")})
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], [tuple(row) for row in state["log"]], state["sums"]


def drop(folder):
    """Remove the checkpoints of a finished training."""
    shutil.rmtree(folder, ignore_errors=True)
