"""CLiD (NeurIPS 2024): how much worse the model denoises a picture when words of its caption are taken away; for a member, much worse.

The captions are the true one, it without its most important 30, 50 and 70 % of words, and the empty one. A word's importance is how far the
text encoder's output moves without it. The paper replaces words; here they are left out, so that padding takes their place.
"""

import torch

from tuneleak.attacks.membership.query import robust_scale

SHARES = (0.3, 0.5, 0.7)


def setting(options):
    """Timesteps and the weight of the discrepancy."""
    return f"t={'/'.join(map(str, options.clid_timesteps))},weight={options.clid_weight:g}"


def calls(options):
    """Model calls per picture: five captions at each timestep."""
    return len(options.clid_timesteps) * (2 + len(SHARES))


def score(query, options):
    """minus ((1 - a) RS(L) + a RS(-D)), D = mean over reduced captions c* of L(c*) - L(c); RS: robust scaling over these pictures. `(n,)`."""
    own = torch.stack([query.losses(timestep) for timestep in options.clid_timesteps]).mean(0)
    reduced = [[shorten(query, caption, share) for caption in query.captions] for share in SHARES] + [[""] * len(query.captions)]
    rises = []
    for captions in reduced:
        context = query.encode_text(captions)
        rises.append(torch.stack([query.losses(timestep, context=context) for timestep in options.clid_timesteps]).mean(0) - own)
    discrepancy = torch.stack(rises).mean(0)
    weight = options.clid_weight
    combined = (1 - weight) * robust_scale(own.cpu()) + weight * robust_scale(-discrepancy.cpu())
    return torch.from_numpy(-combined)


def shorten(query, caption, share):
    """The caption without its most important `share` of words (rounded, at least one)."""
    words = caption.split()
    if not words:
        return ""
    count = max(1, round(share * len(words)))
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    whole, *others = query.encode_text([caption, *without])
    moved = [float((other - whole).norm()) for other in others]
    dropped = set(sorted(range(len(words)), key=lambda i: -moved[i])[:count])
    return " ".join(word for i, word in enumerate(words) if i not in dropped)
