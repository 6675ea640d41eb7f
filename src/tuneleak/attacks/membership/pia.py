"""PIA (Kong et al., ICLR 2024): noise a picture with the model's own prediction at t = 0 and see whether the model says the same again."""

NORM = 4  # the p of the norm


def setting(options):
    """The later timestep."""
    return f"t={options.pia_timestep}"


def calls(options):
    """Model calls per picture."""
    return 2


def score(query, options):
    """minus R = |eps(x_0, 0) - eps(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps(x_0, 0), t)|_4, `(n,)`."""
    return -distance(query, options.pia_timestep, query.noise_pred(query.latents, 0))


def distance(query, timestep, first):
    """R of PIA with `first` in place of eps(x_0, 0), `(n,)` float64."""
    abar = query.alpha_bar(timestep)
    second = query.noise_pred(abar**0.5 * query.latents + (1 - abar) ** 0.5 * first, timestep)
    return (first - second).cpu().double().flatten(1).norm(p=NORM, dim=1)
