"""The verb `sample-classes`: labelled pictures of the base and of privately tuned models under public prompts; never a private caption.

Writes an ImageSet whose `concept` is the model (`base` for the base) with the columns `label`, `model_id`, `method`, `defence` and `seed`. Pictures are
written as they are drawn, and a run that was cut short draws those that are missing. Every picture has a seed of its own, so that many jobs may draw one
model's, each a slice of them.
"""

from pathlib import Path

import numpy as np
import torch

from tuneleak import files, runtime
from tuneleak.data import imageset
from tuneleak.data.imageset import from_tensor
from tuneleak.errors import InputError
from tuneleak.finetune.generate import guided_latents, starting_noise
from tuneleak.finetune.mean_features import load_generator
from tuneleak.models.modelset import CLASS_FILE, GENERATOR_FILE, ModelSet
from tuneleak.models.pipeline import load_base, load_tuned
from tuneleak.privacy.conditioned import load_class_contexts


def sample_classes(base, out, options, models=None, start=0, stop=None, device="auto", dtype="float32"):
    """Draw pictures `start:stop` of the `options.samples` of each model of the ModelSet `models`, or of the base alone without one.

    All models start from the same noise. base: pipeline folder; out: folder of the ImageSet; options: `SampleOptions`.
    """
    if not options.prompts:
        raise InputError("sample-classes needs prompts: label -> caption")
    chosen = range(options.samples)[slice(start, stop)]
    if start < 0 or not chosen or (stop is not None and stop > options.samples):
        raise InputError(f"there are {options.samples} samples; the slice {start}:{'' if stop is None else stop} is empty or leaves them, choose another")
    device, out = runtime.pick_device(device), Path(out)
    with runtime.output_lock(out):
        loaded, modelset = load_base(base, device, dtype), ModelSet.load(models) if models else None
        inputs = files.stamps([loaded.folder, *([modelset.folder] if modelset else [])])
        drawn = _Drawn(out, files.digest([options.model_dump(mode="json"), str(dtype), inputs]))
        count = len(imageset.write_pairs(out, _samples(loaded, modelset, options, chosen, drawn, device)))
        drawn.path.unlink(missing_ok=True)
        files.write_meta(out / "manifest.csv", options, base=str(base), models=str(models or ""), start=chosen.start, stop=chosen.stop, pictures=count)


def _samples(base, modelset, options, chosen, drawn, device):
    """(row, picture) of every sample of every model, or of the base where there is no model set."""
    if modelset is None:
        yield from _draw(base, base, {}, {"model_id": "base", "method": "base", "defence": "epsilon=0", "seed": "0"}, options, chosen, drawn)
        return
    for row in modelset.rows():
        yield from _of_model(base, modelset, row, options, chosen, drawn, device)


class _Drawn:
    """Which pictures of an unfinished folder this very run has drawn, noted in a file named after what it draws with. Nothing else in the folder is touched."""

    def __init__(self, out, run):
        self.out, self.path = out, out / f".drawn-{run}"
        for old in out.glob(".drawn-*"):
            if old != self.path:
                old.unlink()
        out.mkdir(parents=True, exist_ok=True)
        self.names = set(self.path.read_text(encoding="utf-8").splitlines()) if self.path.is_file() else set()

    def pictures(self, rows):
        """The pictures of `rows`, or None if one is not drawn yet."""
        from PIL import Image

        paths = [imageset.place(self.out, row) for row in rows]
        if not all(row["image_id"] in self.names and path.is_file() for row, path in zip(rows, paths, strict=True)):
            return None
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]

    def note(self, rows):
        """Note that the pictures of `rows` are written."""
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.writelines(f"{row['image_id']}\n" for row in rows)


def _of_model(base, modelset, row, options, chosen, drawn, device):
    """(row, picture) of every sample of one private model."""
    folder, facts = modelset.path(row), {name: row[name] for name in ("model_id", "method", "defence", "seed")}
    if (folder / GENERATOR_FILE).is_file():
        yield from _generate(folder / GENERATOR_FILE, base.image_size[0], facts, options, chosen, device)
        return
    file = folder / CLASS_FILE
    contexts = load_class_contexts(file, base.unet.config.cross_attention_dim) if file.is_file() else {}
    with load_tuned(base, modelset, row) as tuned:
        yield from _draw(base, tuned, contexts, facts, options, chosen, drawn)


def captions_of(options):
    """`(label, caption)` of every sample in turn: labels change fastest, then the endings."""
    labels, endings = list(options.prompts), options.endings or [""]
    found = []
    for index in range(options.samples):
        label, ending = labels[index % len(labels)], endings[index // len(labels) % len(endings)]
        found.append((label, f"{options.prompts[label]} {ending}".strip()))
    return found


def _draw(base, model, contexts, facts, options, chosen, drawn):
    turn, null = captions_of(options), model.encode_text([""]) if options.guidance_scale != 1 else None
    for label, caption in runtime.progress(dict.fromkeys(turn[index] for index in chosen), f"sample {facts['model_id']}"):
        context = contexts[label][None].to(base.device) if label in contexts else model.encode_text([caption])
        indices = [index for index in chosen if turn[index] == (label, caption)]
        for first in range(0, len(indices), options.batch):
            part = indices[first : first + options.batch]
            rows = [_row(index, label, caption, facts) for index in part]
            pictures = drawn.pictures(rows)
            if pictures is None:
                noise = starting_noise(base.latent_shape, *(("sample-classes", options.seed, index) for index in part))
                pictures = from_tensor(base.decode(_latents(base, model, null, context, noise, options)))
            yield from zip(rows, pictures, strict=True)
            drawn.note(rows)


def _row(index, label, caption, facts):
    return {"image_id": f"{facts['model_id']}-{index:06d}", "concept": facts["model_id"], "caption": caption, "label": label, **facts}


@torch.inference_mode()
def _generate(path, side, facts, options, chosen, device):
    """The same from a generator of `mean-features`, which knows classes but no captions."""
    generator, classes = load_generator(path, side)
    turn = captions_of(options)
    unknown = sorted({label for label, _ in turn} - set(classes))
    if unknown:
        raise InputError(f"{path} was not trained for the class {unknown[0]!r}")
    generator = generator.to(device)
    for first in range(0, len(chosen), options.batch):
        part = chosen[first : first + options.batch]
        noise = starting_noise((generator.latent,), *(("sample-classes", options.seed, index) for index in part)).to(device)
        labels = torch.tensor([classes.index(turn[index][0]) for index in part], device=device)
        for index, pixels in zip(part, from_tensor(generator(noise, labels)), strict=True):
            yield _row(index, *turn[index], facts), pixels


@torch.inference_mode()
def _latents(base, model, null, context, noise, options):
    if options.guidance_scale == 1:
        return base.sample(lambda x, t: model.noise_pred(x, t, context.expand(len(x), -1, -1)), noise, options.steps)
    if context.shape[1] != null.shape[1]:
        raise InputError("guidance mixes contexts of one length only; a model with fewer context tokens is sampled with guidance_scale 1")
    return guided_latents(base, model.noise_pred, null, context, noise, options.steps, options.guidance_scale)
