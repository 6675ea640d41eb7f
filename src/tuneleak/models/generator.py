"""A small class-conditional generator of pictures, for methods that train one from scratch."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak.errors import InputError

COARSE = 4  # side of the first grid
FOLDED = ((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1))  # [phase][tap of a kernel of 2] -> taps of a kernel of 3 that fall on one pixel after doubling


class Up(nn.Module):
    """Twice the side: a convolution after nearest-neighbour doubling, with a shortcut of one weight per pixel.

    Whatever works on pixels alone comes before the doubling, with which it commutes (each pixel fourfold leaves the means of a group norm as they are).
    """

    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, inputs), inputs)
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        doubled = F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")
        return doubled_convolution(F.silu(self.norm(x)), self.convolution.weight, self.convolution.bias) + doubled


def doubled_convolution(x, weight, bias):
    """Convolution `weight (out, in, 3, 3)` of x `(n, in, h, w)` doubled by nearest neighbours, `(n, out, 2 h, 2 w)`, without doubling it.

    Of nine taps several fall on one pixel; added up, each of the four phases of the output is a 2 x 2 convolution of x (sub-pixel convolution, Shi et al. 2016,
    arXiv 1609.05158): 4/9 of the multiplications.
    """
    (n, _, h, w), out = x.shape, len(weight)
    fold = torch.tensor(FOLDED, dtype=weight.dtype, device=weight.device)
    kernels = torch.einsum("pyr,qxs,oirs->pqoiyx", fold, fold, weight).flatten(0, 2)
    phases = F.conv2d(F.pad(x, (1, 1, 1, 1)), kernels, bias.repeat(4)).view(n, 2, 2, out, h + 1, w + 1)
    rows = [torch.stack([phases[:, p, q, :, p : p + h, q : q + w] for q in (0, 1)], -1) for p in (0, 1)]
    return torch.stack(rows, -3).reshape(n, out, 2 * h, 2 * w)


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
