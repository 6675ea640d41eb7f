"""The verb `preconditions`: does the embedded world meet the bars that make its studies meaningful? Every figure is measured on unseen pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet, as_tensor, from_tensor
from tuneleak.metrics import bases, intervals, roc
from tuneleak.models import augment, embedders
from tuneleak.models.pipeline import load_base

COLUMNS = ["part", "measure", "value", "ci_low", "ci_high", "n", "bar", "met"]
DOSES = ("1", "4", "16")  # how often a base saw a member photograph


def preconditions(base, resources, data, out, photographs=None, limit=500):
    """Measure the autoencoder, the embedders and each base, and write `out` (CSV; columns `COLUMNS`).

    base: pipeline folders, one or more; the first autoencoder is measured, and captions only where a base has a text encoder. resources: folder with
    `embedders/`. data: folder of the rendered sets private-identities, named-p, named-q, lora-test and distractors. photographs: ImageSet of real
    photographs, if there is one. limit: pictures per measure. Intervals: bootstrap or DeLong over people; for one trial per person Wilson.
    """
    note = Table()
    sets = {name: ImageSet.load(f"{data}/{name}") for name in ("private-identities", "named-p", "named-q", "lora-test", "distractors")}
    load = {name: embedders.load_embedder(f"{resources}/embedders/{name}") for name in ("copy-a", "copy-b", "identity-a", "identity-b", "factors", "clip")}
    with runtime.progress(None, "preconditions", total=2 + len(base)) as bar:
        _embedders(note, sets, load, limit)
        bar.update()
        measured = False
        for folder in base:
            world = load_base(folder, "cpu", "float32")
            if world.vae is not None and not measured:
                _autoencoder(note, world, sets, load["factors"], ImageSet.load(photographs) if photographs else None, limit)
                measured = True
                bar.update()
            _base(note, world, sets, load, data)
            bar.update()
    files.write_csv(out, pd.DataFrame(note.rows, columns=COLUMNS))
    files.write_meta(out, None, base=[str(folder) for folder in base])


class Table:
    """Rows of `preconditions`, each with its interval and whether it meets its bar."""

    def __init__(self):
        self.rows = []

    def add(self, part, measure, value, low, high, n, bar=""):
        """One row; `bar` reads `>=x`, `<=x`, `low..high`, or `holds x` of an interval that must hold x; empty if none is asked."""
        self.rows.append((part, measure, value, low, high, n, bar, str(_meets(value, low, high, bar)) if bar else ""))

    def rate(self, part, measure, values, people, bar=""):
        """The mean of `values (n,)` over pictures, with a bootstrap interval over `people (n,)`."""
        values = np.asarray(values, float)
        found = intervals.bootstrap_statistic(lambda weights: weights @ values / weights.sum(), people, np.arange(len(values)))
        if values.min() >= 0 and values.max() <= 1:  # a share ends where shares end, and is not known exactly because all are alike
            found = intervals.within(found, values)
            found = replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))
        self.add(part, measure, found.value, found.low, found.high, len(values), bar)

    def auc(self, part, measure, members, others, people, bar=""):
        """AUC of scores that are higher for members, with its interval by DeLong's method clustered over people."""
        found = roc.delong(np.repeat([True, False], [len(members), len(others)]), np.concatenate([members, others]), np.concatenate(people))
        self.add(part, measure, found.value, found.low, found.high, len(members) + len(others), bar)


def _meets(value, low, high, bar):
    if bar.startswith("holds "):
        return low <= float(bar.removeprefix("holds ")) <= high
    least, _, most = bar.partition("..")
    if most:
        return float(least) <= value <= float(most)
    return value >= float(bar[2:]) if bar.startswith(">=") else value <= float(bar[2:])


def sample(images, limit, seed=0):
    """At most `limit` pictures of an ImageSet, drawn without replacement, in the set's order."""
    chosen = np.random.default_rng(seed).permutation(len(images))[:limit]
    return ImageSet(images.folder, images.table.iloc[np.sort(chosen)].reset_index(drop=True))


@torch.inference_mode()
def _reconstruct(world, pixels):
    return np.concatenate([from_tensor(world.decode(world.encode_images(as_tensor(part)))) for part in np.array_split(pixels, max(1, len(pixels) // 64))])


def psnr(first, second):
    """Peak signal-to-noise ratio in dB of each pair of uint8 pictures `(n, h, w, 3)`: `(n,)`."""
    error = ((first.astype(float) - second.astype(float)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-9))


def last_signal(latents, alphas_cumprod):
    """Signal-to-noise ratio, at the last timestep of `alphas_cumprod (T,)`, of the principal component of `latents (n, c, h, w)` that noise hides least.

    One value per picture, `(n,)`; their mean is the ratio. Sampling starts from noise alone. Where the ratio is not small, training never shows a
    UNet what it starts from, and it learns to read the background and other large things from the last latent instead of the caption (Lin et
    al., arXiv 2305.08891, for mean brightness).
    """
    flat = latents.flatten(1).double()
    flat = flat - flat.mean(0)
    component = torch.linalg.svd(flat, full_matrices=False).Vh[0]
    return ((flat @ component).square() * alphas_cumprod[-1] / (1 - alphas_cumprod[-1])).cpu().numpy()


def _autoencoder(note, world, sets, reader, photographs, limit):
    unseen = sample(sets["private-identities"], limit)
    people = unseen.table.concept.to_numpy()
    pixels = unseen.pixels()
    shown = last_signal(world.encode_images(as_tensor(pixels)), world.alphas_cumprod)
    note.rate("autoencoder", "signal-to-noise ratio of the largest component at the last timestep", shown, people, "<=0.1")
    reconstructed = _reconstruct(world, pixels)
    note.rate("autoencoder", "PSNR on unseen avatars (dB)", psnr(pixels, reconstructed), people, ">=27")
    if photographs is not None:
        real = photographs.pixels()
        note.rate("autoencoder", "PSNR on photographs (dB)", psnr(real, _reconstruct(world, real)), photographs.table.concept.to_numpy(), ">=20")
    original, after = reader.read(pixels), reader.read(reconstructed)
    for factor in ("eyes", "mouth", "eyebrows"):
        truth = unseen.table[f"factor_{factor}"].to_numpy()
        before, now = original[factor] == truth, after[factor] == truth
        found = intervals.bootstrap_statistic(lambda weights, a=now, b=before: (weights @ a) / (weights @ b), people, np.arange(len(people)), 500)
        measure = f"{factor}: accuracy on reconstructions over that on originals"
        note.add("autoencoder", measure, found.value, found.low, found.high, len(truth), ">=0.95")
    scores, people = [], []
    for name in ("named-p", "named-q"):
        chosen = sample(sets[name], limit)
        pixels = chosen.pixels()
        scores.append(psnr(pixels, _reconstruct(world, pixels)))
        people.append(chosen.table.concept.to_numpy())
    note.auc("autoencoder", "membership AUC of reconstruction error, P against Q", *scores, people, "holds 0.5")


def _embedders(note, sets, load, limit):
    faces = sample(sets["private-identities"], limit)
    pixels, people = faces.pixels(), faces.table.concept.to_numpy()
    copies = from_tensor(augment.view(as_tensor(pixels), runtime.generator("preconditions-copies"), 0.8))
    pairs = [
        (a, b)
        for _, rows in faces.table.groupby(["concept", "factor_background"]).indices.items()
        for a in rows
        for b in rows
        if a < b  # the same person before the same background, with another expression
    ]
    first, second = np.array(pairs).T
    for name in ("copy-a", "copy-b"):
        original, copy = load[name].embed(pixels), load[name].embed(copies)
        same, other = (original * copy).sum(-1), (original[first] * original[second]).sum(-1)
        measure = "AUC of copies against the same person and background with another expression"
        note.auc(name, measure, same, other, [people, people[first]], ">=0.95")
    _independence(note, sets, load, limit)
    gallery, probe = sets["lora-test"], sets["distractors"]
    table = gallery.table.groupby("concept", sort=True)
    enrolled, queries = (ImageSet(gallery.folder, table.nth(k).reset_index(drop=True)) for k in (0, 1))
    for name in ("identity-a", "identity-b"):
        others = load[name].embed(probe.pixels())
        known, asked = load[name].embed(enrolled.pixels()), load[name].embed(queries.pixels())
        scores = asked @ np.concatenate([known, others]).T
        truth = np.array([list(enrolled.table.concept).index(concept) for concept in queries.table.concept])
        genuine = scores[np.arange(len(truth)), truth]
        impostor = np.delete(scores.reshape(-1), np.arange(len(truth)) * scores.shape[1] + truth)
        for measure, hits in (
            (f"rank-1 in a gallery of {scores.shape[1]}", scores.argmax(1) == truth),
            ("TAR@FAR=1e-2", genuine >= np.quantile(impostor, 0.99)),
        ):
            note.add(name, measure, float(hits.mean()), *intervals.wilson(int(hits.sum()), len(hits)), len(hits), ">=0.8")
    for factor, values in load["factors"].read(pixels).items():
        note.rate("factors", f"accuracy of {factor} on originals", values == faces.table[f"factor_{factor}"].to_numpy(), people)
    _clip(note, load["clip"], faces)


def _independence(note, sets, load, limit):
    """No embedder has seen fold P or Q: how far a picture's features lie from the person's mean over both folds must not tell P from Q."""
    folds = [sample(sets[name], limit) for name in ("named-p", "named-q")]
    people = [images.table.concept.to_numpy() for images in folds]
    for name in ("copy-a", "copy-b", "identity-a", "identity-b", "clip"):
        features = [load[name].embed(images.pixels()) for images in folds]
        centres = pd.DataFrame(np.concatenate(features)).groupby(np.concatenate(people)).mean()
        scores = [(values * centres.loc[concepts].to_numpy()).sum(1) for values, concepts in zip(features, people, strict=True)]
        note.auc(name, "membership AUC of likeness to the person's mean, P against Q", *scores, people, "holds 0.5")


def _clip(note, clip, faces):
    from transformers import CLIPTokenizer

    from tuneleak.data import captions

    words = CLIPTokenizer.from_pretrained(Path(clip.folder) / "tokenizer", local_files_only=True)
    pixels, people = clip.embed(faces.pixels()), faces.table.concept.to_numpy()
    for factor, texts in captions.alternatives().items():
        features = clip.embed_text([f"a face with {text}" for text in texts.values()], words)
        guess = np.array(list(texts))[(pixels @ features.T).argmax(1)]
        note.rate("clip", f"zero-shot accuracy of {factor}", guess == faces.table[f"factor_{factor}"].to_numpy(), people, ">=0.9")


@torch.inference_mode()
def _base(note, world, sets, load, data, captions=200):
    members, others = bases.named_photographs(world.folder, data)
    hits, people, drawn = bases.name_hits(world, load["identity-b"], others)
    note.rate(world.name, f'rank-1 of {len(np.unique(people))} of "the face of <name>"', hits, people, ">=0.8")
    if world.text_encoder is not None:  # one told by classes knows names only
        faces = sample(sets["private-identities"], captions)
        obeyed, _ = bases.caption_hits(world, faces, load["factors"])
        for factor, values in obeyed.items():
            note.rate(world.name, f"caption accuracy of {factor}", values, faces.table.concept.to_numpy(), ">=0.9")
    membership(note, world, members, others)
    copied = bases.extracted(load["copy-b"], members, others, drawn, people)
    note.rate(world.name, "members extracted at 1 % false match", copied, members.concepts, "<=0.05")


def membership(note, world, members, others, draws=1):
    """Rows of the loss AUC of a base's members against the held-out photographs of the same people: overall, and by dose."""
    inside, outside = bases.negative_losses(world, members, "members", draws), bases.negative_losses(world, others, "others", draws)
    note.auc(world.name, "loss AUC of members", inside, outside, [members.concepts, others.concepts], "0.60..0.80")
    for dose in DOSES:
        chosen = members.table.dose.astype(str).to_numpy() == dose
        note.auc(world.name, f"loss AUC of members at dose {dose}", inside[chosen], outside, [members.concepts[chosen], others.concepts])
