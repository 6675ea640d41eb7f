"""The LoRAs of many models in one frozen network: a batch of K equal groups of samples, each group under a LoRA of its own.

Serves training many LoRAs at once (`tuneleak.finetune.many`) and asking many fine-tuned models in one forward call (the weights attacks).
"""

import torch
from torch import nn

from tuneleak.errors import InputError


class BatchedLinear(nn.Module):
    """A frozen linear layer whose k-th group of rows also passes through `scale[k] B[k] A[k]`."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.pair = None  # (A (K, r, in), B (K, out, r), scale: float or (K, 1, 1)) or None: the frozen layer alone

    def forward(self, x):
        """x `(K * b, ..., in)`, group k being rows `k * b` to `(k + 1) * b` -> `(K * b, ..., out)`."""
        out = self.base_layer(x)
        if self.pair is None:
            return out
        a, b, scale = self.pair
        grouped = x.reshape(len(a), -1, x.shape[-1]).to(a.dtype)
        update = torch.bmm(torch.bmm(grouped, a.transpose(1, 2)), b.transpose(1, 2)) * scale
        return out + update.reshape(out.shape).to(out.dtype)


class BatchedLora:
    """Puts `BatchedLinear` layers into a network; as a context manager it takes them out again.

    modules: names of the linear layers that get one. Without LoRAs set (`use`) the network is the frozen one.
    """

    def __init__(self, network, modules):
        self.network, self.layers = network, {}
        found = dict(network.named_modules())
        for name in modules:
            if not isinstance(found.get(name), nn.Linear):
                raise InputError(f"{name} is not a linear layer of this base model; the LoRAs were not made for it")
        for name in modules:
            self.layers[name] = BatchedLinear(found[name])
            _replace(network, name, self.layers[name])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for name, layer in self.layers.items():
            _replace(self.network, name, layer.base_layer)

    def use(self, pairs, scale=1.0):
        """Set the LoRAs of K models: pairs[module] = (A `(K, r, in)`, B `(K, out, r)`); scale: alpha / rank, a float or `(K,)`.

        A module left out of `pairs`, and every module with `pairs` None, is the frozen one.
        """
        scale = scale.view(-1, 1, 1) if isinstance(scale, torch.Tensor) else scale
        for name, layer in self.layers.items():
            layer.pair = (*pairs[name], scale) if pairs is not None and name in pairs else None


def linear_modules(network, target_modules):
    """Names of the linear layers that peft would adapt for `target_modules`, in the order in which it does: {name: (in, out)}."""
    found = {
        name: (layer.in_features, layer.out_features)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and any(name == target or name.endswith(f".{target}") for target in target_modules)
    }
    if not found:
        raise InputError(f"target_modules {list(target_modules)} name no linear layer of this network")
    return found


def _replace(network, name, layer):
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
