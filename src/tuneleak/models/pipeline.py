"""The pretrained base and the models tuned from it, loaded from pipeline folders without the pipeline class.

`Base` itself is Stable Diffusion 1.x and 2.x; `tuneleak.models.architectures` has the others. Only the classes an attack needs are imported. Every
noise prediction that leaves this module is epsilon in float32, whatever the precision of the network and whatever it predicts.
"""

import contextlib
import copy
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import adapters, attachments, parameterisation, samplers, schedule, weights
from tuneleak.models.modelset import CLASS_FILE, folder_of

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
        latents = []
        for part in pixels.split(batch):
            posterior = self.vae.encode(part.to(self.device, self.vae.dtype)).latent_dist
            latent = posterior.mean.float()
            if generator is not None:
                latent = latent + posterior.std.float() * torch.randn(latent.shape, generator=generator).to(self.device)
            latents.append((latent - self._shift) * self.vae.config.scaling_factor)
        return torch.cat(latents)

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
        """`call` of the base's own denoiser, with whatever sits in it: what is differentiated when something is trained."""
        return self.call(self.unet, x, t, context)

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
        setattr(self, part, _load_part(self.folder, part, self.PARTS[part], self.device, dtype))

    def check_trainable(self):
        """Raises `InputError` for an architecture that can be attacked but not fine-tuned here."""
        if not self.trains:
            raise InputError(f"{self.folder} is a {type(self).__name__}, which can be attacked but not fine-tuned here; train it with its own tools")

    def check_words(self):
        """Raises `InputError` for a base without a text encoder, where something works through words."""
        if self.text_encoder is None:
            raise InputError(f"{self.folder} is a {type(self).__name__} without a text encoder, which this needs; give a base that has one")

    def _without_adapter(self):
        return self.tuned.enabled(False) if self.tuned else contextlib.nullcontext()


@dataclass
class Tuned:
    """A fine-tuned model beside its base. Made by `load_tuned`; usable in a `with` statement, which unloads it.

    For an adapter (LoRA and its kin), the network is the base's own with the adapter injected, switched off except inside `enabled()`; so are learned words and
    hypernetworks (`attached`). A fully tuned network is a separate one. A network that was not tuned is the base's.
    """

    base: Base
    networks: dict  # {part: module}, see Base.networks
    adapted: tuple = ()  # the networks that carry an adapter
    attached: tuple = ()  # see tuneleak.models.attachments

    def __post_init__(self):
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [layer for network in self.adapted for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        self._on = True
        self._switch(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unload()

    @property
    def unet(self):
        """The denoiser, also where it is a transformer."""
        return self.networks[self.base.TUNED[0]]

    @property
    def text_encoder(self):
        """The first text encoder."""
        return self.networks["text_encoder"]

    @contextlib.contextmanager
    def enabled(self, on=True):
        """Inside, the networks are the tuned ones (with `on=False`: the base's); the former state returns at the end."""
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
        """Captions -> context `(n, L, d)` float32 of the tuned model's text encoders."""
        with self.enabled():
            return self.base.encode_text(texts, self.networks)

    def unload(self):
        """Give the base its networks back. Safe to call twice."""
        for network in self.adapted:
            weights.detach_lora(network)
        for part in self.attached:
            part.remove()
        self.adapted, self._layers, self.attached = (), [], ()
        if self.base.tuned is self:
            self.base.tuned = None


def load_base(folder, device="cpu", dtype="float32"):
    """Load a pipeline folder (or the path of its model_index.json) as a `Base`; dtype of the networks: `float32` or `bfloat16`.

    Raises `InputError` if it is not a local folder of a known architecture with safetensors weights.
    """
    from tuneleak.models import architectures

    folder = folder_of(folder, "model_index.json")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a pipeline folder: it has no model_index.json (a hub id has to be fetched first, with `tuneleak fetch`)")
    index = files.read_object(folder / "model_index.json")
    kind = architectures.of_index(index)
    for part, (library, name, _) in kind.PARTS.items():
        if index.get(part) != [library, name]:
            found = f"{folder / 'model_index.json'}: {part} is {index.get(part)}"
            raise InputError(f"{found}, but only {[library, name]} is supported; no other class is imported")
    optional = {part: named for part, named in kind.OPTIONAL.items() if index.get(part) == [*named[:2]]}
    config = files.read_object(folder / "scheduler" / "scheduler_config.json")
    parameterisation.kind_of(config)
    alphas_cumprod = schedule.alphas_cumprod(config)
    device, dtype = torch.device(device), torch_dtype(dtype)
    networks = {part: _load_part(folder, part, named, device, dtype) for part, named in (kind.PARTS | optional).items()}
    tokenizers = {part.replace("text_encoder", "tokenizer"): _load_tokenizer(folder, part) for part in networks if part.startswith("text_encoder")}
    networks["unet"] = networks.pop("transformer", None) or networks["unet"]
    loaded = kind(folder, index, config, alphas_cumprod, device, **networks, **tokenizers)
    loaded.check()
    if kind is Base:
        _check_fit(loaded)
    return loaded


def load_tuned(base, modelset, row):
    """Load one model of a ModelSet as `Tuned`; `row` is a row of its manifest (dict or pandas Series).

    An adapter goes into the base's own networks, so it has to be unloaded before the next model is loaded. Raises `InputError` for anything but safetensors
    whose tensors fit the base (`config.json` beside them is not trusted).
    """
    if base.tuned:
        raise RuntimeError("a LoRA sits in this base already; call unload() on it first")
    folder, own = modelset.path(row), base.networks()
    found = adapters.read_folder(folder, own)
    whole = [part for part in own if (folder / part).is_dir() and not any(part in stacked.adapters for stacked in found)]
    beside = any((folder / name).is_file() for name in (attachments.EMBEDS_FILE, attachments.HYPERNETWORK_FILE, CLASS_FILE))
    if not found and not whole and not beside:
        weights.safetensors_file(folder, adapters.LORA_FILE)  # says what is wrong with the folder
    networks = dict(own)
    for part in whole:
        path = weights.safetensors_file(files.inside(folder, part), (base.PARTS | base.OPTIONAL)[part][2])
        networks[part] = copy.deepcopy(networks[part])
        weights.load_network(networks[part], path, "text_model." if part.startswith("text_encoder") else "")
    attached = attachments.load(folder, networks[base.TUNED[0]], networks.get("text_encoder"), base.tokenizer)
    try:
        adapted = adapters.attach(networks, found)
    except InputError:
        for part in attached:
            part.remove()
        raise
    tuned = Tuned(base, networks, adapted, attached)
    if adapted or attached:
        base.tuned = tuned
    return tuned


def torch_dtype(name):
    """`float32` or `bfloat16` (or the torch.dtype itself) -> torch.dtype."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known and name not in known.values():
        raise InputError(f"dtype {name!r} is not supported; use float32 or bfloat16")
    return known.get(name, name)


def _load_part(folder, part, named, device, dtype):
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


def _check_fit(base):
    """The parts of a Stable Diffusion folder must fit together: contexts, latents and tokens."""
    width, needed = base.text_encoder.config.hidden_size, base.unet.config.cross_attention_dim
    channels, latent = base.unet.config.in_channels, base.vae.config.latent_channels
    if width != needed or channels != latent or base.unet.config.out_channels != channels:
        told = f"its UNet takes contexts of width {needed} and {channels} channels, its text encoder gives {width}, its autoencoder {latent}"
        raise InputError(f"{base.folder}: the parts do not fit together ({told}); get the whole folder from one place")
    if len(base.tokenizer) > base.text_encoder.config.vocab_size:
        told = f"{len(base.tokenizer)} tokens, its text encoder {base.text_encoder.config.vocab_size}"
        raise InputError(f"{base.folder}: the tokenizer knows {told}; get the whole folder from one place")


def _load_tokenizer(folder, part):
    import transformers

    kind = transformers.T5TokenizerFast if part == "text_encoder_3" else transformers.CLIPTokenizer
    folder = folder / part.replace("text_encoder", "tokenizer")
    has = {path.name for path in folder.glob("*")}
    if not has & {"tokenizer.json", "spiece.model"} and not has >= {"vocab.json", "merges.txt"}:  # transformers would make an empty one without a word
        raise InputError(f"{folder} lacks tokenizer.json (or vocab.json and merges.txt); a pipeline folder needs its tokenizer, fetch it again")
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions for files that are broken
        raise InputError(f"{folder} holds no readable {kind.__name__} ({type(error).__name__}: {error}); fetch it again") from None
