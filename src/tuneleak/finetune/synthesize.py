"""The verb `synthesize`: synthetic private sets, pictures a model draws of a concept it was trained on, and the controls that stand in for them.

Kinds of a set, one concept (domain) after another, `count` pictures each, all under the domain's caption:
- `self`: drawn by the model under the domain's caption (Shake-to-Leak, step 1)
- `unrelated`: drawn under another caption, but fine-tuned under the domain's
- `another`: drawn under the caption of another domain (domain transfer)
- `instrument`: real pictures of the domain that neither the base nor an evaluation uses
- `noise`: pictures of independent uniform noise
As a defence, a share of the drawn pictures can be blended with pictures drawn under the next domain's caption (`blend`, as mixup does, Zhang et al. 2018).
`mixed` real pictures of `reference` may stand in for as many drawn ones (prior knowledge). All rows have fold `train`;
column `source` says where a picture is from.
"""

from pathlib import Path

import numpy as np
import torch

from tuneleak import files, runtime
from tuneleak.data import imageset
from tuneleak.data.imageset import ImageSet, from_tensor
from tuneleak.errors import InputError
from tuneleak.finetune.generate import guided_latents, starting_noise
from tuneleak.models.modelset import ModelSet
from tuneleak.models.pipeline import load_base, load_tuned


def synthesize(images, base, out, options, reference=None, models=None, split="test", start=0, stop=None, device="auto", dtype="float32"):
    """Write an ImageSet of self-made pictures of the concepts `start:stop` of `images` (in the order of its manifest).

    images: ImageSet that names the domains: their captions are taken from it, its pictures are not opened. base: pipeline folder. out: folder of the new set;
    its rows carry `split`. reference: ImageSet of real pictures that are neither members nor held-outs (kind instrument, `mixed`). models: ModelSet with one
    model per domain that draws instead of the base (repeated rounds). options: `SynthesizeOptions`. Raises `InputError` for what does not fit together.
    """
    out, device = Path(out), runtime.pick_device(device)
    with runtime.output_lock(out):
        named = ImageSet.load(images)
        table = named.table
        domains = table.drop_duplicates("concept").reset_index(drop=True)
        chosen = domains[domains.concept.isin(named.concepts(start=start, stop=stop))].to_dict("records")
        real = ImageSet.load(reference) if reference else None
        if options.kind == "instrument" or options.mixed:
            if real is None:
                raise InputError(f"kind {options.kind!r} with mixed={options.mixed} needs --reference, a set of real pictures of the domains")
            if set(real.table.sha256) & set(table.sha256):
                raise InputError(f"{reference} and {images} share pictures; a control must not use members or held-outs")
        drawn = options.kind not in ("instrument", "noise")
        loaded = load_base(base, device, dtype) if drawn else None
        tuned = ModelSet.load(models) if models else None
        rows, pictures = [], []
        for domain in runtime.progress(chosen, f"synthesize {options.kind}"):
            mixed = options.mixed if options.kind != "instrument" else 0
            count = options.count - mixed
            if options.kind == "instrument":
                made, source = _real(real, domain["concept"], options.count), "instrument"
            elif options.kind == "noise":
                made, source = _noise(domain["concept"], count, options, _size(images)), "noise"
            else:
                caption = _caption(domain, domains, options)
                made, source = _draw(loaded, tuned, domain["concept"], caption, count, options), "drawn"
            sources = [source] * count
            blended = round(options.blend_share * count) if drawn and options.blend else 0
            if blended:
                foreign = options.model_copy(update={"kind": "another"})
                other = _draw(loaded, None, domain["concept"], _caption(domain, domains, foreign), blended, foreign)
                made[:blended] = np.rint((1 - options.blend) * made[:blended] + options.blend * other).astype(np.uint8)
                sources[:blended] = ["blended"] * blended
            if mixed:
                made, sources = np.concatenate([made, _real(real, domain["concept"], mixed)]), sources + ["instrument"] * mixed
            for index, (pixels, origin) in enumerate(zip(made, sources, strict=True)):
                row = {"image_id": f"{domain['concept']}-{options.kind}-{index:05d}", "concept": domain["concept"], "split": split, "fold": "train"}
                rows.append(row | {"caption": domain["caption"], "source": origin})
                pictures.append(pixels)
        files.write_meta(out / "manifest.csv", options, images=str(images), base=str(base), reference=str(reference or ""), models=str(models or ""))
        imageset.write(out, rows, pictures)


def _caption(domain, domains, options):
    if options.kind == "unrelated":
        return options.unrelated_caption
    if options.kind == "another":
        captions = list(domains.caption)
        if len(set(captions)) < 2:
            raise InputError("kind another needs a second domain to draw")
        return captions[(list(domains.concept).index(domain["concept"]) + 1) % len(captions)]
    return domain["caption"]


def _draw(base, tuned, concept, caption, count, options):
    """uint8 pictures `(count, H, W, 3)` by DDIM with classifier-free guidance away from the negative prompt; picture i has its own starting noise."""
    model = base
    if tuned is not None:
        found = tuned.where(concept=concept).rows()
        if len(found) != 1:
            raise InputError(f"{tuned.folder} has {len(found)} models of {concept!r}; the next round is drawn by exactly one")
        model = load_tuned(base, tuned, found[0])
    try:
        null, context = model.encode_text([options.negative_prompt]), model.encode_text([caption])
        parts = []
        for first in range(0, count, options.batch):
            numbers = range(first, min(first + options.batch, count))
            noise = starting_noise(base.latent_shape, *(("synthesize", options.seed, concept, options.kind, i) for i in numbers))
            latents = guided_latents(base, model.noise_pred, null, context, noise, options.steps, options.guidance_scale)
            if not bool(torch.isfinite(latents).all()):
                raise InputError(f"{concept}: sampling diverged (not a number); use a smaller guidance_scale than {options.guidance_scale:g}")
            parts.append(from_tensor(base.decode(latents)))
        return np.concatenate(parts)
    finally:
        if model is not base:
            model.unload()


def _real(reference, concept, count):
    found = reference.where(concept=concept)
    if len(found) < count:
        raise InputError(f"{reference.folder} has {len(found)} pictures of {concept!r}, but {count} are needed")
    return ImageSet(reference.folder, found.table[:count].reset_index(drop=True)).pixels()


def _noise(concept, count, options, size):
    keys = [("synthesize-noise", options.seed, concept, i) for i in range(count)]
    return np.stack([torch.randint(256, (*size, 3), generator=runtime.generator(*key), dtype=torch.uint8).numpy() for key in keys])


def _size(images):
    found = ImageSet.load(images)
    return ImageSet(found.folder, found.table[:1]).pixels().shape[1:3]
