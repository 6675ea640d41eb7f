"""A small class-conditional generator of pictures, for methods that train one from scratch."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak.errors import InputError

COARSE = 4  # side of the first grid


class Up(nn.Module):
    """Twice the side: a convolution after nearest-neighbour doubling, with a shortcut of one weight per pixel."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, inputs), inputs)
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.convolution(F.silu(self.norm(x))) + self.shortcut(x)


class Generator(nn.Module):
    """(noise `(n, latent)`, class numbers `(n,)`) -> pictures `(n, 3, side, side)` in (-1, 1).

    width: channels at full size; they double with every halving of the side, up to eight times. side: 4 times a power of two.
    """

    def __init__(self, classes, side, width=16, latent=32):
        super().__init__()
        doublings = (side // COARSE).bit_length() - 1
        if side != COARSE << max(0, doublings) or doublings < 1:
            raise InputError(f"the generator draws pictures whose side is 8, 16, 32, ... pixels, not {side}")
        widths = [width * min(8, 1 << (doublings - level)) for level in range(doublings + 1)]
        self.latent = latent
        self.classes = nn.Embedding(classes, latent)
        self.first = nn.Linear(2 * latent, widths[0] * COARSE * COARSE)
        self.levels = nn.ModuleList(Up(inputs, outputs) for inputs, outputs in itertools.pairwise(widths))
        self.norm = nn.GroupNorm(math.gcd(8, widths[-1]), widths[-1])
        self.last = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, noise, classes):
        x = self.first(torch.cat([noise, self.classes(classes)], 1)).view(len(noise), -1, COARSE, COARSE)
        for level in self.levels:
            x = level(x)
        return torch.tanh(self.last(F.silu(self.norm(x))))
