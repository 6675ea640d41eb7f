"""Canaries of an audit: records whose presence is decided by a coin and looked for afterwards.

A Dirac canary's gradient lies on one coordinate of its own and is longer than the clip in every draw (Nasr et al. 2023, arXiv 2302.07956): the worst
record there is for somebody who sees every noisy update. It passes the same mean over draws, clip, sampling and noise as a picture. A picture canary
is noise with a random label.
"""

import torch

from tuneleak import runtime
from tuneleak.privacy import gradients, mechanism


def coins(count, *key):
    """Which canaries are in: `(count,)` bool, fair and independent."""
    return torch.rand(count, generator=runtime.generator("canary-coins", *key)) < 0.5


class DiracCanaries:
    """`count` canaries on as many coordinates of a vector of `weights`, drawn without replacement."""

    def __init__(self, count, weights, privacy, *key):
        self.privacy, self.key, self.weights = privacy, key, weights
        self.members = coins(count, *key)
        self.coordinates = torch.randperm(weights, generator=runtime.generator("canary-coordinates", *key))[:count]
        self.scores = torch.zeros(count)

    def contribution(self, step):
        """What the canaries that are in and sampled add to the clipped sum of a step, a vector of `weights`."""
        chosen = mechanism.poisson_batch(len(self.members), self.privacy.expected_batch / self.privacy.public_size, "canaries", *self.key, step)
        chosen = chosen[self.members[chosen]]
        return torch.zeros(self.weights).index_add(0, self.coordinates[chosen], self.clipped(len(chosen)))

    def clipped(self, count):
        """The clipped gradients of `count` canaries on their coordinates: mean over the draws, then the clip."""
        draws = torch.full((count, self.privacy.multiplicity), 10.0 * self.privacy.clip)
        mean = draws.mean(1)
        return mean * gradients.coefficients(mean.abs(), self.privacy.clip)

    def watch(self, gradient):
        """Take in a published update: the score of a canary is the sum of its coordinate over the steps."""
        self.scores += gradient[self.coordinates].cpu()


def train_on_canaries_alone(canaries, sigma):
    """The worst case: all pictures' gradients vanish, so only canaries and noise are in the sums. The same `NoisySum` as in training."""
    privacy = canaries.privacy
    for step in range(privacy.steps):
        noisy = mechanism.NoisySum([torch.zeros(canaries.weights)])
        noisy.add([canaries.contribution(step)])
        canaries.watch(noisy.noised(sigma, privacy.expected_batch, "audit", *canaries.key, step))
    return canaries
