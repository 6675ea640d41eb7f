"""Classifier-free guidance inside the fine-tuned model, between its own null and caption predictions: the usual way to use it."""

from tuneleak.attacks.extraction.guidance import classifier_free_guidance

CALLS_PER_STEP = 2


def setting(guidance):
    """The guidance scale."""
    return f"w={guidance.w:g}"


def guide(pair, x, t, guidance):
    """eps_theta'(0) + w (eps_theta'(c) - eps_theta'(0))."""
    eps_null, eps_caption = pair.finetuned(x, t, pair.finetuned_null, pair.finetuned_caption)
    return classifier_free_guidance(eps_null, eps_caption, guidance.w)
