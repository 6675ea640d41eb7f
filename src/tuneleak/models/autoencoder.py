"""The verb `train-autoencoder`: diffusers' AutoencoderKL on public pictures and on crops of scikit-image's photographs."""

import torch
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.models import training
from tuneleak.models.precision import bfloat16_is_fast
from tuneleak.options import AutoencoderOptions

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field", "colorwheel", "cat")


def train(images, out, options: AutoencoderOptions, device="auto"):
    """Train on the ImageSets `images` (folders) and write a diffusers folder (fp16), latents standardised and its scaling factor set to `latent_deviation`.

    The loss is L1 + squared error + `edge_weight` x L1 of the horizontal and vertical differences + `kl_weight` x KL to the unit Gaussian.
    The pixels in which two pictures of one `image_id` differ (the same person and background, another expression) weigh 1 + `detail_weight`:
    eyes, brows and mouth are a few pixels each, which no average over a picture notices.
    """
    from diffusers import AutoencoderKL

    device = runtime.pick_device(device)
    torch.manual_seed(options.seed)
    blocks = len(options.block_out_channels)
    autoencoder = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=tuple(options.block_out_channels),
        layers_per_block=1,
        latent_channels=options.latent_channels,
        norm_num_groups=8,
    ).to(device)
    sets = [ImageSet.load(folder) for folder in images]
    pictures = torch.cat([as_tensor(item.pixels()).mul(127.5).add(127.5).byte() for item in sets])
    partners = _partners([name for item in sets for name in item.table.image_id])
    size = pictures.shape[-1]
    autoencoder.register_to_config(sample_size=size)
    photographs = _photographs()
    with runtime.output_lock(out):

        def batch_at(step):
            x, weight = _batch(pictures, partners, photographs, size, options, step)
            shape = (len(x), options.latent_channels, size >> (blocks - 1), size >> (blocks - 1))
            return x, weight, torch.randn(shape, generator=runtime.generator("autoencoder-noise", options.seed, step))

        def loss_of(x, weight, noise):
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):  # twice as fast there; losses are float32
                posterior = autoencoder.encode(x).latent_dist
                output = autoencoder.decode(posterior.mean + posterior.std * noise).sample
            return _loss(output.float(), x, weight, posterior, options)

        training.train(autoencoder, batch_at, loss_of, options, out, "train autoencoder", ema=0.995)
        _standardise(autoencoder, pictures)
        autoencoder.register_to_config(scaling_factor=options.latent_deviation)
        if options.decoder_steps:
            for part in (autoencoder.encoder, autoencoder.quant_conv):  # latents stay as they are, and with them every UNet
                part.requires_grad_(False)
            alone = options.model_copy(update={"steps": options.decoder_steps})
            training.train(autoencoder, lambda step: batch_at(options.steps + step), loss_of, alone, f"{out}/decoder", "train decoder", ema=0.995)
        training.save_half(autoencoder.state_dict(), f"{out}/diffusion_pytorch_model.safetensors")
        autoencoder.save_config(out)
        facts = {"images": [str(folder) for folder in images], "pictures": len(pictures), "parameters": autoencoder.num_parameters()}
        files.write_meta(f"{out}/config.json", options, **facts)


def _loss(output, x, weight, posterior, options):
    squared = F.mse_loss(output, x)
    absolute = (weight * (output - x).abs()).mean() + (weight * (output - x).square()).mean()
    edges = sum(((output - x).diff(dim=axis).abs() * weight.narrow(axis, 1, weight.shape[axis] - 1)).mean() for axis in (2, 3))
    divergence = posterior.kl().mean()
    loss = absolute + options.edge_weight * edges + options.kl_weight * divergence
    return loss, {"psnr": 10 * torch.log10(4 / squared.detach()), "kl": divergence.detach()}


def _photographs():
    import skimage.data
    from PIL import Image

    found = []
    for name in PHOTOGRAPHS:
        try:
            pixels = getattr(skimage.data, name)()
        except (OSError, ModuleNotFoundError):  # scikit-image downloads some of its pictures; offline those are left out
            continue
        picture = Image.fromarray(pixels).convert("RGB")
        picture.thumbnail((256, 256))  # so that a crop shows things, not texture
        found.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3).permute(2, 0, 1))
    return found


def _partners(names):
    """For each picture another one of the same name, or itself: `(n,)`."""
    partners, seen = torch.arange(len(names)), {}
    for index, name in enumerate(names):
        other = seen.setdefault(name, index)
        if other != index:
            partners[index], partners[other] = other, index
    return partners


def _batch(pictures, partners, photographs, size, options, step):
    """One batch in [-1, 1]: pictures, the last ones replaced by crops of photographs, each mirrored by a coin; and the pixels' weights `(n, 1, h, w)`."""
    rng = runtime.generator("autoencoder-batch", options.seed, step)
    chosen = torch.randint(len(pictures), (options.batch,), generator=rng)
    batch, twins = pictures[chosen].float(), pictures[partners[chosen]].float()
    for index in range(options.batch - round(options.photograph_share * options.batch), options.batch):
        photograph = photographs[int(torch.randint(len(photographs), (), generator=rng))]
        top, left = (int(torch.randint(side - size + 1, (), generator=rng)) for side in photograph.shape[1:])
        batch[index] = twins[index] = photograph[:, top : top + size, left : left + size].float()
    mirrored = torch.rand(options.batch, generator=rng) < 0.5
    batch[mirrored], twins[mirrored] = batch[mirrored].flip(-1), twins[mirrored].flip(-1)
    differs = ((batch - twins).abs().amax(1, keepdim=True) > 16).float()  # of 255
    return batch / 127.5 - 1, 1 + options.detail_weight * F.max_pool2d(differs, 3, 1, 1)


@torch.no_grad()
def _standardise(autoencoder, pictures, count=1024):
    """Give every latent channel mean 0 and deviation 1 on `pictures` and the inverse to the decoder, in the two 1x1 convolutions between them.

    Diffusion adds the same noise to all channels: one of small deviation would drown, and what it holds would never be generated.
    """
    chosen = pictures[torch.randperm(len(pictures), generator=runtime.generator("scaling-factor"))[:count]]
    latents = torch.cat([autoencoder.encode(batch.to(autoencoder.device).float() / 127.5 - 1).latent_dist.mean for batch in chosen.split(64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3)).clamp_min(1e-3)
    quant, post = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    quant.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()  # the second half are log variances
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation.view(1, -1, 1, 1)
