"""The verb `train-embedder`: contrastive training of the copy, identity and CLIP embedders, and of the reader of factors."""

import random

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data import captions, population
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.errors import InputError
from tuneleak.models import augment, embedders, tokenizer, training
from tuneleak.models.precision import bfloat16_is_fast
from tuneleak.options import EmbedderOptions

TEMPERATURE = 0.1  # of the contrastive losses (SimCLR)


def train(images, out, options: EmbedderOptions, device="auto"):
    """Train one embedder on the ImageSets `images` (folders) and write `config.json`, `model.safetensors` (fp16) and `train.csv`.

    copy: two views of a picture attract, all others (among them the same person and background with another expression) repel.
    identity: two photographs of a person attract. factors: cross-entropy of every `factor_*` column. clip: open_clip's contrastive
    loss between pictures and captions, and for each attribute the choice between its phrases; also written as `text_encoder/` and
    `tokenizer/` folders, as Stable Diffusion uses CLIP's text tower.
    """
    device = runtime.pick_device(device)
    sets = [ImageSet.load(folder) for folder in images]
    table = pd.concat([item.table for item in sets], ignore_index=True).fillna("")
    pixels = torch.cat([torch.from_numpy(item.pixels().copy()) for item in sets])
    table, pixels = _restrict(table, pixels, options)
    torch.manual_seed(options.seed)
    size = pixels.shape[1]
    config = {"name": options.name, "kind": options.kind, "width": options.width, "dimensions": options.dimensions, "image_size": size}
    if options.kind == "factors":
        known = table[table["factor_mouth"] != ""] if "factor_mouth" in table else table[:0]
        if known.empty:
            raise InputError("train-embedder: no picture has factor_* columns; a reader of factors needs rendered faces")
        columns = [name for name in table if name.startswith("factor_")]
        config["factors"] = {name.removeprefix("factor_"): sorted(known[name].unique()) for name in columns}
        config["photograph_factors"] = [*population.PHOTOGRAPH_FACTORS, "background"]
        table, pixels = known.reset_index(drop=True), pixels[known.index.to_list()]
    words = tokenizer.build(length=options.context) if options.kind == "clip" else None
    if options.kind == "clip":
        config["tower"] = options.tower
        config["clip"] = embedders.clip_config(size, options.width, options.layers, options.context, len(words))
    network = embedders.build(config).to(device)
    batch_at, loss_of = {"copy": _copy_loss, "identity": _identity_loss, "factors": _factor_loss, "clip": _clip_loss}[options.kind](
        network, table, pixels, config, options, words
    )
    with runtime.output_lock(out):
        training.train(network, batch_at, loss_of, options, out, f"train {options.name}", ema=0.99)
        if options.kind != "clip" or options.tower:
            _refresh_statistics(network, batch_at, loss_of)
        training.save_half(network.state_dict(), f"{out}/model.safetensors")
        if options.kind == "clip":
            write_text_encoder(network, words, config["clip"]["text_cfg"], out)
        files.write_json(f"{out}/config.json", config)
        files.write_meta(
            f"{out}/config.json",
            options,
            images=[str(folder) for folder in images],
            pictures=len(pixels),
            parameters=sum(p.numel() for p in network.parameters()),
        )


def _restrict(table, pixels, options):
    """Keep every picture, or only those of concepts with an even or odd number (two identity embedders share nobody)."""
    if options.identities == "all":
        return table, pixels
    order = {concept: number for number, concept in enumerate(sorted(table.concept.unique()))}
    keep = table.concept.map(order) % 2 == (0 if options.identities == "even" else 1)
    return table[keep].reset_index(drop=True), pixels[torch.from_numpy(keep.to_numpy())]


def _half(network, *inputs):
    """Forward in bfloat16 where that is fast, outputs in float32."""
    device = inputs[0].device
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
        outputs = network(*inputs)
    if isinstance(outputs, dict):
        return {name: output.float() for name, output in outputs.items()}
    return outputs.float() if torch.is_tensor(outputs) else [output.float() for output in outputs]


def _nt_xent(first, second):
    """NT-Xent (SimCLR, eq. 1) of two aligned sets of features `(n, d)`."""
    features = F.normalize(torch.cat([first, second]), dim=-1)
    similarity = features @ features.T / TEMPERATURE
    similarity.fill_diagonal_(float("-inf"))
    count = len(first)
    return F.cross_entropy(similarity, torch.arange(2 * count, device=features.device).roll(count))


def _two_views(network):
    def loss_of(first, second):
        return _nt_xent(_half(network, first), _half(network, second)), {}

    return loss_of


def _copy_loss(network, table, pixels, config, options, words):
    twins = [rows for rows in _rows_by(table, "image_id") if len(rows) > 1]  # a photograph and the same one with another expression

    def batch_at(step):
        rng, pick = runtime.generator(options.name, options.seed, step), random.Random(f"{options.name}/{options.seed}/{step}")
        chosen = [row for rows in pick.sample(twins, min(len(twins), options.batch // 4)) for row in rows]
        chosen += pick.sample(range(len(table)), options.batch - len(chosen))
        x = as_tensor(pixels[chosen].numpy())
        return augment.view(x, rng), augment.view(x, rng)

    return batch_at, _two_views(network)


def _identity_loss(network, table, pixels, config, options, words):
    several = [rows for rows in _rows_by(table, "concept") if len(rows) > 1]

    def batch_at(step):
        rng, pick = runtime.generator(options.name, options.seed, step), random.Random(f"{options.name}/{options.seed}/{step}")
        pairs = [pick.sample(rows, 2) for rows in pick.sample(several, min(len(several), options.batch))]
        first, second = (as_tensor(pixels[[pair[side] for pair in pairs]].numpy()) for side in (0, 1))
        return augment.view(first, rng), augment.view(second, rng)

    return batch_at, _two_views(network)


def _factor_loss(network, table, pixels, config, options, words):
    labels = torch.tensor([[values.index(value) for value in table[f"factor_{name}"]] for name, values in config["factors"].items()])

    def batch_at(step):
        rng = runtime.generator(options.name, options.seed, step)
        chosen = torch.randint(len(pixels), (options.batch,), generator=rng)
        return augment.blur(augment.crop(as_tensor(pixels[chosen].numpy()), rng, 0.9), rng, options.blur), labels[:, chosen]

    def loss_of(x, truth):
        outputs = _half(network, x)
        outputs = [outputs[name] for name in config["factors"]]
        losses = [F.cross_entropy(output, label) for output, label in zip(outputs, truth, strict=True)]
        accuracy = torch.stack([(output.argmax(-1) == label).float().mean() for output, label in zip(outputs, truth, strict=True)])
        return torch.stack(losses).sum(), {"accuracy": accuracy.mean()}

    return batch_at, loss_of


def _clip_loss(network, table, pixels, config, options, words):
    rows = table.to_dict("records")
    # One picture per concept and step: two pictures with the same caption ("art style of ...") would be each other's negatives.
    groups = _rows_by(table, "concept")
    frequent, rare = [group for group in groups if len(group) >= 10], [group for group in groups if len(group) < 10]
    choices = captions.alternatives()

    def tokens_of(texts):
        return words(texts, padding="max_length", truncation=True, max_length=options.context, return_tensors="pt").input_ids

    phrases = tokens_of([f"a face with {phrase}" for texts in choices.values() for phrase in texts.values()])
    labels = torch.tensor(
        [[list(texts).index(row[f"factor_{name}"]) if row.get(f"factor_{name}") in texts else -1 for row in rows] for name, texts in choices.items()]
    )

    def batch_at(step):
        rng, pick = runtime.generator(options.name, options.seed, step), random.Random(f"{options.name}/{options.seed}/{step}")
        groups = pick.sample(frequent, min(len(frequent), options.batch // 3))
        groups += pick.sample(rare, min(len(rare), options.batch - len(groups)))
        chosen = [pick.choice(group) for group in groups]
        tokens = tokens_of([captions.for_training(rows[index], pick) for index in chosen])
        x = augment.colour(augment.crop(as_tensor(pixels[chosen].numpy()), rng, 0.9), rng, 0.05)
        return x, torch.cat([tokens, phrases]), labels[:, chosen]

    def loss_of(x, tokens, truth):
        image, text, scale = _half(network, x, tokens)
        logits = scale * image @ text[: len(x)].T
        target = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        # A caption names most of ten attributes and a few tell a batch apart; the expression is learned where only its phrases are compared
        pieces = (scale * image @ text[len(x) :].T).split([len(texts) for texts in choices.values()], dim=1)
        losses = {}
        for name, piece, label in zip(choices, pieces, truth, strict=True):
            losses[name] = F.cross_entropy(piece, label, ignore_index=-1, reduction="sum") / (label >= 0).sum().clamp(min=1)
        loss = loss + options.attribute_weight * torch.stack(list(losses.values())).sum()
        return loss, {"accuracy": (logits.argmax(-1) == target).float().mean(), **losses}

    return batch_at, loss_of


def _rows_by(table, column):
    return [rows.tolist() for rows in table.groupby(column, sort=True).indices.values()]


@torch.no_grad()
def _refresh_statistics(network, batch_at, loss_of, batches=40):
    """Recompute the batch normalisation's running statistics for the averaged weights, on batches like those of the training."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    device = next(network.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for number in range(batches):
        loss_of(*(part.to(device) for part in batch_at(-1 - number)))  # steps no training has
    network.eval()


def write_text_encoder(network, words, text, out):
    """Copy the text tower of an open_clip model into transformers' CLIPTextModel: same architecture, other names."""
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["width"],
            intermediate_size=4 * text["width"],
            projection_dim=text["width"],
            num_hidden_layers=text["layers"],
            num_attention_heads=text["heads"],
            max_position_embeddings=text["context_length"],
            hidden_act="gelu",
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    encoder.load_state_dict(text_tower_state(network.state_dict(), encoder.state_dict()))
    encoder.half().save_pretrained(f"{out}/text_encoder", safe_serialization=True)
    settings = files.read_json(f"{out}/text_encoder/config.json")
    settings.pop("torch_dtype", None)
    files.write_json(f"{out}/text_encoder/config.json", settings | {"dtype": "float32"})  # else it would stay fp16 beside float32 UNets
    words.save_pretrained(f"{out}/tokenizer")


def text_tower_state(source, target):
    """open_clip names -> transformers names (with or without the `text_model.` prefix, whichever `target` has); input projections are split in three."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in target) else ""
    state = {
        f"{prefix}embeddings.token_embedding.weight": source["token_embedding.weight"],
        f"{prefix}embeddings.position_embedding.weight": source["positional_embedding"],
        f"{prefix}final_layer_norm.weight": source["ln_final.weight"],
        f"{prefix}final_layer_norm.bias": source["ln_final.bias"],
    }
    renamed = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    layers = {name.split(".")[2] for name in source if name.startswith("transformer.resblocks.")}
    for layer in layers:
        ours, theirs = f"transformer.resblocks.{layer}.", f"{prefix}encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            for old, new in renamed.items():
                state[f"{theirs}{new}.{kind}"] = source[f"{ours}{old}.{kind}"]
            for part, value in zip("qkv", source[f"{ours}attn.in_proj_{kind}"].chunk(3), strict=True):
                state[f"{theirs}self_attn.{part}_proj.{kind}"] = value
    return state | {name: value for name, value in target.items() if name.endswith("position_ids")}
