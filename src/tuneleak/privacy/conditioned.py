"""A UNet together with what turns a label or a caption into its context, so that both are clipped as one."""

import torch
from torch import nn

from tuneleak.errors import InputError


class ClassEmbedder(nn.Module):
    """A context per public class: `(n,)` class numbers -> `(n, L, d)`, the given contexts `(classes, L, d)` plus `gain` times a trained table that starts at 0.

    The gain lets the contexts, whose entries are near 1, move faster than the UNet's weights at one learning rate.
    """

    def __init__(self, contexts, gain=1.0):
        super().__init__()
        self.gain = gain
        self.register_buffer("initial", contexts.detach().float().clone())
        self.table = nn.Embedding.from_pretrained(torch.zeros(len(contexts), contexts[0].numel()), freeze=False)

    @property
    def shape(self):
        """(L, d) of a context."""
        return tuple(self.initial.shape[1:])

    def forward(self, classes):
        return self.initial[classes] + self.gain * self.table(classes).view(-1, *self.shape)

    def contexts(self):
        """All contexts, `(classes, L, d)`."""
        return self.initial + self.gain * self.table.weight.detach().view(-1, *self.shape)


class TextEmbedder(nn.Module):
    """The text encoder: token ids `(n, L)` -> `(n, L, d)`. Its table of positions stays frozen, since all pictures share it in one row."""

    def __init__(self, text_encoder):
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, ids):
        return self.text_encoder(ids)[0]


class Conditioned(nn.Module):
    """`forward(x_t (n, C, h, w), t (n,), condition) -> (n, C, h, w)`; without an embedder the condition is the context itself.

    call: how the network is told its context, `Base.call` of its base.
    """

    def __init__(self, unet, embedder, call):
        super().__init__()
        self.unet, self.embedder, self.call = unet, embedder, call

    def forward(self, x_t, t, condition):
        context = condition if self.embedder is None else self.embedder(condition)
        return self.call(self.unet, x_t, t, context)


def save_contexts(path, contexts, classes):
    """Write a context per class, `(classes, L, d)`, and the names of the classes."""
    import json

    from safetensors.torch import save_file

    save_file({"contexts": contexts.float().cpu().contiguous()}, path, metadata={"classes": json.dumps(list(classes))})


def load_class_contexts(path, width):
    """{class: context `(L, d)` float32} of a file of `save_contexts`; refused unless it is finite and `width` wide."""
    import json

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as handle:
            classes = json.loads((handle.metadata() or {}).get("classes", "[]"))
            contexts = handle.get_tensor("contexts") if "contexts" in handle.keys() else torch.zeros(0)  # noqa: SIM118 (safe_open is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file with class contexts ({error}); get it again") from None
    if (
        not isinstance(classes, list)
        or not all(isinstance(name, str) for name in classes)
        or contexts.ndim != 3
        or len(contexts) != len(classes)
        or contexts.shape[2] != width
        or not bool(torch.isfinite(contexts).all())
    ):
        raise InputError(f"{path} does not hold one finite context of width {width} per class; give the base it was trained on")
    return dict(zip(classes, contexts.float(), strict=True))
