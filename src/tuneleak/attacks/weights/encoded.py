"""What an encoder of weights gives."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Encoded:
    """z: conditioning `(n, L, d)` of the victims' own UNets; embedding: predicted identity `(n, e)`, L2-normalised, or None; kl: `(n,)` in nats, or None."""

    z: torch.Tensor
    embedding: torch.Tensor | None = None
    kl: torch.Tensor | None = None
