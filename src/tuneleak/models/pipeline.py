"""The pretrained base and the models tuned from it, loaded from Stable Diffusion pipeline folders without the pipeline class.

Only the classes an attack needs are imported. Every noise prediction that leaves this module is epsilon in float32, whatever the precision of
the network and whatever it predicts.
"""

import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import attachments, samplers, schedule, weights
from tuneleak.models.modelset import LORA_FILE, folder_of

UNET_FILE = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER_FILE = "model.safetensors"
_PARTS = {"unet": ("UNet2DConditionModel", UNET_FILE), "vae": ("AutoencoderKL", UNET_FILE), "text_encoder": ("CLIPTextModel", TEXT_ENCODER_FILE)}


@dataclass
class Base:
    """A pretrained latent diffusion model; its networks are frozen and in evaluation mode. Made by `load_base`."""

    folder: Path
    unet: torch.nn.Module
    vae: torch.nn.Module
    text_encoder: torch.nn.Module
    tokenizer: object
    scheduler_config: dict
    alphas_cumprod: torch.Tensor  # (T,) float64
    device: torch.device
    tuned: object = None  # the Tuned whose LoRA, or part beside the networks, sits in them, if any

    @property
    def name(self):
        """Name of the base: that of its folder."""
        return self.folder.resolve().name

    @property
    def prediction_type(self):
        """What the UNet predicts: `epsilon` or `v_prediction`."""
        return self.scheduler_config.get("prediction_type", "epsilon")

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

    def token_ids(self, texts):
        """Captions -> int64 token ids `(n, L)`, padded and cut to the text encoder's length."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return tokens.input_ids.to(self.device)

    @torch.no_grad()  # not inference_mode: what is cached here may enter training
    def encode_text(self, texts, text_encoder=None):
        """Captions -> context `(n, L, d)` float32, with the base's text encoder unless another is given."""
        if text_encoder is None:
            with self._without_adapter():
                return self.text_encoder(self.token_ids(texts))[0].float()
        return text_encoder(self.token_ids(texts))[0].float()

    @torch.no_grad()
    def encode_images(self, pixels, generator=None, batch=16):
        """Pictures `(n, 3, H, W)` in [-1, 1] -> latents `(n, C, h, w)` float32, times the scaling factor.

        The mean of the encoder's posterior, or a sample from it if a CPU `generator` is given.
        """
        latents = []
        for part in pixels.split(batch):
            posterior = self.vae.encode(part.to(self.device, self.vae.dtype)).latent_dist
            latent = posterior.mean.float()
            if generator is not None:
                latent = latent + posterior.std.float() * torch.randn(latent.shape, generator=generator).to(self.device)
            latents.append(latent * self.vae.config.scaling_factor)
        return torch.cat(latents)

    @torch.no_grad()
    def decode(self, latents, batch=16):
        """Latents `(n, C, h, w)` -> pictures `(n, 3, H, W)` float32, in [-1, 1] but for what the decoder overshoots."""
        parts = [self.vae.decode((part / self.vae.config.scaling_factor).to(self.device, self.vae.dtype)).sample.float() for part in latents.split(batch)]
        return torch.cat(parts)

    def predict_noise(self, unet, x_t, t, context):
        """epsilon `(n, C, h, w)` float32 of any UNet with this base's schedule; t: int or `(n,)`; context `(n, L, d)`. Keeps the caller's grad mode."""
        t = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        output = unet(x_t.to(unet.dtype), t, encoder_hidden_states=context.to(unet.dtype), return_dict=False)[0].float()
        return to_epsilon(output, x_t.float(), t, self.alphas_cumprod, self.prediction_type)

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

    def reload(self, part):
        """Read `unet` or `text_encoder` from disk again, after training has changed it in place (half the memory of keeping a copy)."""
        dtype = getattr(self, part).dtype
        setattr(self, part, None)  # freed before the new one is read
        setattr(self, part, _load_part(self.folder, part, self.device, dtype))

    def _without_adapter(self):
        return self.tuned.enabled(False) if self.tuned else contextlib.nullcontext()


@dataclass
class Tuned:
    """A fine-tuned model beside its base. Made by `load_tuned`; usable in a `with` statement, which unloads it.

    For a LoRA, `unet` (and `text_encoder` if tuned) are the base's own networks with the adapter injected, switched off except inside
    `enabled()`; so are learned words and hypernetworks (`attached`). For fully tuned networks they are separate networks. A network that was not
    tuned is the base's.
    """

    base: Base
    unet: torch.nn.Module
    text_encoder: torch.nn.Module
    lora: tuple = ()  # the networks that carry an adapter
    attached: tuple = ()  # see tuneleak.models.attachments

    def __post_init__(self):
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [layer for network in self.lora for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        self._on = True
        self._switch(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unload()

    @contextlib.contextmanager
    def enabled(self, on=True):
        """Inside, `unet` and `text_encoder` are the tuned ones (with `on=False`: the base's); the former state returns at the end."""
        before = self._on
        self._switch(on)
        try:
            yield self
        finally:
            self._switch(before)

    def _switch(self, on):
        if on == self._on:
            return
        for layer in self._layers:
            # peft's enable_adapters also walks over requires_grad, which costs more than a small layer's forward, twice per step
            layer._disable_adapters = not on
        for part in self.attached:
            part.active = on
        self._on = on

    @torch.inference_mode()
    def noise_pred(self, x_t, t, context):
        """epsilon `(n, C, h, w)` float32 of the tuned model; t: int or `(n,)`; context `(n, L, d)`."""
        with self.enabled():
            return self.base.predict_noise(self.unet, x_t, t, context)

    def encode_text(self, texts):
        """Captions -> context `(n, L, d)` float32 of the tuned model's text encoder."""
        with self.enabled():
            return self.base.encode_text(texts, self.text_encoder)

    def unload(self):
        """Give the base its networks back. Safe to call twice."""
        for network in self.lora:
            weights.detach_lora(network)
        for part in self.attached:
            part.remove()
        self.lora, self._layers, self.attached = (), [], ()
        if self.base.tuned is self:
            self.base.tuned = None


def to_epsilon(output, x_t, t, alphas_cumprod, prediction_type):
    """Network output -> epsilon: itself, or for v-prediction sqrt(abar) v + sqrt(1 - abar) x_t (Salimans & Ho 2022, appendix D).

    output, x_t: `(n, C, h, w)` float32; t: `(n,)`; alphas_cumprod: `(T,)`.
    """
    if prediction_type == "epsilon":
        return output
    signal, noise = ((table.float().to(output.device)[t].view(-1, 1, 1, 1)) for table in (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()))
    return signal * output + noise * x_t


def load_base(folder, device="cpu", dtype="float32"):
    """Load a pipeline folder (or the path of its model_index.json) as a `Base`; dtype of the networks: `float32` or `bfloat16`.

    Raises `InputError` if it is not a local Stable Diffusion 1.x/2.x folder with safetensors weights.
    """
    folder = folder_of(folder, "model_index.json")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a pipeline folder: it has no model_index.json (a hub id has to be fetched first, with `tuneleak fetch`)")
    index = files.read_json(folder / "model_index.json")
    for part, (kind, _) in _PARTS.items():
        library = "transformers" if part == "text_encoder" else "diffusers"
        if index.get(part) != [library, kind]:
            found = f"{folder / 'model_index.json'}: {part} is {index.get(part)}"
            raise InputError(f"{found}, but only [{library!r}, {kind!r}] is supported; no other class is imported")
    config = files.read_json(folder / "scheduler" / "scheduler_config.json")
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise InputError(f"{folder}: prediction_type {config['prediction_type']!r} is not supported; use epsilon or v_prediction")
    from transformers import CLIPTokenizer

    device, dtype = torch.device(device), torch_dtype(dtype)
    networks = {part: _load_part(folder, part, device, dtype) for part in _PARTS}
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return Base(folder=folder, tokenizer=tokenizer, scheduler_config=config, alphas_cumprod=schedule.alphas_cumprod(config), device=device, **networks)


def load_tuned(base, modelset, row):
    """Load one model of a ModelSet as `Tuned`; `row` is a row of its manifest (dict or pandas Series).

    A LoRA goes into the base's own UNet, so it has to be unloaded before the next model is loaded. Raises `InputError` for anything but safetensors whose
    tensors fit the base (`config.json` beside them is not trusted).
    """
    if base.tuned:
        raise RuntimeError("a LoRA sits in this base already; call unload() on it first")
    folder = modelset.path(row)
    beside = any((folder / name).is_file() for name in (attachments.EMBEDS_FILE, attachments.HYPERNETWORK_FILE))
    own, networks, loras = {"unet": base.unet, "text_encoder": base.text_encoder}, {}, {}
    if (folder / LORA_FILE).is_file():
        loras = weights.read_lora(files.inside(folder, LORA_FILE), own)
    elif not beside and not any((folder / part).is_dir() for part in own):
        weights.safetensors_file(folder, LORA_FILE)  # says what is wrong with the folder
    for part, prefix in (("unet", ""), ("text_encoder", "text_model.")):
        networks[part] = own[part]
        if (folder / part).is_dir() and not loras:
            path = weights.safetensors_file(files.inside(folder, part), _PARTS[part][1])
            networks[part] = copy.deepcopy(networks[part])
            weights.load_network(networks[part], path, prefix)
    attached = attachments.load(folder, networks["unet"], networks["text_encoder"], base.tokenizer)
    for part, lora in loras.items():
        weights.attach_lora(networks[part], lora)
    tuned = Tuned(base, **networks, lora=tuple(networks[part] for part in loras), attached=attached)
    if loras or attached:
        base.tuned = tuned
    return tuned


def torch_dtype(name):
    """`float32` or `bfloat16` (or the torch.dtype itself) -> torch.dtype."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known and name not in known.values():
        raise InputError(f"dtype {name!r} is not supported; use float32 or bfloat16")
    return known.get(name, name)


def _load_part(folder, part, device, dtype):
    path = weights.safetensors_file(folder / part, _PARTS[part][1])
    variant = "fp16" if path.name.endswith(".fp16.safetensors") else None
    if part == "text_encoder":
        from transformers import CLIPTextModel
        from transformers.utils import logging

        logging.disable_progress_bar()  # its bar ignores whether anybody is watching
        network = CLIPTextModel.from_pretrained(folder / part, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True)
    else:
        from diffusers import AutoencoderKL, UNet2DConditionModel

        network = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_pretrained(
            folder / part, torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
        )
    return network.to(device).eval().requires_grad_(False)
