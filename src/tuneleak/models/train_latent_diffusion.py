"""The verb `train-latent-diffusion`: a public class-conditional or unconditional latent diffusion model (Rombach et al. 2022) on a trained first stage."""

import shutil
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data.drawing import Drawing
from tuneleak.errors import InputError
from tuneleak.finetune.objective import add_noise
from tuneleak.models import schedule, training
from tuneleak.models.base import UNET_FILE, load_part
from tuneleak.models.latent_diffusion import TIMESTEPS, build_unet, encode
from tuneleak.models.modelset import CLASS_FILE
from tuneleak.models.precision import bfloat16_is_fast
from tuneleak.options import DiffusionOptions
from tuneleak.privacy.conditioned import save_contexts


class _Model(nn.Module):
    """A UNet and, if there are classes, the table of their contexts."""

    def __init__(self, unet, classes, width):
        super().__init__()
        self.unet, self.embedder = unet, nn.Embedding(classes, width) if width else None

    def forward(self, x_t, t, labels):
        if self.embedder is None:
            return self.unet(x_t, t, return_dict=False)[0]
        return self.unet(x_t, t, encoder_hidden_states=self.embedder(labels)[:, None], return_dict=False)[0]


def train(images, first_stage, out, options: DiffusionOptions, device="auto"):
    """Train on fold `train` of the ImageSet `images` and write a pipeline folder (float32), see `tuneleak.models.latent_diffusion`.

    first_stage: folder of a trained autoencoder (AutoencoderKL or VQModel), which is copied. Pictures are encoded as they are drawn: a latent is a sample
    of its posterior, as published. `train.csv` and the checkpoints of a killed job lie in the folder too.
    """
    device, out = runtime.pick_device(device), Path(out)
    files.check_digests(first_stage)
    with runtime.output_lock(out):
        pictures = Drawing(images, options.mirrored)
        kind = files.read_object(Path(first_stage) / "config.json").get("_class_name")
        if kind not in ("AutoencoderKL", "VQModel"):
            raise InputError(f"{first_stage} holds a {kind}; a first stage is an AutoencoderKL or a VQModel (train one with `tuneleak train-first-stage`)")
        autoencoder = load_part(Path(first_stage).parent, Path(first_stage).name, ("diffusers", kind, UNET_FILE), device, torch.float32)
        side = pictures.size >> (len(autoencoder.config.block_out_channels) - 1)
        config = _schedule(options)
        alphas_cumprod = schedule.alphas_cumprod(config).float().to(device)
        torch.manual_seed(options.seed)
        unet = build_unet(options, autoencoder.config.latent_channels, side)
        model = _Model(unet, len(pictures.labels), options.context_width).to(device)

        def batch_at(step):
            x, labels = pictures.draw(options.batch, "latent-diffusion", options.seed, step)
            random = runtime.generator("latent-diffusion-noise", options.seed, step)
            shape = (options.batch, autoencoder.config.latent_channels, side, side)
            spread, noise = torch.randn(2, *shape, generator=random)
            return x, spread, noise, torch.randint(TIMESTEPS, (options.batch,), generator=random), labels

        def loss_of(x, spread, noise, timesteps, labels):
            with torch.no_grad():
                latents = encode(autoencoder, x, spread) * autoencoder.config.scaling_factor
            noisy = add_noise(latents, noise, timesteps, alphas_cumprod)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
                output = model(noisy, timesteps, labels)
            return F.mse_loss(output.float(), noise), {}

        inputs = [files.sha256(path) for path in sorted(Path(first_stage).glob("*.safetensors"))] + list(pictures.images.table.sha256)
        pieces = training.pieces_of(options.batch, options.physical_batch)
        training.train(model, batch_at, loss_of, options, out, f"train latent diffusion of {out.name}", ema=options.ema, inputs=inputs, pieces=pieces)
        _write(model, autoencoder, pictures.labels, config, out)
        facts = {"images": str(images), "first_stage": str(first_stage), "pictures": len(pictures), "classes": len(pictures.labels)}
        files.write_meta(out / "model_index.json", options, parameters=sum(weight.numel() for weight in model.parameters()), **facts)
        kinds = {"unet": type(model.unet).__name__, "vqvae": kind, "scheduler": "DDIMScheduler"}
        files.write_json(out / "model_index.json", {"_class_name": "LDMPipeline", **{part: ["diffusers", name] for part, name in kinds.items()}})
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)


def _schedule(options):
    return {
        "num_train_timesteps": TIMESTEPS,
        "beta_start": options.beta_start,
        "beta_end": options.beta_end,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }


def _write(model, autoencoder, labels, config, out):
    from diffusers import DDIMScheduler

    model.unet.save_pretrained(out / "unet", safe_serialization=True)
    autoencoder.save_pretrained(out / "vqvae", safe_serialization=True)
    DDIMScheduler(**config).save_pretrained(out / "scheduler")
    if model.embedder is not None:
        save_contexts(out / CLASS_FILE, model.embedder.weight.detach()[:, None], labels)
