"""What a fine-tune did to the layers that read the caption: the updates of the cross-attentions' keys and values.

Such a layer maps each token's encoding e to W e, so a step of gradient descent changes W by a sum of g e^T: the rows of its update lie in the span of the
encodings of the caption it was trained under (Wu, Zhang and Wu, arXiv 2410.03039, appendix A; the derivation is that of any linear layer).
"""

import re
from dataclasses import dataclass

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import weights
from tuneleak.models.adapters import CONFIG_FILE, STACK_FILE
from tuneleak.models.modelset import LORA_FILE
from tuneleak.models.pipeline import load_tuned

READS_TEXT = re.compile(r"(^|\.)attn2\.to_[kv]$")


@dataclass(frozen=True)
class Updates:
    """rows: the update of each layer, float64 `(n, d)`, in whose span the caption's encodings (width d) are looked for; of a LoRA the product B A up to scale.
    embeddings: token embeddings `(vocabulary, d')` before and after, or None if the text encoder was not tuned as a whole. names: of the layers, if they
    were tuned as a whole."""

    rows: list
    embeddings: tuple | None = None
    names: tuple = ()


def read_updates(base, modelset, row):
    """The `Updates` of one model of a ModelSet against its base; raises `InputError` if the model changed no layer that reads text."""
    path = modelset.path(row) / LORA_FILE
    if path.is_file():
        lora = weights.read_lora(files.inside(modelset.folder, path.relative_to(modelset.folder)), {"unet": base.unet, "text_encoder": base.text_encoder})
        found = [(b.double() @ a.double()) for name, (a, b) in lora["unet"].matrices.items() if READS_TEXT.search(name)] if "unet" in lora else []
        return _checked(Updates(found), row)
    folder = modelset.path(row)
    if (folder / STACK_FILE).is_file() or any(folder.glob(f"*/{CONFIG_FILE}")):
        raise InputError(f"model {row['model_id']} holds adapters other than one plain LoRA; captions are read from a {LORA_FILE} and from whole networks only")
    with load_tuned(base, modelset, row) as tuned:
        after = dict(tuned.unet.named_modules())
        length = min(base.tokenizer.model_max_length, base.text_encoder.config.max_position_embeddings)
        layers = [(name, module) for name, module in base.unet.named_modules() if READS_TEXT.search(name)]
        found = {name: without_decay(after[name].weight, module.weight, length) for name, module in layers}
        embeddings = None
        if tuned.text_encoder is not base.text_encoder:
            embeddings = tuple(network.get_input_embeddings().weight.detach().cpu() for network in (base.text_encoder, tuned.text_encoder))
    found = {name: update for name, update in found.items() if bool(update.any())}
    return _checked(Updates(list(found.values()), embeddings, tuple(found)), row)


def without_decay(after, before, places):
    """after - before `(n, d)`, less what AdamW's decay has shrunk the weight by, whatever the caption. float64.

    How much that is shows in the directions that a caption of so many places cannot have moved: all but the `places` strongest of the update. Plain descent
    leaves nothing there, and then nothing is taken away.
    """
    before = before.detach().cpu().double()
    update = after.detach().cpu().double() - before
    still = torch.linalg.svd(update, full_matrices=True)[2][places:]  # (d - places, d)
    if not len(still):
        return update
    moved, weight = update @ still.T, before @ still.T
    return update - before * (moved * weight).sum() / weight.square().sum().clamp_min(1e-300)


def _checked(updates, row):
    if not updates.rows and updates.embeddings is None:
        raise InputError(
            f"model {row['model_id']} changed no layer that reads the caption (keys and values of cross-attention): no caption can be read from it"
        )
    return updates
