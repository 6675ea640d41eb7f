"""Latent diffusion without words (Rombach et al. 2022): class-conditional and unconditional bases, the public models of DP-LDM's image pairs.

Their folders are those of diffusers' `LDMPipeline` (unet, vqvae, scheduler), where the first stage may be an `AutoencoderKL` too. A class-conditional one has
a `class_embedder.safetensors` beside them: a context of one token per class, under the name of the class, which is its caption.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch

from tuneleak.errors import InputError
from tuneleak.models.base import UNET_FILE, Base
from tuneleak.models.modelset import CLASS_FILE
from tuneleak.options import DiffusionOptions
from tuneleak.privacy.conditioned import load_class_contexts

_KL, _VQ = ("diffusers", "AutoencoderKL", UNET_FILE), ("diffusers", "VQModel", UNET_FILE)
TIMESTEPS = 1000


def build_unet(options: DiffusionOptions, channels, size):
    """The UNet for latents `(n, channels, size, size)`: a UNet2DConditionModel if there is a context, else a UNet2DModel."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    if options.residual_updown and options.context_width:
        raise InputError("residual_updown is for unconditional models: diffusers' UNet with cross-attention halves and doubles by convolutions; leave it out")
    attends = [level in options.attention_levels for level in range(len(options.block_out_channels))]
    shared = {
        "sample_size": size, "in_channels": channels, "out_channels": channels, "block_out_channels": tuple(options.block_out_channels),
        "layers_per_block": options.layers_per_block, "norm_num_groups": options.norm_num_groups,
        "resnet_time_scale_shift": "scale_shift" if options.scale_shift else "default",
    }  # fmt: skip
    if options.context_width:
        return UNet2DConditionModel(
            down_block_types=tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            cross_attention_dim=options.context_width,
            attention_head_dim=options.heads,  # which diffusers takes as the number of heads
            **shared,
        )
    updown = {"downsample_type": "resnet", "upsample_type": "resnet"} if options.residual_updown else {}
    return UNet2DModel(
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        attention_head_dim=options.head_width,
        **updown,
        **shared,
    )


def encode(first_stage, pixels, spread=None):
    """Pictures `(n, 3, H, W)` in [-1, 1] -> latents `(n, C, h, w)` before scaling.

    Of an AutoencoderKL the mean of the posterior, or with Gaussian noise `spread` of the latents' shape a sample of it; of a VQModel the vectors before
    they are quantised, which its decoder does.
    """
    encoded = first_stage.encode(pixels)
    if hasattr(encoded, "latents"):
        return encoded.latents
    posterior = encoded.latent_dist
    return posterior.mean if spread is None else posterior.mean + posterior.std * spread


@dataclass
class _LatentDiffusion(Base):
    """What all have in common."""

    TUNED = ("unet",)
    vqvae: torch.nn.Module = None

    def __post_init__(self):
        self.vae = self.vqvae  # the name by which everything else knows the first stage

    @torch.no_grad()
    def encode_images(self, pixels, generator=None, batch=64):
        latents = []
        for part in pixels.split(batch):
            spread = None if generator is None else torch.randn(len(part), *self.latent_shape, generator=generator).to(self.device, self.vae.dtype)
            latents.append(encode(self.vae, part.to(self.device, self.vae.dtype), spread).float())
        return torch.cat(latents) * self.vae.config.scaling_factor

    def check(self):
        super().check()
        if hasattr(self.vae, "quantize"):
            self.vae.float()  # in bfloat16 vectors of the codebook would be mixed up
        channels, latent = self.unet.config.in_channels, self.vae.config.latent_channels
        if channels != latent or self.unet.config.out_channels != channels:
            told = f"its UNet takes {channels} channels and gives {self.unet.config.out_channels}, its first stage has {latent}"
            raise InputError(f"{self.folder}: the parts do not fit together ({told}); get the whole folder from one place")


class _ClassConditional(_LatentDiffusion):
    """A caption is the name of a class."""

    @functools.cached_property
    def contexts(self):
        """{class: context `(1, d)`}."""
        path = self.folder / CLASS_FILE
        if not path.is_file():
            raise InputError(f"{path} is missing: a class-conditional latent diffusion model needs it to say what its classes are")
        return {name: context.to(self.device) for name, context in load_class_contexts(path, self.unet.config.cross_attention_dim).items()}

    def _encode(self, texts, networks):
        unknown = [text for text in texts if text not in self.contexts]
        if unknown:
            raise InputError(
                f"{self.folder} knows {len(self.contexts)} classes, {unknown[0]!r} is none of them; give one, such as {next(iter(self.contexts))!r}"
            )
        return torch.stack([self.contexts[text] for text in texts])

    def check(self):
        super().check()
        _ = self.contexts  # read now, so that a missing table is told before anything starts


class _Unconditional(_LatentDiffusion):
    """Every context is the same zero."""

    def _encode(self, texts, networks):
        return torch.zeros(len(texts), 1, 1, device=self.device)

    def call(self, network, x, t, context):
        return network(x, t, return_dict=False)[0]


@dataclass
class ClassConditionalKL(_ClassConditional):
    """Classes, and latents as Gaussians."""

    PARTS: ClassVar = {"unet": ("diffusers", "UNet2DConditionModel", UNET_FILE), "vqvae": _KL}


@dataclass
class ClassConditionalVQ(_ClassConditional):
    """Classes, and latents of a codebook."""

    PARTS: ClassVar = {"unet": ("diffusers", "UNet2DConditionModel", UNET_FILE), "vqvae": _VQ}


@dataclass
class UnconditionalKL(_Unconditional):
    """Pictures alone, and latents as Gaussians."""

    PARTS: ClassVar = {"unet": ("diffusers", "UNet2DModel", UNET_FILE), "vqvae": _KL}


@dataclass
class UnconditionalVQ(_Unconditional):
    """Pictures alone, and latents of a codebook (what diffusers' LDMPipeline holds)."""

    PARTS: ClassVar = {"unet": ("diffusers", "UNet2DModel", UNET_FILE), "vqvae": _VQ}


KINDS = (ClassConditionalKL, ClassConditionalVQ, UnconditionalKL, UnconditionalVQ)
