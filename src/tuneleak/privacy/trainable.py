"""Which weights of a UNet a private fine-tune trains, by the names of DP-LDM's ablations (arXiv 2305.15759, sections 3 and 5).

Blocks are counted from 0 in the order they are run: down, middle, up. Everything that is not chosen is frozen, so that the weights that require
gradients, those that are clipped and those that the optimiser holds are one set.
"""

from dataclasses import dataclass

from tuneleak.errors import InputError

# With a context of one token the softmax over keys is constant: these get no gradient, and under noise would only walk at random.
SINGLE_TOKEN_DEAD = ("attn2.to_q.", "attn2.to_k.", "norm2.")


@dataclass(frozen=True)
class Selection:
    """The chosen parameters: their names in the UNet, what was asked for, and the blocks that were taken."""

    names: tuple
    kind: str
    blocks: tuple
    available_blocks: int


def blocks_in_order(unet):
    """`(name, module)` of the UNet's blocks in the order they are run."""
    blocks = [(f"down_blocks.{index}", block) for index, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    return blocks + [(f"up_blocks.{index}", block) for index, block in enumerate(unet.up_blocks)]


def attention_blocks(unet, conditional=True):
    """`(name, module)` of the attention blocks in order: `Transformer2DModel`s, or with conditional=False the unconditional `Attention` blocks."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    kind = Transformer2DModel if conditional else Attention
    found = []
    for name, block in blocks_in_order(unet):
        for index, module in enumerate(getattr(block, "attentions", None) or []):
            if isinstance(module, kind):
                found.append((f"{name}.attentions.{index}", module))
    return found


def select(unet, kind, blocks=(), context_tokens=None):
    """The parameters of `kind` (see `tuneleak.options.Trainable`; `lora`: whatever adapters are in the UNet) as a `Selection`; nothing is changed yet.

    blocks: (first, stop) of the attention blocks, for `attention`, `lora` and `unconditional-attention`; empty takes all.
    context_tokens: length of the context; with 1, the queries and keys of cross-attention and the norm before them are left out.
    """
    if blocks and kind not in ("attention", "unconditional-attention", "lora"):
        raise InputError(f"blocks are counted for attention, not for trainable={kind!r}; leave them out")
    found = attention_blocks(unet, conditional=kind != "unconditional-attention")
    first, stop = _range(blocks, len(found))
    chosen = [name for name, _ in found[first:stop]]
    every = [name for name, _ in unet.named_parameters()]
    if kind in ("attention", "unconditional-attention"):
        names = [name for name in every if name.startswith(tuple(f"{block}." for block in chosen))] if chosen else []
    elif kind == "lora":
        names = [name for name in every if ".lora_" in name and name.startswith(tuple(f"{block}." for block in chosen))]
    elif kind == "all":
        names = every
    elif kind == "resblocks":
        from diffusers.models.resnet import ResnetBlock2D

        residual = tuple(f"{name}." for name, module in unet.named_modules() if isinstance(module, ResnetBlock2D))
        names = [name for name in every if name.startswith(residual)]
    elif kind == "input":
        names = [name for name in every if name.startswith(("conv_in.", "down_blocks."))]
    elif kind == "bias":
        names = [name for name in every if name.endswith(".bias")]
    else:
        raise InputError(f"there is no trainable set {kind!r}")
    if context_tokens == 1:
        names = [name for name in names if ".transformer_blocks." not in name or not any(part in name for part in SINGLE_TOKEN_DEAD)]
    if not names:
        raise InputError(f"trainable={kind!r} finds nothing to train in this UNet, which has {len(found)} such attention blocks")
    return Selection(tuple(names), kind, (first, stop), len(found))


def apply(unet, selection):
    """Freeze everything in `unet` but the selection; the chosen parameters, in float32."""
    unet.requires_grad_(False)
    own = dict(unet.named_parameters())
    parameters = [own[name] for name in selection.names]
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def count_by_set(unet, kinds=("attention", "unconditional-attention", "resblocks", "input", "bias", "all")):
    """{set: number of weights} of each set that this UNet has; works on networks without weights (device meta)."""
    sizes = {name: parameter.numel() for name, parameter in unet.named_parameters()}
    counts = {}
    for kind in kinds:
        try:
            counts[kind] = sum(sizes[name] for name in select(unet, kind).names)
        except InputError:
            counts[kind] = 0
    return counts


def _range(blocks, available):
    if not blocks:
        return 0, available
    if len(blocks) != 2 or not 0 <= blocks[0] < blocks[1] <= available:
        raise InputError(f"blocks must be [first, stop] within the {available} attention blocks of this UNet, not {list(blocks)}")
    return tuple(blocks)
