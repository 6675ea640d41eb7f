"""The linear control: whitening, principal components and ridge regression from the updates B A to an embedding, in dual form.

No update is ever formed, so it works at any size: with every layer scaled to unit mean squared norm, all that is needed of N training models is
their N x N matrix of inner products. It depends on the updates alone, so a change of factors does nothing to it.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak.attacks.weights.encoded import Encoded
from tuneleak.models.lora_algebra import inner_products


class Encoder(nn.Module):
    """The fitted map, with the training models inside: `fit` fills it. It gives an embedding and no conditioning."""

    def __init__(self, pairs, start, embedding_size, options):
        super().__init__()
        self.layers = list(pairs)
        count = len(next(iter(pairs.values()))[0])
        for number, (a, b) in enumerate(pairs.values()):
            self.register_buffer(f"a_{number}", a.float())
            self.register_buffer(f"b_{number}", b.float())
        self.register_buffer("scales", torch.ones(len(pairs), dtype=torch.float64))
        self.register_buffer("kernel_mean", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("dual", torch.zeros(count, embedding_size, dtype=torch.float64))
        self.register_buffer("target_mean", torch.zeros(embedding_size, dtype=torch.float64))
        self.penalty = None

    @staticmethod
    def features(pairs, options):
        """The factors themselves; only products in which the factorisation cancels are taken of them."""
        return {f"{name}.{side}": matrix.float() for name, pair in pairs.items() for side, matrix in zip("AB", pair, strict=True)}

    def forward(self, features, steps, generator=None):
        """`Encoded` without z."""
        kernel = 0.0
        for number, name in enumerate(self.layers):
            mine = getattr(self, f"a_{number}"), getattr(self, f"b_{number}")
            kernel = kernel + inner_products((features[f"{name}.A"], features[f"{name}.B"]), mine) / self.scales[number]
        centred = kernel - kernel.mean(1, keepdim=True) - self.kernel_mean + self.kernel_mean.mean()
        return Encoded(None, F.normalize(centred @ self.dual + self.target_mean, dim=-1).float())

    def fit(self, targets, groups, components=0):
        """See `fit`; targets `(N, d)` of the models that the encoder was made with."""
        pairs = {name: (getattr(self, f"a_{number}"), getattr(self, f"b_{number}")) for number, name in enumerate(self.layers)}
        scales, kernel_mean, dual, target_mean, self.penalty = fit(pairs, targets.to(self.dual.device), groups, components)
        scales = torch.tensor([scales[name] for name in self.layers], dtype=torch.float64)
        for name, value in (("scales", scales), ("kernel_mean", kernel_mean), ("dual", dual), ("target_mean", target_mean)):
            setattr(self, name, value.to(self.dual.device))
        return self


def fit(pairs, targets, groups, components=0, penalties=(1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), folds=5):
    """Fit to targets `(N, d)`: (scales by layer, kernel mean `(N,)`, dual `(N, d)`, mean target `(d,)`, penalty).

    The penalty is the one of least squared error when whole groups are left out, in `folds` parts. groups `(N,)`: labels (people) that must not be
    in two parts, or a penalty would be chosen for recognising the same person again. components: how many principal components are kept (0: all).
    In the basis of whitened components every one is shrunk alike: dual = E (L + p)^-1 E^T Y, with p the penalty times the mean eigenvalue.
    """
    scales = {name: float(torch.diagonal(inner_products(pair, pair)).mean().clamp_min(1e-30)) for name, pair in pairs.items()}
    kernel = sum(inner_products(pairs[name], pairs[name]) / scale for name, scale in scales.items())
    targets, kernel_mean = targets.double(), kernel.mean(0)
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    part = torch.tensor([names[name] % folds for name in groups])
    errors = torch.zeros(len(penalties), dtype=torch.float64)
    for fold in range(min(folds, len(names))):
        inside, outside = (part != fold).nonzero()[:, 0], (part == fold).nonzero()[:, 0]
        if not len(inside) or not len(outside):
            continue
        mean = kernel[inside][:, inside].mean(0)
        crossed = kernel[outside][:, inside]
        crossed = crossed - crossed.mean(1, keepdim=True) - mean + mean.mean()
        for number, penalty in enumerate(penalties):
            predicted = crossed @ _dual(kernel[inside][:, inside], targets[inside], penalty, components) + targets[inside].mean(0)
            errors[number] += (predicted - targets[outside]).square().sum()
    penalty = penalties[int(errors.argmin())]
    return scales, kernel_mean, _dual(kernel, targets, penalty, components), targets.mean(0), penalty


def _dual(kernel, targets, penalty, components):
    n = len(kernel)
    centred = kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
    values, vectors = torch.linalg.eigh((centred + centred.T) / 2)
    keep = min(components or n, n - 1)
    values, vectors = values[-keep:].clamp_min(0), vectors[:, -keep:]
    return vectors @ ((vectors.T @ (targets - targets.mean(0))) / (values + penalty * values.mean() + 1e-12)[:, None])
