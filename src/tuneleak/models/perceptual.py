"""Perceptual features of pictures, differentiable in the pixels: what a public network's layers say, pooled and put side by side.

Two kinds of network: an embedder of this package (a residual trunk), or VGG19 (Simonyan & Zisserman 2015) from a safetensors file with the names of
torchvision and timm (`features.0.weight`, ...). Neither may have seen a private picture: its features are used as if they were public.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak.errors import InputError
from tuneleak.models import weights
from tuneleak.models.embedders import Trunk, load_embedder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Perceptual(nn.Module):
    """RGB `(n, 3, h, w)` in [-1, 1] -> features `(n, d)`: the output of every stage, averaged over a `pool` x `pool` grid (0: not pooled).

    stages: modules run one after the other; side: picture size they expect (None: any); mean, std: of the pictures in [0, 1] that they were trained on.
    """

    def __init__(self, stages, pool, side=None, mean=(0.5,) * 3, std=(0.5,) * 3):
        super().__init__()
        self.stages, self.pool, self.side = nn.ModuleList(stages), pool, side
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, x):
        if self.side and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        x, found = ((x + 1) / 2 - self.mean) / self.std, []
        for stage in self.stages:
            x = stage(x)
            pooled = F.adaptive_avg_pool2d(x, self.pool) if self.pool and min(x.shape[-2:]) > self.pool else x
            found.append(pooled.flatten(1))
        return torch.cat(found, 1)


def load(path, pool, device="cpu"):
    """Open the network at `path`: the folder of an embedder, or a safetensors file with the weights of VGG19."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return Perceptual(_vgg19(path), pool, mean=IMAGENET_MEAN, std=IMAGENET_STD).to(device)
    embedder = load_embedder(path, device)
    trunk = getattr(getattr(embedder, "network", None), "trunk", getattr(embedder, "network", None))
    if not isinstance(trunk, Trunk):
        raise InputError(f"{path} has no layers to read; give a copy or identity embedder, a reader of factors, or VGG19 as safetensors")
    return Perceptual([trunk.stem, *trunk.stages], pool, embedder.config["image_size"]).to(device)


def _vgg19(path):
    """VGG19's convolutions in stages that each end with a rectifier; the pooling between them belongs to the stage after it."""
    from torchvision.models import vgg19

    layers = vgg19(weights=None).features
    names = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    with weights.opened(path) as handle:
        others = [name for name in handle.keys() if not name.startswith("features.")]  # noqa: SIM118 (safe_open is no mapping)
    found = weights.read_tensors(path, {name: tuple(tensor.shape) for name, tensor in names.items()}, ignore=others)
    layers.load_state_dict({name.removeprefix("features."): tensor.float() for name, tensor in found.items()})
    stages, current = [], []
    for layer in layers:
        current.append(nn.ReLU() if isinstance(layer, nn.ReLU) else layer)  # torchvision's works in place, on what was just kept
        if isinstance(layer, nn.ReLU):
            stages.append(nn.Sequential(*current))
            current = []
    return stages
