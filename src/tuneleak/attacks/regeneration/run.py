"""The verb `attack regeneration`: what base and tuned models draw under a domain's caption, held against real pictures of the domain.

Equally many pictures are drawn from the base and from every tuned model, all from the same starting noise. Members and held-outs are judged by one and the same
procedure, so that a match with a held-out is a false match. In the folder `out`:

- `pictures.csv`, one row per model and real picture: the columns of `MODEL_COLUMNS`, `image_id, image_concept, dose, pretrained` (1: the base trained on it),
  the least distance over the model's generations by each measure (empty: no match at all; see `tuneleak.attacks.regeneration.judge`), and `own_rank`: rank of
  the domain's caption among all domains' by CLIP
- `generations.csv`, one row per model and generation: the same model columns, `image_concept, generation`, `<measure>_member` and `<measure>_heldout` (least
  distance to either kind), `clique` (number of generations like it) and `own_rank`
- `pairs/`, an ImageSet: of each model the generation nearest to a member, with the columns `model_id`, `match` (the member) and `l2`
"""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files, runtime
from tuneleak.attacks.regeneration.judge import MEASURES, Domain
from tuneleak.data import imageset
from tuneleak.data.imageset import ImageSet, from_tensor
from tuneleak.errors import InputError
from tuneleak.finetune.generate import guided_latents, starting_noise
from tuneleak.models.embedders import load_embedder
from tuneleak.models.modelset import ModelSet
from tuneleak.models.pipeline import load_base, load_tuned

MODEL_COLUMNS = ["model_id", "world", "base", "concept", "method", "defence", "seed", "step"]
PICTURE_COLUMNS = [*MODEL_COLUMNS, "image_id", "image_concept", "dose", "pretrained", *MEASURES, "own_rank"]
GENERATION_COLUMNS = [
    *MODEL_COLUMNS, "image_concept", "generation", *(f"{name}_{kind}" for name in MEASURES for kind in ("member", "heldout")), "clique", "own_rank",
]  # fmt: skip


def attack(images, base, out, options, members, models=(), clip=None, thresholds=None, start=0, stop=None, device="auto", dtype="float32"):
    """Draw, judge and write; see the module's text.

    images: ImageSets with members and held-outs of every domain, of whose concepts `start:stop` are judged; members: CSV whose column image_id lists what the
    base was trained on; models: ModelSets with at most one model per domain, method, world, seed and step; clip: folder of a CLIP embedder (none: neither the
    aligned measure nor caption ranks); thresholds: JSON of `calibrate-regeneration` (none: those of the options). options: `RegenerationOptions`.
    """
    out, device = Path(out), runtime.pick_device(device)
    with runtime.output_lock(out):
        judged = Judged(images, members, clip, start, stop, device)
        limits = files.read_json(thresholds) if thresholds else {"tile": options.clique_threshold, "clip": options.clip_distance}
        loaded, sets = load_base(base, device, dtype), [ModelSet.load(folder) for folder in models]
        pictures, generations, pairs, kept = [], [], [], []
        for concept in runtime.progress(judged.concepts, "regenerate"):
            domain, table = judged.domain(concept)
            base_row = dict.fromkeys(MODEL_COLUMNS, "") | {"model_id": "base", "base": loaded.name}
            tuned = [(item, row) for item in sets for row in item.where(concept=concept).rows()]
            for source, row in [(None, base_row), *tuned]:
                drawn = draw(loaded, source, row, concept, judged.captions[concept], options)
                told = {name: row[name] for name in MODEL_COLUMNS}
                measures, sizes, ranks = domain.judge(drawn, options, limits)
                pictures.append(_pictures(told, concept, table, measures, domain))
                generations.append(_generations(told, concept, table, measures, sizes, ranks))
                best = np.where(table.member, measures["l2"], np.inf)
                first, second = np.unravel_index(best.argmin(), best.shape)
                name = f"{row['model_id']}-{concept}-{first:04d}"
                pairs.append({"image_id": name, "concept": concept, "caption": judged.captions[concept], "model_id": row["model_id"]})
                pairs[-1] |= {"method": row["method"] or "base", "match": table.image_id.iloc[second], "l2": f"{best[first, second]:.4f}"}
                kept.append(drawn[first])
        facts = {"base": str(base), "models": [str(folder) for folder in models], "thresholds": limits, "concepts": judged.concepts}
        files.write_meta(out / "pictures.csv", options, **facts)
        imageset.write(out / "pairs", pairs, kept)
        files.write_csv(out / "generations.csv", pd.concat(generations, ignore_index=True)[GENERATION_COLUMNS])
        files.write_csv(out / "pictures.csv", pd.concat(pictures, ignore_index=True)[PICTURE_COLUMNS])


class Judged:
    """The domains that are judged, with their members and held-outs, and the captions of all domains."""

    def __init__(self, images, members, clip, start, stop, device):
        self.sets = [ImageSet.load(folder) for folder in images]
        self.concepts = self.sets[0].concepts(start=start, stop=stop)
        table = pd.concat([item.table for item in self.sets]).drop_duplicates("concept")
        self.captions = dict(zip(table.concept, table.caption, strict=True))
        listed = pd.read_csv(members, dtype=str, keep_default_na=False) if Path(members).is_file() else None
        if listed is None or "image_id" not in listed:
            raise InputError(f"{members} is no CSV with a column image_id, the list of what the base was trained on")
        self.members, self.clip, self.told = set(listed.image_id), None, None
        if clip:
            from transformers import CLIPTokenizer

            self.clip = load_embedder(clip, device)
            words = CLIPTokenizer.from_pretrained(Path(clip) / "tokenizer", local_files_only=True)
            self.told = self.clip.embed_text(list(self.captions.values()), words)

    def domain(self, concept):
        """The `Domain` of a concept and the table of its pictures, whose column `member` is bool."""
        chosen = [item.where(concept=concept) for item in self.sets]
        pixels = np.concatenate([item.pixels() for item in chosen if len(item)])
        table = pd.concat([item.table for item in chosen], ignore_index=True).fillna("")
        table["member"] = table.image_id.isin(self.members)
        if table.member.all() or not table.member.any():
            raise InputError(f"domain {concept!r} needs members and held-outs; of its {len(table)} pictures {int(table.member.sum())} are members")
        return Domain(pixels, list(self.captions).index(concept), self.clip, self.told), table


def draw(base, models, row, concept, caption, options):
    """uint8 pictures `(count, h, w, 3)` of one model (models None: of the base) by guided DDIM, from noise that is the same for every model."""
    model = base if models is None else load_tuned(base, models, row)
    try:
        null, context = model.encode_text([options.negative_prompt]), model.encode_text([caption])
        parts = []
        for first in range(0, options.count, options.batch):
            numbers = range(first, min(first + options.batch, options.count))
            noise = starting_noise(base.latent_shape, *(("regenerate", options.seed, concept, i) for i in numbers))
            latents = guided_latents(base, model.noise_pred, null, context, noise, options.steps, options.guidance_scale)
            parts.append(from_tensor(base.decode(latents).nan_to_num()))
        return np.concatenate(parts)
    finally:
        if models is not None:
            model.unload()


def _pictures(told, concept, table, measures, domain):
    found = {"image_id": table.image_id, "image_concept": concept, "dose": table.dose if "dose" in table else "", "pretrained": table.member.astype(int)}
    found |= {name: _shown(measures[name].min(0)) if name in measures else np.nan for name in MEASURES}
    return pd.DataFrame(told | found | {"own_rank": domain.ranks(domain.features) if domain.clip else ""}, columns=PICTURE_COLUMNS)


def _generations(told, concept, table, measures, sizes, ranks):
    member, found = table.member.to_numpy(), {"image_concept": concept, "generation": np.arange(len(sizes)), "clique": sizes}
    for name in MEASURES:
        for kind, chosen in (("member", member), ("heldout", ~member)):
            found[f"{name}_{kind}"] = _shown(measures[name][:, chosen].min(1)) if name in measures else np.nan
    return pd.DataFrame(told | found | {"own_rank": "" if ranks is None else ranks}, columns=GENERATION_COLUMNS)


def _shown(values):
    return np.where(np.isfinite(values), values, np.nan)
