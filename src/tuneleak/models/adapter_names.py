"""How the tools that people train with spell the tensors of an adapter, and which module of a network each belongs to."""

import re

import torch

from tuneleak.errors import InputError

# every known ending of a tensor's name -> peft's
_ENDINGS = {
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora.down.weight": "lora_A.weight",
    "lora.up.weight": "lora_B.weight",
    "lora_linear_layer.down.weight": "lora_A.weight",
    "lora_linear_layer.up.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "lora_magnitude_vector": "lora_magnitude_vector",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "dora_scale": "lora_magnitude_vector",
    "oft_R.weight": "oft_R.weight",
    "alpha": "alpha",
}
_ENDINGS |= {name: name for name in (*(f"hada_{name}" for name in ("w1_a", "w1_b", "t1", "w2_a", "w2_b", "t2")),)}
_ENDINGS |= {name: name for name in (*(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),)}
_LONGEST_FIRST = sorted(_ENDINGS, key=len, reverse=True)
_FLAT_PREFIXES = {
    "lora_unet_": "",
    "lora_transformer_": "",
    "lycoris_": "",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}


def split(name):
    """A tensor's name by peft -> (module, field); the field is one of peft's own."""
    for ending in _LONGEST_FIRST:
        if name.endswith(f".{ending}"):
            return name[: -len(ending) - 1], _ENDINGS[ending]
    raise InputError(f"{name!r} is no tensor of an adapter")


def pattern(module):
    """A module's name as peft's rank_pattern and alpha_pattern want it: a regular expression for that name alone."""
    return re.escape(module)


class Places:
    """Finds the part and module a shared tensor belongs to, among `networks` ({part: module}, the denoiser first)."""

    def __init__(self, networks):
        self.networks = networks
        self.denoiser = next(iter(networks))
        self.layers = {part: {name: layer for name, layer in network.named_modules() if name} for part, network in networks.items()}
        self.flat = {part: _flattened(network, self.layers[part]) for part, network in networks.items()}

    def find(self, key, path):
        """(part, module, peft's name of the field) of one tensor; `InputError` for a name that is no adapter of a layer of these networks."""
        name = re.sub(r"\.processor\.to_(q|k|v)_lora\.", r".to_\1.lora.", key).replace(".processor.to_out_lora.", ".to_out.0.lora.")
        try:
            module, field = split(name)
        except InputError:
            module = field = None
        part, own = self._place(module) if module else (None, None)
        if part is None:
            raise InputError(f"{path}: tensor {key!r} is not a LoRA matrix of {' or '.join(self.networks)}")
        if not isinstance(self.layers[part].get(own), torch.nn.Linear | torch.nn.Conv2d):
            raise InputError(f"{path}: {part}.{own} is not a linear layer or convolution of this base model")
        return part, own, field

    def _place(self, module):
        for prefix, part in _FLAT_PREFIXES.items():
            if module.startswith(prefix):
                part = part or self.denoiser
                return (part, self.flat[part].get(module.removeprefix(prefix), module)) if part in self.flat else (None, None)
        module = module.removeprefix("base_model.model.")
        part, _, rest = module.partition(".")
        if part in self.networks:
            return part, self._own(part, rest)
        if part in ("unet", "transformer", "text_encoder", "text_encoder_2", "vae"):
            return None, None
        return self.denoiser, self._own(self.denoiser, module)

    def _own(self, part, module):
        """The module's name in this network: transformers 5 has no `text_model.`, published files and older versions do."""
        return next((name for name in (module, module.removeprefix("text_model."), f"text_model.{module}") if name in self.layers[part]), module)


def _flattened(network, layers):
    """{name with underscores: module}, under the names of diffusers, of a CLIP's `text_model.` and of SDXL's original blocks."""
    found = {}
    blocks = getattr(getattr(network, "config", None), "layers_per_block", None)
    for name in layers:
        spellings = [name, f"text_model.{name}", name.removeprefix("text_model.")]
        if isinstance(blocks, int):
            spellings.append(_original(name, blocks))
        for spelling in spellings:
            found.setdefault(spelling.replace(".", "_"), name)
    return found


def _original(name, blocks):
    """A UNet module's name in Stability's original code, which SDXL files of kohya's trainers use; blocks: layers per block.

    input_blocks: one entry of convolution, then `blocks` layers and a downsampler per level; output_blocks: `blocks` + 1 layers per level, the upsampler
    behind the last layer's resnet and attention.
    """
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name)
    if match:
        side, level, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        place = 1 + level * (blocks + 1) + layer if side == "down" else level * (blocks + 1) + layer
        return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{0 if kind == 'resnets' else 1}.{_resnet(rest)}"
    match = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
    if match:
        return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{_resnet(match[3])}"
    return name


def _resnet(rest):
    return {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}.get(rest, rest)
