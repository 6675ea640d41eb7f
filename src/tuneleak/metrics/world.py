"""The verb `preconditions`: does the embedded world meet the bars that make its studies meaningful? Every figure is measured on unseen pictures."""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet, as_tensor, from_tensor
from tuneleak.metrics import intervals, roc
from tuneleak.models import augment, embedders
from tuneleak.models.pipeline import load_base

COLUMNS = ["part", "measure", "value", "ci_low", "ci_high", "n", "bar", "met"]


def preconditions(base, resources, data, out, photographs=None, limit=1000):
    """Measure the autoencoder, the embedders and one base, and write `out` (CSV; columns `COLUMNS`).

    base: pipeline folder. resources: folder with `embedders/`. data: folder of the rendered sets private-identities, named-p, named-q,
    lora-test and distractors. photographs: ImageSet of real photographs, if there is one. limit: pictures per measure.
    """
    table = []
    sets = {name: ImageSet.load(f"{data}/{name}") for name in ("private-identities", "named-p", "named-q", "lora-test", "distractors")}
    load = {name: embedders.load_embedder(f"{resources}/embedders/{name}") for name in ("copy-a", "copy-b", "identity-a", "identity-b", "factors", "clip")}
    world = load_base(base, "cpu", torch.float32)

    def note(part, measure, value, n, bar="", low=None, high=None):
        passed = "" if not bar else str(_meets(value, bar))
        table.append((part, measure, value, value if low is None else low, value if high is None else high, n, bar, passed))

    _autoencoder(note, world, sets, load["factors"], ImageSet.load(photographs) if photographs else None, limit)
    _embedders(note, sets, load, limit)
    _base(note, world, sets, load)
    files.write_csv(out, pd.DataFrame(table, columns=COLUMNS))
    files.write_meta(out, None, base=str(base))


def _meets(value, bar):
    low, _, high = bar.partition("..")
    if high:
        return float(low) <= value <= float(high)
    return value >= float(bar[2:]) if bar.startswith(">=") else value <= float(bar[2:])


def _sample(images, limit, seed=0):
    chosen = np.random.default_rng(seed).permutation(len(images))[:limit]
    return ImageSet(images.folder, images.table.iloc[np.sort(chosen)].reset_index(drop=True))


@torch.inference_mode()
def _reconstruct(world, pixels):
    return np.concatenate([from_tensor(world.decode(world.encode_images(as_tensor(part)))) for part in np.array_split(pixels, max(1, len(pixels) // 64))])


def _psnr(first, second):
    error = ((first.astype(float) - second.astype(float)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-9))


def _autoencoder(note, world, sets, reader, photographs, limit):
    unseen = _sample(sets["private-identities"], limit)
    pixels = unseen.pixels()
    reconstructed = _reconstruct(world, pixels)
    note("autoencoder", "PSNR on unseen avatars (dB)", float(_psnr(pixels, reconstructed).mean()), len(pixels), ">=27")
    if photographs is not None:
        real = photographs.pixels()
        note("autoencoder", "PSNR on photographs (dB)", float(_psnr(real, _reconstruct(world, real)).mean()), len(real), ">=20")
    original, after = reader.read(pixels), reader.read(reconstructed)
    for factor in ("eyes", "mouth", "eyebrows"):
        truth = unseen.table[f"factor_{factor}"].to_numpy()
        ratio = (after[factor] == truth).mean() / (original[factor] == truth).mean()
        note("autoencoder", f"{factor}: accuracy on reconstructions over that on originals", float(ratio), len(truth), ">=0.95")
    scores, people = [], []
    for name in ("named-p", "named-q"):
        chosen = _sample(sets[name], limit)
        pixels = chosen.pixels()
        scores.append(_psnr(pixels, _reconstruct(world, pixels)))
        people.append(chosen.table.concept.to_numpy())
    _membership(note, "autoencoder", "membership AUC of reconstruction error, P against Q", *scores, people, "0.45..0.55")


def _membership(note, part, measure, members, others, clusters, bar=""):
    """One AUC row with its interval by DeLong's method clustered over people; scores are higher for members."""
    labels = np.repeat([True, False], [len(members), len(others)])
    found = roc.delong(labels, np.concatenate([members, others]), np.concatenate(clusters))
    note(part, measure, found.value, len(labels), bar, found.low, found.high)


def _embedders(note, sets, load, limit):
    faces = _sample(sets["private-identities"], min(limit, 500))
    pixels = faces.pixels()
    copies = from_tensor(augment.view(as_tensor(pixels), runtime.generator("preconditions-copies"), 0.8))
    for name in ("copy-a", "copy-b"):
        original, copy = load[name].embed(pixels), load[name].embed(copies)
        positive = (original * copy).sum(-1)
        hard = []
        for _, rows in faces.table.groupby(["concept", "factor_background"]).indices.items():
            hard += [float(original[a] @ original[b]) for a in rows for b in rows if a < b]
        note(
            name,
            "AUC of copies against the same person and background with another expression",
            roc.auc(positive, np.array(hard)),
            len(positive) + len(hard),
            ">=0.95",
        )
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
        note(name, f"rank-1 in a gallery of {scores.shape[1]}", float((scores.argmax(1) == truth).mean()), len(truth), ">=0.8")
        note(name, "TAR@FAR=1e-2", float((genuine >= np.quantile(impostor, 0.99)).mean()), len(truth), ">=0.8")
    truth, read = faces.table, load["factors"].read(pixels)
    for factor, values in read.items():
        note("factors", f"accuracy of {factor} on originals", float((values == truth[f"factor_{factor}"].to_numpy()).mean()), len(values))
    _clip(note, load["clip"], faces)


def _clip(note, clip, faces):
    from transformers import CLIPTokenizer

    from tuneleak.data import vocabulary as v

    words = CLIPTokenizer.from_pretrained(clip.folder / "tokenizer", local_files_only=True)
    pixels = clip.embed(faces.pixels())
    phrases = {
        "hair_colour": {c: f"{c} hair" for c in v.HAIR_COLOURS},
        "hair": v.HAIR,
        "eyes": v.EYES,
        "mouth": v.MOUTH,
        "eyebrows": v.EYEBROWS,
        "background": {c: f"{c} background" for c in v.BACKGROUND_COLOURS},
    }
    for factor, texts in phrases.items():
        features = clip.embed_text([f"a face with {text}" for text in texts.values()], words)
        guess = np.array(list(texts))[(pixels @ features.T).argmax(1)]
        note("clip", f"zero-shot accuracy of {factor}", float((guess == faces.table[f"factor_{factor}"].to_numpy()).mean()), len(guess), ">=0.9")


def generate(world, captions, guidance_scale=3.0, steps=20, key="preconditions"):
    """Pictures uint8 `(n, h, w, 3)` of a base under captions, by DDIM with classifier-free guidance; starting noise keyed by `key` and index."""
    context, empty = world.encode_text(captions), world.encode_text([""])
    noise = torch.stack([torch.randn(world.latent_shape, generator=runtime.generator(key, i)) for i in range(len(captions))])

    def noise_pred(x, t):
        both = world.noise_pred(torch.cat([x, x]), t, torch.cat([empty.expand_as(context), context]))
        null, conditional = both.chunk(2)
        return null + guidance_scale * (conditional - null)

    return from_tensor(world.decode(world.sample(noise_pred, noise, steps)))


@torch.inference_mode()
def _base(note, world, sets, load):
    members, others = sets["named-p"], sets["named-q"]
    people = members.table.groupby("concept", sort=True).first()
    per_person = 4
    captions = [caption for caption in people.caption for _ in range(per_person)]
    drawn = generate(world, captions)
    reference = sets["named-q"]
    features = pd.DataFrame(load["identity-b"].embed(reference.pixels())).groupby(reference.table.concept.to_numpy()).mean()
    centres = features.to_numpy() / np.linalg.norm(features.to_numpy(), axis=1, keepdims=True)
    guess = (load["identity-b"].embed(drawn) @ centres.T).argmax(1)
    truth = np.repeat(np.arange(len(people)), per_person)
    low, high = intervals.wilson(int((guess == truth).sum()), len(truth))
    note("base", 'rank-1 of 60 of "the face of <name>"', float((guess == truth).mean()), len(truth), ">=0.8", low, high)
    _caption_accuracy(note, world, sets["private-identities"], load["factors"])
    _loss_auc(note, world, members, others)
    copier = load["copy-b"]
    held = copier.embed(others.pixels())
    inside, generated = copier.embed(members.pixels()), copier.embed(drawn)
    concept = members.table.concept.to_numpy()
    generated_concept, held_concept = np.repeat(people.index.to_numpy(), per_person), others.table.concept.to_numpy()
    best, best_held = np.zeros(len(inside)), np.zeros(len(inside))
    rng = np.random.default_rng(0)
    for name in people.index:
        rows = np.flatnonzero(concept == name)
        best[rows] = (inside[rows] @ generated[generated_concept == name].T).max(1)
        best_held[rows] = (inside[rows] @ held[rng.choice(np.flatnonzero(held_concept == name), per_person, replace=False)].T).max(1)
    tau = np.quantile(best_held, 0.99)
    note("base", "members extracted at 1 % false match", float((best >= tau).mean()), len(best), "<=0.05")


def _caption_accuracy(note, world, faces, reader, count=200):
    from tuneleak.data import captions

    class Everything:
        """Names every attribute, in the grammar's order."""

        def random(self):
            return 0.0

        def shuffle(self, items):
            return None

    chosen = _sample(faces, count)
    rows = [{key.removeprefix("factor_"): value for key, value in row.items() if key.startswith("factor_")} for row in chosen.table.to_dict("records")]
    read = reader.read(generate(world, [captions.by_attributes(Everything(), row) for row in rows], key="captions"))
    for factor, values in read.items():
        note("base", f"caption accuracy of {factor}", float(np.mean(values == np.array([row[factor] for row in rows]))), len(rows), ">=0.9")


def _loss_auc(note, world, members, others, timesteps=(50, 150, 300), draws=2):
    losses = {}
    for key, images in (("P", members), ("Q", others)):
        latents = torch.cat([world.encode_images(as_tensor(part)) for part in np.array_split(images.pixels(), 40)])
        context = {caption: world.encode_text([caption])[0] for caption in set(images.table.caption)}
        contexts = torch.stack([context[caption] for caption in images.table.caption])
        total = torch.zeros(len(latents))
        for t in timesteps:
            for draw in range(draws):
                noise = torch.stack([torch.randn(world.latent_shape, generator=runtime.generator("loss", key, t, draw, i)) for i in range(len(latents))])
                abar = float(world.alphas_cumprod[t])
                for start in range(0, len(latents), 128):
                    part = slice(start, start + 128)
                    x = abar**0.5 * latents[part] + (1 - abar) ** 0.5 * noise[part]
                    total[part] += F.mse_loss(world.noise_pred(x, t, contexts[part]), noise[part], reduction="none").mean((1, 2, 3))
        losses[key] = -total.numpy()
    doses = {"P": members.table.dose.to_numpy()}
    people = {"P": members.table.concept.to_numpy(), "Q": others.table.concept.to_numpy()}
    _membership(note, "base", "loss AUC of members", losses["P"], losses["Q"], [people["P"], people["Q"]], "0.60..0.80")
    for dose in ("1", "4", "16"):
        chosen = doses["P"] == dose
        _membership(note, "base", f"loss AUC of members at dose {dose}", losses["P"][chosen], losses["Q"], [people["P"][chosen], people["Q"]])
