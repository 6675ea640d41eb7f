"""Adapters as people share them -- LoRA, DoRA, LoHa, LoKr and OFT -- read into peft's layers: safetensors only, every shape checked, no setting trusted.

What is read:

- a LoRA file in the spellings of diffusers, old and new, and of peft, ranks and alphas by layer included
- a file of kohya's trainers or LyCORIS (`lora_unet_down_blocks_0_..._to_q.lora_down.weight`): LoRA (linear and convolution), DoRA, LoHa, LoKr
- a folder of peft (`adapter_config.json`, `adapter_model.safetensors`), by itself or as `unet/`, `text_encoder/`, ...
- several of these at once, each with a scale: a folder with `adapters.json`

A setting that changes the base (PiSSA, biases, modules to save) is refused: without the changed base the adapter means something else.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import adapter_names, weights
from tuneleak.models.modelset import LORA_FILE

KINDS = ("lora", "dora", "loha", "lokr", "oft")
CONFIG_FILE, MODEL_FILE, STACK_FILE = "adapter_config.json", "adapter_model.safetensors", "adapters.json"
MAX_RANK = 4096
_HANDLED = {  # settings of peft's configurations that are understood, by kind
    "lora": ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"),
    "loha": ("r", "alpha", "rank_pattern", "alpha_pattern", "use_effective_conv2d"),
    "lokr": ("r", "alpha", "rank_pattern", "alpha_pattern", "use_effective_conv2d", "decompose_both", "decompose_factor"),
    "oft": ("r", "oft_block_size", "coft", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms"),
}
_HARMLESS = {  # about training, or read off the tensors
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "lora_dropout", "rank_dropout", "rank_dropout_scale", "module_dropout", "fan_in_fan_out",
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """One network's adapter. kind: lora (DoRA included), loha, lokr or oft; settings: of peft's configuration; tensors: by peft's names."""

    kind: str
    settings: dict
    tensors: dict

    @property
    def modules(self):
        """The adapted modules, in order."""
        return list(dict.fromkeys(adapter_names.split(name)[0] for name in self.tensors))

    def config(self, scale=1.0):
        """peft's configuration with the update multiplied by `scale`."""
        import peft

        settings = dict(self.settings)
        if scale != 1:
            if self.kind == "oft":
                raise InputError("an OFT adapter rotates weights; it has no scale other than 1")
            alpha = "lora_alpha" if self.kind == "lora" else "alpha"
            settings[alpha] *= scale
            settings["alpha_pattern"] = {name: value * scale for name, value in settings.get("alpha_pattern", {}).items()}
        started = {"init_lora_weights": False} if self.kind == "lora" else {"init_weights": True}  # filled at once: the start does not matter
        kind = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig, "oft": peft.OFTConfig}[self.kind]
        return kind(target_modules=self.modules, **started, **settings)


@dataclass(frozen=True)
class Stacked:
    """What one shared file or folder adapts, {part: Adapter}, and by which scale."""

    adapters: dict
    scale: float = 1.0
    source: Path = field(default=Path(), compare=False)


def read_folder(folder, networks):
    """The adapters of a model's folder as a list of `Stacked`: those of its `adapters.json`, else what `read` finds; empty if it holds none."""
    folder = Path(folder)
    if folder.is_file() or not (folder / STACK_FILE).is_file():
        adapted = {} if folder.is_dir() and not _holds_adapter(folder, networks) else read(folder, networks)
        return [Stacked(adapted, source=folder)] if adapted else []
    stack = files.read_json(folder / STACK_FILE)
    if not isinstance(stack, list) or not all(isinstance(item, dict) and isinstance(item.get("file"), str) for item in stack):
        raise InputError(f"{folder / STACK_FILE} must be a list of objects with `file` and `scale`")
    found = []
    for item in stack:
        path = files.inside(folder, item["file"])
        found.append(Stacked(read(path, networks), _number(path, "scale", item.get("scale", 1.0)), path))
    return found


def read(path, networks):
    """The adapters of one file or folder: {part: Adapter}. networks: {part: module}, by which every name and shape is checked.

    Raises `InputError` for anything that is no adapter of these networks, for a file larger than any adapter of them could be, and for values that are
    not finite; nothing but the header is read before the shapes are known to fit.
    """
    path = Path(path)
    if path.is_dir():
        parts = {part: path / part for part in networks if (path / part / CONFIG_FILE).is_file()}
        if (path / CONFIG_FILE).is_file():
            parts[next(iter(networks))] = path
        if parts:
            return {part: _read_peft(folder, part, networks) for part, folder in parts.items()}
        path = weights.safetensors_file(path, LORA_FILE)
    elif path.suffix != ".safetensors":
        weights.safetensors_file(path.parent, f"{path.stem}.safetensors")  # says what is wrong
        raise InputError(f"{path} is not a safetensors file")
    return _read_file(path, networks)


def attach(networks, stack):
    """Inject a stack of adapters (list of `Stacked`) into `networks`, in float32 and without gradients; returns the networks that carry one.

    On an error everything is taken out again. Raises `InputError` for tensors of other shapes than these networks need.
    """
    touched = {}
    try:
        for number, stacked in enumerate(stack):
            for part, adapter in stacked.adapters.items():
                name = "default" if number == 0 else f"more{number}"
                kinds = touched.setdefault(part, {})
                if any(kind != adapter.kind for kind in kinds.values()):
                    raise InputError(f"{stacked.source}: a {adapter.kind} cannot be put on top of a {next(iter(kinds.values()))} in one network")
                kinds[name] = adapter.kind
                _inject(networks[part], adapter, name, stacked)
        for part, kinds in touched.items():
            _activate(networks[part], list(kinds))
            networks[part].requires_grad_(False)
    except Exception:
        for part in touched:
            weights.detach_lora(networks[part])
        raise
    return tuple(networks[part] for part in touched)


def inject(network, config, name):
    """Put an adapter of peft into `network` and make it the active one; also where its class knows nothing of adapters (UNet2DModel)."""
    if hasattr(network, "add_adapter"):
        network.add_adapter(config, name)
        return
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, network, name)
    _activate(network, name)


def _activate(network, names):
    if hasattr(network, "set_adapter"):
        network.set_adapter(names)
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(names)


def write(folder, networks):
    """Write the adapter `default` of each network ({part: module}) as a folder of peft, `<folder>/<part>/`, that `PeftModel.from_pretrained` reads."""
    import peft
    from safetensors.torch import save_file

    for part, network in networks.items():
        config = network.peft_config["default"]
        kind = config.peft_type.value.lower()
        settings = {key: getattr(config, key) for key in _HANDLED[kind]} | {"peft_type": config.peft_type.value, "peft_version": peft.__version__}
        tensors = {f"base_model.model.{name}": value.detach().float().cpu().contiguous() for name, value in parameters(network, "default").items()}
        settings["target_modules"] = list(dict.fromkeys(adapter_names.split(name)[0] for name in parameters(network, "default")))
        (Path(folder) / part).mkdir(parents=True, exist_ok=True)
        files.write_json(Path(folder) / part / CONFIG_FILE, settings)
        with files.atomic(Path(folder) / part / MODEL_FILE) as path:
            save_file(tensors, path, metadata={"format": "pt"})


def parameters(network, name):
    """The parameters of the adapter `name` by the names that peft saves them under."""
    found = {}
    for full, parameter in network.named_parameters():
        module, dot, rest = full.partition(f".{name}")
        if dot and rest in ("", ".weight"):
            found[module if module.endswith("lora_magnitude_vector") else module + rest] = parameter
    return found


def _holds_adapter(folder, networks):
    return (folder / LORA_FILE).is_file() or any((place / CONFIG_FILE).is_file() for place in (folder, *(folder / part for part in networks)))


def _inject(network, adapter, name, stacked):
    try:
        inject(network, adapter.config(stacked.scale), name)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{stacked.source}: this adapter does not fit the base model: {error}") from None
    own = parameters(network, name)
    shapes = {key: tuple(value.shape) for key, value in adapter.tensors.items()}
    for key in sorted({*own, *shapes}):
        needed = tuple(own[key].shape) if key in own else None
        if shapes.get(key) != needed:
            raise InputError(f"{stacked.source}: the shapes do not fit this base model: {key} is {shapes.get(key)}, but {needed} is needed")
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.data = adapter.tensors[key].to(parameter.device, torch.float32)


# --- one file in the spellings of diffusers, peft and kohya ------------------------------------------------------------------------------


def _read_file(path, networks):
    settings, adapters = weights.header_settings(path), {}
    with weights.opened(path) as handle:
        _check_size(path, networks)
        places = adapter_names.Places(networks)
        groups = {}
        for key in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            part, module, kind = places.find(key, path)
            groups.setdefault(part, {}).setdefault(module, {})[kind] = key
        for part, modules in groups.items():
            shapes = {module: {kind: tuple(handle.get_slice(key).get_shape()) for kind, key in names.items()} for module, names in modules.items()}
            alphas = {module: _alpha(path, module, handle.get_tensor(names["alpha"])) for module, names in modules.items() if "alpha" in names}
            own = {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}
            kind, chosen = _settings_of(path, part, networks[part], shapes, alphas, own)
            tensors = {}
            for module, names in modules.items():
                for field_name, key in names.items():
                    if field_name != "alpha":
                        value = weights.finite(path, key, handle.get_tensor(key)).float()
                        tensors[f"{module}.{field_name}"] = _magnitude(path, module, value) if field_name == "lora_magnitude_vector" else value
            adapters[part] = Adapter(kind, chosen, tensors)
    if not adapters:
        raise InputError(f"{path} holds no adapter")
    return adapters


def _alpha(path, module, value):
    if value.numel() != 1:
        raise InputError(f"{path}: alpha of {module} is not one number but has the shape {tuple(value.shape)}")
    return float(value)


def _magnitude(path, module, value):
    """DoRA's magnitudes `(out,)`, one for each output as peft has them."""
    if value.numel() != max(value.shape[:1], default=0):
        raise InputError(f"{path}: the magnitudes of {module} have the shape {tuple(value.shape)}; only one for each output, as peft writes them, is supported")
    return value.flatten()


def _settings_of(path, part, network, shapes, alphas, header):
    """(kind, peft's settings) of one network's tensors, from their shapes and what the header or the file says of alpha."""
    fields = {name for names in shapes.values() for name in names}
    if any(name.startswith("lora_") for name in fields):
        kind = "lora"
        for module, names in shapes.items():
            if not {"lora_A.weight", "lora_B.weight"} <= set(names):
                raise InputError(f"{path}: the LoRA of {part}.{module} has only one of its two matrices")
        ranks = {module: (names["lora_A.weight"] or (0,))[0] for module, names in shapes.items()}
        dora = [module for module, names in shapes.items() if "lora_magnitude_vector" in names]
        if (dora and len(dora) != len(shapes)) or header.get("use_dora", bool(dora)) != bool(dora):
            raise InputError(f"{path}: use_dora of the header, and the magnitudes there are for {part}, do not agree")
        extra = {"use_dora": bool(dora), "use_rslora": header.get("use_rslora") is True}
    elif any(name.startswith("hada_") for name in fields):
        kind, extra = "loha", {}
        ranks = {module: names.get("hada_w1_b", (0,))[0] for module, names in shapes.items()}
    else:
        kind = "lokr"
        ranks, extra = _kronecker(path, network, shapes, alphas)
    for module, rank in ranks.items():
        if not 1 <= rank <= MAX_RANK:
            raise InputError(f"{path}: the adapter of {part}.{module} has rank {rank}")
    rank = next(iter(ranks.values()))
    if "rank_pattern" not in header and header.get("r", rank) not in set(ranks.values()):
        raise InputError(f"{path}: the header's rank for {part} is not that of the tensors")
    alpha = {module: _number(path, "the header's alpha", alphas.get(module, _of_header(header, module, ranks[module]))) for module in shapes}
    first = next(iter(alpha.values()))
    patterns = {
        "rank_pattern": {adapter_names.pattern(module): value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {adapter_names.pattern(module): value for module, value in alpha.items() if value != first},
    }
    return kind, {"r": rank, "lora_alpha" if kind == "lora" else "alpha": first, **patterns, **extra}


def _of_header(header, module, rank):
    """The header's alpha of a module (names in its patterns are taken as endings: they come from a stranger); alpha = rank without one, as in diffusers."""
    pattern = header.get("alpha_pattern")
    for name, value in pattern.items() if isinstance(pattern, dict) else ():
        if module == name or module.endswith(f".{name}"):
            return value
    return header.get("lora_alpha", rank)


def _kronecker(path, network, shapes, alphas):
    """Ranks and factorisation of a LoKr, which its file does not state; full factors have no rank, and LyCORIS gives them scale 1."""
    from peft.tuners.lokr.layer import factorization

    layers, ranks, both, first = dict(network.named_modules()), {}, False, []
    for module, names in shapes.items():
        w1, w2 = names.get("lokr_w1"), names.get("lokr_w2")
        both |= w1 is None
        size = (w1 or (names.get("lokr_w1_a", (0,))[0], names.get("lokr_w1_b", (0, 0))[1]))[:2]
        first.append((layers[module].weight.shape[:2], size))
        rank = 0 if w1 else names.get("lokr_w1_b", (0,))[0]
        rank = rank or (0 if w2 else names.get("lokr_w2_b", (0,))[0])
        ranks[module] = rank or min(max(layers[module].weight.shape[:2]), MAX_RANK)
        if not rank:
            alphas[module] = ranks[module]
    candidates = [-1, *{side for _, size in first for side in size if side}]
    fits = [f for f in candidates if all((factorization(out, f)[0], factorization(width, f)[0]) == tuple(size) for (out, width), size in first)]
    if not fits:
        raise InputError(f"{path}: the factors of this LoKr have shapes that do not divide the layers of this base model")
    return ranks, {"decompose_both": both, "decompose_factor": fits[0]}


# --- folders of peft -------------------------------------------------------------------------------------------------------------------------


def _read_peft(folder, part, networks):
    config, path = files.read_json(folder / CONFIG_FILE), weights.safetensors_file(folder, MODEL_FILE)
    kind = str(config.get("peft_type", "")).lower() if isinstance(config, dict) else ""
    if kind not in _HANDLED:
        raise InputError(f"{folder / CONFIG_FILE}: peft_type {kind!r} is not supported; known are {', '.join(_HANDLED)}")
    settings = _peft_settings(folder / CONFIG_FILE, kind, config)
    with weights.opened(path) as handle:
        _check_size(path, networks)
        places = adapter_names.Places({part: networks[part]})
        named, modules = {}, set()
        for key in handle.keys():  # noqa: SIM118
            _, module, field_name = places.find(key, path)
            named[f"{module}.{field_name}"] = key
            modules.add(module)
        tensors = {name: weights.finite(path, key, handle.get_tensor(key)).float() for name, key in named.items()}
    if not tensors:
        raise InputError(f"{path} holds no adapter")
    for key in ("rank_pattern", "alpha_pattern"):
        for name in config.get(key) or {}:
            if not any(module == name or module.endswith(f".{name}") for module in modules):
                raise InputError(f"{folder / CONFIG_FILE}: {key} names {name!r}, which is no layer of the adapter; regular expressions are not supported")
    longest = max((side for value in tensors.values() for side in value.shape), default=0)
    limits = [settings.get("r", 0), settings.get("oft_block_size", 0), *settings.get("rank_pattern", {}).values()]
    if any(isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= max(longest, MAX_RANK) for value in limits):
        raise InputError(f"{folder / CONFIG_FILE}: r, oft_block_size and rank_pattern must be whole numbers that fit the tensors, not {limits}")
    return Adapter(kind, settings, tensors)


def _peft_settings(path, kind, config):
    import peft

    defaults = {"lora": peft.LoraConfig, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig, "oft": peft.OFTConfig}[kind]()
    settings = {}
    for key, value in config.items():
        if key in _HANDLED[kind]:
            settings[key] = {adapter_names.pattern(name): item for name, item in value.items()} if key.endswith("_pattern") and value else value
        elif key in ("init_lora_weights", "init_weights"):
            if value not in (True, False, "gaussian", "lycoris"):
                raise InputError(f"{path}: the adapter was started by {value!r}, which changes the base model's weights; it cannot be read without them")
        elif key not in _HARMLESS and value and value != getattr(defaults, key, None):
            raise InputError(f"{path}: the adapter sets {key}, which is not supported")
    for key in ("lora_alpha", "alpha"):
        if key in settings:
            settings[key] = _number(path, key, settings[key])
    settings["alpha_pattern"] = {name: _number(path, "alpha_pattern", value) for name, value in (settings.get("alpha_pattern") or {}).items()}
    settings["rank_pattern"] = settings.get("rank_pattern") or {}
    return {key: value for key, value in settings.items() if key in _HANDLED[kind]}


def _check_size(path, networks):
    """Refuse a file that is larger than all weights of these networks in double precision: no adapter is."""
    limit = 8 * sum(parameter.numel() for network in networks.values() for parameter in network.parameters())
    if path.stat().st_size > limit:
        raise InputError(f"{path} has {path.stat().st_size} bytes, more than any adapter of these networks needs; it was made for another base model")


def _number(path, name, value):
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value < 1e6:
        raise InputError(f"{path}: {name} must be a number above 0, not {json.dumps(value, default=str)}")
    return value
