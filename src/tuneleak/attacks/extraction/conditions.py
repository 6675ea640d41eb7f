"""What an attacker may know of the training caption: all of it, half of its words, its kind only, a wrong one, nothing, or what the weights gave away."""

import torch

from tuneleak import runtime
from tuneleak.errors import InputError


def caption_under(condition, row, captions, recovered):
    """The caption that an attacker of one model uses.

    condition: an `options.CaptionCondition`; row: the model's row (`model_id`, `caption`); captions: the captions of all concepts of the image set, in its
    order; recovered: {model_id: caption} read from weights.

    partial: a random half of the words (rounded down, at least one), in their order. class: the words that the captions of all concepts share. wrong: the next
    other caption. none: the empty one, which turns FineXtract into guidance without a caption.
    """
    caption = row["caption"]
    if condition == "known":
        return caption
    if condition == "partial":
        words = caption.split()
        kept = torch.randperm(len(words), generator=runtime.generator("partial-caption", caption))[: max(1, len(words) // 2)]
        return " ".join(words[index] for index in sorted(kept.tolist()))
    if condition == "class":
        return " ".join(word for word in caption.split() if all(word in other.split() for other in captions))
    if condition == "wrong":
        others = list(dict.fromkeys(captions))
        if set(others) <= {caption}:
            raise InputError("a wrong caption needs an image set with at least two captions")
        start = others.index(caption) if caption in others else -1
        return next(text for text in [*others[start + 1 :], *others] if text != caption)
    if condition == "none":
        return ""
    if row["model_id"] not in recovered:
        raise InputError(f"no caption was recovered from model {row['model_id']!r}; run `tuneleak recover-caption` on its model set and give its table")
    return recovered[row["model_id"]]
