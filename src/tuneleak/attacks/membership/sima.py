"""SimA (2025): the size of the noise predicted on the clean picture, as if it were noisy; one call, no randomness."""

NORM = 4  # the p of the norm


def setting(options):
    """The timestep."""
    return f"t={options.sima_timestep}"


def calls(options):
    """Model calls per picture."""
    return 1


def score(query, options):
    """minus |eps_theta(x_0, t, c)|_4, `(n,)`."""
    return -query.noise_pred(query.latents, options.sima_timestep).cpu().double().flatten(1).norm(p=NORM, dim=1)
