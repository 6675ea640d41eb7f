"""Batches of a public image set of any size: held in memory if it is small, else read picture by picture."""

import torch

from tuneleak import runtime
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.errors import InputError

IN_MEMORY = 8 * 2**30  # bytes: all of ImageNet at 32 px are 3.9 GB, at 256 px 250


class Drawing:
    """Random pictures of fold `train` of an ImageSet (folder), with replacement; which ones depends on the key alone."""

    def __init__(self, images, mirrored=False, in_memory=IN_MEMORY):
        loaded = ImageSet.load(images)
        self.images, self.mirrored = loaded.where(fold="train"), mirrored
        if not len(self.images):
            raise InputError(f"{loaded.folder} has no pictures in fold 'train'")
        first = self._read([0])
        if first.shape[1] != first.shape[2]:
            raise InputError(f"{loaded.folder}: pictures must be square, not {first.shape[2]} x {first.shape[1]}")
        self.size = first.shape[1]
        self.labels = sorted(set(self.images.labels))
        number = {name: index for index, name in enumerate(self.labels)}
        self.numbers = torch.tensor([number[name] for name in self.images.labels])
        self.pixels = self.images.pixels() if len(self) * first.nbytes <= in_memory else None

    def __len__(self):
        return len(self.images)

    def draw(self, count, *key):
        """`count` pictures `(count, 3, h, w)` in [-1, 1], half of them mirrored if that was asked for, and the numbers of their classes `(count,)`."""
        random = runtime.generator("drawing", *key)
        chosen = torch.randint(len(self), (count,), generator=random)
        x = as_tensor(self.pixels[chosen.numpy()] if self.pixels is not None else self._read(chosen.tolist()))
        if self.mirrored:
            flipped = torch.rand(count, generator=random) < 0.5
            x[flipped] = x[flipped].flip(-1)
        return x, self.numbers[chosen]

    def _read(self, rows):
        return ImageSet(self.images.folder, self.images.table.iloc[rows].reset_index(drop=True)).pixels()
