"""The training step on Stable Diffusion v1's own architecture, with random weights: what only shows at full size."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from tuneleak.finetune import methods, objective

STABLE_DIFFUSION_1 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip


def shapes_only():
    with torch.device("meta"):
        return UNet2DConditionModel(**STABLE_DIFFUSION_1)


@pytest.mark.parametrize(("modules", "per_rank"), [(["to_q", "to_v"], 99_648), (["to_q", "to_k", "to_v", "to_out.0"], 199_296)])
def test_trainable_weights_per_rank(modules, per_rank):
    """A layer is adapted by rank (in + out) weights."""
    unet = shapes_only()
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    layers = [module for name, module in unet.named_modules() if name.endswith(tuple(f".{module}" for module in modules))]
    assert sum(layer.in_features + layer.out_features for layer in layers) == per_rank


@pytest.mark.slow
def test_one_lora_step_moves_the_adapters_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    unet = shapes_only().to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            # norms near one, everything else small: finite activations at a fraction of the time of the real initialisation
            parameter.fill_(1.0) if name.endswith("weight") and parameter.ndim == 1 else parameter.uniform_(-0.02, 0.02, generator=generator)
    rank = 4
    methods.add_lora(unet, rank, 8.0, ["to_q", "to_v"], generator)
    trained = methods.trainable({"unet": unet})
    assert sum(parameter.numel() for parameter in trained) == rank * 99_648
    frozen = unet.conv_in.weight.clone()
    flat = methods.FlatParameters(trained)
    before = flat.vector.detach().clone()
    optimizer = torch.optim.AdamW([flat.vector], lr=1e-4, fused=True)
    latents, noise = torch.randn(2, 1, 4, 16, 16, generator=generator)
    context, timesteps = torch.randn(1, 77, 768, generator=generator), torch.tensor([500])
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    batch = objective.Batch(latents, noise, timesteps, context, torch.ones(1))
    loss = objective.training_step(lambda *asked: unet(*asked, return_dict=False)[0], [flat.vector], optimizer, batch, abar)
    moved = (flat.vector.detach() - before).abs()
    assert torch.isfinite(loss) and torch.equal(unet.conv_in.weight, frozen)
    # AdamW's first step is lr in every weight with a gradient: B has one, A only once B is no longer zero
    matrices = dict(unet.named_parameters())
    b = torch.cat([value.detach().flatten() for name, value in matrices.items() if ".lora_B." in name])
    assert len(b) == rank * sum(value.shape[0] for name, value in matrices.items() if ".lora_B." in name)
    assert (b.abs() > 0.5e-4).float().mean() > 0.99 and float(moved.max()) < 1.1e-4
