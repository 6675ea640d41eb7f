"""PIAN (Kong et al., ICLR 2024): PIA with the first prediction rescaled to the mean magnitude of standard normal noise.

The factor is that of the authors' code, sqrt(2 / pi) / mean|eps|, since E|z| = sqrt(2 / pi); the paper prints sqrt(pi / 2).
"""

import math

from tuneleak.attacks.membership import pia


def setting(options):
    """The later timestep."""
    return pia.setting(options)


def calls(options):
    """Model calls per picture."""
    return pia.calls(options)


def score(query, options):
    """minus PIA's R with eps(x_0, 0) scaled to mean magnitude sqrt(2 / pi), `(n,)`."""
    first = query.noise_pred(query.latents, 0)
    magnitude = first.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    return -pia.distance(query, options.pia_timestep, first * (math.sqrt(2 / math.pi) / magnitude))
