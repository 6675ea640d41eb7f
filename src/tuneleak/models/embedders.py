"""The measuring networks of the embedded world: copy and identity embedders, a reader of factors, and a small CLIP.

`load_embedder` opens any of them, and at paper scale SSCD's TorchScript file or FID's Inception, each from a table of known digests.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tuneleak import files
from tuneleak.data.imageset import as_tensor
from tuneleak.errors import InputError
from tuneleak.models import weights

# The only third-party files that are not safetensors: loaded when, and only when, their digest is listed here.
TRUSTED_TORCHSCRIPT: dict[str, str] = {}
TRUSTED_INCEPTION = {"6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": "weights-inception-2015-12-05-6726825d.pth of torch-fidelity"}
INCEPTION = "inception-v3"  # the name under which a Frechet distance is FID


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection; the first may halve the side."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.second(self.first(x)) + self.skip(x))


class Trunk(nn.Module):
    """RGB `(n, 3, h, w)` in [-1, 1] -> features `(n, d)`: a small residual network that keeps a coarse 4x4 layout, since where a mouth is matters."""

    def __init__(self, width, dimensions):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2), Residual(4 * width, 4 * width, 1))
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(4 * width * 16, dimensions)

    def forward(self, x):
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


class FactorReader(nn.Module):
    """A trunk with one linear head per factor; `forward` gives logits by factor."""

    def __init__(self, width, dimensions, factors):
        super().__init__()
        self.trunk = Trunk(width, dimensions)
        self.heads = nn.ModuleDict({name: nn.Linear(dimensions, len(values)) for name, values in factors.items()})

    def forward(self, x):
        features = F.relu(self.trunk(x))
        return {name: head(features) for name, head in self.heads.items()}


def clip_config(image_size, width, layers, context, vocabulary):
    """Configuration of an open_clip CLIP whose two towers are `width` wide and `layers` deep."""
    return {
        "embed_dim": width,
        "vision_cfg": {"image_size": image_size, "layers": layers, "width": width, "patch_size": image_size // 8, "head_width": 32},
        "text_cfg": {"context_length": context, "vocab_size": vocabulary, "width": width, "heads": width // 32, "layers": layers},
    }


def build(config):
    """The network of an embedder's `config.json` (untrained); raises `InputError` for an unknown kind."""
    kind = config.get("kind")
    if kind in ("copy", "identity"):
        return Trunk(config["width"], config["dimensions"])
    if kind == "factors":
        return FactorReader(config["width"], config["dimensions"], config["factors"])
    if kind == "clip":
        from open_clip.model import CLIP

        network = CLIP(**config["clip"])
        if config.get("tower"):  # a residual image tower instead of the ViT: better on little data
            network.visual = Trunk(config["tower"], config["clip"]["embed_dim"])
        return network
    raise InputError(f"unknown kind of embedder {kind!r}; expected copy, identity, factors or clip")


class Embedder:
    """A loaded embedder; all methods take uint8 pictures `(n, h, w, 3)` of the size it was trained on (others are resized)."""

    def __init__(self, network, config, device, folder):
        self.network, self.config, self.device, self.folder = network.eval().requires_grad_(False).to(device), config, device, folder
        self.factors = [name for name in config.get("photograph_factors", [])]

    @torch.inference_mode()
    def _batches(self, pixels, function, batch=256):
        size = self.config["image_size"]
        outputs = []
        for start in range(0, len(pixels), batch):
            x = as_tensor(pixels[start : start + batch]).to(self.device)
            if x.shape[-1] != size or x.shape[-2] != size:
                x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
            outputs.append(function(x))
        return outputs

    def embed(self, pixels):
        """L2-normalised float32 features `(n, d)` (numpy); for a reader of factors, those of its trunk."""
        network = {"clip": lambda x: self.network.encode_image(x), "factors": lambda x: self.network.trunk(x)}.get(self.config["kind"], self.network)
        return torch.cat(self._batches(pixels, lambda x: F.normalize(network(x).float(), dim=-1))).cpu().numpy()

    def read(self, pixels):
        """Most likely value of each factor: `{factor: array of str (n,)}` (reader of factors only)."""
        if self.config["kind"] != "factors":
            raise InputError(f"embedder {self.config.get('name')!r} does not read factors")
        outputs = self._batches(pixels, self.network)
        read = {name: torch.cat([output[name].argmax(-1) for output in outputs]).cpu().numpy() for name in self.config["factors"]}
        return {name: np.array(self.config["factors"][name])[column] for name, column in read.items()}

    @torch.inference_mode()
    def embed_text(self, captions, tokenizer):
        """L2-normalised float32 features `(n, d)` of captions (clip only)."""
        tokens = tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.config["clip"]["text_cfg"]["context_length"], return_tensors="pt"
        ).input_ids
        return F.normalize(self.network.encode_text(tokens.to(self.device)).float(), dim=-1).cpu().numpy()


def load_embedder(folder, device="cpu"):
    """Open an embedder folder (`config.json`, `model.safetensors`, shapes checked), or a listed TorchScript or Inception file."""
    folder = Path(folder)
    if folder.suffix in (".pt", ".torchscript") and folder.is_file():
        return _load_torchscript(folder, device)
    if folder.suffix == ".pth" and folder.is_file():
        return _InceptionEmbedder(folder, torch.device(device))
    files.check_digests(folder)
    config = files.read_object(folder / "config.json", "kind")
    path = weights.safetensors_file(folder, "model.safetensors")
    weights.check_config(folder / "config.json", path)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in weights.load_tensors(path, "get it again").items()}
    try:
        with torch.device("meta"):  # its shapes first: a hostile config.json may ask for any amount of memory
            shapes = {name: value.shape for name, value in build(config).state_dict().items()}
        wrong = [name for name in sorted({*shapes, *tensors}) if name not in tensors or tensors[name].shape != shapes.get(name)]
        if wrong or not isinstance(config.get("image_size"), int) or not 1 <= config["image_size"] <= 4096:
            raise InputError(f"{path} does not fit its config.json ({wrong[0] if wrong else 'image_size'}); get both again from one place")
        network = build(config)
        network.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{folder / 'config.json'} does not describe an embedder ({told[:300]}); get the folder again") from None
    weights.check_finite(network, path)
    return Embedder(network, config, torch.device(device), folder)


class _TorchScriptEmbedder:
    """A third-party copy detector (SSCD) with the preprocessing of FineXtract's code: shorter side 256, centre 224, mean and deviation .5."""

    def __init__(self, network, device):
        self.network, self.device, self.factors = network.eval().to(device), device, []

    @torch.inference_mode()
    def embed(self, pixels, batch=64):
        """L2-normalised float32 features `(n, d)` of uint8 pictures `(n, h, w, 3)`."""
        features = []
        for start in range(0, len(pixels), batch):
            x = as_tensor(pixels[start : start + batch]).to(self.device)
            scale = 256 / min(x.shape[-2:])
            x = F.interpolate(x, (round(x.shape[-2] * scale), round(x.shape[-1] * scale)), mode="bilinear", antialias=True, align_corners=False)
            top, left = (x.shape[-2] - 224) // 2, (x.shape[-1] - 224) // 2
            features.append(F.normalize(self.network(x[..., top : top + 224, left : left + 224]).float(), dim=-1).cpu())
        return torch.cat(features).numpy()


class _InceptionEmbedder:
    """FID's Inception with the preprocessing of the original code (resized as TensorFlow 1 did), by torch-fidelity."""

    def __init__(self, path, device):
        if files.sha256(path) not in TRUSTED_INCEPTION:
            raise InputError(f"{path} is not {' or '.join(TRUSTED_INCEPTION.values())}: opening a .pth file can run code, so only that very file is opened")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(path)).to(device)
        self.device, self.factors, self.config = device, [], {"name": INCEPTION}

    @torch.inference_mode()
    def embed(self, pixels, batch=64):
        """float32 features `(n, 2048)`, not normalised, of uint8 pictures `(n, h, w, 3)`."""
        parts = [torch.as_tensor(pixels[start : start + batch]).permute(0, 3, 1, 2).to(self.device) for start in range(0, len(pixels), batch)]
        return torch.cat([self.network(part)[0].cpu() for part in parts]).numpy()


def _load_torchscript(path, device):
    found = files.sha256(path)
    if found not in TRUSTED_TORCHSCRIPT:
        raise InputError(
            f"{path}: TorchScript can run code, and this file's sha256 {found} is not in the table of trusted files; "
            "check it and add it to TRUSTED_TORCHSCRIPT in tuneleak/models/embedders.py"
        )
    return _TorchScriptEmbedder(torch.jit.load(path, map_location=device), torch.device(device))
