"""The denoising loss, averaged over timesteps and noises (Matsumoto et al. 2023; Hu and Pang 2023): a member's is low."""

import torch


def setting(options):
    """Timesteps and draws."""
    return f"t={'/'.join(map(str, options.loss_timesteps))},draws={options.loss_draws}"


def calls(options):
    """Model calls per picture."""
    return len(options.loss_timesteps) * options.loss_draws


def score(query, options):
    """minus the mean over t and noises of |epsilon - eps_theta(x_t, t, c)|^2, `(n,)`."""
    losses = [query.losses(timestep, draw) for timestep in options.loss_timesteps for draw in range(options.loss_draws)]
    return -torch.stack(losses).mean(0)
