"""What a fine-tune sees instead of its pictures and captions: augmentation, near-duplicates and randomised captions, as defences and as ablations.

Cutout (DeVries and Taylor 2017) and RandAugment (Cubuk et al. 2020, torchvision's) are the defences FineXtract's paper tries; randomised captions are those of
Somepalli et al. 2023. A picture gets a fixed number of views, drawn once and encoded once; each pass over the pictures shows the next view.
"""

import torch

from tuneleak import runtime
from tuneleak.data.imageset import as_tensor
from tuneleak.models import augment

RANDOM_CAPTIONS = 16  # per fine-tune


def pictures(pixels, options, key):
    """Training pictures uint8 `(n, h, w, 3)` -> tensor `(m, views, 3, h, w)` in [-1, 1]; m = n (1 + options.near_duplicates), the pictures themselves first.

    key: what the draws are seeded with; view v of picture i does not depend on how many others there are.
    """
    tensor = as_tensor(pixels)
    copies = [tensor]
    for copy in range(options.near_duplicates):
        copies.append(torch.stack([_near_duplicate(picture, runtime.generator("near-duplicate", *key, copy, i)) for i, picture in enumerate(tensor)]))
    every = torch.cat(copies)
    if options.augment == "none":
        return every[:, None]
    change, count = globals()[f"_{options.augment}"], options.augment_views
    views = [[change(picture, options.augment_strength, runtime.generator("view", *key, i, v)) for v in range(count)] for i, picture in enumerate(every)]
    return torch.stack([torch.stack(row) for row in views])


def captions(caption, tokenizer, options, key):
    """The true caption and, if captions are randomised, `RANDOM_CAPTIONS` others in which every other word on average is a random one of the vocabulary."""
    if not options.caption_randomisation:
        return [caption]
    words = sorted(token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>") and token.removesuffix("</w>").isalpha())
    made = [caption]
    for number in range(RANDOM_CAPTIONS):
        rng = runtime.generator("caption", *key, number)
        swap = torch.rand(len(caption.split()), generator=rng) < 0.5
        drawn = torch.randint(len(words), (len(swap),), generator=rng)
        made.append(" ".join(words[drawn[i]] if swap[i] else word for i, word in enumerate(caption.split())))
    return made


def caption_of_step(step, count, options, key):
    """Which of `count` captions a step trains under: 0, the true one, or with probability `options.caption_randomisation` one of the others."""
    if count == 1:
        return 0
    rng = runtime.generator("caption-step", *key, step)
    random = float(torch.rand((), generator=rng)) < options.caption_randomisation
    return int(torch.randint(1, count, (), generator=rng)) if random else 0


def _near_duplicate(picture, rng):
    """The same photograph again: a slight crop and a slight change of colour."""
    return augment.colour(augment.crop(picture[None], rng, smallest=0.92), rng, strength=0.06)[0]


def _cutout(picture, strength, rng):
    """A grey square of side `strength` times the picture's, anywhere on it (it may reach over the edge)."""
    height, width = picture.shape[1:]
    y, x = (float(torch.rand((), generator=rng)) * size for size in (height, width))
    top, left = max(0, round(y - strength * height / 2)), max(0, round(x - strength * width / 2))
    changed = picture.clone()
    changed[:, top : max(0, round(y + strength * height / 2)), left : max(0, round(x + strength * width / 2))] = 0.0
    return changed


def _randaugment(picture, strength, rng):
    """torchvision's RandAugment with two operations; `strength` 1 is its largest magnitude."""
    from torchvision.transforms.v2 import RandAugment

    bins = 31
    change = RandAugment(num_ops=2, magnitude=round(strength * (bins - 1)), num_magnitude_bins=bins)
    pixels = ((picture + 1) * 127.5).round().to(torch.uint8)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the process-wide generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        changed = change(pixels)
    return changed.float() / 127.5 - 1


def _blur(picture, strength, rng):
    """Gaussian blur of deviation `strength` times a sixteenth of the side, always the same: what a defender publishes instead of sharp pictures."""
    from torchvision.transforms.functional import gaussian_blur

    sigma = strength * picture.shape[-1] / 16
    size = 2 * max(1, round(3 * sigma)) + 1
    return gaussian_blur(picture, [min(size, 2 * (picture.shape[-1] // 2) - 1)] * 2, [sigma, sigma])


def _crop(picture, strength, rng):
    """A random square crop of at least 1 - strength of the side, resized back."""
    return augment.crop(picture[None], rng, smallest=1 - strength)[0]


def _flip(picture, strength, rng):
    """Mirrored with probability `strength`."""
    return picture.flip(-1) if float(torch.rand((), generator=rng)) < strength else picture
