"""Batched augmentations of float pictures `(n, 3, h, w)` in [-1, 1], drawn from an explicit generator."""

import io

import numpy as np
import torch
from torch.nn import functional as F


def crop(x, rng, smallest=0.8):
    """A random square crop of at least `smallest` of the side, resized back: one affine grid per picture."""
    scale = smallest + (1 - smallest) * torch.rand(len(x), generator=rng)
    shift = (torch.rand(len(x), 2, generator=rng) * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), padding_mode="reflection", align_corners=False)


def colour(x, rng, strength=0.15):
    """Random gain and offset per channel."""
    gain = 1 + strength * (torch.rand(len(x), 3, 1, 1, generator=rng) * 2 - 1)
    offset = strength * (torch.rand(len(x), 3, 1, 1, generator=rng) * 2 - 1)
    return (x * gain + offset).clamp(-1, 1)


def blur(x, rng, largest=1.2):
    """Gaussian blur of a random width up to `largest` pixels, one width per call: stands for an autoencoder's softness."""
    sigma = float(torch.rand((), generator=rng)) * largest + 1e-3
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, 7)
    kernel = (taps.transpose(1, 2) @ taps).expand(3, 1, 7, 7)
    return F.conv2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), kernel, groups=3)


def jpeg(x, rng, lowest=40, share=0.25):
    """JPEG of random quality on a random share of the pictures."""
    from PIL import Image

    x = x.clone()
    for index in torch.nonzero(torch.rand(len(x), generator=rng) < share).flatten().tolist():
        quality = int(torch.randint(lowest, 96, (), generator=rng))
        pixels = ((x[index].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        x[index] = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 127.5 - 1
    return x


def view(x, rng, smallest=0.8):
    """Crop, colour, blur and JPEG together."""
    return jpeg(blur(colour(crop(x, rng, smallest), rng), rng), rng)
