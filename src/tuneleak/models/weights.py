"""Reading and writing weights that come from, or go to, somebody else: safetensors only, every shape checked before a tensor is read."""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models.modelset import LORA_FILE

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
# the three spellings of a LoRA's two matrices: peft's, diffusers' for UNets, diffusers' for text encoders
_LORA_KEY = re.compile(r"^(unet|text_encoder)\.(.+?)(?:\.lora_([AB])|\.lora\.(down|up)|\.lora_linear_layer\.(down|up))\.weight$")


@dataclass(frozen=True)
class Lora:
    """The LoRA of one network: `matrices[module] = (A (rank, in), B (out, rank))`; its update of a weight is alpha / rank * B A."""

    rank: int
    alpha: float
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]


def safetensors_file(folder, name):
    """`folder / name` (or its fp16 variant), refused with the reason if it is absent, a pickle stands in its place, or it leaves the folder."""
    folder = Path(folder)
    stem = name.removesuffix(".safetensors")
    for candidate in (name, f"{stem}.fp16.safetensors"):
        if (folder / candidate).is_file():
            return files.inside(folder, candidate)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        reason = "which is a pickle: loading one can run any code, so it is refused"
        raise InputError(f"{folder} holds its weights as {pickles[0]}, {reason}; convert it to {name} on a machine you can lose")
    raise InputError(f"{folder} has no {name}; only safetensors files are read, get the model in that format")


def load_tensors(path, advice):
    """All tensors of one of our own safetensors files, by name; an `InputError` with `advice` if it cannot be read."""
    with opened(path, advice) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (safe_open is no mapping)


@contextlib.contextmanager
def restoring(path, remove):
    """Around what puts a checkpoint's tensors into place: where they do not fit, an `InputError` that says what to remove."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise InputError(f"{path} is no checkpoint of this training; remove {remove} to begin again") from None


def read_tensors(path, shapes, ignore=()):
    """Tensors of a safetensors file whose names and shapes must be exactly `shapes` (name -> shape); names in `ignore` are skipped.

    Shapes are compared in the header, before any data is read. Raises `InputError` for a broken file, a missing, extra or misshapen
    tensor, and values that are not finite.
    """
    with opened(path) as handle:
        names = set(handle.keys()) - set(ignore)
        for name in sorted(names ^ set(shapes)):
            wrong = "is unknown to the base model" if name in names else "is missing"
            raise InputError(f"{path}: tensor {name!r} {wrong}; the file was not made from this base model, give the one it was")
        for name, shape in shapes.items():
            found = tuple(handle.get_slice(name).get_shape())
            if found != tuple(shape):
                raise InputError(f"{path}: tensor {name!r} has shape {found}, but the base model needs {tuple(shape)}; give the one it was made from")
        return {name: finite(path, name, handle.get_tensor(name)) for name in shapes}


def check_config(path, weights_path):
    """Refuse a network's config.json that is no JSON object, or asks for more layers than its weights have tensors: building those would never end."""
    config = files.read_object(path)
    with opened(weights_path) as handle:
        count = len(handle.keys())
    for key, number in _numbers(config):
        if "layers" in key and number > count:
            raise InputError(f"{path}: {key} is {number}, but {Path(weights_path).name} has {count} tensors in all; get both again from one place")


def _numbers(value, key=""):
    """(key, number) of every number in nested JSON; those of a list have the list's key."""
    if isinstance(value, dict | list):
        for inner, item in value.items() if isinstance(value, dict) else ((key, item) for item in value):
            yield from _numbers(item, inner)
    elif isinstance(value, int | float):
        yield key, value


def check_finite(network, path):
    """Refuse a network with a weight that is not a finite number."""
    for name, value in network.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: tensor {name!r} holds values that are not finite; get the file again")


def load_network(network, path, prefix=""):
    """Fill `network` in place from a safetensors file of the same architecture.

    `prefix`: leading part of names that the file and the network may or may not have (`text_model.`: old and new CLIP text encoders).
    """
    state = network.state_dict()
    own = {name.removeprefix(prefix): name for name in state}
    with opened(path) as handle:
        theirs = {name.removeprefix(prefix): name for name in handle.keys()}  # noqa: SIM118 (safe_open is no mapping)
    shapes = {theirs.get(name, name): tuple(state[own[name]].shape) for name in own}
    tensors = read_tensors(path, shapes, ignore=(f"{prefix}embeddings.position_ids", "embeddings.position_ids"))
    network.load_state_dict({own[name.removeprefix(prefix)]: tensor for name, tensor in tensors.items()})


def write_lora(folder, networks):
    """Write the adapters `default` of `networks` (`unet`, and `text_encoder` if trained) as a LoRA file that diffusers reads."""
    from peft import get_peft_model_state_dict

    _write(folder, {part: (get_peft_model_state_dict(network), network.peft_config["default"].to_dict()) for part, network in networks.items()})


def write_matrices(folder, loras):
    """The same for `{part: Lora}`."""
    from peft import LoraConfig

    parts = {}
    for part, lora in loras.items():
        tensors = {f"{module}.lora_{key}.weight": matrix for module, pair in lora.matrices.items() for key, matrix in zip("AB", pair, strict=True)}
        parts[part] = tensors, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.matrices)).to_dict()
    _write(folder, parts)


def _write(folder, parts):
    """parts: {network: (tensors by peft's names, settings)}.

    The adapter's settings go into the header: without them diffusers would take alpha = rank. Text-encoder names begin with
    `text_model.`, as in every published file, whatever this version of transformers calls the module.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_state_dict_to_diffusers

    arguments = {}
    for part, (tensors, settings) in parts.items():
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
        if part == "text_encoder":
            tensors = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
        arguments[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(tensors)
        arguments[f"{part}_lora_adapter_metadata"] = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    StableDiffusionLoraLoaderMixin.save_lora_weights(folder, weight_name=LORA_FILE, safe_serialization=True, **arguments)


def read_lora(path, networks):
    """The LoRAs of a diffusers file as `{"unet": Lora, "text_encoder": Lora}` (those present), checked against `networks` (same keys).

    Reads the spellings of peft and of diffusers, with and without `text_model.`. Alpha is read from the header (alpha = rank without one,
    as diffusers does). Raises `InputError` for names that are no LoRA of these networks, wrong or unequal ranks and shapes, a file larger
    than these networks' attention could need, other adapter kinds (DoRA, rank-stabilised), or values that are not finite.
    """
    with opened(path) as handle:
        settings = _plain_settings(path)
        # beneath peft's layer, where one sits already, is the layer that the matrices belong to
        layers = {part: {name: getattr(layer, "base_layer", layer) for name, layer in network.named_modules()} for part, network in networks.items()}
        pairs = {}
        for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            match = _LORA_KEY.match(name)
            if not match or match[1] not in networks:
                raise InputError(
                    f"{path}: tensor {name!r} is not a LoRA matrix of {' or '.join(networks)}; only those spellings that diffusers writes are read, convert it"
                )
            module = _own_name(match[2], layers[match[1]])
            matrix = {"down": "A", "up": "B"}.get(match[4] or match[5], match[3])
            pairs.setdefault(match[1], {}).setdefault(module, {})[matrix] = name
        loras = {}
        for part, modules in pairs.items():
            matrices, rank = {}, None
            for module, names in modules.items():
                rank = _check_pair(path, layers[part].get(module), f"{part}.{module}", names, handle, rank)
                matrices[module] = tuple(finite(path, names[key], handle.get_tensor(names[key])).float() for key in "AB")
            alpha = settings.get(f"{part}.lora_alpha", rank)
            if settings.get(f"{part}.r", rank) != rank or isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
                raise InputError(f"{path}: the header's rank or alpha for {part} is not usable with tensors of rank {rank}; save the LoRA again")
            loras[part] = Lora(rank, float(alpha), matrices)
    if not loras:
        raise InputError(f"{path} holds no LoRA; get the file again")
    return loras


def adapted(network):
    """`(name, layer)` of the layers of `network` that carry a peft adapter."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]


def detach_lora(network):
    """Take peft's layers out of `network` again, which leaves the base as it was loaded."""
    from diffusers.utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(network)
    if hasattr(network, "peft_config"):
        del network.peft_config
    network._hf_peft_config_loaded = False  # the flag by which diffusers and transformers both know that an adapter was added


def opened(path, advice="get it again"):
    """A safetensors file opened for reading its header and tensors; an `InputError` with `advice` if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); {advice}") from None


def finite(path, name, tensor):
    """`tensor`, or an `InputError` if it is not made of finite floating-point numbers."""
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{path}: tensor {name!r} is not made of finite floating-point numbers; get the file again")
    return tensor


def header(path):
    """The free text that a safetensors file carries beside its tensors, {name: text}."""
    with opened(path) as handle:
        return dict(handle.metadata() or {})


def header_settings(path):
    """The adapter's settings that diffusers puts into a file's header: {"unet.lora_alpha": 8, ...}, empty without any."""
    text = header(path).get("lora_adapter_metadata", "{}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: the header's lora_adapter_metadata is not a JSON object; save the LoRA again")
    return settings


def _plain_settings(path):
    settings = header_settings(path)
    for key in settings:
        if key.split(".")[-1] in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") and settings[key]:
            raise InputError(f"{path}: the adapter sets {key}, which is not a plain LoRA of one rank; only those are supported")
    return settings


def _own_name(module, layers):
    """The module's name in this network: transformers 5 has no `text_model.`, published files and older versions do."""
    return next((name for name in (module, module.removeprefix("text_model."), f"text_model.{module}") if name in layers), module)


def _check_pair(path, layer, module, names, handle, rank):
    if set(names) != {"A", "B"}:
        raise InputError(f"{path}: the LoRA of {module} has only one of its two matrices; get the file again")
    if not isinstance(layer, torch.nn.Linear):
        raise InputError(f"{path}: {module} is not a linear layer of this base model; give the base it was trained on")
    a, b = (tuple(handle.get_slice(names[key]).get_shape()) for key in "AB")
    rank = a[0] if rank is None and a else rank
    if a != (rank, layer.in_features) or b != (layer.out_features, rank) or not 1 <= rank <= 4096:
        needed = f"(rank, {layer.in_features}) and ({layer.out_features}, rank), one rank for all layers; give the base it was trained on"
        raise InputError(f"{path}: the LoRA of {module} has shapes {a} and {b}; this layer needs {needed}")
    return rank
