"""The verb `attack weights train`: an encoder of LoRA weights, learned from models that the attacker fine-tuned on public people.

Each step takes models of different people, one kept step of each fine-tune (or its last), encodes their weights, and asks each model's own UNet to
denoise a picture of its person under z (dossier, Algorithm 2, with stored in place of simultaneous fine-tunes). Attacks, and the
constant control, differ in the encoder alone and use equally many UNet calls.

Writes `<out>/model.safetensors`, `train.csv` (columns step, loss, denoising, cosine, contrast, kl: means since the row before) and, last, `config.json`.
"""

import importlib
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.attacks.weights import checkpoint, leak
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.defences import transforms
from tuneleak.errors import InputError
from tuneleak.finetune.many import initial_weights
from tuneleak.finetune.objective import Batch, denoising_errors
from tuneleak.models import batched_lora, modelset, weightset
from tuneleak.models import weights as weightfiles
from tuneleak.models.embedders import load_embedder
from tuneleak.models.pipeline import load_base
from tuneleak.options import FinetuneOptions, WeightsTrainOptions

LOG_EVERY = 20
TERMS = ("loss", "denoising", "cosine", "contrast", "kl")
WARM_UP = 0.05  # share of the steps


def train(models, images, base, embedder, out, options, trunk=None, device="auto", dtype="float32"):
    """Train one encoder on the model sets `models` (folders) of people whose pictures are in `images`.

    base: pipeline folder; embedder: folder of identity embedder A; trunk: folder of a CLIP text encoder for the paper's attack (None: that of the base).
    A killed job continues from its last checkpoint. Raises `InputError` for inputs that do not fit together.
    """
    device, out = runtime.pick_device(device), Path(out)
    with runtime.output_lock(out):
        (out / "config.json").unlink(missing_ok=True)  # its presence says that the encoder is complete
        loaded = load_base(base, device, dtype)
        chosen = select(weightset.load(models, loaded), options)
        weights = transforms.apply_to_set(chosen, options.transform)
        along = {"gradient-leak", "online"} & set(options.compat)  # fine-tunes run while the encoder is trained
        if along and (options.attack != "autoencoder" or options.transform.kind != "none"):
            raise InputError(f"{min(along)} is how the public code trains the paper's encoder (attack: autoencoder), without a transform")
        people = People(weights.table.concept, ImageSet.load(images), loaded, load_embedder(embedder, device))
        start = mean_context(loaded, weights.table.caption)
        final = weights.take(last_steps(weights.table))
        encoder = build(options, final.pairs, start, people.embeddings.shape[1], loaded, trunk).to(device)
        if options.attack == "linear":
            encoder.fit(people.embeddings[people.of_model].cpu(), list(weights.table.concept), options.components)
            log, calls = [], 0
        else:
            made_of = [*sorted(Path(__file__).parent.glob("*.py")), *(weightset.stack_or_manifest(path) for path in models), Path(images) / "manifest.csv"]
            inputs = files.stamps(path for path in (loaded.folder, embedder, trunk) if path)
            job = files.digest([options.model_dump(mode="json"), str(dtype), torch.__version__, [files.sha256(path) for path in made_of], inputs])
            folder = out / f".checkpoint-{job}"
            if along:
                log, calls = leak.fit(encoder, weights.table, people, loaded, options, recipe_of(models), folder, leak="gradient-leak" in along)
            else:
                log, calls = fit(encoder, weights, people, loaded, options, folder)
        save(out, encoder, options, final.pairs, start, people.embeddings.shape[1], trunk)
        files.write_csv(out / "train.csv", pd.DataFrame(log, columns=["step", *TERMS]))
        facts = {"models": [str(path) for path in models], "images": str(images), "base": str(base), "embedder": str(embedder), "device": str(device)}
        files.write_meta(out / "config.json", options, examples=len(weights), people=len(people.names), model_calls=calls, trunk=str(trunk or base), **facts)


def select(weights, options):
    """The examples an option set asks for: of the first `people`, and final weights only if it says so."""
    table = weights.table.assign(step=weights.table.step.astype(int))
    names = list(dict.fromkeys(table.concept))
    keep = table.concept.isin(names[: options.people or None]) & (table.step > 0)
    if options.examples == "final" or options.attack == "linear":
        keep &= table.step == table.groupby("run").step.transform("max")
    rows = torch.from_numpy(keep.to_numpy().nonzero()[0])
    if table[keep].concept.nunique() < 2:
        raise InputError("an encoder of weights needs models of at least two people to learn from")
    return weights.take(rows)


def recipe_of(models):
    """The recipe that `collect-weights` noted beside its model sets; an `InputError` if there is none, or they differ."""
    notes = [files.read_json(modelset.folder_of(path) / "manifest.csv.meta.json").get("options", {}).get("recipe") for path in models]
    if not notes[0] or any(note != notes[0] for note in notes):
        raise InputError("training along with fine-tunes starts these anew and needs model sets of `collect-weights`, all of one recipe")
    return FinetuneOptions(**notes[0])


def last_steps(table):
    """Row numbers of the last step of each fine-tune."""
    steps = table.step.astype(int)
    return (steps == steps.groupby(table.run).transform("max")).to_numpy().nonzero()[0]


class People:
    """The people behind the models: latents of their pictures, and their identity embeddings.

    names: list; of_model `(N,)`: index of each model's person; latents: list of `(n, C, h, w)`; embeddings `(people, e)`, L2-normalised means.
    """

    def __init__(self, concepts, images, base, embedder):
        self.names = list(dict.fromkeys(concepts))
        index = {name: number for number, name in enumerate(self.names)}
        self.of_model = torch.tensor([index[name] for name in concepts])
        self.latents, means = [], []
        for name in runtime.progress(self.names, "pictures"):
            pictures = images.where(concept=name)
            if not len(pictures):
                raise InputError(f"{images.folder} holds no picture of {name!r}, of whom there is a model")
            pixels = pictures.pixels()
            self.latents.append(base.encode_images(as_tensor(pixels)))
            means.append(torch.from_numpy(embedder.embed(pixels)).mean(0))
        self.embeddings = F.normalize(torch.stack(means), dim=-1).to(base.device)

    def batch(self, rows, generator, timesteps):
        """(latents, noise, timesteps) of one random picture of each model's person."""
        latents = [self.latents[person] for person in self.of_model[rows].tolist()]
        latents = torch.stack([mine[torch.randint(len(mine), (1,), generator=generator)[0]] for mine in latents])
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        return latents, noise, torch.randint(timesteps, (len(rows),), generator=generator).to(latents.device)


@torch.no_grad()
def mean_context(base, captions):
    """The mean conditioning `(L, d)` of the attacker's own captions: where z begins."""
    return base.encode_text(sorted(set(captions))).mean(0)


def build(options, pairs, start, embedding_size, base, trunk=None):
    """The untrained encoder of `options.attack`, initialised by `options.seed`. start: `(L, d)`."""
    module = importlib.import_module(f"tuneleak.attacks.weights.{options.attack}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        encoder = module.Encoder(pairs, start.cpu(), embedding_size, options)
        if hasattr(encoder, "set_trunk"):
            encoder.set_trunk(_text_encoder(trunk) if trunk else base.text_encoder)
    return encoder


def features_of(weights, options, base):
    """What the encoder of `options.attack` reads of every model, and after how many steps its weights were taken `(N,)`."""
    pairs = weights.pairs
    if "initial-known" in options.compat:
        pairs = _without_initial(weights, base)
    module = importlib.import_module(f"tuneleak.attacks.weights.{options.attack}")
    return module.Encoder.features(pairs, options), torch.tensor([int(step) for step in weights.table.step])


def fit(encoder, weights, people, base, options, folder):
    """The training loop; returns rows of the log and the number of samples sent through a UNet."""
    features, steps = features_of(weights, options, base)
    embeddings, rows = people.embeddings[people.of_model], torch.arange(len(weights))
    if hasattr(encoder, "begin"):
        more, rows = encoder.begin(weights, embeddings, options)
        features |= more
    runs = Runs(weights.table, rows)
    parameters = [value for value in encoder.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
    encoder.train()
    first, log, sums = checkpoint.load(folder, encoder, optimizer)
    with batched_lora.BatchedLora(base.unet, weights.layers) as lora:
        for step in runtime.progress(range(first, options.steps), f"train {options.attack}", total=options.steps - first):
            for group in optimizer.param_groups:
                group["lr"] = options.lr * rate(step, options.steps)
            generator = runtime.generator("weights-train", options.seed, step)
            drawn = runs.draw(options.batch, generator)
            batch = people.batch(drawn, generator, len(base.alphas_cumprod)) if options.denoise_weight else None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))  # dropout
                encoded = encoder({name: value[drawn].to(base.device) for name, value in features.items()}, steps[drawn].to(base.device), generator)
            lora.use({name: tuple(side.to(base.device) for side in pair) for name, pair in weights.chosen(drawn).items()})
            terms = losses(encoded, batch, embeddings[drawn], base, options)
            terms["loss"].backward()
            if not bool(torch.isfinite(terms["loss"])):
                raise InputError(f"the loss is not finite at step {step + 1}; lower lr")
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            sums = [total + float(terms[name].detach()) if name in terms else total for total, name in zip(sums, TERMS, strict=True)]
            if (step + 1) % LOG_EVERY == 0 or step + 1 == options.steps:
                since = (step % LOG_EVERY) + 1
                log.append((step + 1, *(total / since for total in sums)))
                sums = [0.0] * len(TERMS)
            if (step + 1) % options.checkpoint_every == 0 and step + 1 < options.steps:
                checkpoint.save(folder, step + 1, encoder, optimizer, log, sums)
    encoder.eval()
    if hasattr(encoder, "finish"):
        encoder.finish(features, embeddings, torch.tensor(sorted(set(range(len(weights))) - set(rows.tolist())), dtype=torch.long))
    checkpoint.drop(folder)
    return log, options.steps * options.batch if options.denoise_weight else 0


def losses(encoded, batch, targets, base, options):
    """{name: scalar}: the loss and its terms. targets `(n, e)`: identity embeddings of the models' people."""
    terms = {}
    if batch is not None:
        asked = Batch(*batch, encoded.z, torch.empty(0))
        terms["denoising"] = denoising_errors(base.output, asked, base.alphas_cumprod, base.prediction_type).mean()
    if encoded.embedding is not None:
        terms["cosine"] = (encoded.embedding * targets).sum(-1).mean()
        terms["contrast"] = F.cross_entropy(encoded.embedding @ targets.T / options.temperature, torch.arange(len(targets), device=targets.device))
    if encoded.kl is not None:
        terms["kl"] = encoded.kl.mean() / encoded.z[0].numel()
    weights = {"denoising": options.denoise_weight, "cosine": -options.identity_weight, "contrast": options.contrast_weight, "kl": options.kl_weight}
    return terms | {"loss": sum(weights[name] * term for name, term in terms.items())}


def rate(step, steps):
    """Share of the peak learning rate: linear warm-up, then cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - warm) / max(1, steps - warm)))))


class Runs:
    """Draws models for a batch: different people first, then one of each person's kept steps."""

    def __init__(self, table, rows):
        chosen = table.iloc[rows.tolist()]
        self.of_person = [rows[torch.tensor(list(mine))] for mine in chosen.groupby("concept", sort=False).indices.values()]

    def draw(self, count, generator):
        """Row numbers `(count,)`; people are repeated only if there are fewer than `count`."""
        order = torch.cat([torch.randperm(len(self.of_person), generator=generator) for _ in range(-(-count // len(self.of_person)))])[:count]
        return torch.stack([self.of_person[person][torch.randint(len(self.of_person[person]), (1,), generator=generator)[0]] for person in order.tolist()])


def save(out, encoder, options, pairs, start, embedding_size, trunk):
    """Write the encoder and, last, what is needed to build it again."""
    from safetensors.torch import save_file

    with files.atomic(out / "model.safetensors") as temporary:
        save_file({name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}, temporary)
    shapes = [[name, a.shape[1], a.shape[2], b.shape[1]] for name, (a, b) in pairs.items()]  # a list: their order matters
    shapes = {"layers": shapes, "models": len(next(iter(pairs.values()))[0]), "z": list(start.shape), "embedding": embedding_size}
    files.write_json(out / "config.json", {"options": options.model_dump(mode="json"), "shapes": shapes, "trunk": str(trunk or "")})


def load(folder, base, weights=None):
    """(encoder in evaluation mode, its `WeightsTrainOptions`) of a folder that `train` wrote; an `InputError` names what does not fit.

    weights: the `WeightSet` it is going to read, whose layers (and rank, if the encoder reads the factors themselves) must be those it learned from.
    """
    folder = Path(folder)
    config = files.read_object(folder / "config.json", "options", "shapes", "trunk")
    tensors = weightfiles.load_tensors(weightfiles.safetensors_file(folder, "model.safetensors"), "train the encoder again")
    try:
        options, shapes = WeightsTrainOptions(**config["options"]), config["shapes"]
        count = shapes["models"]
        pairs = {name: (torch.zeros(count, rank, inputs), torch.zeros(count, outputs, rank)) for name, rank, inputs, outputs in shapes["layers"]}
        encoder = build(options, pairs, torch.zeros(shapes["z"]), shapes["embedding"], base, config["trunk"] or None)
        encoder.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"{folder / 'model.safetensors'} does not fit its config.json ({told[:300]}); train the encoder again") from None
    if weights is not None:
        _check_fits(folder, options, pairs, weights.pairs)
    return encoder.to(base.device).eval(), options


def _check_fits(folder, options, learned, given):
    known, found = ({name: (a.shape[2], b.shape[1]) for name, (a, b) in pairs.items()} for pairs in (learned, given))
    if known != found:
        name = next(name for name in {**known, **found} if known.get(name) != found.get(name))
        raise InputError(f"the encoder {folder} learned from LoRAs of other layers than these: {name} is {found.get(name)} here and {known.get(name)} there")
    ranks = [next(iter(pairs.values()))[0].shape[1] for pairs in (learned, given)]
    if options.attack == "autoencoder" and ranks[0] != ranks[1]:
        raise InputError(f"the encoder {folder} learned from LoRAs of rank {ranks[0]} and cannot read those of rank {ranks[1]}; train one on such LoRAs")


def _without_initial(weights, base):
    """A - A_0 beside B, with the A_0 that the project's own fine-tunes drew: an oracle, for comparison with the public code only."""
    layers = {name: (a.shape[2], b.shape[1]) for name, (a, b) in weights.pairs.items()}
    ranks = weights.table["rank"].astype(int) if "rank" in weights.table else pd.Series([weights.rank] * len(weights))
    if (ranks != weights.rank).any():
        raise InputError("initial-known needs models of one rank")
    generators = [runtime.generator("finetune", row.concept, row.method, int(row.seed)) for row in weights.table.itertuples()]
    _, initial = initial_weights(layers, weights.rank, generators, torch.float32, "cpu")
    return {name: (a - initial[name][0].detach(), b) for name, (a, b) in weights.pairs.items()}


def _text_encoder(folder):
    from transformers import CLIPTextModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return CLIPTextModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).requires_grad_(False)
