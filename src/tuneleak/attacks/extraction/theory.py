"""What model guidance assumes, in closed form: where it is exact, what the correction term stands for, and how wrong the premise can be."""

import torch

from tuneleak.attacks.extraction.guidance import extrapolate


def finetuned_caption_noise_pred(eps_pretrained_null, eps_q_null, eps_q_caption, lam, lam_caption):
    """eps_theta'(c) if p_theta'(x) ~ p_theta^(1-lam) q^lam and p_theta'(x|c) ~ p_theta'(x)^(1-lam') q(x|c)^lam' at this timestep:

    (1-lam)(1-lam') eps_theta(0) + lam (1-lam') eps_q(0) + lam' eps_q(c); the weights sum to one.
    """
    return (1 - lam) * (1 - lam_caption) * eps_pretrained_null + lam * (1 - lam_caption) * eps_q_null + lam_caption * eps_q_caption


def exact_correction(eps_pretrained_null, eps_q_null, lam, w):
    """The term that makes conditional guidance exact under that premise: lam (w' - 1) (eps_theta(0) - eps_q(0)), w' = 1 / lam'.

    An attacker cannot compute it (eps_q(0) is what is being looked for); FineXtract puts k eps_theta(0) in its place.
    """
    return lam * (w - 1) * (eps_pretrained_null - eps_q_null)


def geometric_mixture_error(alphas_cumprod, variance_p, variance_q, lam):
    """How far model guidance is from eps_q when the premise holds for clean data only: a table over all timesteps.

    p = N(0, variance_p), q = N(0, variance_q), and the fine-tuned data are exactly their mixture p^(1-lam) q^lam, a Gaussian with
    precision (1-lam)/variance_p + lam/variance_q. The forward process adds noise to *that*, which is not the mixture of the noised p and q
    unless the variances are equal. With v the clean variance, eps(x_t) = sqrt(1 - abar) x_t / (abar v + 1 - abar): every prediction is
    proportional to x_t, so the relative error is one number for all x_t.

    Returns a pandas table: `timestep`, `alpha_bar`, `relative_error` = |guided - eps_q| / |eps_q| with w = 1 / lam,
    `relative_error_unguided` = |eps_theta' - eps_q| / |eps_q|, the same without guidance (w = 1). Raises ValueError outside 0 < lam <= 1
    or for variances that are not positive.
    """
    import pandas as pd

    if not 0 < lam <= 1 or min(variance_p, variance_q) <= 0:
        raise ValueError(f"geometric_mixture_error needs 0 < lam <= 1 and positive variances, got {lam}, {variance_p}, {variance_q}")
    abar = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
    variance_mixture = 1 / ((1 - lam) / variance_p + lam / variance_q)
    # the factor sqrt(1 - abar) x_t is common to all of them and cancels
    eps_p, eps_q, eps_mixture = (1 / (abar * variance + 1 - abar) for variance in (variance_p, variance_q, variance_mixture))
    error = (extrapolate(eps_p, eps_mixture, 1 / lam) - eps_q).abs() / eps_q
    unguided = (eps_mixture - eps_q).abs() / eps_q
    columns = {"alpha_bar": abar, "relative_error": error, "relative_error_unguided": unguided}
    return pd.DataFrame({"timestep": range(len(abar)), **{name: values.numpy() for name, values in columns.items()}})
