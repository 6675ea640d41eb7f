"""How many weights DP-LDM trains in each architecture of the paper, counted on networks without weights: the verb `count-trainable`.

Configurations are those of the authors' files (dossier of facts, not code), written as diffusers UNets, which have the same layers and so the same
counts. The abstract's "about 90 % fewer" is a number per architecture, which is what is written here.
"""

import pandas as pd
import torch

from tuneleak import files
from tuneleak.metrics.finextract import COLUMNS
from tuneleak.privacy import trainable

COMMON = {"act_fn": "silu", "norm_num_groups": 32}
# name: UNet, first attention block trained, further weights: of a conditioning embedder that is trained too
ARCHITECTURES = {
    "imagenet32-to-cifar10": {
        "unet": {"sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (128, 256, 256, 512),
                 "layers_per_block": 2, "cross_attention_dim": 512,
                 "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                 "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "attention_head_dim": 8},
        "first": 8, "embedder": 1001 * 512,
    },
    "laion-to-celeba-hq-text": {
        "unet": {"sample_size": 32, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
                 "layers_per_block": 2, "cross_attention_dim": 1280,
                 "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                 "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "attention_head_dim": 8},
        "first": 0, "embedder": 543_000_000,  # BERT-like text encoder of 32 layers, without its output layer; rounded as its size could be read
    },
    "stable-diffusion-v1": {
        "unet": {"sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280),
                 "layers_per_block": 2, "cross_attention_dim": 768,
                 "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                 "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "attention_head_dim": 8},
        "first": 0, "embedder": 0,
    },
}  # fmt: skip


def build(name):
    """The UNet of an architecture on the meta device: shapes without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**COMMON | ARCHITECTURES[name]["unet"])


def counts(name):
    """{total, attention, trained_unet, trained, all}: weights of the UNet, of all attention blocks, of those trained, the same with the embedder,
    and UNet with embedder."""
    unet, plan = build(name), ARCHITECTURES[name]
    sizes = {key: parameter.numel() for key, parameter in unet.named_parameters()}
    blocks = len(trainable.attention_blocks(unet))
    chosen = trainable.select(unet, "attention", [plan["first"], blocks])
    trained = sum(sizes[key] for key in chosen.names)
    attention = sum(sizes[key] for key in trainable.select(unet, "attention").names)
    total = sum(sizes.values())
    return {
        "total": total,
        "attention": attention,
        "blocks": blocks,
        "trained_unet": trained,
        "trained": trained + plan["embedder"],
        "all": total + plan["embedder"],
    }


def count_trainable(out):
    """Write rows of the metrics table: per architecture (`world`) the trained weights and their share of UNet and embedder together."""
    rows = []
    for name in ARCHITECTURES:
        found = counts(name)
        key = {"system": "dp-ldm", "world": name, "base": "", "method": "attention", "attack": "", "defence": "", "setting": "", "seeds": ""}
        for metric, value in (("trained weights", found["trained"]), ("trained share", found["trained"] / found["all"])):
            rows.append(key | {"metric": metric, "value": value, "ci_low": value, "ci_high": value, "n": found["all"]})
    files.write_csv(out, pd.DataFrame(rows, columns=COLUMNS))
    files.write_meta(out, None)
