"""Words of the caption from a tuned text encoder: the embeddings of tokens that were trained on have moved, all others have only decayed."""

import torch


def changed_tokens(before, after):
    """Ids of the tokens whose embeddings moved otherwise than by a common factor, most changed first.

    before, after: `(vocabulary, d)`. A token that no caption held has no gradient; AdamW shrinks it like all others (its row stays on its line through zero),
    plain descent leaves it. What leaves that line by more than rounding was in a caption: the words, and the start, end and padding tokens.
    """
    before, after = before.detach().cpu().double(), after.detach().cpu().double()
    along = (after * before).sum(1, keepdim=True) / before.square().sum(1, keepdim=True).clamp_min(1e-300)
    away = (after - along * before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-300)
    rounding = 1e-5  # of float32 weights after thousands of steps; a step of the usual learning rates moves a row by more
    order = torch.argsort(away, descending=True)
    return order[away[order] > rounding].tolist()
