"""The private pictures of a DP training: which ones take part, their classes, and their latents and conditions.

Everything here touches private pictures, but for `NoiseRecords`; what leaves it towards a release does so through a noised sum alone.
"""

import torch

from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.errors import InputError
from tuneleak.finetune.objective import Batch, denoising_errors


def private_pictures(images, privacy, expected):
    """Fold `train` of an ImageSet, with what makes no sense of a budget refused; expected: pictures in a step or release on average."""
    loaded = ImageSet.load(images)
    pictures = loaded.where(fold="train")
    if not len(pictures):
        raise InputError(f"{loaded.folder} has no pictures in fold 'train'")
    if expected > privacy.public_size:
        raise InputError(f"{expected} pictures on average exceed public_size {privacy.public_size}: a picture takes part with probability 1 at most")
    if privacy.delta * privacy.public_size >= 1:
        raise InputError(
            f"delta {privacy.delta:g} is no protection for {privacy.public_size} pictures: publishing one of them at random satisfies it; use less than 1/n"
        )
    if privacy.unit == "person" and pictures.table.concept.value_counts().max() > privacy.pictures_per_unit:
        raise InputError(
            f"{loaded.folder} has a concept of more than pictures_per_unit={privacy.pictures_per_unit} pictures, so nobody is protected as promised; "
            "leave pictures out, or name a larger bound"
        )
    return pictures


def class_numbers(pictures, prompts):
    """The place of each picture's label in `prompts`, the public list of classes: int64 `(n,)`."""
    names, labels = list(prompts), pictures.labels
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise InputError(f"{pictures.folder}: label {unknown[0]!r} is not in prompts, the public list of classes")
    return torch.tensor([names.index(label) for label in labels], dtype=torch.long)


def training_set(images, options):
    """The pictures that DP-SGD trains on, with the column or the public list that `options.conditioning` needs; `InputError` without it."""
    pictures = private_pictures(images, options.privacy, options.privacy.expected_batch)
    if options.conditioning == "class" and not options.prompts:
        raise InputError("conditioning=class needs prompts, the public list of classes and their captions; it is never read off the private pictures")
    if options.conditioning != "class" and options.caption_column not in pictures.table:
        raise InputError(f"{pictures.folder / 'manifest.csv'} has no column {options.caption_column!r} (caption_column)")
    return pictures


class Records:
    """Latents and conditions, and the errors of a network on them."""

    def __init__(self, base, latents, conditions):
        self.base, self.latents, self.conditions = base, latents, conditions

    def __len__(self):
        return len(self.latents)

    def pictures_of(self, chosen, draws):
        """The picture behind each row: records `chosen`, `draws` adjacent rows each."""
        return chosen.repeat_interleave(draws)

    def errors_of(self, pictures, noise, timesteps):
        """What `gradients` calls: errors of the rows, one picture each, under a network."""
        rows = pictures.to(self.latents.device)
        batch = Batch(self.latents[rows], noise.to(self.latents.device), timesteps.to(self.latents.device), self.conditions[rows], torch.ones(1))

        def errors(network):
            return denoising_errors(network, batch, self.base.alphas_cumprod, self.base.prediction_type)

        return errors


class NoiseRecords(Records):
    """As many records as asked for, of noise: what the cost of a step may be measured on without touching a picture."""

    def __init__(self, base, count, options):
        latents = torch.randn(count, *base.latent_shape, device=base.device)
        if options.conditioning == "class":
            conditions = torch.arange(count, device=base.device) % len(options.prompts)
        elif options.conditioning == "text-encoder":
            conditions = base.token_ids([""] * count)
        else:
            conditions = base.encode_text(list(options.prompts.values())[:1] or [""]).expand(count, -1, -1)
        super().__init__(base, latents, conditions)


class PrivateRecords(Records):
    """The private pictures as latents and conditions, encoded once by the frozen public parts."""

    def __init__(self, base, pictures, options):
        self.base, self.pictures = base, pictures
        self.latents = torch.cat([base.encode_images(as_tensor(part.pixels())) for part in parts(pictures)])
        if tuple(self.latents.shape[1:]) != base.latent_shape:
            raise InputError(
                f"{pictures.folder}: latents are {tuple(self.latents.shape[1:])}, the base needs {base.latent_shape}; import with --size {base.image_size[0]}"
            )
        if options.conditioning == "class":
            self.conditions = class_numbers(pictures, options.prompts).to(base.device)
        elif options.conditioning == "text-encoder":
            self.conditions = base.token_ids(list(pictures.table[options.caption_column]))
        else:
            captions = sorted(set(pictures.table[options.caption_column]))
            contexts = torch.cat([base.encode_text(captions[start : start + 64]) for start in range(0, len(captions), 64)])
            self.conditions = contexts[torch.tensor([captions.index(caption) for caption in pictures.table[options.caption_column]])]
        self.sources = list(pictures.table.sha256)


def parts(pictures, size=512):
    """An ImageSet in pieces, so that its pictures need not be in memory at once."""
    for start in range(0, len(pictures), size):
        yield ImageSet(pictures.folder, pictures.table[start : start + size].reset_index(drop=True))
