"""What an embedded base knows: does it draw named people, obey captions, remember its members? Measured per base and along its training."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from tuneleak import runtime
from tuneleak.data import captions
from tuneleak.data.imageset import ImageSet, as_tensor, from_tensor
from tuneleak.errors import InputError

TIMESTEPS = (50, 150, 300)  # of the loss behind the membership AUC, spread over where members differ most


def generate(base, texts, guidance_scale=3.0, steps=20, key="preconditions"):
    """Pictures uint8 `(n, h, w, 3)` of a base under captions, by DDIM with classifier-free guidance; starting noise keyed by `key` and index."""
    context, empty = base.encode_text(texts), base.encode_text([""])
    noise = torch.stack([torch.randn(base.latent_shape, generator=runtime.generator(key, i)) for i in range(len(texts))])

    def noise_pred(x, t):
        both = base.noise_pred(torch.cat([x, x]), t, torch.cat([empty.expand_as(context), context]))
        null, conditional = both.chunk(2)
        return null + guidance_scale * (conditional - null)

    return from_tensor(base.decode(base.sample(noise_pred, noise, steps)))


def named_photographs(base, data):
    """`(members, others)`: the named photographs a base folder lists in `members.csv`, and those of the same people that it does not.

    data: folder of the rendered sets. Raises `InputError` for a base without the list.
    """
    listed = Path(base) / "members.csv"
    if not listed.is_file():
        raise InputError(f"{listed} is missing; it says which named photographs the base trained on (`tuneleak assemble` copies it from the UNet)")
    known = set(pd.read_csv(listed, keep_default_na=False).image_id)
    folds = [ImageSet.load(f"{data}/{name}") for name in ("named-p", "named-q")]
    inside = [images.table.image_id.isin(known).to_numpy() for images in folds]
    return [Photographs.join(folds, chosen) for chosen in (inside, [~rows for rows in inside])]


class Photographs:
    """Pictures of several ImageSets side by side: `table` (one row each) and `pixels` uint8 `(n, h, w, 3)`."""

    def __init__(self, table, pixels):
        self.table, self.pixels = table, pixels

    @staticmethod
    def join(sets, chosen):
        """The rows of each set that its bool array in `chosen` marks."""
        table = pd.concat([images.table[rows] for images, rows in zip(sets, chosen, strict=True)], ignore_index=True).fillna("")
        return Photographs(table, np.concatenate([images.pixels()[rows] for images, rows in zip(sets, chosen, strict=True)]))

    @property
    def concepts(self):
        return self.table.concept.to_numpy()


def name_hits(base, embedder, reference, per_person=4):
    """Does "the face of <name>" draw that person? `(hits bool (n,), person (n,), pictures)`; nearest of the people in `reference` by mean embedding."""
    features = pd.DataFrame(embedder.embed(reference.pixels)).groupby(reference.concepts).mean()
    centres = features.to_numpy() / np.linalg.norm(features.to_numpy(), axis=1, keepdims=True)
    people = np.repeat(features.index.to_numpy(), per_person)
    caption = reference.table.groupby("concept").caption.first()
    drawn = generate(base, list(caption[people]))
    return features.index.to_numpy()[(embedder.embed(drawn) @ centres.T).argmax(1)] == people, people, drawn


def caption_hits(base, faces, reader):
    """Are captions obeyed? `{factor: bool (n,)}` for pictures drawn from captions that name every attribute of the `faces` (an ImageSet), by a reader."""
    table = faces.table
    rows = [{key.removeprefix("factor_"): value for key, value in row.items() if key.startswith("factor_")} for row in table.to_dict("records")]
    drawn = generate(base, [captions.full(row) for row in rows], key="captions")
    return {factor: values == np.array([row[factor] for row in rows]) for factor, values in reader.read(drawn).items()}, drawn


@torch.inference_mode()
def negative_losses(base, photographs, key, draws=2):
    """Minus the mean denoising error of each photograph under its caption, over `TIMESTEPS` and noise draws: `(n,)`, higher for members."""
    latents = torch.cat([base.encode_images(as_tensor(part)) for part in np.array_split(photographs.pixels, max(1, len(photographs.pixels) // 64))])
    texts = list(dict.fromkeys(photographs.table.caption))
    contexts = base.encode_text(texts)
    row = torch.tensor([texts.index(caption) for caption in photographs.table.caption])
    total = torch.zeros(len(latents))
    for t in TIMESTEPS:
        abar = float(base.alphas_cumprod[t])
        for draw in range(draws):
            noise = torch.stack([torch.randn(base.latent_shape, generator=runtime.generator("loss", key, t, draw, i)) for i in range(len(latents))])
            for start in range(0, len(latents), 128):
                part = slice(start, start + 128)
                x = abar**0.5 * latents[part] + (1 - abar) ** 0.5 * noise[part]
                total[part] += F.mse_loss(base.noise_pred(x, t, contexts[row[part]]), noise[part], reduction="none").mean((1, 2, 3))
    return -total.numpy() / (len(TIMESTEPS) * draws)


def extracted(copier, members, others, drawn, people, false_match_rate=0.01):
    """Which members have a generated picture that passes for a copy: bool `(n,)`.

    For each member the best similarity to the pictures drawn of that person; the threshold is that which the same number of held-out
    photographs of the person would pass at `false_match_rate`.
    """
    inside, outside, generated = copier.embed(members.pixels), copier.embed(others.pixels), copier.embed(drawn)
    best, best_other = np.zeros(len(inside)), np.zeros(len(inside))
    rng = np.random.default_rng(0)
    for person in np.unique(members.concepts):
        rows, theirs = np.flatnonzero(members.concepts == person), np.flatnonzero(others.concepts == person)
        own = generated[people == person]
        best[rows] = (inside[rows] @ own.T).max(1)
        best_other[rows] = (inside[rows] @ outside[rng.choice(theirs, len(own), replace=False)].T).max(1)
    return best >= np.quantile(best_other, 1 - false_match_rate)
