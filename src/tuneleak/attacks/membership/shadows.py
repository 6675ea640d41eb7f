"""The verb `attack shadows`: denoising losses of every picture of a pool under every LoRA trained on a coin-flip half of it (for LiRA and RMIA).

`shadows.csv`, one row per model, defence and picture: `model_id, world, base, concept, method, defence, seed, setting, role` (`pool`: a coin decided whether
this model was trained on it; `population`: a held-out picture no model was trained on), `image_id, inside` (1 if this model was), `loss` (mean over timesteps
and noises), `model_calls`. A defence that changes finished weights is applied to every LoRA, target or shadow, with noise of its own: the attacker knows it.

All LoRAs of a concept are asked in one batched forward call of the frozen UNet.
"""

from pathlib import Path

import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.attacks.membership.query import Pictures, mean_square
from tuneleak.data.imageset import ImageSet
from tuneleak.defences import transforms
from tuneleak.errors import InputError
from tuneleak.models import batched_lora, weightset
from tuneleak.models.modelset import image_ids
from tuneleak.models.pipeline import load_base

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "seed"]


def attack(models, images, base, out, options, device="auto", dtype="float32"):
    """Write shadows.csv (see above) for a set of `collect-weights` with `coin`; images: ImageSet with folds train and heldout; options: `ShadowOptions`."""
    device = runtime.pick_device(device)
    loaded, pictures = load_base(base, device, dtype), ImageSet.load(images)
    whole = weightset.load([models], loaded)
    tables = []
    for change, name in zip(options.transforms, options.names, strict=True):
        changed = transforms.apply_to_set(whole, change)
        for concept in runtime.progress(list(dict.fromkeys(whole.table.concept)), f"shadows, {name}"):
            mine = changed.take([number for number, row in enumerate(changed.table.concept) if row == concept])
            tables.append(_concept(loaded, mine, pictures, options).assign(defence=name))
    table = pd.concat(tables, ignore_index=True)
    files.write_csv(out, table)
    files.write_meta(Path(out), options, models=str(models), images=str(images), model_calls=int(table.model_calls.sum()), device=str(device), dtype=dtype)


def _concept(base, models, pictures, options):
    rows = models.table.to_dict("records")
    mine = pictures.where(concept=rows[0]["concept"])
    pool, rest = mine.where(fold="train"), mine.where(fold="heldout")
    if not len(pool) or not len(rest):
        raise InputError(f"{pictures.folder} lacks pictures of {rows[0]['concept']!r} in fold train or heldout; shadows need a pool and a population")
    asked = ImageSet(mine.folder, pd.concat([pool.table, rest.table[: options.population]], ignore_index=True))
    found = Pictures(asked.table, asked.pixels(), base.encode_images, options.seed)
    inside = torch.tensor([[name in set(image_ids(row)) for name in asked.table.image_id] for row in rows])
    losses = losses_under(base, models, found, options)
    calls = len(options.timesteps) * options.draws
    told = {"setting": f"t={'/'.join(map(str, options.timesteps))},draws={options.draws},models={len(rows)}", "model_calls": calls}
    role = ["pool"] * len(pool) + ["population"] * (len(asked) - len(pool))
    parts = []
    for number, row in enumerate(rows):
        columns = {name: row[name] for name in MODEL_COLUMNS} | told | {"role": role, "image_id": asked.table.image_id}
        parts.append(pd.DataFrame(columns | {"inside": inside[number].int(), "loss": losses[number]}))
    return pd.concat(parts, ignore_index=True)


@torch.inference_mode()
def losses_under(base, models, pictures, options):
    """Mean denoising loss `(models, pictures)` float64, under each model's own caption; models: `WeightSet`; pictures: `query.Pictures`."""
    count, total = len(models), torch.zeros(len(models), len(pictures), dtype=torch.float64)
    contexts = base.encode_text(list(models.table.caption))
    at_once = max(1, options.batch // count)
    with batched_lora.BatchedLora(base.unet, models.layers) as lora:
        lora.use({name: tuple(side.to(base.device) for side in pair) for name, pair in models.pairs.items()})
        for timestep in options.timesteps:
            abar = float(base.alphas_cumprod[timestep])
            for draw in range(options.draws):
                noise = pictures.noise(timestep, draw)
                x_t = abar**0.5 * pictures.latents + (1 - abar) ** 0.5 * noise
                for part in torch.arange(len(pictures)).split(at_once):
                    here = part.to(x_t.device)
                    x, target = (tensor[here].repeat(count, 1, 1, 1) for tensor in (x_t, noise))
                    errors = mean_square(base.predict_noise(base.unet, x, timestep, contexts.repeat_interleave(len(part), 0)) - target)
                    total[:, part] += errors.view(count, -1).cpu()
    return (total / (len(options.timesteps) * options.draws)).numpy()
