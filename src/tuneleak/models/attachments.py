"""Small trained parts that sit beside a frozen network and act through hooks: learned word vectors, and hypernetworks on the text context.

Both start as nothing: at initialisation the network's output is what it was to the last bit. Both can be switched off (`active`) and taken off (`remove`).
"""

import json
import re

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import weights

EMBEDS_FILE = "learned_embeds.safetensors"
HYPERNETWORK_FILE = "hypernetwork.safetensors"
_KINDS = {"cross": "attn2", "self": "attn1"}  # diffusers' names of a block's two attentions
_KEY = re.compile(r"^(cross|self)-(\d+)\.(k|v)\.(0|2)\.(weight|bias)$")


class TextualInversion(torch.nn.Module):
    """Textual inversion (Gal et al., ICLR 2023): learned vectors, one per token of a phrase, that take its place in captions.

    They start as the phrase's own embeddings, so `the face of <phrase>` means at first what it meant before. The file is the usual one, with the vectors under
    the name of a placeholder; the phrase that they replace stands in its header.
    """

    trains_text = True

    def __init__(self, text_encoder, tokenizer, phrase, placeholder):
        super().__init__()
        ids = tokenizer(phrase, add_special_tokens=False).input_ids if phrase else []
        if not ids:
            raise InputError(f"textual inversion needs words to replace, not {phrase!r}; see caption_template")
        embedding = text_encoder.get_input_embeddings()
        self.phrase, self.placeholder, self.active = phrase, placeholder, True
        self._ids = torch.tensor(ids, device=embedding.weight.device)
        self.vectors = torch.nn.Parameter(embedding.weight.detach()[self._ids].float())
        self._handle = embedding.register_forward_hook(self._replace)

    def _replace(self, module, arguments, output):
        size = len(self._ids)
        if not self.active or arguments[0].shape[1] < size:
            return output
        rows, starts = (arguments[0].unfold(1, size, 1) == self._ids).all(-1).nonzero(as_tuple=True)
        places = starts[:, None] + torch.arange(size, device=starts.device)
        return output.index_put((rows[:, None].expand_as(places), places), self.vectors.to(output.dtype).expand(len(rows), -1, -1))

    def save(self, folder):
        """Write `learned_embeds.safetensors`, which diffusers' `load_textual_inversion` reads."""
        _write(folder, EMBEDS_FILE, {self.placeholder: self.vectors}, {"phrase": self.phrase})

    def fill(self, folder):
        """Take over the vectors that `save` wrote."""
        _fill(files.inside(folder, EMBEDS_FILE), {self.placeholder: self.vectors})

    def remove(self):
        """Take the vectors out of the text encoder."""
        self._handle.remove()


class Hypernetwork(torch.nn.Module):
    """Residual two-layer networks on what keys and values are made of: k = W_k (c + MLP_k(c)), v = W_v (c + MLP_v(c)).

    One pair for each width of a kind of attention (`cross`; with `self_attention` also `self`), shared by all layers of that width; hidden layers are `hidden`
    times as wide; the last layer starts as zero, the first from `generator`.
    """

    trains_text = False

    def __init__(self, unet, hidden, self_attention=False, generator=None):
        super().__init__()
        self.active, self.hidden, self._handles = True, hidden, []
        self.networks = torch.nn.ModuleDict()
        for name, module in unet.named_modules():
            kind = next((kind for kind, ending in _KINDS.items() if name.endswith(ending)), None)
            if kind is None or (kind == "self" and not self_attention):
                continue
            for part in ("k", "v"):
                layer = getattr(module, f"to_{part}")
                network = self._network(kind, layer.in_features, part, generator).to(layer.weight.device)
                self._handles.append(layer.register_forward_pre_hook(self._residual(network)))

    def _network(self, kind, width, part, generator):
        pair = f"{kind}-{width}"
        if pair not in self.networks:
            self.networks[pair] = torch.nn.ModuleDict()
        if part not in self.networks[pair]:
            first, last = torch.nn.Linear(width, self.hidden * width), torch.nn.Linear(self.hidden * width, width)
            with torch.no_grad():
                first.weight.copy_(torch.randn(first.weight.shape, generator=generator) / width**0.5)
                for tensor in (first.bias, last.weight, last.bias):
                    tensor.zero_()
            self.networks[pair][part] = torch.nn.Sequential(first, torch.nn.ReLU(), last)
        return self.networks[pair][part]

    def _residual(self, network):
        def hook(module, arguments):
            if not self.active:
                return None
            context = arguments[0]
            return (context + network(context.float()).to(context.dtype), *arguments[1:])

        return hook

    def save(self, folder):
        """Write `hypernetwork.safetensors`, with names such as `cross-768.k.0.weight`."""
        _write(folder, HYPERNETWORK_FILE, self.networks.state_dict(), {"hidden": str(self.hidden)})

    def fill(self, folder):
        """Take over the weights that `save` wrote."""
        _fill(files.inside(folder, HYPERNETWORK_FILE), self.networks.state_dict())

    def remove(self):
        """Take the hooks out of the UNet."""
        for handle in self._handles:
            handle.remove()


def phrase_of(caption, template):
    """The words of a caption in place of {} in the template; an `InputError` if it does not fit."""
    before, braces, after = template.partition("{}")
    inside = caption[len(before) : len(caption) - len(after)].strip()
    if not braces or not caption.startswith(before) or not caption.endswith(after) or not inside:
        raise InputError(f"textual inversion replaces the words in place of {{}} in caption_template {template!r}, but the caption is {caption!r}")
    return inside


def load(folder, unet, text_encoder, tokenizer):
    """The attachments whose files lie in a model's folder, put on these networks without gradients; every shape is checked before."""
    made = []
    if (folder / EMBEDS_FILE).is_file():
        made.append(_load_embeds(files.inside(folder, EMBEDS_FILE), text_encoder, tokenizer))
    if (folder / HYPERNETWORK_FILE).is_file():
        try:
            made.append(_load_hypernetwork(files.inside(folder, HYPERNETWORK_FILE), unet))
        except InputError:
            for item in made:
                item.remove()
            raise
    return tuple(item.requires_grad_(False) for item in made)


def _load_embeds(path, text_encoder, tokenizer):
    names, header = _header(path)
    if len(names) != 1 or not header.get("phrase"):
        raise InputError(f"{path} must hold one tensor, and in its header the phrase that its vectors replace (one made by `tuneleak finetune` does)")
    made = TextualInversion(text_encoder, tokenizer, header["phrase"], names[0])
    return _filled(made, path, {names[0]: made.vectors})


def _load_hypernetwork(path, unet):
    names, header = _header(path)
    hidden = header.get("hidden", "")
    if not hidden.isdigit() or not 1 <= int(hidden) <= 16 or not all(map(_KEY.match, names)):
        raise InputError(f"{path} is not a hypernetwork made by `tuneleak finetune`: its names are {', '.join(names[:2])} ..., its hidden width {hidden!r}")
    made = Hypernetwork(unet, int(hidden), any(name.startswith("self-") for name in names))
    return _filled(made, path, made.networks.state_dict())


def _filled(made, path, tensors):
    """`made` with its `tensors` filled from the file, or taken off again if they do not fit."""
    try:
        _fill(path, tensors)
    except InputError:
        made.remove()
        raise
    return made


def _fill(path, tensors):
    for name, value in weights.read_tensors(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}).items():
        tensors[name].data.copy_(value)


def _header(path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as handle:
            return sorted(handle.keys()), dict(handle.metadata() or {})
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from None


def _write(folder, name, tensors, header):
    from safetensors.torch import save_file

    with files.atomic(folder / name) as path:
        save_file({key: tensor.detach().float().cpu().contiguous().clone() for key, tensor in tensors.items()}, path, metadata=header)
