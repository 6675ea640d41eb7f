"""The verb `sample-classes`: labelled pictures of the base and of privately tuned models under public prompts; never a private caption.

Writes an ImageSet whose `concept` is the model (`base` for the base) with the columns `label`, `model_id`, `method`, `defence` and `seed`. Pictures are
written as they are drawn, and a run that was cut short draws those that are missing.
"""

import itertools
import shutil
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


def sample_classes(base, out, options, models=None, device="auto", dtype="float32"):
    """Draw `options.samples` pictures per model of the ModelSet `models`, or of the base alone without one. All models start from the same noise.

    base: pipeline folder; out: folder of the ImageSet; options: `SampleOptions`.
    """
    if not options.prompts:
        raise InputError("sample-classes needs prompts: label -> caption")
    device, out = runtime.pick_device(device), Path(out)
    with runtime.output_lock(out):
        loaded = load_base(base, device, dtype)
        if models is None:
            facts = {"model_id": "base", "method": "base", "defence": "epsilon=0", "seed": "0"}
            drawn, inputs = [_draw(loaded, loaded, {}, facts, options, out)], [loaded.folder]
        else:
            modelset = ModelSet.load(models)
            drawn, inputs = (_of_model(loaded, modelset, row, options, out, device) for row in modelset.rows()), [loaded.folder, modelset.folder]
        _keep_what_belongs(out, files.digest([options.model_dump(mode="json"), str(dtype), files.stamps(inputs)]))
        made = imageset.write_pairs(out, itertools.chain.from_iterable(drawn))
        (out / RUN).unlink()
        files.write_meta(out / "manifest.csv", options, base=str(base), models=str(models or ""), pictures=len(made))


RUN = ".run"  # names what an unfinished folder's pictures were drawn with


def _keep_what_belongs(out, run):
    if not ((out / RUN).is_file() and (out / RUN).read_text(encoding="utf-8") == run):
        shutil.rmtree(out, ignore_errors=True)
        files.write_text(out / RUN, run)


def _of_model(base, modelset, row, options, out, device):
    """(row, picture) of every sample of one private model."""
    folder, facts = modelset.path(row), {name: row[name] for name in ("model_id", "method", "defence", "seed")}
    if (folder / GENERATOR_FILE).is_file():
        yield from _generate(folder / GENERATOR_FILE, base.image_size[0], facts, options, device)
        return
    file = folder / CLASS_FILE
    contexts = load_class_contexts(file, base.unet.config.cross_attention_dim) if file.is_file() else {}
    with load_tuned(base, modelset, row) as tuned:
        yield from _draw(base, tuned, contexts, facts, options, out)


def captions_of(options):
    """`(label, caption)` of every sample in turn: labels change fastest, then the endings."""
    labels, endings = list(options.prompts), options.endings or [""]
    found = []
    for index in range(options.samples):
        label, ending = labels[index % len(labels)], endings[index // len(labels) % len(endings)]
        found.append((label, f"{options.prompts[label]} {ending}".strip()))
    return found


def _draw(base, model, contexts, facts, options, out):
    turn, null = captions_of(options), model.encode_text([""])
    for label, caption in runtime.progress(dict.fromkeys(turn), f"sample {facts['model_id']}"):
        context = contexts[label][None].to(base.device) if label in contexts else model.encode_text([caption])
        indices = [index for index, other in enumerate(turn) if other == (label, caption)]
        for first in range(0, len(indices), options.batch):
            part = indices[first : first + options.batch]
            rows = [_row(index, label, caption, facts) for index in part]
            pictures = _drawn_before([imageset.place(out, row) for row in rows])
            if pictures is None:
                noise = starting_noise(base.latent_shape, *(("sample-classes", options.seed, index) for index in part))
                pictures = from_tensor(base.decode(_latents(base, model, null, context, noise, options)))
            yield from zip(rows, pictures, strict=True)


def _drawn_before(paths):
    """The pictures at `paths`, or None if one is missing."""
    from PIL import Image

    if not all(path.is_file() for path in paths):
        return None
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def _row(index, label, caption, facts):
    return {"image_id": f"{facts['model_id']}-{index:06d}", "concept": facts["model_id"], "caption": caption, "label": label, **facts}


@torch.inference_mode()
def _generate(path, side, facts, options, device):
    """The same from a generator of `mean-features`, which knows classes but no captions."""
    generator, classes = load_generator(path, side)
    turn = captions_of(options)
    unknown = sorted({label for label, _ in turn} - set(classes))
    if unknown:
        raise InputError(f"{path} was not trained for the class {unknown[0]!r}")
    generator = generator.to(device)
    for first in range(0, len(turn), options.batch):
        part = range(first, min(first + options.batch, len(turn)))
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
