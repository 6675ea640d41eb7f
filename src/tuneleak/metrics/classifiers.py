"""Downstream classifiers: trained on one set of labelled pictures (synthetic ones, or real ones as the ceiling), tested once on real held-outs.

`logistic` (a linear layer on pixels), `cnn` (three convolutions), `resnet9` (the small residual network of the DP-MEPF evaluation) and `wrn-40-4`
(Zagoruyko & Komodakis 2016, arXiv 1605.07146). Length and learning rate are fixed beforehand, so that no choice ever looks at the test set; the last
epoch counts.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak import runtime
from tuneleak.data.imageset import as_tensor
from tuneleak.errors import InputError

KINDS = ("logistic", "cnn", "resnet9", "wrn-40-4")
PEAK_LR = {"logistic": 1e-3, "cnn": 3e-3, "resnet9": 3e-3, "wrn-40-4": 1e-3}  # of AdamW; one cycle


def _block(inputs, outputs, pool=False):
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9(nn.Module):
    """Eight convolutions and one linear layer; `width` channels at first. `(n, 3, h, w)` -> logits `(n, classes)`."""

    def __init__(self, classes, width=64):
        super().__init__()
        self.first = nn.Sequential(_block(3, width), _block(width, 2 * width, pool=True))
        self.residual = nn.Sequential(_block(2 * width, 2 * width), _block(2 * width, 2 * width))
        self.second = nn.Sequential(_block(2 * width, 4 * width, pool=True), _block(4 * width, 8 * width, pool=True))
        self.deeper = nn.Sequential(_block(8 * width, 8 * width), _block(8 * width, 8 * width))
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x):
        x = self.first(x)
        x = self.second(x + self.residual(x))
        return self.head((x + self.deeper(x)).amax((2, 3)))


class _WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, dropout):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)])
        self.convolutions = nn.ModuleList([nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)])
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.dropout = dropout

    def forward(self, x):
        active = F.relu(self.norms[0](x))
        y = self.convolutions[0](active)
        y = self.convolutions[1](F.dropout(F.relu(self.norms[1](y)), self.dropout, self.training))
        return y + (self.skip(active) if self.skip is not None else x)


class WideResNet(nn.Module):
    """WRN-`depth`-`widen`: pre-activation residual network of three groups. `(n, 3, h, w)` -> logits `(n, classes)`."""

    def __init__(self, classes, depth=40, widen=4, dropout=0.3):
        super().__init__()
        blocks, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        layers = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)]
        for group in range(3):
            for position in range(blocks):
                inputs = widths[group] if position == 0 else widths[group + 1]
                layers.append(_WideBlock(inputs, widths[group + 1], 2 if group and position == 0 else 1, dropout))
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.head(self.body(x))


def build(kind, classes, size, width=16):
    """A classifier of `kind` for square pictures of `size` pixels; `width`: channels of the first convolution (cnn, resnet9)."""
    if kind == "logistic":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes))
    if kind == "cnn":
        stages = [_block(3, width, pool=True), _block(width, 2 * width, pool=True), _block(2 * width, 4 * width, pool=True)]
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * width, classes))
    if kind == "resnet9":
        return ResNet9(classes, width)
    if kind == "wrn-40-4":
        return WideResNet(classes)
    raise InputError(f"there is no classifier {kind!r}; choose one of {', '.join(KINDS)}")


def train(kind, pixels, labels, classes, epochs, seed=0, batch=64, width=16, size=None, device="cpu"):
    """Train a classifier on uint8 pictures `(n, h, w, 3)`, or on what `shrunk` made of them, and integer labels `(n,)`; returns it in evaluation mode.

    size: side to which pictures are shrunk (None: as they are). Shifts by up to a sixteenth of the side are the only augmentation: a mirrored
    or recoloured drawing may be another class.
    """
    pixels, labels = shrunk(pixels, size).to(device), torch.as_tensor(labels, dtype=torch.long, device=device)
    if len(pixels) != len(labels) or not len(labels):
        raise InputError(f"a classifier needs as many labels as pictures, not {len(labels)} for {len(pixels)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=runtime.generator("classifier", kind, seed))))
        network = build(kind, classes, pixels.shape[-1], width).to(device)
        rounds = -(-len(pixels) // batch)
        optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LR[kind], weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR[kind], total_steps=max(2, epochs * rounds))
        network.train()
        for epoch in range(epochs):
            order = torch.randperm(len(pixels), generator=runtime.generator("classifier-order", kind, seed, epoch))
            for chosen in order.split(batch):
                if len(chosen) == 1 and len(order) > 1:
                    continue  # batch normalisation needs two
                loss = F.cross_entropy(network(_shifted(pixels[chosen.to(device)])), labels[chosen.to(device)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
    return network.eval()


@torch.inference_mode()
def predict(network, pixels, size=None, device="cpu", batch=256):
    """Most likely class of each uint8 picture (or row of what `shrunk` made of them), int64 numpy `(n,)`."""
    return torch.cat([network(part.to(device)).argmax(1) for part in shrunk(pixels, size).split(batch)]).cpu().numpy()


def shrunk(pixels, size=None):
    """uint8 pictures `(n, h, w, 3)` as float32 `(n, 3, size, size)` in [-1, 1]; a tensor is returned as it is."""
    if isinstance(pixels, torch.Tensor):
        return pixels
    tensor = as_tensor(pixels)
    return F.interpolate(tensor, (size, size), mode="area") if size and tensor.shape[-1] != size else tensor


def _shifted(x):
    margin = max(1, x.shape[-1] // 16)
    padded = F.pad(x, (margin,) * 4, mode="replicate")
    top, left = (int(value) for value in torch.randint(2 * margin + 1, (2,)))
    return padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]
