"""The verb `collect-weights`: LoRAs of many concepts trained side by side on one frozen base, as a data set of weights.

Every model has its own A_0, order of pictures, timesteps, noise, clip and optimiser state, drawn from the same generators as in the verb
`finetune`, so it ends with the weights that verb would give it (up to the rounding of a batched product). What is shared is one forward
and backward call of the frozen UNet for K models at a time.

Writes `<out>/weights.safetensors` (for each adapted layer `<layer>.lora_A (N, r, in)` and `<layer>.lora_B (N, out, r)`, one row per
snapshot, the alpha in the header) and, last, `manifest.csv`: the columns of `tuneleak.models.modelset` and `run` (the model a snapshot is of;
`step` is when it was taken), `index` (row of the tensors), `lr`, `rank` and `alpha`.
"""

import shutil
import warnings
from pathlib import Path

import torch

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import loop, objective, views
from tuneleak.finetune.objective import Batch, losses_of_models
from tuneleak.models import batched_lora, modelset
from tuneleak.models.pipeline import load_base
from tuneleak.models.weightset import STACK_FILE

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def collect(base, images, world, out, options, split="", start=0, stop=None, device="auto", dtype="float32"):
    """Train the LoRAs of concepts `start:stop` (manifest order) of an ImageSet, `options.models_at_once` at a time.

    base: pipeline folder; images: ImageSet folder; world: name noted in the manifest; split: `tune`, `test` or empty (all); options:
    `CollectOptions`. A killed job that is started again keeps the groups of models that it had finished. Raises `InputError` for bad input.
    """
    device, out = runtime.pick_device(device), modelset.folder_of(out)
    with runtime.output_lock(out):
        jobs = plan(ImageSet.load(images), world, split, start, stop, options)
        (out / "manifest.csv").unlink(missing_ok=True)  # a manifest says that the set is complete
        loaded = load_base(base, device, dtype)
        loaded.check_trainable()
        loaded.check_words()
        partial = out / f".partial-{_digest(loaded, jobs, options, dtype)}"
        partial.mkdir(parents=True, exist_ok=True)
        groups, rows, parts = _groups(jobs, options.models_at_once), [], []
        total = sum(group[0][2] for group in groups)
        with runtime.progress(None, "collect weights", total=total) as bar:
            for number, group in enumerate(groups):
                path = partial / f"{number:05d}.safetensors"
                if path.is_file():
                    bar.update(group[0][2])
                else:
                    _save(path, train_group(loaded, group, options, bar))
                parts.append(path)
                for step in snapshot_steps(group[0][2], options):
                    rows += [_row(row, step, loaded.name, options.recipe, len(rows) + i) for i, (row, _, _) in enumerate(group)]
        _join(parts, out / STACK_FILE, options.recipe)
        facts = {"base": str(base), "images": str(images), "world": world, "split": split, "start": start, "stop": stop, "device": str(device), "dtype": dtype}
        files.write_meta(out / "manifest.csv", options, models=len(jobs), snapshots=len(rows), **facts)
        modelset.write(out, rows)
        shutil.rmtree(partial)


def plan(images, world, split, start, stop, options):
    """What a job makes: a list of (manifest row, ImageSet of the training pictures, optimiser steps).

    The number of pictures goes round `options.image_counts` (none: the recipe's) from concept to concept, after `options.skip_images`; with `options.coin` each
    picture of the pool takes part by a fair coin of its own instead.
    """
    recipe = options.recipe
    if recipe.method != "lora":
        raise InputError(f"collect-weights trains LoRAs of the UNet; the recipe's method is {recipe.method!r}, not 'lora'")
    if recipe.alone:
        raise InputError(f"collect-weights trains models side by side under their own captions; leave out {recipe.alone}, or use `tuneleak finetune`")
    pictures = images.where(split=split) if split else images
    chosen = images.concepts(split, start, stop)
    counts = options.image_counts or [recipe.images_per_concept]
    jobs = []
    for number, concept in enumerate(chosen, start=start):
        pool = pictures.where(concept=concept, fold=["train", ""])
        for position, seed in enumerate(recipe.seeds):
            if options.coin:
                mine = by_coin(pool, concept, seed)
                count, last = len(mine), 0
            else:
                count = counts[(number * len(recipe.seeds) + position) % len(counts)]
                last = options.skip_images + count
            if len(pool) < last:
                raise InputError(f"concept {concept!r} of {images.folder} has {len(pool)} training pictures, but {last} are asked for")
            if not options.coin:
                mine = ImageSet(images.folder, pool.table[options.skip_images : last].reset_index(drop=True))
            name = modelset.model_id(world, concept, recipe.method, f"s{seed}", *([f"n{count}"] if len(counts) > 1 else []))
            row = {
                "model_id": name,
                "world": world,
                "concept": concept,
                "method": recipe.method,
                "seed": seed,
                "caption": _caption(mine, concept, seed, options),
            }
            row |= {"n_images": count, "images": ";".join(mine.table.image_id)}
            jobs.append((row, mine, recipe.steps_per_image * (count if options.steps == "per-image" else recipe.images_per_concept)))
    return jobs


def by_coin(pool, concept, seed):
    """The pictures of `pool` (an ImageSet) that a fair coin each lets in; tossed again if it lets none in."""
    for attempt in range(64):
        keys = [("coin", concept, seed, name, attempt) for name in pool.table.image_id]
        inside = [bool(torch.rand((), generator=runtime.generator(*key)) < 0.5) for key in keys]
        if any(inside):
            return ImageSet(pool.folder, pool.table[inside].reset_index(drop=True))
    raise InputError(f"{pool.folder}: there is no picture of {concept!r} to toss a coin for")


def train_group(base, group, options, bar=None):
    """Train the models of one group -> {`<layer>.lora_A` or `.lora_B`: (snapshots * K, ...)} on the CPU, in the precision of training.

    group: list of (row, ImageSet, steps), equal steps; snapshots are in the order of `snapshot_steps`, models in that of the group.
    """
    recipe, steps = options.recipe, group[0][2]
    layers = batched_lora.linear_modules(base.unet, recipe.target_modules)
    exact = torch.promote_types(base.unet.dtype, torch.float32)
    keys = [(row["concept"], row["method"], row["seed"]) for row, _, _ in group]
    generators = [runtime.generator("finetune", *key) for key in keys]
    flat, pairs = initial_weights(layers, recipe.rank, generators, exact, base.device)
    contexts = base.encode_text([row["caption"] for row, _, _ in group]).to(exact)
    sources = [_source(base, pictures, key, recipe, generator) for (_, pictures, _), key, generator in zip(group, keys, generators, strict=True)]
    optimizer = loop.new_optimizer(flat, recipe)
    kept, wanted = [], set(snapshot_steps(steps, options))
    with batched_lora.BatchedLora(base.unet, layers) as lora, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="grad and param do not obey")  # views of one vector: the clip and the optimiser gain more
        lora.use(pairs, recipe.alpha / recipe.rank)
        if 0 in wanted:
            kept.append(flat.detach().cpu().clone())
        for number in range(steps):
            batch = stack([source.batch(number, contexts[i : i + 1]) for i, source in enumerate(sources)], exact)
            mmd = [loop.mmd_noise(recipe, key, number) for key in keys] if recipe.loss == "mmd" else None
            step(base.output, flat, optimizer, batch, len(group), base.alphas_cumprod, base.prediction_type, recipe.max_grad_norm, mmd)
            if number + 1 in wanted:
                kept.append(flat.detach().cpu().clone())
            if bar is not None:
                bar.update()
    if not all(bool(torch.isfinite(snapshot).all()) for snapshot in kept):
        raise InputError(f"the weights of {group[0][0]['model_id']} or a model beside it are not finite after {steps} steps; lower lr")
    return _unflatten(torch.cat(kept), layers, recipe.rank)


def initial_weights(layers, rank, generators, dtype, device):
    """A parameter `(K, P)`, and pairs[layer] = views (A `(K, r, in)`, B `(K, out, r)`) of it: A as `methods.add_lora` draws it, B zero.

    One vector per model makes the optimiser step and the clip one call each (see `methods.FlatParameters`).
    """
    drawn = [torch.cat([(torch.randn(rank, inputs, generator=generator) / rank).flatten() for inputs, _ in layers.values()]) for generator in generators]
    size = sum(rank * (inputs + outputs) for inputs, outputs in layers.values())
    flat = torch.zeros(len(generators), size, dtype=dtype)
    start, taken = 0, 0
    for inputs, outputs in layers.values():
        flat[:, start : start + rank * inputs] = torch.stack([vector[taken : taken + rank * inputs] for vector in drawn])
        start, taken = start + rank * (inputs + outputs), taken + rank * inputs
    flat = torch.nn.Parameter(flat.to(device))
    flat.grad = torch.zeros_like(flat)
    pairs, start = {}, 0
    for name, (inputs, outputs) in layers.items():
        middle, stop = start + rank * inputs, start + rank * (inputs + outputs)
        pairs[name] = _leaf(flat, start, middle, (rank, inputs)), _leaf(flat, middle, stop, (outputs, rank))
        start = stop
    return flat, pairs


def _leaf(flat, start, stop, shape):
    """A parameter that is a view of columns `start:stop` of `flat`, and whose gradient is a view of that of `flat`."""
    leaf = torch.nn.Parameter(flat.data[:, start:stop].view(-1, *shape))
    leaf.grad = flat.grad[:, start:stop].view(-1, *shape)
    return leaf


def step(model, flat, optimizer, batch, models, alphas_cumprod, prediction_type, max_grad_norm, mmd=None):
    """One optimiser step of all models at once; model, batch and mmd: see `losses_of_models`."""
    losses_of_models(model, batch, models, alphas_cumprod, prediction_type, mmd).sum().backward()  # a sum: none of them sees another one's loss
    clip_each(flat.grad, max_grad_norm)
    optimizer.step()
    flat.grad.zero_()


def clip_each(gradient, max_norm):
    """Scale each row of `gradient (K, P)` in place to a norm of at most `max_norm`, as torch's clip_grad_norm_ does for one model."""
    gradient.mul_((max_norm / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0))


def snapshot_steps(steps, options):
    """The optimiser steps after which weights are kept: every `snapshot_every`, the last, and 0 if the initial weights are wanted."""
    every = options.snapshot_every or steps
    return sorted({*range(every, steps, every), steps} | ({0} if options.initial else set()))


def _source(base, pictures, key, recipe, generator):
    shown = views.pictures(pictures.pixels(), recipe, key)
    latents = base.encode_images(shown.flatten(0, 1))
    if tuple(latents.shape[1:]) != base.latent_shape:
        found = tuple(latents.shape[1:])
        raise InputError(f"{pictures.folder}: pictures give latents {found}, the base needs {base.latent_shape}; import them with --size {base.image_size[0]}")
    return loop.BatchSource(latents, None, key, recipe, generator, len(base.alphas_cumprod), shown.shape[1])


def stack(batches, dtype):
    """The batches of K models as one, model after model."""
    latents, noise, context = (torch.cat([getattr(batch, name) for batch in batches]).to(dtype) for name in ("latents", "noise", "context"))
    return Batch(latents, noise, torch.cat([batch.timesteps for batch in batches]), context, torch.cat([batch.weights for batch in batches]))


def _unflatten(flat, layers, rank):
    tensors, start = {}, 0
    for name, (inputs, outputs) in layers.items():
        middle, stop = start + rank * inputs, start + rank * (inputs + outputs)
        tensors[f"{name}.lora_A"] = flat[:, start:middle].view(-1, rank, inputs)
        tensors[f"{name}.lora_B"] = flat[:, middle:stop].view(-1, outputs, rank)
        start = stop
    return tensors


def _caption(pictures, concept, seed, options):
    if options.trigger:
        generator = runtime.generator("trigger", concept, seed)
        letters = torch.randint(len(LETTERS), (int(torch.randint(4, 12, (1,), generator=generator)),), generator=generator)
        return options.trigger.format(word="".join(LETTERS[i] for i in letters))
    captions = pictures.table.caption.unique()
    if len(captions) > 1:
        raise InputError(f"the training pictures of concept {concept!r} carry {len(captions)} different captions; a fine-tune needs one for all")
    return captions[0]


def _groups(jobs, size):
    """Jobs of equal length in groups of at most `size`."""
    by_steps = {}
    for job in jobs:
        by_steps.setdefault(job[2], []).append(job)
    return [alike[first : first + size] for alike in by_steps.values() for first in range(0, len(alike), size)]


def _row(row, step, base, recipe, index):
    facts = {"base": base, "step": step, "file": STACK_FILE, "index": index, "lr": recipe.lr, "rank": recipe.rank, "alpha": recipe.alpha}
    return row | {"model_id": f"{row['model_id']}-r{step}", "run": row["model_id"]} | facts


def _save(path, tensors):
    from safetensors.torch import save_file

    with files.atomic(path) as temporary:
        save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, temporary)


def _join(parts, path, recipe):
    from safetensors.torch import load_file, save_file

    loaded = [load_file(part) for part in parts]
    joined = {name: torch.cat([tensors[name] for tensors in loaded]) for name in loaded[0]}
    with files.atomic(path) as temporary:
        save_file(joined, temporary, metadata={"rank": str(recipe.rank), "alpha": str(recipe.alpha)})


def _digest(base, jobs, options, dtype):
    """Names everything the weights depend on, so that no half-finished shard is continued under other circumstances."""
    networks = [files.sha256(path) for path in base.network_files()]
    code = [files.sha256(Path(module)) for module in (batched_lora.__file__, loop.__file__, objective.__file__, views.__file__, __file__)]
    described = {
        "options": options.model_dump(mode="json"),
        "jobs": [row for row, _, _ in jobs],
        "pictures": [list(images.table.sha256) for _, images, _ in jobs],
    }
    return files.digest(described | {"networks": networks, "code": code, "dtype": dtype, "device": base.device.type, "torch": torch.__version__})
