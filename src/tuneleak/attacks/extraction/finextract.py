"""FineXtract (Wu, Zhang and Wu, arXiv 2410.03039), the conditional attack: from the pretrained null to the fine-tuned caption prediction."""

from tuneleak.attacks.extraction import guidance as equations

CALLS_PER_STEP = 2


def setting(guidance):
    """w' and the correction term k."""
    return f"w={guidance.w:g},k={guidance.k:g}"


def guide(pair, x, t, guidance):
    """Equation (*): eps_theta(0) + w' (eps_theta'(c) - eps_theta(0)) + k eps_theta(0), one evaluation of each model.

    The null prediction comes from the pretrained UNet and text encoder, the caption prediction from the fine-tuned ones; the fine-tuned
    null and the pretrained caption predictions are not used.
    """
    eps_null = pair.pretrained(x, t, pair.pretrained_null)
    eps_caption = pair.finetuned(x, t, pair.finetuned_caption)
    return equations.finextract(eps_null, eps_caption, guidance.w, guidance.k)
