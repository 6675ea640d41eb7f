"""PFAMI (2023): how much the loss rises around a picture, among its own centre crops; around a member it rises more."""

import torch


def setting(options):
    """Crops, timesteps."""
    shares, timesteps = options.pfami_crops, options.pfami_timesteps
    return f"crops={len(shares)}x{max(shares):g}-{min(shares):g},t={'/'.join(map(str, timesteps))}"


def calls(options):
    """Model calls per picture: itself and each crop at each timestep."""
    return len(options.pfami_timesteps) * (1 + len(options.pfami_crops))


def score(query, options):
    """Mean over crops x' and timesteps of (L(x') - L(x)) / L(x) with the same noise for both, `(n,)`."""
    rises = []
    for timestep in options.pfami_timesteps:
        own = query.losses(timestep)
        rises += [(query.losses(timestep, latents=query.pictures.cropped(share)) - own) / own for share in options.pfami_crops]
    return torch.stack(rises).mean(0)
