"""The control that reads nothing: one learned conditioning for every model, trained as long and on the same examples as the attacks.

What it draws is what any fine-tuned UNet gives away under a well-chosen prompt; an attack on the weights has to do better.
"""

import torch
from torch import nn

from tuneleak.attacks.weights.encoded import Encoded


class Encoder(nn.Module):
    """z `(L, d)`, the same for all."""

    def __init__(self, pairs, start, embedding_size, options):
        super().__init__()
        self.z = nn.Parameter(start.clone())

    @staticmethod
    def features(pairs, options):
        """Nothing but how many models there are."""
        return {"count": torch.zeros(len(next(iter(pairs.values()))[0]), 1)}

    def forward(self, features, steps, generator=None):
        """`Encoded` of a batch."""
        return Encoded(self.z.expand(len(features["count"]), -1, -1))
