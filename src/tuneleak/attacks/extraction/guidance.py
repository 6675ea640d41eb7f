"""Guidance as arithmetic on noise predictions: pure functions on tensors of one shape, in float32 (or float64 if that is what they get).

theta: the pretrained model, theta': the fine-tuned one, 0: the empty caption, c: the training caption.
"""

import torch


def extrapolate(eps_weak, eps_strong, w):
    """eps_weak + w (eps_strong - eps_weak), the form all guidance here has; w = 0 is the first prediction, w = 1 the second."""
    eps_weak, eps_strong = _full(eps_weak), _full(eps_strong)
    return eps_weak + w * (eps_strong - eps_weak)


def classifier_free_guidance(eps_null, eps_caption, guidance_scale):
    """Classifier-free guidance within one model (Ho and Salimans 2022, in Stable Diffusion's convention): scale 1 is no guidance."""
    return extrapolate(eps_null, eps_caption, guidance_scale)


def model_guidance(eps_pretrained, eps_finetuned, w):
    """Unconditional model guidance (FineXtract, from its equation 3): eps_theta + w (eps_theta' - eps_theta).

    Estimates the noise prediction eps_q of the fine-tuning data where eps_theta' = (1 - lambda) eps_theta + lambda eps_q and
    w = 1 / lambda >= 1. That premise is exact for a mixture taken at every timestep, and for Gaussians of one covariance; `theory.py`
    computes how far it is from true otherwise.
    """
    return extrapolate(eps_pretrained, eps_finetuned, w)


def finextract(eps_pretrained_null, eps_finetuned_caption, w, k):
    """FineXtract's conditional guidance with correction term, equation (*):

    eps_theta(0) + w' (eps_theta'(c) - eps_theta(0)) + k eps_theta(0).

    Published values: w' = 3, k = -0.02 for DreamBooth; w' = 5, k = 0 for LoRA.
    """
    return extrapolate(eps_pretrained_null, eps_finetuned_caption, w) + k * _full(eps_pretrained_null)


def _full(eps):
    return eps.to(torch.promote_types(eps.dtype, torch.float32))
