"""The pretrained base and the models tuned from it, loaded from pipeline folders without the pipeline class.

Only the classes an attack needs are imported; `tuneleak.models.base` and `tuneleak.models.architectures` say which a folder has.
"""

import contextlib
import copy
from dataclasses import dataclass

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import adapters, architectures, attachments, parameterisation, schedule, weights
from tuneleak.models.base import Base, load_part
from tuneleak.models.modelset import CLASS_FILE, folder_of


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
    vae: torch.nn.Module = None  # an autoencoder of its own, whose encoder was trained; None: the base's

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

    @torch.no_grad()
    def encode_images(self, pixels, batch=16):
        """As `Base.encode_images` (the mean), by the tuned model's autoencoder."""
        if self.vae is None:
            return self.base.encode_images(pixels, batch=batch)
        return torch.cat([self.base.encode(part, vae=self.vae) for part in pixels.split(batch)])

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
    networks = {part: load_part(folder, part, named, device, dtype) for part, named in (kind.PARTS | optional).items()}
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
    vae = _tuned_autoencoder(base, folder)
    if not found and not whole and not beside and vae is None:
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
    tuned = Tuned(base, networks, adapted, attached, vae)
    if adapted or attached:
        base.tuned = tuned
    return tuned


def _tuned_autoencoder(base, folder):
    if "vae" not in base.PARTS or not (folder / "vae").is_dir():
        return None
    vae = copy.deepcopy(base.vae)
    weights.load_network(vae, weights.safetensors_file(files.inside(folder, "vae"), base.PARTS["vae"][2]), "")
    return vae


def torch_dtype(name):
    """`float32` or `bfloat16` (or the torch.dtype itself) -> torch.dtype."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in known and name not in known.values():
        raise InputError(f"dtype {name!r} is not supported; use float32 or bfloat16")
    return known.get(name, name)


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
