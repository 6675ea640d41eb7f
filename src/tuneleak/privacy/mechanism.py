"""The noisy step of DP-SGD (Abadi et al. 2016) with normalised clipping: what is sampled, summed, noised and counted.

One step: every record takes part independently with probability q; the clipped sum S = sum_i g_i min(1 / C, 1 / ||g_i||) changes by at most 1
when a record is added or removed; the update is (S + sigma N(0, I)) / B with the public expected batch B = q * public_size, never the number
drawn. An empty draw is a step like any other.

Who is drawn and the noise come from seeded generators, so that a study repeats; they have 32 bits of state that matter, which anybody can try. With a secret
(`SECRET`) they come from SHAKE-256 of the secret, the run, the step and the set of pictures: nobody without it can tell them from chance, and a run on one
picture less shares nothing with it. Gaussians are by Box and Muller from 53-bit uniforms; attacks on their lowest bits (Mironov 2012) are not covered.
"""

import hashlib
import os

import numpy as np
import torch

from tuneleak import files, runtime

SECRET = "TUNELEAK_NOISE_SECRET"  # environment variable: a long random text, for releases that are meant
_MANNER = {"seeds", "physical_batch", "at_once", "gradients", "gradient_checkpointing", "checkpoint_every"}  # knobs that change how, and not what


def run_key(options, *names, pictures=(), networks=()):
    """What seeds all randomness of one private run: its names, its options and, if there is one, the secret in `SECRET` with digests of pictures and networks.

    pictures: their digests; networks: paths of the public model's files. Two runs on the same pictures must not share noise, nor, if they are meant for
    release, may one on a set with a picture more, or from another model of the same name: what one releases minus what the other does would be free of it.
    Without a secret neither plays a part: noise that anybody can compute must not tell who is among the pictures.
    """
    public = (*names, files.digest(options.model_dump(mode="json", exclude=_MANNER)))
    if not secret_key():
        return public
    return (*public, *secret_key(), files.digest([sorted(pictures), [files.sha256(path) for path in sorted(networks)]]))


def secret_key():
    """What the secret adds to a run's key, and to the digest under which its checkpoints are kept: steps made without it are not its own. () without one."""
    secret = os.environ.get(SECRET, "")
    return (hashlib.sha256(secret.encode()).hexdigest(),) if secret else ()


def poisson_batch(records, sample_rate, *key):
    """Positions of the records that take part in a step, each independently with probability `sample_rate`; `key` names the step."""
    return (uniform(records, "poisson", *key) < sample_rate).nonzero().flatten()


def uniform(count, *key):
    """`(count,)` numbers in [0, 1) that only the key decides: float32 of a seeded generator, or with a secret float64 that nobody else can compute."""
    if not secret_key():
        return torch.rand(count, generator=runtime.generator(*key))
    return torch.from_numpy(_secret_uniform(count, key))


def gaussian(shape, *key, dtype=torch.float32):
    """Standard normal numbers of a shape, on the CPU, that only the key decides; see `uniform`."""
    if not secret_key():
        return torch.randn(shape, generator=runtime.generator(*key), dtype=dtype)
    count = int(np.prod(shape))
    halves = -(-count // 2)
    u = torch.from_numpy(_secret_uniform(2 * halves, key)).view(2, halves)
    radius, angle = (-2 * (1 - u[0]).log()).sqrt(), 2 * torch.pi * u[1]
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].view(shape).to(dtype)


def _secret_uniform(count, key, chunk=1 << 22):
    """float64 `(count,)`: the upper 53 of each 64 bits of SHAKE-256, asked in pieces of `chunk` numbers that a counter tells apart."""
    secret, pieces = os.environ[SECRET].encode(), []
    for number in range(-(-count // chunk)):
        stream = hashlib.shake_256(secret + b"\0" + repr((key, number)).encode())
        size = min(chunk, count - number * chunk)
        pieces.append((np.frombuffer(stream.digest(8 * size), np.uint64) >> np.uint64(11)) * 2.0**-53)
    return np.concatenate(pieces) if pieces else np.zeros(0)


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
            flat = flat + noise_multiplier * gaussian((len(flat),), "dp-noise", *key).to(flat.device)
        return flat / expected_batch
