"""The verb `train-base`: the UNet of an embedded base, a small Stable Diffusion trained from nothing on latents and captions.

Of kind pixel: `tuneleak.models.train_pixel_base`, on the same pictures.
"""

import random

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data import captions
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.errors import InputError
from tuneleak.models import schedule, train_pixel_base, training
from tuneleak.options import BaseOptions

# Stable Diffusion v1's schedule and sampler settings.
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
CAPTION_VARIANTS = 4  # descriptions drawn per face and kept encoded; drawing anew at each step would cost a text encoder pass per step


def build_unet(options: BaseOptions, latent_channels, latent_size, context_width):
    """A UNet2DConditionModel of Stable Diffusion's kind: cross-attention on every level, one residual block per level."""
    from diffusers import UNet2DConditionModel

    levels = len(options.block_out_channels)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=tuple(options.block_out_channels),
        layers_per_block=1,
        cross_attention_dim=context_width,
        attention_head_dim=4,
        norm_num_groups=options.norm_num_groups,
    )


def members(table, fold, seed):
    """Which rows of a table of named photographs a base trains on: a fold, or a random half of each person's photographs of both folds."""
    if fold in ("P", "Q"):
        return table.fold.isin(["", fold])
    chosen = []
    for _, rows in table[table.fold != ""].groupby("concept"):
        names = sorted(rows.image_id)
        random.Random(f"{fold}/{seed}/{rows.concept.iloc[0]}").shuffle(names)
        chosen += names[: len(names) // 2]
    return (table.fold == "") | table.image_id.isin(chosen)


def train(images, out, options: BaseOptions, autoencoder=None, text_encoder=None, device="auto"):
    """Train a UNet on the ImageSets `images`; rows with a `dose` are repeated as often as it says. autoencoder, text_encoder: folders (kind latent).

    Writes a diffusers UNet folder (fp16; of kind pixel with `classes.json`), `train.csv`, `members.csv` (image_id, concept, fold, dose of every named
    photograph it saw), and `options.snapshots` snapshots of the weights along the way.
    """
    if options.kind == "latent" and not (autoencoder and text_encoder):
        raise InputError("a base of kind latent needs --autoencoder and --text-encoder; of kind pixel it needs neither")
    device = runtime.pick_device(device)
    sets = [ImageSet.load(folder) for folder in images]
    table = pd.concat([item.table for item in sets], ignore_index=True).fillna("")
    keep = members(table, options.fold, options.seed)
    if "dose" not in table:
        table["dose"] = ""
    captions_of_all = list(table.caption)
    pixels = np.concatenate([item.pixels() for item in sets])[keep.to_numpy()]
    table = table[keep].reset_index(drop=True)
    weights = torch.tensor([float(value or 1) for value in table.dose])
    with runtime.output_lock(out):
        named = table[table.fold != ""]  # everybody trains on the public pictures
        files.write_csv(f"{out}/members.csv", named[["image_id", "concept", "fold", "dose"]])
        if options.kind == "pixel":
            train_pixel_base.train(pixels, table, captions_of_all, weights, out, options, images, device)
        else:
            _train_latent(pixels, table, weights, autoencoder, text_encoder, out, options, images, device)


def _train_latent(pixels, table, weights, autoencoder, text_encoder, out, options, images, device):
    latents = _encode_pictures(pixels, autoencoder, device)
    contexts, first, variants, empty = _encode_captions(table, text_encoder, options.seed, device)
    torch.manual_seed(options.seed)
    unet = build_unet(options, latents.shape[1], latents.shape[2], contexts.shape[2]).to(device)
    alphas_cumprod = schedule.alphas_cumprod(SCHEDULER).float().to(device)

    def batch_at(step):
        rng = runtime.generator("base", options.seed, step)  # twins of one seed draw the same rows, noise and timesteps
        chosen = torch.multinomial(weights, options.batch, replacement=True, generator=rng)
        variant = (torch.rand(options.batch, generator=rng) * variants[chosen]).long()
        dropped = torch.rand(options.batch, generator=rng) < options.caption_dropout
        noise = torch.randn(options.batch, *latents.shape[1:], generator=rng)
        return chosen, first[chosen] + variant, dropped, noise, torch.randint(len(alphas_cumprod), (options.batch,), generator=rng)

    def loss_of(chosen, described, dropped, noise, timestep):
        context = torch.where(dropped.view(-1, 1, 1), empty, contexts[described].float())
        abar = alphas_cumprod[timestep].view(-1, 1, 1, 1)
        noisy = (abar.sqrt() * latents[chosen] + (1 - abar).sqrt() * noise).contiguous(memory_format=torch.channels_last)  # a tenth faster on a CPU
        return F.mse_loss(unet(noisy, timestep, context).sample, noise), {}

    training.train(unet, batch_at, loss_of, options, out, f"train base {options.name}", ema=options.ema, snapshots=options.snapshots)
    training.save_half(unet.state_dict(), f"{out}/diffusion_pytorch_model.safetensors")
    unet.save_config(out)
    files.write_meta(
        f"{out}/config.json", options, images=[str(folder) for folder in images], pictures=len(table), parameters=sum(p.numel() for p in unet.parameters())
    )


@torch.no_grad()
def _encode_pictures(pixels, folder, device):
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).eval().to(device)
    batches = runtime.progress(range(0, len(pixels), 64), "encode pictures")
    latents = [autoencoder.encode(as_tensor(pixels[start : start + 64]).to(device)).latent_dist.mean for start in batches]
    return torch.cat(latents) * autoencoder.config.scaling_factor


@torch.no_grad()
def _encode_captions(table, folder, seed, device):
    """All captions encoded once: contexts `(n, tokens, width)` in half precision, first index and number of variants per picture, and the empty caption."""
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = CLIPTextModel.from_pretrained(f"{folder}/text_encoder", dtype=torch.float32, use_safetensors=True).eval().to(device)
    tokenizer = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
    index, first, variants = {}, [], []
    texts = []
    for row in table.to_dict("records"):
        rng = random.Random(f"captions/{seed}/{row['image_id']}")
        drawn = [captions.for_training(row, rng) for _ in range(CAPTION_VARIANTS)]
        if len(set(drawn)) == 1:  # an artist's caption: one encoding serves all of its pictures
            if drawn[0] not in index:
                index[drawn[0]] = len(texts)
                texts.append(drawn[0])
            first.append(index[drawn[0]])
            variants.append(1)
        else:
            first.append(len(texts))
            variants.append(len(drawn))
            texts += drawn

    def encode(batch):
        tokens = tokenizer(batch, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        return encoder(tokens).last_hidden_state

    batches = runtime.progress(range(0, len(texts), 256), "encode captions")
    contexts = torch.cat([encode(texts[start : start + 256]).half() for start in batches])
    return contexts, torch.tensor(first), torch.tensor(variants, dtype=torch.float32), encode([""])[0]


def check_parts(autoencoder, text_encoder, unet):
    """Raise `InputError` unless the three parts of a pipeline fit each other."""
    if unet.config.in_channels != autoencoder.config.latent_channels:
        raise InputError(f"the UNet expects {unet.config.in_channels} latent channels, the autoencoder gives {autoencoder.config.latent_channels}")
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise InputError(f"the UNet expects a context of width {unet.config.cross_attention_dim}, the text encoder gives {text_encoder.config.hidden_size}")
