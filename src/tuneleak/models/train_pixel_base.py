"""Training of a class-conditional DDPM in pixel space (Ho et al. 2020; classifier-free guidance: Ho and Salimans 2022), for the question of architecture.

A base of the embedded world like those of `tuneleak.models.train_base` (the same pictures, members and doses), but without autoencoder and text: its classes
are the names in captions (`tuneleak.models.classes`), and what it denoises are the pixels themselves.
"""

import torch
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data.imageset import as_tensor
from tuneleak.errors import InputError
from tuneleak.models import schedule, training
from tuneleak.models.classes import Classes
from tuneleak.options import BaseOptions

# the schedule of Ho et al. 2020; nothing is clipped, since attacks need what the network says
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": False}
ATTENTION_SIDE = 16  # levels of this side and below have self-attention, as in Ho et al.


def build_unet(options: BaseOptions, size, classes):
    """A UNet2DModel for pictures `(n, 3, size, size)`: one residual block per level, modulated by timestep and class (scale and shift), zero at the start."""
    from diffusers import UNet2DModel

    levels = len(options.block_out_channels)
    if size % 2 ** (levels - 1):
        raise InputError(f"pictures of {size} px cannot be halved {levels - 1} times; give fewer block_out_channels")
    attends = [size // 2**level <= ATTENTION_SIDE for level in range(levels)]
    unet = UNet2DModel(
        sample_size=size,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        block_out_channels=tuple(options.block_out_channels),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=options.norm_num_groups,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=classes,
    )
    torch.nn.init.normal_(unet.class_embedding.weight, std=0.02)
    for parameter in unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return unet


def draw(step, pixels, classes, weights, options, none, timesteps):
    """What one step trains on: pictures `(n, 3, h, w)` in [-1, 1], noise, timesteps `(n,)` and classes `(n,)`, some of them dropped to the class `none`.

    pixels: uint8 `(m, h, w, 3)`; classes `(m,)`; weights `(m,)`: how often a picture is drawn beside the others; timesteps: their number. A function of the
    step and `options.seed` alone.
    """
    rng = runtime.generator("base", options.seed, step)
    chosen = torch.multinomial(weights, options.batch, replacement=True, generator=rng)
    labels = torch.where(torch.rand(options.batch, generator=rng) < options.caption_dropout, none, classes[chosen])
    x = as_tensor(pixels[chosen.numpy()])
    return x, torch.randn(x.shape, generator=rng), torch.randint(timesteps, (options.batch,), generator=rng), labels


def denoising_loss(network, x, noise, timesteps, labels, alphas_cumprod):
    """Mean of |epsilon - network(sqrt(abar) x + sqrt(1 - abar) epsilon, t, class)|^2; alphas_cumprod `(T,)` float32."""
    abar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return F.mse_loss(network(abar.sqrt() * x + (1 - abar).sqrt() * noise, timesteps, labels), noise)


def train(pixels, table, captions, weights, out, options, images, device):
    """Train on pictures uint8 `(m, h, w, 3)` with the manifest rows `table` and write a UNet folder (fp16) with `classes.json`.

    captions: all captions of the image sets, also those of pictures held out, so that twins have the same classes; weights: see `draw`; images: noted beside
    the weights; device: torch.device. The free classes end as copies of the class of everybody without a name.
    """
    known = Classes.of(captions)
    classes = torch.tensor([known.id_of(caption) for caption in table.caption])
    if pixels.shape[1] != pixels.shape[2]:
        raise InputError(f"pictures must be square, not {pixels.shape[2]} x {pixels.shape[1]}")
    torch.manual_seed(options.seed)
    unet = build_unet(options, pixels.shape[1], known.count).to(device)
    alphas_cumprod = schedule.alphas_cumprod(SCHEDULER).float().to(device)

    def batch_at(step):
        return draw(step, pixels, classes, weights, options, known.none, len(alphas_cumprod))

    def loss_of(*batch):
        return denoising_loss(lambda *asked: unet(*asked, return_dict=False)[0], *batch, alphas_cumprod), {}

    training.train(unet, batch_at, loss_of, options, out, f"train base {options.name}", ema=options.ema, snapshots=options.snapshots)
    with torch.no_grad():
        unet.class_embedding.weight[list(known.new)] = unet.class_embedding.weight[known.unnamed].clone()
    training.save_half(unet.state_dict(), f"{out}/diffusion_pytorch_model.safetensors")
    known.write(out)
    unet.save_config(out)
    files.write_meta(
        f"{out}/config.json", options, images=[str(folder) for folder in images], pictures=len(table), parameters=sum(p.numel() for p in unet.parameters())
    )
