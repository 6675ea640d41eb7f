"""Per-picture gradients of single layers from what went in and what came back, mostly without ever writing them down.

For a linear layer the gradient of picture i is the sum over positions t of b_t a_t^T (a: its input, b: the gradient at its output). Its squared norm
is sum_{t,t'} <a_t, a_t'> <b_t, b_t'> (the ghost norm: Goodfellow 2015, arXiv 1510.01799; Li et al. 2021, arXiv 2110.05679), and a sum over pictures
weighted by c_i is one matrix product (book-keeping: Bu et al. 2022, arXiv 2210.00038). The timesteps and noises averaged for one picture lengthen its
sum over t, which keeps all of this exact.

In exact arithmetic, that is. Where the terms of a picture cancel, both numbers are mostly rounding, and the bound must hold there too. Gram matrices, and
sums that cost little, are computed in float64; beside the norm of a product stands the slack by which rounding may make it longer. A float32 sum over T
positions is off by T u sum_t |a_t| |b_t| at most (u = 2^-24), and with independent roundings hardly ever by more than a few sqrt(T) u sum_t |a_t| |b_t| (Higham
and Mary 2019, doi 10.1137/18M1226312).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak.errors import InputError

UNIT = torch.finfo(torch.float32).eps / 2


class Linear:
    """Norms and weighted sums of `nn.Linear`; `inputs` `(rows, ..., in)`, `grads` `(rows, ..., out)`, rows of one picture adjacent."""

    def __init__(self, module, inputs, grads, pictures):
        self.module = module
        self.a, self.b = inputs.reshape(pictures, -1, inputs.shape[-1]), grads.reshape(pictures, -1, grads.shape[-1])

    def squares(self):
        """`(2, pictures)` float64: squares of norm and slack of the gradients of those of weight and bias that are trained."""
        return _squares(self.a if trained(self.module.weight) else None, self.b, trained(getattr(self.module, "bias", None)))

    def weighted(self, c):
        """{parameter: sum_i c_i g_i}; c `(pictures,)`."""
        b, found = self.b * c[:, None, None], {}
        if trained(self.module.weight):
            found[self.module.weight] = b.flatten(0, 1).T @ self.a.flatten(0, 1)
        if trained(getattr(self.module, "bias", None)):
            found[self.module.bias] = (c.double() @ self.b.sum(1, dtype=torch.float64)).to(b.dtype)
        return found


class Conv2d:
    """The same for `nn.Conv2d`, a linear layer on patches."""

    def __init__(self, module, inputs, grads, pictures):
        if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise InputError("ghost norms know plain convolutions only (no groups, zero padding); use gradients=hooks")
        self.module, self.inputs, self.grads, self.pictures = module, inputs, grads, pictures

    def squares(self):
        m, a, b = self.module, None, self.grads.flatten(2).transpose(1, 2)
        if trained(m.weight):
            a = F.unfold(self.inputs, m.kernel_size, m.dilation, m.padding, m.stride).transpose(1, 2)
            a = a.reshape(self.pictures, -1, a.shape[-1])
        return _squares(a, b.reshape(self.pictures, -1, b.shape[-1]), trained(m.bias))

    def weighted(self, c):
        m, found = self.module, {}
        b = self.grads * c.repeat_interleave(len(self.grads) // self.pictures)[:, None, None, None]
        if trained(m.weight):
            found[m.weight] = torch.nn.grad.conv2d_weight(self.inputs, m.weight.shape, b, m.stride, m.padding, m.dilation)
        if trained(m.bias):
            own = self.grads.sum((2, 3), dtype=torch.float64).view(self.pictures, -1, b.shape[1]).sum(1)
            found[m.bias] = (c.double() @ own).to(b.dtype)
        return found


class Norm:
    """`nn.GroupNorm` and `nn.LayerNorm`: their few weights have gradients that are simply written down."""

    def __init__(self, module, inputs, grads, pictures):
        self.module = module
        if isinstance(module, nn.GroupNorm):
            normal = F.group_norm(inputs, module.num_groups, eps=module.eps).flatten(2).transpose(1, 2)
            b = grads.flatten(2).transpose(1, 2)
        else:
            normal, b = F.layer_norm(inputs, module.normalized_shape, eps=module.eps), grads
        width = module.weight.numel()
        normal, b = normal.reshape(pictures, -1, width), b.reshape(pictures, -1, width)
        self.gradients = {}
        if trained(module.weight):
            self.gradients[module.weight] = (normal * b).sum(1)
        if trained(module.bias):
            self.gradients[module.bias] = b.sum(1)

    def squares(self):
        found = sum(value.double().square().sum(1) for value in self.gradients.values())
        return torch.stack([found, torch.zeros_like(found)])  # what is added up is what was measured

    def weighted(self, c):
        return {parameter: (c @ value).view(parameter.shape) for parameter, value in self.gradients.items()}


class Embedding:
    """`nn.Embedding`: positions with equal index share a row."""

    def __init__(self, module, inputs, grads, pictures):
        self.module = module
        self.ids, self.b = inputs.reshape(pictures, -1), grads.reshape(pictures, -1, grads.shape[-1])

    def squares(self):
        b, same = self.b.double(), self.ids[:, :, None] == self.ids[:, None, :]
        return torch.stack([(same * (b @ b.transpose(1, 2))).sum((1, 2)).clamp(min=0), _slack(b.norm(dim=2))])

    def weighted(self, c):
        total = torch.zeros_like(self.module.weight, dtype=torch.float64)
        return {self.module.weight: total.index_add(0, self.ids.flatten(), (self.b.double() * c.double()[:, None, None]).flatten(0, 1)).to(self.b.dtype)}


KINDS = {nn.Linear: Linear, nn.Conv2d: Conv2d, nn.GroupNorm: Norm, nn.LayerNorm: Norm, nn.Embedding: Embedding}


def trained(parameter):
    """Whether a parameter (or None) was marked as trained by `mark`; `requires_grad` itself is off while the book is kept."""
    return parameter is not None and getattr(parameter, "dp_trained", False)


def kind_of(module):
    """The class of this module that handles `module`, or None."""
    return next((handler for layer, handler in KINDS.items() if isinstance(module, layer)), None)


def _squares(a, b, bias):
    """Squares of norm and slack of sum_t b_t a_t^T (unless a is None) and, with `bias`, of sum_t b_t; a `(n, T, in)`, b `(n, T, out)`."""
    squares = b.new_zeros(2, len(b), dtype=torch.float64)
    if a is not None:
        squares += torch.stack([_product_squares(a, b), _slack(a.norm(dim=2) * b.norm(dim=2))])
    if bias:
        squares[0] += b.sum(1, dtype=torch.float64).square().sum(1)
    return squares


def _slack(lengths):
    """Square of what rounding adds at most to two float32 sums of vectors of these lengths `(n, T)`: that of the norm, and that of the share."""
    positions = lengths.shape[1]
    return (min(2 * positions, 4 * math.sqrt(positions)) * UNIT * lengths.sum(1, dtype=torch.float64)).square()


def _product_squares(a, b):
    """|| sum_t b_t a_t^T ||^2 per picture, by whichever of the two ways takes less time."""
    positions, inputs, outputs = a.shape[1], a.shape[2], b.shape[2]
    if 2 * positions * (inputs + outputs) <= inputs * outputs:
        a, b = a.double(), b.double()
        return ((a @ a.transpose(1, 2)) * (b @ b.transpose(1, 2))).sum((1, 2)).clamp(min=0)
    return (b.transpose(1, 2) @ a).flatten(1).norm(dim=1).double().square()
