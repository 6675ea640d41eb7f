"""Checkpoints of a private training: tensors as safetensors, the accountant's ledger as JSON, written last, so that no spent privacy is forgotten."""

from pathlib import Path

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import weights
from tuneleak.privacy.accounting import Ledger


def save(folder, name, trainer):
    """Write what `trainer` (see `tuneleak.finetune.private.Trainer`) needs to go on, then drop the checkpoint before it."""
    from safetensors.torch import save_file

    adam = trainer.optimizer.state[trainer.vector]
    tensors = {"weights": trainer.vector.detach(), "exp_avg": adam["exp_avg"], "exp_avg_sq": adam["exp_avg_sq"], "optimizer_step": adam["step"]}
    if trainer.average is not None:
        tensors["average"] = trainer.average
    path = Path(folder) / f"{name}-private-{trainer.step_number:06d}.safetensors"
    with files.atomic(path) as temporary:
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, temporary)
    facts = {"step": trainer.step_number, "file": path.name, "history": trainer.ledger.history, "log": trainer.log}
    files.write_json(Path(folder) / f"{name}.private.json", facts)
    forget(folder, name, keep=path)


def load(folder, name, trainer):
    """Restore `trainer` in place from its checkpoint, if there is one."""
    note = Path(folder) / f"{name}.private.json"
    if not note.is_file():
        return
    facts = files.read_object(note, "step", "file", "history", "log")
    tensors = weights.load_tensors(files.inside(folder, facts["file"]), f"remove {folder} to begin again")
    shaped = {"weights", "exp_avg", "exp_avg_sq"} | ({"average"} if trainer.average is not None else set())
    if not tensors.keys() >= shaped | {"optimizer_step"} or any(tensors[key].shape != trainer.vector.shape for key in shaped):
        raise InputError(f"{note}: its tensors are no checkpoint of this training; remove {folder} to begin again")
    with torch.no_grad():
        trainer.vector.copy_(tensors["weights"])
        if trainer.average is not None:
            trainer.average.copy_(tensors["average"])
    adam = {"step": tensors["optimizer_step"], "exp_avg": tensors["exp_avg"], "exp_avg_sq": tensors["exp_avg_sq"]}
    trainer.optimizer.load_state_dict({"state": {0: adam}, "param_groups": trainer.optimizer.state_dict()["param_groups"]})
    trainer.ledger, trainer.log, trainer.step_number = Ledger(facts["history"]), facts["log"], facts["step"]


def forget(folder, name, keep=None):
    """Delete the checkpoints of a training, but for the tensors `keep` and the note that names them."""
    for path in Path(folder).glob(f"{name}-private-*.safetensors"):
        if path != keep:
            path.unlink()
    if keep is None:
        (Path(folder) / f"{name}.private.json").unlink(missing_ok=True)
