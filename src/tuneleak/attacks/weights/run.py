"""The verb `attack weights run`: what encoders, baselines and controls make of victims' LoRA weights, and whom it looks like.

`scores.csv`, one row per victim, attack and setting: `model_id, world, base, concept, method, defence, seed` (of the victim); `attack` (name of the
encoder's folder, with `-selected` that one of its pictures which looks most like the identity it names, with `-finextract` guided from the base's
null prediction to the victim's under z, with `-refined` under a z moved to where victim and base differ most; or unconditional, guessed-prompt,
searched-prompt, update-matching, true-prompt, captions, attributes); `setting`: `pictures` (drawn by the victim's UNet), `embedding` (the identity that the
encoder names) or `decoded` (the latent that update matching found), then `; control=...` or `; bound=...`; `rank` (of the true person in the gallery,
1 is best, ties at their middle) of `gallery` people; `genuine` (similarity to the true person's entry), `stranger` (to another victim's) and
`threshold` (similarity that a share of 1e-2 of all impostor comparisons of the setting reaches); `cosine` (mean over held-out pictures of the person
and drawn ones); `agreement` and `stranger_agreement` (similarity to what is made of a second set of the same person, and of another one);
`copy_similarity` (highest to a training picture); `n_pictures`, `model_calls` (per victim); with a factor reader `true_<f>` and `read_<f>` per factor
of identity (the most frequent reading); `caption_accuracy` (of the setting `captions`, a caption of a face nobody has per victim: share of its factors
read in the pictures); with networks for photographs `clip_i`, `clip_t` and `dino` (`tuneleak.models.photo_similarity`).
`reconstructions/` is an ImageSet of the drawn pictures of the settings that are no control.

Pictures are judged by embedder B, which no attack has seen; a named embedding lives in the space of A, and so do then its gallery and references.
Of a `spectral` encoder pictures and embedding are two estimates: z is a function of its ridge regression's alone (whose embedding `linear` names), while the
embedding, by which `-selected` picks, has the transformer's correction too. Where the gate of that correction is 0 they are one.
"""

import functools
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.attacks.weights import baselines, refine
from tuneleak.attacks.weights import train as training
from tuneleak.attacks.weights.draw import Studio
from tuneleak.attacks.weights.gallery import FAR, Gallery
from tuneleak.data import captions, imageset
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.models import batched_lora, weightset
from tuneleak.models.embedders import load_embedder
from tuneleak.models.photo_similarity import PhotoSimilarity
from tuneleak.models.pipeline import load_base

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed"]


def run(
    models, images, distractors, base, encoders, identity_a, identity_b, copy_score, out, options, second=None, factors=None,
    clip_image="", clip_text="", dino="", device="auto", dtype="float32",
):  # fmt: skip
    """Attack the LoRAs of `models`; the module's text says what it writes into `out`.

    images: ImageSet of the victims (and of further people of the gallery); distractors: ImageSet of people nobody trained on; encoders: folders of
    `attack weights train`; identity_a, identity_b, copy_score, factors: embedder folders; clip_image, clip_text, dino: networks that judge
    photographs (none: not measured); second: a model set of the same people from other pictures.
    An interrupted run keeps the settings that it had finished. Raises `InputError` for inputs that do not fit together.
    """
    device, out = runtime.pick_device(device), Path(out)
    names = [Path(folder).name for folder in encoders]
    if len(set(names)) < len(names):
        raise InputError(f"two encoders have one name ({', '.join(names)}); their folders must be named differently")
    with runtime.output_lock(out / "scores.csv"):
        loaded = load_base(base, device, dtype)
        weights = weightset.load([models], loaded, options.only)
        if options.defence:
            weights = weightset.WeightSet(
                weights.table.assign(defence=weights.table.defence.where(weights.table.defence != "", options.defence)), weights.pairs
            )
        instruments = {"A": load_embedder(identity_a, device), "B": load_embedder(identity_b, device), "copy": load_embedder(copy_score, device)}
        instruments["factors"] = load_embedder(factors, device) if factors else None
        if clip_image or clip_text or dino:
            instruments["photographs"] = PhotoSimilarity(clip_image, clip_text, dino, device)
        others = _second(second, weights, loaded)
        pictures = [Path(folder) / "manifest.csv" for folder in (images, distractors)]
        inputs = [models, second, *encoders, loaded.folder, *pictures, identity_a, identity_b, copy_score, factors, clip_image, clip_text, dino]
        digest = files.digest([options.model_dump(mode="json"), str(dtype), files.stamps(path for path in inputs if path)])
        partial = out / f".partial-{digest}"
        for old in out.glob(".partial-*"):
            if old != partial:
                shutil.rmtree(old)
        partial.mkdir(parents=True, exist_ok=True)
        (out / "scores.csv").unlink(missing_ok=True)
        desks = []
        with batched_lora.BatchedLora(loaded.unet, weights.layers) as lora:
            for number, (mine, again) in enumerate(_groups(weights, others, options.only)):
                gallery = Gallery(mine.table, ImageSet.load(images), ImageSet.load(distractors), instruments)
                folder = partial / f"group{number}" if options.only else partial
                folder.mkdir(exist_ok=True)
                desks.append(Desk(loaded, lora, mine, again, gallery, options, folder))
                for encoder, name in zip(encoders, names, strict=True):
                    with_encoder(desks[-1], encoder, name)
                if options.controls:
                    without_encoder(desks[-1])
                else:
                    true_prompt(desks[-1])
        _write(desks, out, options, models=str(models), images=str(images), encoders=[str(folder) for folder in encoders], second=str(second or ""))
        shutil.rmtree(partial)


def _groups(weights, others, only):
    """(WeightSet, second sets) of what is attacked together: all models, or those of each defence, since ranks, thresholds and controls belong to one."""
    if not only:
        return [(weights, others)]
    found = []
    for name in only:
        rows = [number for number, defence in enumerate(weights.table.defence) if defence == name]
        if not rows:
            raise InputError(f"there is no model under the defence {name!r}; the set holds {', '.join(sorted(set(weights.table.defence)))}")
        found.append((weights.take(rows), others.take(rows) if others is not None else None))
    return found


class Desk:
    """Where settings are scored: the studio, the gallery and the folder of finished settings."""

    def __init__(self, base, lora, weights, second, gallery, options, partial):
        self.base, self.weights, self.second, self.gallery, self.options, self.partial = base, weights, second, gallery, options, partial
        self.studio = Studio(base, lora, weights, options)
        self.made = []

    def pictures(self, attack, qualifier, draw, again=None, setting="pictures"):
        """Score what `draw()` draws `(V, n, h, w, 3)`; `again()` draws the second sets. Finished settings are read back."""
        self._once(attack, f"{setting}{qualifier}", lambda: self.gallery.of_pictures(draw(), again() if again else None))

    def captions(self, attack, qualifier, draw, asked):
        """Score what `draw()` draws under captions of the factors `asked`."""
        self._once(attack, f"pictures{qualifier}", lambda: self.gallery.of_captions(draw(), asked))

    def embedding(self, attack, qualifier, embedding, again=None):
        """Score a named identity `(V, e)` in the space of embedder A."""
        self._once(attack, f"embedding{qualifier}", lambda: self.gallery.of_embeddings(embedding, again))

    def _once(self, attack, setting, score):
        path = self.partial / f"{len(self.made):03d}.csv"
        self.made.append(path)
        if path.is_file():
            return
        before = self.studio.calls
        columns, drawn = score()
        table = self.weights.table[MODEL_COLUMNS].assign(attack=attack, setting=setting, **columns)
        table["model_calls"] = (self.studio.calls - before) // len(table)
        if drawn is not None and "control=" not in setting:
            self._keep(path.with_suffix(""), attack, setting, drawn)
        files.write_csv(path, table)

    def _keep(self, folder, attack, setting, drawn):
        """The drawn pictures of a setting as an ImageSet."""
        name = f"{attack}.{setting.split(';')[0]}"
        rows = [
            {
                "image_id": f"{victim.model_id}.{name}.{i}",
                "concept": victim.concept,
                "caption": "",
                "attack": attack,
                "setting": setting,
            }
            for victim in self.weights.table.itertuples()
            for i in range(drawn.shape[1])
        ]
        imageset.write(folder, rows, drawn.reshape(-1, *drawn.shape[2:]))


@torch.no_grad()
def with_encoder(desk, folder, name):
    """All settings of one encoder."""
    encoder, options = training.load(folder, desk.base, desk.weights)
    encode = _encode(encoder, options, desk)
    own, second = encode(desk.weights), encode(desk.second) if desk.second is not None else None
    shuffled = encode(shuffle_modules(desk.weights, desk.options.seed)) if desk.options.controls else None
    following = torch.from_numpy(desk.gallery.strangers)
    draw, control = desk.studio.draw, desk.options.controls and options.attack != "constant" and options.examples == "all"
    if own.z is not None:
        again = (lambda: draw(second.z, desk.second)) if second is not None else None
        drawn = functools.cache(lambda: draw(own.z))

        def uncounted():
            before, pictures = desk.studio.calls, drawn()
            desk.studio.calls = before  # they are counted where they are shown, also if a resumed run draws them again
            return pictures

        def selected():
            return desk.gallery.selected(uncounted(), own.embedding)

        desk.pictures(name, "", drawn, again)
        if desk.options.controls and options.examples == "all":
            desk.pictures(f"{name}-finextract", "", lambda: draw(own.z, from_base=True))
            if desk.options.refine_steps:
                desk.pictures(f"{name}-refined", "", lambda: draw(refine.refined(desk.studio, own.z, uncounted())))
        if own.embedding is not None and desk.options.pictures > 1:
            desk.pictures(f"{name}-selected", "", selected)
        if control:
            desk.pictures(name, "; control=mean-z", lambda: draw(own.z.mean(0).expand_as(own.z)))
            desk.pictures(name, "; control=other-weights", lambda: draw(own.z[following]))
            desk.pictures(name, "; control=shuffled-modules", lambda: draw(shuffled.z))
            desk.pictures(name, "; control=base-unet", lambda: draw(own.z, tuned=False))
    if own.embedding is not None:
        desk.embedding(name, "", own.embedding, second.embedding if second is not None else None)
        if control:
            mean = F.normalize(own.embedding.mean(0), dim=-1).expand_as(own.embedding)
            desk.embedding(name, "; control=mean-z", mean)
            desk.embedding(name, "; control=other-weights", own.embedding[following])
            desk.embedding(name, "; control=shuffled-modules", shuffled.embedding)


def without_encoder(desk):
    """Baselines and bounds: what needs no training data."""
    base, draw, guesses = desk.base, desk.studio.draw, desk.options.guesses
    table, count = desk.weights.table, len(desk.weights)
    desk.pictures("unconditional", "", lambda: draw(None))
    prompts = base.encode_text(guesses)
    desk.pictures("guessed-prompt", "", lambda: draw(prompts[:1].expand(count, -1, -1)))
    desk.pictures("searched-prompt", "", lambda: draw(prompts[baselines.searched_prompts(desk.studio, guesses).to(prompts.device)]))
    if desk.options.matching_steps:
        found = []

        def matched():
            if not found:
                found.extend(baselines.match_updates(desk.studio, prompts[0]))
            return found

        desk.pictures("update-matching", "", lambda: draw(matched()[1]))
        desk.pictures("update-matching", "", lambda: imageset.from_tensor(base.decode(matched()[0]))[:, None], setting="decoded")
    true_prompt(desk)
    facts = desk.gallery.true_factors
    if facts:
        known = base.encode_text([captions.by_identity(facts[name]) for name in table.concept])
        desk.pictures("attributes", "; bound=attributes", lambda: draw(known))


def true_prompt(desk):
    """What is left of a model's use: its own caption (also the bound of all attacks), and, where factors can be read, whether it still follows others."""
    context = desk.base.encode_text(list(desk.weights.table.caption))
    desk.pictures("true-prompt", "; bound=true-prompt", lambda: desk.studio.draw(context))
    if desk.gallery.true_factors and desk.gallery.instruments["factors"] is not None:
        asked = [captions.any_face(random.Random(f"{desk.options.seed}/{name}")) for name in desk.weights.table.concept]
        described = desk.base.encode_text([captions.full(factors) for factors in asked])
        desk.captions("captions", "; bound=captions", lambda: desk.studio.draw(described), asked)


def shuffle_modules(weights, seed):
    """Each victim's LoRAs dealt to other layers of the same shape, by a permutation of its own: what the control `shuffled-modules` encodes."""
    kinds, pairs = {}, {name: [side.clone() for side in pair] for name, pair in weights.pairs.items()}
    for name, (a, b) in weights.pairs.items():
        kinds.setdefault((a.shape[1:], b.shape[1:]), []).append(name)
    for number, key in enumerate(weights.table.model_id):
        for kind, names in enumerate(kinds.values()):
            order = torch.randperm(len(names), generator=runtime.generator("shuffle-modules", seed, key, kind)).tolist()
            for name, source in zip(names, order, strict=True):
                for side in (0, 1):
                    pairs[name][side][number] = weights.pairs[names[source]][side][number]
    return weights.with_pairs({name: tuple(pair) for name, pair in pairs.items()})


def _encode(encoder, options, desk):
    def encode(weights):
        features, steps = training.features_of(weights, options, desk.base)
        generator = runtime.generator("sample-at-attack", desk.options.seed) if "sample-at-attack" in options.compat else None
        return encoder({name: value.to(desk.base.device) for name, value in features.items()}, steps.to(desk.base.device), generator)

    return encode


def _second(folder, weights, base):
    """The second set of every victim's person, in the order of the victims; None without one."""
    if folder is None:
        return None
    found = weightset.load([folder], base)
    last = found.table.assign(number=range(len(found)), step=found.table.step.astype(int)).sort_values("step").groupby("concept").number.last()
    missing = [name for name in weights.table.concept if name not in last.index]
    if missing:
        raise InputError(f"{folder} has no model of {missing[0]!r}; a second set must cover all victims")
    return found.take([int(last[name]) for name in weights.table.concept])


def _write(desks, out, options, **facts):
    made = [path for desk in desks for path in desk.made]
    table = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in made], ignore_index=True)
    rows, pictures = [], []
    for path in made:
        if path.with_suffix("").is_dir():
            kept = ImageSet.load(path.with_suffix(""))
            pictures.append(kept.pixels())
            rows += kept.table.drop(columns=["file", "sha256"]).to_dict("records")
    shutil.rmtree(out / "reconstructions", ignore_errors=True)
    if rows:
        imageset.write(out / "reconstructions", rows, np.concatenate(pictures))
        files.write_meta(out / "reconstructions" / "manifest.csv", options, **facts)
    calls, victims = int(table.model_calls.astype(int).sum()), sum(len(desk.weights) for desk in desks)
    files.write_meta(out / "scores.csv", options, victims=victims, model_calls=calls, gallery=desks[0].gallery.size, false_acceptance_rate=FAR, **facts)
    files.write_csv(out / "scores.csv", table)
