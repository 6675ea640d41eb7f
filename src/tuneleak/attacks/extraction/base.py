"""Control: classifier-free guidance in the pretrained model under the same caption; it has never seen the training pictures."""

from tuneleak.attacks.extraction.guidance import classifier_free_guidance

CALLS_PER_STEP = 2
USES_FINETUNED = False


def setting(guidance):
    """The guidance scale."""
    return f"w={guidance.w:g}"


def guide(pair, x, t, guidance):
    """eps_theta(0) + w (eps_theta(c) - eps_theta(0))."""
    eps_null, eps_caption = pair.pretrained(x, t, pair.pretrained_null, pair.pretrained_caption)
    return classifier_free_guidance(eps_null, eps_caption, guidance.w)
