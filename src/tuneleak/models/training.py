"""What the trainings of the shipped models share: a resumable loop with warm-up and cosine decay, and an averaged copy of the weights."""

import math
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from tuneleak import files, runtime
from tuneleak.errors import InputError
from tuneleak.models import weights
from tuneleak.models.optimizer import MuonAdamW


def learning_rate(step, steps, peak, warmup=100):
    """Linear warm-up over `warmup` steps (at most a tenth of all), then a cosine to zero."""
    warmup = max(1, min(warmup, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    module, batch_at, loss_of, options, folder, description, ema=0.0, weight_decay=1e-2, checkpoint_every=500, log_every=20, snapshots=0, inputs=(), pieces=1
):  # fmt: skip
    """Minimise `loss_of(*batch_at(step)) -> (loss tensor, {name: tensor})` over the parameters of `module` for `options.steps` steps.

    batch_at: what one step trains on, a tuple of CPU tensors whose shapes are those of every step. Whatever is random must be drawn there, from
    `runtime.generator(..., step)`, so that a run resumed from the last checkpoint in `folder/.checkpoints/` ends with the weights of an uninterrupted
    one. loss_of: takes them on the module's device and must not wait for their values, since a CUDA device is given it once as a graph. Writes
    `folder/train.csv` (step, lr, seconds, losses). With `ema` > 0 the averaged weights are loaded into `module` at the end. `snapshots` > 0 also writes
    them, at so many evenly spaced steps, to `folder/snapshots/<step>.safetensors` (fp16), so that a training curve of any measure can be drawn
    afterwards. inputs: what tells the data from other data (digests), so that no checkpoint is continued on others. pieces: a batch goes through in so many
    equal parts, whose gradients are averaged: less memory, the same step. Returns nothing.
    """
    folder = Path(folder)
    checkpoint = folder / ".checkpoints" / files.digest([options.model_dump(mode="json"), *inputs])
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = MuonAdamW(module, options.lr, options.muon_lr, weight_decay)
    averaged = {name: parameter.detach().clone() for name, parameter in parameters.items()} if ema else {}
    start, rows = _resume(checkpoint, module, optimizer, averaged)
    module.train()
    clock, spent = time.time(), rows[-1]["seconds"] if rows else 0.0
    update = Update(loss_of, optimizer, pieces)
    bar = runtime.progress(range(start, options.steps), description)
    for step in bar:
        factor = learning_rate(step, options.steps, 1.0)
        optimizer.set_rate(factor)
        loss, parts = update(batch_at(step))
        if ema:
            decay = min(ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(averaged.values()), list(parameters.values()), 1 - decay)
        if step % log_every == 0 or step == options.steps - 1:
            facts = {name: float(value) for name, value in {"loss": loss, **parts}.items()}
            if not math.isfinite(facts["loss"]):
                raise InputError(f"{description}: the loss is not finite at step {step}; lower lr or muon_lr, or try another device")
            rows.append({"step": step, "lr": factor * options.lr, "seconds": round(spent + time.time() - clock, 1), **facts})
            bar.set_postfix(loss=f"{rows[-1]['loss']:.4f}")
        if snapshots and (step + 1) * snapshots // options.steps > step * snapshots // options.steps:
            save_half(module.state_dict() | averaged, folder / "snapshots" / f"{step + 1:06d}.safetensors")
        if (step + 1) % checkpoint_every == 0:
            _save(checkpoint, step + 1, module, optimizer, averaged, rows)
            files.write_csv(folder / "train.csv", log_table(rows))
    files.write_csv(folder / "train.csv", log_table(rows))
    if ema:
        module.load_state_dict(averaged, strict=False)
    module.eval()


class Update:
    """One update of the weights: loss, gradients clipped to a norm of 1, optimiser.

    On a CUDA device it is recorded after a few plain steps (which make the optimiser's state and pick algorithms) and replayed from then on: these
    models are so small that a GPU would wait for Python to start its thousands of kernels.
    """

    PLAIN_STEPS = 5

    def __init__(self, loss_of, optimizer, pieces=1):
        self.loss_of, self.optimizer, self.pieces, self.device = loss_of, optimizer, pieces, optimizer.rates.device
        self.graph, self.inputs, self.outputs, self.done = None, None, None, 0
        self.stream = torch.cuda.Stream() if self.device.type == "cuda" else None

    def __call__(self, batch):
        """`batch`: a tuple of CPU tensors. Returns the loss and its parts, detached; they are overwritten by the next call."""
        if self.stream is None:
            return self._plain(*batch)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            batch = [part.pin_memory().to(self.device, non_blocking=True) for part in batch]
            outputs = self._plain(*batch) if self.done < self.PLAIN_STEPS else self._replay(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        self.done += 1
        return outputs

    def _plain(self, *batch):
        self.optimizer.zero_grad()
        total, sums = 0.0, {}
        for piece in zip(*(part.chunk(self.pieces) for part in batch), strict=True):
            loss, parts = self.loss_of(*piece)
            (loss / self.pieces).backward()
            total = total + loss.detach() / self.pieces
            sums = {name: sums.get(name, 0.0) + value.detach() / self.pieces for name, value in parts.items()}
        torch.nn.utils.clip_grad_norm_(self.optimizer.parameters(), 1.0)
        self.optimizer.step()
        return total, sums

    def _replay(self, batch):
        if self.graph is None:
            self.inputs, self.graph = [part.clone() for part in batch], torch.cuda.CUDAGraph()
            self.optimizer.zero_grad()  # gradients live in the graph's own memory
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.outputs = self._plain(*self.inputs)
        for held, given in zip(self.inputs, batch, strict=True):
            held.copy_(given)
        self.graph.replay()
        return self.outputs


def pieces_of(batch, physical):
    """Into how many parts a batch is cut so that `physical` samples are in memory at once (0: all); `InputError` unless they are equal."""
    if physical and batch % physical:
        raise InputError(f"physical_batch must divide batch, {physical} does not divide {batch}")
    return batch // physical if physical else 1


def log_table(rows):
    """Rows of a train.csv as a table, `step` first and the rest by name: rows read back from a checkpoint have lost the order they were made in."""
    return pd.DataFrame(rows, columns=["step", *sorted({name for row in rows for name in row} - {"step"})])


def _save(checkpoint, step, module, optimizer, averaged, rows):
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in averaged.items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.state().items()}
    with files.atomic(checkpoint.with_suffix(".safetensors")) as path:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, metadata={"step": str(step)})
    files.write_json(checkpoint.with_suffix(".json"), {"step": step, "rows": rows})


def _resume(checkpoint, module, optimizer, averaged):
    path = checkpoint.with_suffix(".safetensors")
    if not path.is_file() or not checkpoint.with_suffix(".json").is_file():
        return 0, []
    tensors, state = weights.load_tensors(path, "remove it to begin again"), files.read_object(checkpoint.with_suffix(".json"), "step", "rows")
    with weights.restoring(path, path):
        step = int(weights.header(path)["step"])
        module.load_state_dict({name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")})
        for name, value in averaged.items():
            value.copy_(tensors[f"average.{name}"])
        optimizer.load_state({name.removeprefix("optimizer."): value for name, value in tensors.items() if name.startswith("optimizer.")})
    if step != state["step"]:  # killed between the two writes
        state = {"step": step, "rows": [row for row in state["rows"] if row["step"] < step]}
    return state["step"], state["rows"]


def save_half(state, path):
    """Write a state dict as fp16 safetensors (what is shipped)."""
    with files.atomic(path) as temporary:
        save_file(
            {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in state.items()}, temporary, metadata={"format": "pt"}
        )
