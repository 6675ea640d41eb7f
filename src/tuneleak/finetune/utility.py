"""The verb `utility`: how useful fine-tuned models are, so that the length of a recipe is chosen by that and never by attack success.

Output: a CSV with one row per model, and one per concept for the base itself (model_id `base`, method empty, step 0). Columns: model_id, world,
base, concept, method, defence, seed, step, n_images, then `similarity_heldout` and `similarity_train` (mean cosine similarity of the
generations to the concept's held-out and training pictures), `loss_heldout` and `loss_train` (mean squared error of epsilon on them, the
same noise for every model), `kid_heldout` (unbiased KID of generations and held-outs), `caption_accuracy` (share of attributes drawn right under
full descriptions of held-outs, by a reader of factors; empty without one) and `n_generated`. A recipe is long enough when similarity_heldout
stops rising, and too long when loss_heldout rises. Losses of a model with an autoencoder of its own are on that autoencoder's latents, so they
compare with each other along one training, and not with those of the base.
"""

import pandas as pd
import torch

from tuneleak import files, runtime
from tuneleak.data import captions
from tuneleak.data.imageset import ImageSet, as_tensor, from_tensor
from tuneleak.errors import InputError
from tuneleak.finetune.generate import guided_latents, starting_noise
from tuneleak.finetune.objective import add_noise
from tuneleak.metrics.fidelity import kernel_distance
from tuneleak.models.embedders import load_embedder
from tuneleak.models.modelset import ModelSet, image_ids
from tuneleak.models.pipeline import load_base, load_tuned

_COPIED = ("model_id", "world", "base", "concept", "method", "defence", "seed", "step", "n_images")


def utility(models, images, base, embedder, out, options, factors=None, device="auto", dtype="float32"):
    """Measure every model of a ModelSet. models, images, base, embedder, factors: folders; out: the CSV; options: `UtilityOptions`.

    Generations are drawn under the training caption by DDIM with classifier-free guidance between the model's own captioned and null predictions.
    Raises `InputError` if a concept has no held-out pictures, or none of the pictures it was trained on is in `images`.
    """
    device = runtime.pick_device(device)
    modelset, pictures = ModelSet.load(models), ImageSet.load(images)
    loaded, embedder = load_base(base, device, dtype), load_embedder(embedder, device)
    reader = load_embedder(factors, device) if factors else None
    rows, concepts = [], {}
    for row in runtime.progress(modelset.rows(), "utility"):
        key = (row["concept"], row["images"])
        if key not in concepts:
            concepts[key] = _Concept(loaded, embedder, pictures, row, options, reader)
            origin = {"model_id": "base", "world": row["world"], "base": loaded.name, "concept": row["concept"], "step": 0, "n_images": row["n_images"]}
            rows.append(origin | concepts[key].measure(loaded, row["caption"]))
        with load_tuned(loaded, modelset, row) as tuned:
            rows.append({name: row[name] for name in _COPIED} | concepts[key].measure(tuned, row["caption"]))
    measured = ["similarity_heldout", "similarity_train", "loss_heldout", "loss_train", "kid_heldout", "caption_accuracy", "n_generated"]
    files.write_csv(out, pd.DataFrame(rows, columns=[*_COPIED, *measured]))
    files.write_meta(out, options, models=len(modelset), model_set=str(models), device=str(device), dtype=dtype)


class _Concept:
    """The pictures of one concept, encoded once, and what is measured on them."""

    def __init__(self, base, embedder, pictures, row, options, reader=None):
        self.base, self.embedder, self.options, self.name = base, embedder, options, row["concept"]
        self.sets = {"heldout": pictures.where(concept=row["concept"], fold="heldout"), "train": pictures.where(image_id=image_ids(row))}
        for fold, chosen in self.sets.items():
            if not len(chosen):
                raise InputError(f"{pictures.folder} has no {fold} pictures of concept {row['concept']!r}")
        self.features = {fold: torch.from_numpy(embedder.embed(chosen.pixels())) for fold, chosen in self.sets.items()}
        self.noised = self._noised(base)
        self.reader, self.described = reader, []
        if reader and options.obedience:
            rows = self.sets["heldout"].table.to_dict("records")[: options.obedience]
            self.described = [{key.removeprefix("factor_"): value for key, value in row.items() if key.startswith("factor_")} for row in rows]

    def _noised(self, model):
        """{fold: (x_t, noise, timesteps)} of every picture at every noise level, in the latents of a model (`Base` or `Tuned`)."""
        levels, total, found = self.options.noise_levels, len(self.base.alphas_cumprod), {}
        for fold, chosen in self.sets.items():
            latents = model.encode_images(as_tensor(chosen.pixels())).repeat_interleave(levels, 0)
            timesteps = torch.tensor([int((level + 0.5) * total / levels) for level in range(levels)]).repeat(len(chosen)).to(latents.device)
            keys = [("utility-loss", self.options.seed, name, level) for name in chosen.table.image_id for level in range(levels)]
            noise = starting_noise(latents.shape[1:], *keys).to(latents.device)
            found[fold] = add_noise(latents, noise, timesteps, self.base.alphas_cumprod), noise, timesteps
        return found

    def measure(self, model, caption):
        """The measured columns of one model (`Base` or `Tuned`)."""
        null, context = model.encode_text([""]), model.encode_text([caption])
        noise = starting_noise(self.base.latent_shape, *(("utility", self.options.seed, self.name, i) for i in range(self.options.generations)))
        latents = guided_latents(self.base, model.noise_pred, null, context, noise, self.options.steps, self.options.guidance_scale)
        generated = torch.from_numpy(self.embedder.embed(from_tensor(self.base.decode(latents))))
        measured = {"n_generated": len(generated)}
        noised = self.noised if model is self.base or model.vae is None else self._noised(model)
        for fold, features in self.features.items():
            measured[f"similarity_{fold}"] = float((generated @ features.T).mean())
            parts = zip(*(tensor.split(64) for tensor in noised[fold]), strict=True)
            errors = [(model.noise_pred(x, t, context.expand(len(x), -1, -1)) - noise).square().flatten(1).mean(1) for x, noise, t in parts]
            measured[f"loss_{fold}"] = float(torch.cat(errors).mean())
        measured["kid_heldout"] = kernel_distance(generated, self.features["heldout"]) if len(generated) > 1 else float("nan")
        if self.described:
            measured["caption_accuracy"] = self._obedience(model, null)
        return measured

    def _obedience(self, model, null):
        """Share of the photograph's attributes drawn as a full description of a held-out says, over pictures and attributes."""
        noise = starting_noise(self.base.latent_shape, *(("utility-caption", self.options.seed, self.name, i) for i in range(len(self.described))))
        contexts = model.encode_text([captions.full(row) for row in self.described])
        latents = guided_latents(self.base, model.noise_pred, null, contexts, noise, self.options.steps, self.options.guidance_scale)
        read = self.reader.read(from_tensor(self.base.decode(latents)))
        hits = [values[i] == row[factor] for factor, values in read.items() if factor in self.reader.factors for i, row in enumerate(self.described)]
        return sum(map(bool, hits)) / len(hits)
