"""Bases of other architectures than Stable Diffusion 1.x and 2.x, in the form every attack knows: `tuneleak.models.base.Base`.

An architecture says which parts its pipeline folder has, how captions become a context, how its network is called, and what pictures are to it. A context is
one tensor `(n, L, d)` whatever it holds, so that attacks stack and expand it without looking inside: where a network also wants a pooled text embedding, that
is the last row, padded with zeros. What the network predicts is the business of `tuneleak.models.parameterisation`.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from tuneleak.errors import InputError
from tuneleak.models.base import TEXT_ENCODER_FILE, UNET_FILE, Base
from tuneleak.models.classes import Classes
from tuneleak.models.latent_diffusion import KINDS as LATENT_DIFFUSION

_CLIP = ("transformers", "CLIPTextModel", TEXT_ENCODER_FILE)
_CLIP_PROJECTED = ("transformers", "CLIPTextModelWithProjection", TEXT_ENCODER_FILE)
_VAE = ("diffusers", "AutoencoderKL", UNET_FILE)
T5_TOKENS = 256  # of Stable Diffusion 3's pipeline


def pack(tokens, pooled):
    """tokens `(n, L, d)` and a pooled embedding `(n, p)` -> context `(n, L + 1, max(d, p))`."""
    width = max(tokens.shape[-1], pooled.shape[-1])
    row = F.pad(pooled, (0, width - pooled.shape[-1]))[:, None]
    return torch.cat([F.pad(tokens, (0, width - tokens.shape[-1])), row], 1)


def unpack(context, token_width, pooled_width):
    """The inverse of `pack`: `(n, L, token_width)` and `(n, pooled_width)`."""
    return context[:, :-1, :token_width], context[:, -1, :pooled_width]


@dataclass
class StableDiffusionXL(Base):
    """SDXL: two text encoders, whose penultimate states stand side by side, a pooled embedding of the second, and the size of the picture as a condition."""

    PARTS: ClassVar = {"unet": ("diffusers", "UNet2DConditionModel", UNET_FILE), "vae": _VAE, "text_encoder": _CLIP, "text_encoder_2": _CLIP_PROJECTED}
    TUNED = ("unet", "text_encoder", "text_encoder_2")
    trains = False
    text_encoder_2: torch.nn.Module = None
    tokenizer_2: object = None

    def _encode(self, texts, networks):
        states, pooled = [], None
        for tokenizer, part in ((self.tokenizer, "text_encoder"), (self.tokenizer_2, "text_encoder_2")):
            output = networks[part](self.token_ids(texts, tokenizer, networks[part]), output_hidden_states=True)
            states.append(output.hidden_states[-2].float())
            pooled = output[0].float()
        context = pack(torch.cat(states, -1), pooled)
        if self.index.get("force_zeros_for_empty_prompt", True):  # what the network was trained with where there is no caption
            context = context * torch.tensor([bool(text) for text in texts], device=context.device).view(-1, 1, 1)
        return context

    def call(self, network, x, t, context):
        tokens, pooled = unpack(context, network.config.cross_attention_dim, self.text_encoder_2.config.projection_dim)
        height, width = self.image_size
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype, device=x.device).expand(len(x), -1)  # original, crop, target
        conditions = {"text_embeds": pooled, "time_ids": sizes}
        return network(x, t, encoder_hidden_states=tokens, added_cond_kwargs=conditions, return_dict=False)[0]


@dataclass
class StableDiffusion3(Base):
    """SD3: a transformer (MMDiT) trained by flow matching; two CLIP text encoders and, if the folder has it, T5."""

    PARTS: ClassVar = {
        "transformer": ("diffusers", "SD3Transformer2DModel", UNET_FILE),
        "vae": _VAE,
        "text_encoder": _CLIP_PROJECTED,
        "text_encoder_2": _CLIP_PROJECTED,
    }
    OPTIONAL: ClassVar = {"text_encoder_3": ("transformers", "T5EncoderModel", TEXT_ENCODER_FILE)}
    TUNED = ("transformer", "text_encoder", "text_encoder_2")
    trains = False
    text_encoder_2: torch.nn.Module = None
    tokenizer_2: object = None
    text_encoder_3: torch.nn.Module = None
    tokenizer_3: object = None

    def _encode(self, texts, networks):
        states, pooled = [], []
        for tokenizer, part in ((self.tokenizer, "text_encoder"), (self.tokenizer_2, "text_encoder_2")):
            output = networks[part](self.token_ids(texts, tokenizer, networks[part]), output_hidden_states=True)
            states.append(output.hidden_states[-2].float())
            pooled.append(output[0].float())
        clip, long = torch.cat(states, -1), self._t5(texts)
        tokens = torch.cat([F.pad(clip, (0, long.shape[-1] - clip.shape[-1])), long], 1)
        return pack(tokens, torch.cat(pooled, -1))

    def _t5(self, texts):
        if self.text_encoder_3 is None:
            return torch.zeros(len(texts), T5_TOKENS, self.unet.config.joint_attention_dim, device=self.device)
        tokens = self.tokenizer_3(list(texts), padding="max_length", max_length=T5_TOKENS, truncation=True, return_tensors="pt")
        return self.text_encoder_3(tokens.input_ids.to(self.device))[0].float()

    def call(self, network, x, t, context):
        tokens, pooled = unpack(context, network.config.joint_attention_dim, network.config.pooled_projection_dim)
        return network(hidden_states=x, timestep=t, encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False)[0]


@dataclass
class PixelDiffusion(Base):
    """A denoiser of pixels (DDPM): no text and no autoencoder.

    A class-conditional one takes captions as its `classes.json` says; its context is the class as one row of zeros and a one, which is exact in every
    precision. For an unconditional one every context is the same zero, so only guidance between models is left.
    """

    PARTS: ClassVar = {"unet": ("diffusers", "UNet2DModel", UNET_FILE)}
    TUNED = ("unet",)

    @functools.cached_property
    def classes(self):
        """What captions mean to a class-conditional model; None for an unconditional one."""
        count = self.unet.config.num_class_embeds
        return Classes.read(self.folder, count) if count else None

    def _encode(self, texts, networks):
        if self.classes is None:
            return torch.zeros(len(texts), 1, 1, device=self.device)
        ids = torch.tensor([self.classes.id_of(text) for text in texts], device=self.device)
        return F.one_hot(ids, self.unet.config.num_class_embeds).float()[:, None]

    @property
    def image_size(self):
        return self.latent_shape[1:]

    def encode_images(self, pixels, generator=None, batch=16):
        return pixels.float().to(self.device)

    def decode(self, latents, batch=16):
        return latents.float()

    def call(self, network, x, t, context):
        labels = None if self.classes is None else context[:, 0].argmax(-1)
        output = network(x, t, labels, return_dict=False)[0]
        return output[:, : x.shape[1]]  # a network that also learned variances gives them behind the noise

    def check(self):
        super().check()
        if self.unet.config.class_embed_type:
            told = f"class_embed_type {self.unet.config.class_embed_type!r}"
            raise InputError(f"{self.folder}: a class-conditional UNet2DModel with {told} is not supported; one with num_class_embeds alone is")
        _ = self.classes  # read now, so that a missing table is told before anything starts


ARCHITECTURES = (*LATENT_DIFFUSION, StableDiffusionXL, StableDiffusion3, PixelDiffusion)  # in this order: the last has a UNet2DModel and nothing else


def of_index(index):
    """The architecture whose parts a `model_index.json` (a dict) names; Stable Diffusion's where none fits, whose loader says what is missing."""
    for kind in ARCHITECTURES:
        named = all(index.get(part) == [library, name] for part, (library, name, _) in kind.PARTS.items())
        if named and ("vae" in kind.PARTS) == (index.get("vae", [None])[0] is not None):
            return kind
    return Base
