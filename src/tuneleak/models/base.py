"""A pretrained diffusion model as every attack knows it: what goes through its text encoder, autoencoder and denoiser, and comes out as epsilon.

`Base` itself is Stable Diffusion 1.x and 2.x; `tuneleak.models.architectures` has the others, `tuneleak.models.pipeline` loads them. Every noise prediction is
epsilon in float32, whatever the precision of the network and whatever it predicts.
"""

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from tuneleak.errors import InputError
from tuneleak.models import parameterisation, samplers, schedule, weights

UNET_FILE = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER_FILE = "model.safetensors"


@dataclass
class Base:
    """A pretrained diffusion model (this class: Stable Diffusion 1.x or 2.x); its networks are frozen and in evaluation mode. Made by `load_base`.

    `unet` is the denoiser, also where it is a transformer. Class attributes: `PARTS`, what its folder must have as {part: (library, class, file)}, `OPTIONAL`,
    what it may have, `TUNED`, the parts that a fine-tune may change, and `trains`, whether `tuneleak finetune` can train it.
    """

    PARTS: ClassVar = {
        "unet": ("diffusers", "UNet2DConditionModel", UNET_FILE),
        "vae": ("diffusers", "AutoencoderKL", UNET_FILE),
        "text_encoder": ("transformers", "CLIPTextModel", TEXT_ENCODER_FILE),
    }
    OPTIONAL: ClassVar = {}
    TUNED = ("unet", "text_encoder")
    trains = True
    folder: Path
    index: dict
    scheduler_config: dict
    alphas_cumprod: torch.Tensor  # (T,) float64
    device: torch.device
    unet: torch.nn.Module
    vae: torch.nn.Module = None
    text_encoder: torch.nn.Module = None
    tokenizer: object = None
    tuned: object = None  # the Tuned whose adapter, or part beside the networks, sits in them, if any

    @property
    def name(self):
        """Name of the base: that of its folder."""
        return self.folder.resolve().name

    @property
    def prediction_type(self):
        """What the network predicts, one of `parameterisation.KINDS`."""
        return parameterisation.kind_of(self.scheduler_config)

    def check(self):
        """Raises `InputError` for a configuration that the classes would accept and this project cannot use."""
        parameterisation.kind_of(self.scheduler_config)

    def networks(self):
        """The networks that a fine-tune may change: {part: module}."""
        return {part: getattr(self, "unet" if part == "transformer" else part) for part in self.TUNED}

    @property
    def latent_shape(self):
        """(C, h, w) of a latent at the model's native size."""
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))

    @property
    def image_size(self):
        """(height, width) in pixels of a picture at the model's native size."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return tuple(side * factor for side in self.latent_shape[1:])

    def token_ids(self, texts, tokenizer=None, text_encoder=None):
        """Captions -> int64 token ids `(n, L)`, padded and cut to the text encoder's length."""
        tokenizer, text_encoder = tokenizer or self.tokenizer, text_encoder or self.text_encoder
        length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        tokens = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return tokens.input_ids.to(self.device)

    @torch.no_grad()  # not inference_mode: what is cached here may enter training
    def encode_text(self, texts, networks=None):
        """Captions -> context `(n, L, d)` float32, with the base's text encoders unless others are given ({part: module})."""
        if networks is None:
            with self._without_adapter():
                return self._encode(texts, self.networks())
        return self._encode(texts, networks)

    def _encode(self, texts, networks):
        return networks["text_encoder"](self.token_ids(texts))[0].float()

    @torch.no_grad()
    def encode_images(self, pixels, generator=None, batch=16):
        """Pictures `(n, 3, H, W)` in [-1, 1] -> latents `(n, C, h, w)` float32, less the shift and times the scaling factor.

        The mean of the encoder's posterior, or a sample from it if a CPU `generator` is given.
        """
        return torch.cat([self.encode(part, generator) for part in pixels.split(batch)])

    def encode(self, pixels, generator=None, vae=None):
        """`encode_images` of one batch, by the base's autoencoder or another `vae` of its kind. Keeps the caller's grad mode."""
        vae = vae or self.vae
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        latents = posterior.mean.float()
        if generator is not None:
            latents = latents + posterior.std.float() * torch.randn(latents.shape, generator=generator).to(self.device)
        return (latents - self._shift) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents, batch=16):
        """Latents `(n, C, h, w)` -> pictures `(n, 3, H, W)` float32, in [-1, 1] but for what the decoder overshoots."""
        decoded = []
        for part in latents.split(batch):
            latent = part / self.vae.config.scaling_factor + self._shift
            decoded.append(self.vae.decode(latent.to(self.device, self.vae.dtype)).sample.float())
        return torch.cat(decoded)

    @property
    def _shift(self):
        return self.vae.config.get("shift_factor") or 0.0

    def predict_noise(self, unet, x_t, t, context):
        """epsilon `(n, C, h, w)` float32 of any network with this base's schedule; t: int or `(n,)`; context `(n, L, d)`. Keeps the caller's grad mode."""
        t, kind = torch.as_tensor(t, device=x_t.device).expand(len(x_t)), self.prediction_type
        x, time = parameterisation.network_input(x_t, t, self.alphas_cumprod, kind)
        output = self.call(unet, x.to(unet.dtype), time, context.to(unet.dtype)).float()
        return parameterisation.to_epsilon(output, x_t.float(), t, self.alphas_cumprod, kind)

    def call(self, network, x, t, context):
        """The network's own answer `(n, C, h, w)` in its own coordinates: x `(n, C, h, w)` and context of its precision, t `(n,)`."""
        return network(x, t, encoder_hidden_states=context, return_dict=False)[0]

    def output(self, x, t, context):
        """`call` of the base's own denoiser, with whatever sits in it: what is differentiated when something is trained. In the denoiser's precision."""
        return self.call(self.unet, x.to(self.unet.dtype), t, context.to(self.unet.dtype))

    @torch.inference_mode()
    def noise_pred(self, x_t, t, context):
        """epsilon of the base itself, also while a LoRA sits in its UNet; arguments as `predict_noise`."""
        with self._without_adapter():
            return self.predict_noise(self.unet, x_t, t, context)

    def sample(self, noise_pred_fn, x_T, steps):
        """Latents `(n, C, h, w)` by deterministic DDIM from the starting noise `x_T`; `noise_pred_fn(x_t, t) -> epsilon`."""
        timesteps = schedule.ddim_timesteps(len(self.alphas_cumprod), steps, self.scheduler_config.get("steps_offset", 0))
        final = schedule.final_alpha_cumprod(self.scheduler_config, self.alphas_cumprod)
        return samplers.sample(noise_pred_fn, x_T.to(self.device), timesteps, self.alphas_cumprod, final)

    def network_files(self):
        """Paths of its weights, whose digests tell it from another base of its name."""
        return sorted(self.folder.glob("*/*.safetensors"))

    def reload(self, part):
        """Read `unet`, `text_encoder` or `vae` from disk again, after training has changed it in place (half the memory of keeping a copy)."""
        dtype = getattr(self, part).dtype
        setattr(self, part, None)  # freed before the new one is read
        setattr(self, part, load_part(self.folder, part, self.PARTS[part], self.device, dtype))

    def check_trainable(self):
        """Raises `InputError` for an architecture that can be attacked but not fine-tuned here."""
        if not self.trains:
            raise InputError(f"{self.folder} is a {type(self).__name__}, which can be attacked but not fine-tuned here; train it with its own tools")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(f"{self.folder} predicts {self.prediction_type!r}, which can be attacked but not fine-tuned here; epsilon and v_prediction can")

    def check_words(self):
        """Raises `InputError` for a base without a text encoder, where something works through words."""
        if self.text_encoder is None:
            raise InputError(f"{self.folder} is a {type(self).__name__} without a text encoder, which this needs; give a base that has one")

    def _without_adapter(self):
        return self.tuned.enabled(False) if self.tuned else contextlib.nullcontext()


def load_part(folder, part, named, device, dtype):
    """One network of a pipeline folder, frozen; `named`: its (library, class, file). `InputError` unless its tensors are exactly those of its config.json."""
    library, name, file = named
    path = weights.safetensors_file(folder / part, file)
    weights.check_config(folder / part / "config.json", path)
    variant = "fp16" if path.name.endswith(".fp16.safetensors") else None
    kind, how = getattr(importlib.import_module(library), name), {"variant": variant, "use_safetensors": True, "local_files_only": True}
    if library == "transformers":
        from transformers.utils import logging

        logging.disable_progress_bar()  # its bar ignores whether anybody is watching
    try:
        precision = {"dtype" if library == "transformers" else "torch_dtype": dtype}
        network, told = kind.from_pretrained(folder / part, output_loading_info=True, **how, **precision)
    except Exception as error:  # a configuration that is nonsense raises whatever its first use raises
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{folder / part}: config.json and {path.name} do not make a {name} ({told[:300]}); get the folder again") from None
    # the libraries would fill a missing tensor with random numbers and drop one too many; position_ids were saved by older versions
    odd = sorted({*told["missing_keys"], *(name for name in told["unexpected_keys"] if not name.endswith("position_ids"))})
    if odd:
        raise InputError(f"{path} does not have exactly the tensors of its config.json ({odd[0]!r}, for one); get both again from one place")
    weights.check_finite(network, path)
    return network.to(device).eval().requires_grad_(False)
