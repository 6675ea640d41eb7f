"""The noisy step of DP-SGD (Abadi et al. 2016) with normalised clipping: what is sampled, summed, noised and counted.

One step: every record takes part independently with probability q; the clipped sum S = sum_i g_i min(1 / C, 1 / ||g_i||) changes by at most 1
when a record is added or removed; the update is (S + sigma N(0, I)) / B with the public expected batch B = q * public_size, never the number
drawn. An empty draw is a step like any other.
"""

import hashlib
import os

import torch

from tuneleak import files, runtime

SECRET = "TUNELEAK_NOISE_SECRET"  # environment variable: a long random text, for releases that are meant
_MANNER = {"seeds", "physical_batch", "at_once", "gradients", "gradient_checkpointing", "checkpoint_every"}  # knobs that change how, and not what


def run_key(options, *names):
    """What seeds all randomness of one private run: its names, its options and the secret in `SECRET`, which is written nowhere; never the pictures.

    Two runs on the same pictures must not share noise: what one releases minus what the other does would be free of it.
    """
    return (*names, files.digest(options.model_dump(mode="json", exclude=_MANNER)), *secret_key())


def secret_key():
    """What the secret adds to a run's key, and to the digest under which its checkpoints are kept: steps made without it are not its own. () without one."""
    secret = os.environ.get(SECRET, "")
    return (hashlib.sha256(secret.encode()).hexdigest(),) if secret else ()


def poisson_batch(records, sample_rate, *key):
    """Positions of the records that take part in a step, each independently with probability `sample_rate`; `key` names the step."""
    return (torch.rand(records, generator=runtime.generator("poisson", *key)) < sample_rate).nonzero().flatten()


class NoisySum:
    """The clipped sum of one logical batch, added up over physical ones in float32, and its noised mean."""

    def __init__(self, parameters):
        self.total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]

    def add(self, sums):
        """Take in one physical batch."""
        for total, part in zip(self.total, sums, strict=True):
            total += part.detach()

    def noised(self, noise_multiplier, expected_batch, *key):
        """(S + sigma N(0, I)) / B as one flat vector, in the order of the parameters; `key` seeds the noise."""
        flat = torch.cat([total.flatten() for total in self.total])
        if noise_multiplier:
            flat = flat + noise_multiplier * torch.randn(len(flat), generator=runtime.generator("dp-noise", *key)).to(flat.device)
        return flat / expected_batch
