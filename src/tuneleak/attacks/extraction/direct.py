"""Direct text-to-image: the fine-tuned model as it is, under the training caption."""

CALLS_PER_STEP = 1


def setting(guidance):
    """There is nothing to set."""
    return "none"


def guide(pair, x, t, guidance):
    """eps_theta'(x_t, t, c)."""
    return pair.finetuned(x, t, pair.finetuned_caption)
