"""LiRA and RMIA from the losses of many models that were trained on coin-flip halves of one pool: scores of every picture under every model as the target.

losses `(models, pictures)`, inside `(models, pictures)` bool. Each model is the target once and all others are its shadows, as in Carlini et al. 2022: half of
the (model, picture) pairs are members, and membership is independent of everything else by construction.
"""

import numpy as np
from scipy import stats

from tuneleak.errors import InputError

FEWEST = 3  # shadows with the picture, and without it, that a mean and a spread are taken of


def lira(losses, inside):
    """Online LiRA (Carlini et al., S&P 2022, algorithm 1): log N(phi; mu_in, s) - log N(phi; mu_out, s), phi = -loss, `(models, pictures)`; NaN where a picture
    has fewer than `FEWEST` shadows on a side.

    mu of the shadows with and without the picture; s, the deviation of each side, is pooled over pictures, as the paper does with few shadows.
    """
    phi, inside = _checked(losses, inside)
    pictures, means = phi.shape[1], {}
    for member in (True, False):
        count = (inside == member).sum(0)
        total = np.where(inside == member, phi, 0).sum(0)
        own = inside == member  # the target's own value is taken out of its side
        left = count[None] - own
        mean = (total[None] - np.where(own, phi, 0)) / np.maximum(left, 1)
        means[member] = np.where(left >= FEWEST, mean, np.nan)
    deviation = {}
    for member in (True, False):
        centre = np.array([phi[inside[:, i] == member, i].mean() if (inside[:, i] == member).any() else np.nan for i in range(pictures)])
        rest = (phi - centre[None])[inside == member]
        freedom = (inside == member).sum() - np.isfinite(centre).sum()
        deviation[member] = np.sqrt(np.square(rest).sum() / max(freedom, 1))
    if not min(deviation.values()) > 0:
        raise InputError("the losses of the shadow models do not vary; were they trained on different pictures?")
    return stats.norm.logpdf(phi, means[True], deviation[True]) - stats.norm.logpdf(phi, means[False], deviation[False])


def rmia(losses, inside, population):
    """RMIA (Zarifzadeh et al., ICML 2024) with gamma = 1: the share of population pictures z with Pr(x | target) / Pr(x) >= Pr(z | target) / Pr(z).

    population `(models, z)`: losses of pictures that no model trained on. Pr(. | model) = exp(-loss / s), with s the deviation of losses of one picture over
    models (a diffusion loss bounds minus the log-likelihood up to a factor, and s sets that factor), Pr(.) its mean over the shadows, half of which were
    trained on x (online). `(models, pictures)`.
    """
    phi, inside = _checked(losses, inside)
    z = -np.asarray(population, float)
    if z.ndim != 2 or len(z) != len(phi) or not z.shape[1] or not np.isfinite(z).all():
        raise InputError("RMIA needs finite losses of population pictures under every model")
    scale = np.sqrt(np.mean(np.concatenate([phi.var(0, ddof=1), z.var(0, ddof=1)])))
    if not scale > 0:
        raise InputError("the losses of the shadow models do not vary; were they trained on different pictures?")
    of_x, of_z = _ratio(phi / scale), _ratio(z / scale)
    ordered = np.sort(of_z, axis=1)
    return np.stack([np.searchsorted(row, mine, side="right") / z.shape[1] for row, mine in zip(ordered, of_x, strict=True)])


def _ratio(log_likelihood):
    """log Pr(. | target) - log of the mean of Pr over all other models, `(models, n)`."""
    models = len(log_likelihood)
    made = np.empty_like(log_likelihood)
    for target in range(models):
        shadows = np.delete(log_likelihood, target, 0)
        top = shadows.max(0)
        made[target] = log_likelihood[target] - (top + np.log(np.exp(shadows - top).mean(0)))
    return made


def _checked(losses, inside):
    losses, inside = np.asarray(losses, float), np.asarray(inside, bool)
    if losses.ndim != 2 or losses.shape != inside.shape or len(losses) < 2 or not np.isfinite(losses).all():
        raise InputError("shadow models need finite losses of the same pictures under at least two models, and who was trained on what")
    return -losses, inside
