"""The verb `finetune`: many concepts and seeds of one method in one job, each model a function of its own seed and of nothing else in the job.

Writes `<out>/<model_id>/` per model, `train.csv` (columns model_id, step, loss: the mean over the steps since the row before) and, last,
`manifest.csv` (see `tuneleak.models.modelset`).
"""

import shutil
from pathlib import Path

import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import checkpoint, methods, views
from tuneleak.finetune.generate import class_latents
from tuneleak.finetune.objective import KERNEL_WIDTHS, Batch, training_step
from tuneleak.models import modelset
from tuneleak.models.pipeline import load_base
from tuneleak.models.tokenizer import whole_words

LOG_EVERY = 10  # optimiser steps behind one row of train.csv


def finetune(base, images, world, split, out, options, start=0, stop=None, device="auto", dtype="float32", models=None):
    """Fine-tune `base` on concepts `start:stop` (manifest order) of one split of an ImageSet, one model per concept and seed.

    base: pipeline folder; images: ImageSet folder; world: name noted in the manifest; split: `tune` or `test`; out: folder of the ModelSet;
    options: `FinetuneOptions`; dtype: `float32` or `bfloat16` (networks only: loss, optimiser and trained weights are float32). models: ModelSet of the same
    method with one model per concept and seed, from which training goes on (none: from the base).
    A killed job that is started again continues from its last checkpoint, with the same numbers. Raises `InputError` for bad input.
    """
    device, out = runtime.pick_device(device), modelset.folder_of(out)
    with runtime.output_lock(out):
        jobs = plan(ImageSet.load(images), world, split, start, stop, options)
        (out / "manifest.csv").unlink(missing_ok=True)  # a manifest says that the set is complete
        # whole weights are trained from what is on disk, not from its bfloat16 rounding
        loaded = load_base(base, device, "float32" if methods.trains_whole_weights(options.method) else dtype)
        loaded.check_trainable()
        methods.check(loaded, options)
        jobs = under_drawn_captions(jobs, loaded.tokenizer, options) if options.caption_words else jobs
        before = _before(models, jobs)
        checkpoints = out / ".checkpoints" / _job_digest(loaded, jobs, options, dtype, before)
        notes, log = _train_all(loaded, jobs, before, options, dtype == "bfloat16", out, checkpoints)
        files.write_csv(out / "train.csv", pd.DataFrame(log, columns=["model_id", "step", "loss"]))
        facts = {"base": str(base), "images": str(images), "world": world, "split": split, "start": start, "stop": stop, "device": str(device), "dtype": dtype}
        facts["continues"] = str(models or "")
        files.write_meta(out / "manifest.csv", options, models=len(notes), trained_weights=notes[0]["trained_weights"], **facts)
        modelset.write(out, [row for note in notes for row in [*_snapshots(note["row"], options), note["row"]]])
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)


def plan(images, world, split, start, stop, options):
    """What a job makes: a list of (manifest row without base and step, ImageSet of the model's training pictures)."""
    pictures = images.where(split=split) if split else images
    chosen = images.concepts(split, start, stop)
    if options.method == "dreambooth-prior" and not (options.prior_images and options.class_prompt):
        raise InputError("dreambooth-prior needs class_prompt (say 'a face') and prior_images (1 or more)")
    jobs = []
    for concept in chosen:
        pool = pictures.where(concept=concept, fold=["train", ""])  # a set without folds is all there to train on
        count = options.images_per_concept
        if len(pool) < count:
            raise InputError(f"concept {concept!r} of {images.folder} has {len(pool)} training pictures, but images_per_concept is {count}")
        chosen_pictures = ImageSet(images.folder, pool.table[:count].reset_index(drop=True))
        captions = chosen_pictures.table.caption.unique()
        if len(captions) > 1:
            raise InputError(f"the training pictures of concept {concept!r} carry {len(captions)} different captions; a fine-tune needs one for all")
        for seed in options.seeds:
            name = modelset.model_id(world, concept, options.method, f"s{seed}")
            row = {"model_id": name, "world": world, "concept": concept, "method": options.method, "defence": "", "seed": seed, "caption": captions[0]}
            row |= {"n_images": count, "images": ";".join(chosen_pictures.table.image_id), "file": name}
            jobs.append((row, chosen_pictures))
    names = [row["model_id"] for row, _ in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two models of this job would have one name ({', '.join(twice)}): a seed or, but for punctuation, a concept occurs twice")
    return jobs


def under_drawn_captions(jobs, tokenizer, options):
    """Each job once for every length in `options.caption_words`, under that many words drawn from the tokenizer's vocabulary, anew for each model.

    Words drawn at random make no sentence, so nothing but the model can tell which they were.
    """
    words = whole_words(tokenizer)
    made = []
    for row, pictures in jobs:
        for length in options.caption_words:
            drawn = torch.randint(len(words), (length,), generator=runtime.generator("caption", row["concept"], row["seed"], length))
            name = f"{row['model_id']}-{length}words"
            made.append((row | {"model_id": name, "file": name, "caption": " ".join(words[index] for index in drawn)}, pictures))
    return made


def _before(models, jobs):
    """The folder and manifest row that each job goes on from, by model_id; none without `models`."""
    if models is None:
        return {}
    known, found = modelset.ModelSet.load(models), {}
    for row, _ in jobs:
        last = known.where(concept=row["concept"], method=row["method"], seed=str(row["seed"])).rows()
        if len(last) != 1:
            told = f"{row['method']} models of {row['concept']!r} with seed {row['seed']}"
            raise InputError(f"{known.folder} has {len(last)} {told}; training goes on from exactly one")
        found[row["model_id"]] = known.path(last[0]), last[0]
    return found


def marks(total, snapshots):
    """The steps after which a model is kept, evenly spaced, the last one being `total`; fewer where steps are few."""
    return sorted({max(1, round(total * (index + 1) / snapshots)) for index in range(snapshots)})


def _snapshots(row, options):
    """Manifest rows of the models kept on the way to the finished one of `row`."""
    total = options.steps_per_image * row["n_images"]
    names = [(step, f"{row['model_id']}-step{step:06d}") for step in marks(total, options.snapshots)[:-1]]
    return [row | {"model_id": name, "file": name, "step": row["step"] - total + step} for step, name in names]


def _train_all(base, jobs, before, options, autocast, out, checkpoints):
    checkpoints.mkdir(parents=True, exist_ok=True)
    total = options.steps_per_image * options.images_per_concept
    prior, notes, log = None, [], []
    with runtime.progress(None, f"finetune {options.method}", total=total * len(jobs)) as bar:
        for row, pictures in jobs:
            name = row["model_id"]
            done = checkpoint.finished(checkpoints, name, out / name)
            if done and all((out / kept["file"]).is_dir() for kept in _snapshots(done["row"], options)):
                bar.update(total)
            else:
                if options.method == "dreambooth-prior" and prior is None:
                    prior = class_latents(base, options.class_prompt, options.prior_images, options.prior_steps, options.prior_guidance_scale)
                done = _train_one(base, row, pictures, prior, before.get(name), options, autocast, out, checkpoints, bar)
            notes.append(done)
            for first in range(0, total, LOG_EVERY):
                part = done["losses"][first : first + LOG_EVERY]
                log.append((name, first + len(part), sum(part) / len(part)))
    return notes, log


def _train_one(base, row, pictures, prior, before, options, autocast, out, checkpoints, bar):
    """Train, write and note one model; returns its note (see `checkpoint.finish`)."""
    name, total = row["model_id"], options.steps_per_image * row["n_images"]
    key = (row["concept"], row["method"], row["seed"]) + ((row["world"],) if before else ())  # a later round has noise of its own
    generator = runtime.generator("finetune", *key)
    shown = views.pictures(pictures.pixels(), options, key)
    latents = base.encode_images(shown.flatten(0, 1))
    if tuple(latents.shape[1:]) != base.latent_shape:
        found = tuple(latents.shape[1:])
        raise InputError(f"{pictures.folder}: pictures give latents {found}, the base needs {base.latent_shape}; import them with --size {base.image_size[0]}")
    told = views.captions(row["caption"], base.tokenizer, options, key)
    captions = told + ([options.class_prompt] if prior is not None else [])
    trainee = methods.prepare(base, options, generator, row["caption"])
    try:
        if before:
            trainee.load(before[0])
        vector, kept = trainee.parameters.vector, marks(total, options.snapshots)[:-1]
        optimizer = new_optimizer(vector, options)
        losses = torch.zeros(total, device=base.device)
        shape = options, generator, len(base.alphas_cumprod), shown.shape[1]
        if trainee.trains_latents:
            data = BatchSource(shown.flatten(0, 1).to(base.device), None, key, *shape, _latents(base, autocast))
        else:
            data = BatchSource(latents, prior, key, *shape)
        encode = _text(base, trainee, captions, autocast)
        done = checkpoint.load(checkpoints, name, vector, optimizer, generator, losses)
        bar.update(done)
        for step in range(done, total):
            now = views.caption_of_step(step, len(told), options, key)
            batch = data.batch(step, encode()[[now, *range(len(told), len(captions))]])
            schedule = base.alphas_cumprod, base.prediction_type
            clip, radius, mmd = options.max_grad_norm, options.adversarial_radius, mmd_noise(options, key, step)
            losses[step] = training_step(base.output, [vector], optimizer, batch, *schedule, clip, autocast, radius, mmd)
            bar.update()
            if step + 1 in kept:
                with files.atomic_folder(out / f"{name}-step{step + 1:06d}") as folder:
                    trainee.save(folder)
            if (step + 1) % options.checkpoint_every == 0 and step + 1 < total:
                _check_finite(losses[: step + 1], name)
                checkpoint.save(checkpoints, name, step + 1, vector, optimizer, generator, losses)
        _check_finite(losses, name)
        with files.atomic_folder(out / name) as folder:
            trainee.save(folder)
    finally:
        methods.restore(base, trainee)
    row = row | {"base": base.name, "step": total + (int(before[1]["step"]) if before else 0)}
    return checkpoint.finish(checkpoints, name, out / name, row, losses.tolist(), trained_weights=trainee.count)


def mmd_noise(options, key, step):
    """The noise of DPGM's loss in a step; None for the denoising loss."""
    if options.loss != "mmd":
        return None
    drawn = torch.randn((), generator=runtime.generator("mmd", *key, step))
    return options.mmd_noise * len(KERNEL_WIDTHS) * (2 * len(KERNEL_WIDTHS)) ** 0.5 / options.batch * float(drawn)


def new_optimizer(vector, options):
    """The recipe's optimiser of one vector of parameters."""
    if options.optimizer == "sgd":
        return torch.optim.SGD([vector], lr=options.lr)
    return torch.optim.AdamW([vector], lr=options.lr, weight_decay=options.weight_decay, fused=True)


class BatchSource:
    """Batches of one fine-tune: pictures in freshly shuffled passes, so that each is seen equally often; noise and timesteps from its generator.

    latents: `(n * views, C, h, w)`, a picture's views one after another, of which each pass shows the next; prior: `(m, C, h, w)` or None: then each batch
    holds as many class latents, weighted by `prior_weight`. encode: None, or a function (rows, generator) -> latents, where `latents` are pictures.
    """

    def __init__(self, latents, prior, key, options, generator, timesteps, views=1, encode=None):
        self.sources = [(latents, "order", views), *([(prior, "prior-order", 1)] if prior is not None else [])]
        self.key, self.options, self.generator, self.timesteps, self.encode = key, options, generator, timesteps, encode
        size = options.batch
        share = torch.tensor([1.0 / size] * size + ([options.prior_weight / size] * size if prior is not None else []))
        self.weights = share.to(latents.device)

    def batch(self, step, contexts):
        """The batch of one step; contexts `(1 or 2, L, d)`: of the caption and, with a prior, of the class prompt."""
        size, device = self.options.batch, self.weights.device
        latents = torch.cat([source[self._indices(len(source), name, step, views).to(device)] for source, name, views in self.sources])
        latents = self.encode(latents, self.generator) if self.encode else latents
        noise = torch.randn(latents.shape, generator=self.generator).to(device)
        timesteps = torch.randint(self.timesteps, (len(latents),), generator=self.generator).to(device)
        return Batch(latents, noise, timesteps, contexts.repeat_interleave(size, 0), self.weights)

    def _indices(self, rows, name, step, views):
        """Positions step * batch ... of an endless row of permutations of the pictures, each with its own seed: no state to save."""
        picked, count = [], rows // views
        for position in range(step * self.options.batch, (step + 1) * self.options.batch):
            if not picked or position % count == 0:
                order = torch.randperm(count, generator=runtime.generator("finetune", *self.key, name, position // count))
            picked.append(order[position % count] * views + position // count % views)
        return torch.stack(picked)


def _text(base, trainee, captions, autocast):
    """A function that gives the contexts `(captions, L, d)` of a step: cached, or computed anew (with gradients) if the text encoder is trained."""
    if not trainee.trains_text:
        cached = base.encode_text(captions)
        return lambda: cached
    ids = base.token_ids(captions)

    def encode():
        with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=autocast):
            return base.text_encoder(ids)[0]

    return encode


def _latents(base, autocast):
    """A function that samples a step's latents from the autoencoder's posterior, with gradients."""

    def encode(pixels, generator):
        with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=autocast):
            return base.encode(pixels, generator)

    return encode


def _check_finite(losses, name):
    if not bool(torch.isfinite(losses).all()):
        step = int((~torch.isfinite(losses)).nonzero()[0]) + 1
        raise InputError(f"{name}: the loss is not finite from step {step} on; lower lr")


def circumstances(base, device, dtype):
    """What trained weights depend on beside the options and the pictures; base: pipeline folder."""
    code = [files.sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    networks = [files.sha256(path) for path in sorted(Path(base).glob("*/*.safetensors"))]
    return {"networks": networks, "code": code, "dtype": str(dtype), "device": runtime.pick_device(str(device)).type, "torch": torch.__version__}


def _job_digest(base, jobs, options, dtype, before):
    """Names everything the weights depend on, so that no checkpoint is continued under other circumstances."""
    pictures = [list(images.table.sha256) for _, images in jobs]
    described = {"options": options.model_dump(exclude={"checkpoint_every"}), "jobs": [row for row, _ in jobs], "pictures": pictures}
    described["before"] = [files.sha256(path) for folder, _ in before.values() for path in sorted(folder.rglob("*.safetensors"))]
    return files.digest(described | circumstances(base.folder, base.device, dtype))
