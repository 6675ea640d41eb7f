"""The paper's attack: the variational network autoencoder (arXiv 2409.08482; dossier sections 2.1 to 2.7).

Every matrix A and B is a one-dimensional signal of r channels, read by convolutions of its own into one token. A learned task token, a token of the
fine-tuning step and the matrix tokens go through a text transformer without causal mask or positions; two linear heads turn its first L outputs into
mean and log-variance of z, the conditioning of the victim's own UNet. Its decoder is that UNet; its loss is the denoising loss.

By default it is given what a real adversary has, A and B as released, and z at attack is its mean. Like the other attacks it starts at the mean encoding of
the training captions, which a short training would not reach by itself. `compat` reproduces choices of the public code: `random-start` starts z at random,
`initial-known` reads A - A_0 in place of A (nobody but the victim knows A_0), `sample-at-attack` keeps the noise of z when attacking, `gradient-leak`
trains while the fine-tunes run and leaves the encoder's gradient in them, `online` does the same and leaves none (`tuneleak.attacks.weights.leak`).
As published, the transformer is pretrained and frozen; `train_trunk` trains it along.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak.attacks.weights.encoded import Encoded

BLOCKS = 4


class Tokenisers(nn.Module):
    """G tokenisers for matrices of one shape, each with weights of its own: `(G, n, r, length)` -> tokens `(G, n, width)`.

    Four blocks of two convolutions of width 3 with instance normalisation, the last one to a single channel, then a linear map. Written as batched
    products, because G small networks one after another cost many times their arithmetic.
    """

    def __init__(self, count, channels, length, width):
        super().__init__()
        self.first = nn.ParameterList(_convolution(count, channels, channels) for _ in range(BLOCKS))
        self.second = nn.ParameterList(_convolution(count, channels, channels if block + 1 < BLOCKS else 1) for block in range(BLOCKS))
        self.out = nn.Parameter(_uniform((count, length + 1, width), length))

    def forward(self, x):
        for block, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            x = F.leaky_relu(x) if block else x
            x = convolve(normalise(F.leaky_relu(convolve(normalise(x), first))), second)
        return torch.tanh(x[:, :, 0]) @ self.out[:, :-1] + self.out[:, -1:]


def convolve(x, weight):
    """Convolutions of width 3 with zero padding: x `(G, n, c, length)`, weight `(G, o, 3 c + 1)` (last column: bias) -> `(G, n, o, length)`."""
    count, n, channels, length = x.shape
    windows = F.pad(x, (1, 1)).unfold(3, 3, 1).permute(0, 2, 4, 1, 3).reshape(count, 3 * channels, n * length)
    return (weight[..., :-1] @ windows + weight[..., -1:]).view(count, -1, n, length).transpose(1, 2)


def normalise(x):
    """Instance normalisation of each row `(..., length)`, without parameters."""
    return F.layer_norm(x, x.shape[-1:])


def _convolution(count, inputs, outputs):
    return nn.Parameter(_uniform((count, outputs, 3 * inputs + 1), 3 * inputs))


def _uniform(shape, inputs):
    """torch's initialisation of convolutions and linear maps: U(-1 / sqrt(inputs), 1 / sqrt(inputs))."""
    return (torch.rand(shape) * 2 - 1) * inputs**-0.5


class Encoder(nn.Module):
    """pairs: training models (shapes). start `(L, d)`: where z starts. options: `WeightsTrainOptions`. Call `set_trunk` before use."""

    def __init__(self, pairs, start, embedding_size, options):
        super().__init__()
        self.options, self.shape = options, tuple(start.shape)
        self.register_buffer("start", torch.zeros_like(start) if "random-start" in options.compat else start.clone())
        self.trunk, self.norm = None, None
        self.names = [f"{name}.{side}" for name in pairs for side in ("A", "B")]
        self.sizes = [(pair[0].shape[1], pair[0].shape[2] if side == "A" else pair[1].shape[1]) for pair in pairs.values() for side in ("A", "B")]

    def set_trunk(self, text_encoder):
        """Take the transformer of a CLIP text encoder (a copy), and make everything that depends on its width."""
        text_encoder = getattr(text_encoder, "text_model", text_encoder)
        self.trunk, self.norm = copy.deepcopy(text_encoder.encoder).float(), copy.deepcopy(text_encoder.final_layer_norm).float()
        for network in (self.trunk, self.norm):
            network.requires_grad_(self.options.train_trunk)
        width = text_encoder.config.hidden_size
        self.alike = {size: [number for number, found in enumerate(self.sizes) if found == size] for size in dict.fromkeys(self.sizes)}
        self.tokenisers = nn.ModuleList(Tokenisers(len(numbers), *size, width) for size, numbers in self.alike.items())
        self.task = nn.Parameter(torch.randn(width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.before = nn.LayerNorm(width)
        self.mean, self.log_variance = (nn.Linear(width, self.shape[1]) for _ in range(2))
        if "random-start" not in self.options.compat:
            nn.init.zeros_(self.mean.weight)
            nn.init.zeros_(self.mean.bias)
        if 2 + len(self.sizes) < self.shape[0]:
            self.more = nn.Parameter(torch.randn(self.shape[0] - 2 - len(self.sizes), width) * 0.02)  # fewer matrices than tokens of a caption

    @staticmethod
    def features(pairs, options):
        """`<layer>.A (N, r, in)` and `<layer>.B (N, r, out)`, float32, as released."""
        found = {}
        for name, (a, b) in pairs.items():
            found |= {f"{name}.A": a.float(), f"{name}.B": b.transpose(1, 2).float()}
        return found

    def forward(self, features, steps, generator=None):
        """`Encoded` of a batch; steps `(n,)`: after how many optimiser steps the weights were taken; generator: draws z (None: its mean)."""
        read = {}
        for tokenisers, numbers in zip(self.tokenisers, self.alike.values(), strict=True):
            read |= dict(zip(numbers, tokenisers(torch.stack([features[self.names[number]] for number in numbers])), strict=True))
        first = [self.task.expand(len(steps), -1), self.time(sinusoidal(steps, len(self.task)))]
        tokens = torch.stack([*first, *(read[number] for number in range(len(self.names)))], 1)
        if hasattr(self, "more"):
            tokens = torch.cat([tokens, self.more.expand(len(tokens), -1, -1)], 1)
        hidden = self.trunk(inputs_embeds=self.before(tokens), attention_mask=None, is_causal=False)[0]
        hidden = self.norm(hidden)[:, : self.shape[0]]
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).flatten(1).sum(1)
        if generator is None:
            return Encoded(self.start + mean, kl=kl)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        return Encoded(self.start + mean + noise * (0.5 * log_variance).exp(), kl=kl)


def sinusoidal(steps, width):
    """Embedding `(n, width)` of step numbers `(n,)`, cosines first (diffusers' flip_sin_to_cos, shift 0)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=steps.device) / half)
    angles = steps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
