"""FineXtract without a caption: model guidance between the null predictions of the two models."""

from tuneleak.attacks.extraction.guidance import model_guidance

CALLS_PER_STEP = 2


def setting(guidance):
    """w = 1 / lambda."""
    return f"w={guidance.w:g}"


def guide(pair, x, t, guidance):
    """eps_theta(0) + w (eps_theta'(0) - eps_theta(0))."""
    return model_guidance(pair.pretrained(x, t, pair.pretrained_null), pair.finetuned(x, t, pair.finetuned_null), guidance.w)
