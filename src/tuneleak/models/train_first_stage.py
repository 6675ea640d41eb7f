"""The verb `train-first-stage`: the autoencoder of a latent diffusion model, KL or VQ, on public pictures.

As published (Esser et al. 2021, Rombach et al. 2022): L1 and a perceptual distance, a weak pull of the latents to the unit Gaussian or a codebook, and after
a number of steps a patch discriminator whose gradient at the decoder's last layer is kept as long as that of the reconstruction. The perceptual distance here
is that of a public network's features, every channel counting alike: the published one weighs them by human judgements.
"""

import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from tuneleak import files, runtime
from tuneleak.data.drawing import Drawing
from tuneleak.errors import InputError
from tuneleak.models import perceptual as networks
from tuneleak.models import training, weights
from tuneleak.models.latent_diffusion import encode
from tuneleak.options import FirstStageOptions

LARGEST_RATIO = 1e4  # of the two gradients, as published: for KL with the reconstruction's summed over a picture, for VQ averaged
STATE = ("exp_avg", "exp_avg_sq", "step")  # of Adam


def build(options: FirstStageOptions, size):
    """An AutoencoderKL or VQModel for pictures of side `size`; attention where a feature map's side is one of `attention_sides`, and in the middle."""
    from diffusers import AutoencoderKL, VQModel

    levels = len(options.block_out_channels)
    if size % 2 ** (levels - 1):
        raise InputError(f"pictures of {size} px cannot be halved {levels - 1} times; give fewer block_out_channels")
    attends = [size >> level in options.attention_sides for level in range(levels)]
    kind, further = (AutoencoderKL, {}) if options.kind == "kl" else (VQModel, {"num_vq_embeddings": options.codes})
    return kind(
        down_block_types=tuple("AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attends),
        up_block_types=tuple("AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in reversed(attends)),
        block_out_channels=tuple(options.block_out_channels),
        layers_per_block=options.layers_per_block,
        latent_channels=options.latent_channels,
        norm_num_groups=options.norm_num_groups,
        sample_size=size,
        **further,
    )


class PatchDiscriminator(nn.Sequential):
    """Pictures `(n, 3, h, w)` -> a score per patch `(n, 1, h', w')`: convolutions, `layers` that halve the side and two that do not (Isola et al. 2017)."""

    def __init__(self, width, layers):
        modules, inputs = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)], width
        for level in range(1, layers + 1):
            outputs = width * min(2**level, 8)
            modules += [nn.Conv2d(inputs, outputs, 4, 2 if level < layers else 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        super().__init__(*modules, nn.Conv2d(inputs, 1, 4, 1, 1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)


def perceptual_distance(network, x, y):
    """Distance of pictures `(n, 3, h, w)`, `(n,)`: squared difference of features of unit length, averaged over places and over the last stages of each size of
    a `Perceptual` network (five of VGG's sixteen)."""
    found = []
    x, y = (((picture + 1) / 2 - network.mean) / network.std for picture in (x, y))
    pooled = [any(isinstance(module, nn.MaxPool2d) for module in stage.modules()) for stage in network.stages]  # a pooling belongs to the stage behind it
    for stage, last in zip(network.stages, [*pooled[1:], True] if any(pooled) else [True] * len(pooled), strict=True):
        x, y = stage(x), stage(y)
        if last:
            found.append((F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)).square().sum(1).mean((1, 2)))
    return sum(found) / len(found)


def hinge(real, fake):
    """The discriminator's loss: half of E max(0, 1 - D(x)) + E max(0, 1 + D(y))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def balance(reconstruction, adversarial, weight, largest=LARGEST_RATIO):
    """|gradient of the reconstruction loss| / |gradient of the adversarial loss| at the weight of the decoder's last layer, at most `largest`."""
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=largest).detach()


def train(images, out, options: FirstStageOptions, perceptual=None, device="auto"):
    """Train on fold `train` of the ImageSet `images` and write a diffusers folder (float32) and `train.csv`.

    perceptual: a public network for the perceptual distance (see `tuneleak.models.perceptual.load`); without one L1 stands alone. A killed job goes on from its
    last checkpoint.
    """
    device, out = runtime.pick_device(device), Path(out)
    with runtime.output_lock(out):
        network = networks.load(perceptual, 0, device) if perceptual and options.perceptual_weight else None
        pictures = Drawing(images, options.mirrored)
        if network is not None and network.side not in (None, pictures.size):
            raise InputError(f"{perceptual} reads pictures of {network.side} px, {images} holds pictures of {pictures.size}; give VGG19's weights")
        torch.manual_seed(options.seed)
        trainer = _Trainer(build(options, pictures.size).to(device), network, options, device)
        found = [] if network is None else [path for path in sorted([Path(perceptual), *Path(perceptual).glob("*.safetensors")]) if path.is_file()]
        inputs = {"pictures": files.digest(list(pictures.images.table.sha256)), "perceptual": [files.sha256(path) for path in found]}
        folder = out / ".checkpoints" / files.digest(options.model_dump(mode="json", exclude={"checkpoint_every"}) | inputs)
        trainer.resume(folder)
        bar = runtime.progress(range(trainer.done, options.steps), f"train first stage ({options.kind})")
        for step in bar:
            x, _ = pictures.draw(options.batch, "first-stage", options.seed, step)
            losses = trainer.step(x.to(device))
            if step % 20 == 0 or step == options.steps - 1:
                bar.set_postfix(l1=f"{trainer.note(losses)['l1']:.4f}")
            if (step + 1) % options.checkpoint_every == 0 and step + 1 < options.steps:
                trainer.save(folder)
        network = trainer.first_stage.eval()
        network.register_to_config(scaling_factor=options.scaling_factor or _inverse_deviation(network, pictures, options))
        network.save_pretrained(out, safe_serialization=True)
        files.write_csv(out / "train.csv", training.log_table(trainer.rows))
        parameters = sum(weight.numel() for weight in network.parameters())
        files.write_meta(out / "config.json", options, images=str(images), perceptual=str(perceptual or ""), pictures=len(pictures), parameters=parameters)
        shutil.rmtree(out / ".checkpoints", ignore_errors=True)


class _Trainer:
    """Networks, optimisers and what a step does with them."""

    def __init__(self, first_stage, network, options, device):
        self.first_stage, self.network, self.options = first_stage.train(), network, options
        self.discriminator = PatchDiscriminator(options.discriminator_width, options.discriminator_layers).to(device).train()
        self.optimizers = [torch.optim.Adam(part.parameters(), options.lr, betas=(0.5, 0.9)) for part in (self.first_stage, self.discriminator)]
        self.done, self.rows, self.started = 0, [], time.time()

    def step(self, x):
        """One update of the autoencoder, and of the discriminator once it takes part; returns the losses as numbers on the device."""
        options, random = self.options, runtime.generator("first-stage-latents", self.options.seed, self.done)
        plays = bool(options.discriminator_weight) and self.done >= options.discriminator_start
        pieces, sums = training.pieces_of(options.batch, options.physical_batch), {}
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for part in x.chunk(pieces):
            for name, value in self._accumulate(part, random, plays, pieces).items():
                sums[name] = sums.get(name, 0.0) + value.detach() / pieces
        for optimizer in self.optimizers[: 1 + plays]:
            optimizer.step()
        self.done += 1
        return sums

    def _accumulate(self, x, random, plays, pieces):
        """Add the gradients of pictures `x`, one of so many pieces of a batch; returns their losses."""
        options = self.options
        y, pull = self._reconstruct(x, random)
        l1 = (x - y).abs().mean()
        distance = perceptual_distance(self.network, x, y).mean() if self.network is not None else x.new_zeros(())
        losses, adversarial = {"l1": l1, "perceptual": distance, "pull": pull}, 0.0
        reconstruction = l1 + options.perceptual_weight * distance
        if plays:
            self.discriminator.requires_grad_(False)
            fooled = -self.discriminator(y).mean()
            largest = LARGEST_RATIO / (x[0].numel() if options.kind == "kl" else 1)
            adversarial = options.discriminator_weight * balance(reconstruction, fooled, self.first_stage.decoder.conv_out.weight, largest) * fooled
            self.discriminator.requires_grad_(True)
        ((reconstruction + pull + adversarial) / pieces).backward()
        if plays:
            losses["discriminator"] = hinge(self.discriminator(x), self.discriminator(y.detach()))
            (losses["discriminator"] / pieces).backward()
        return losses

    def _reconstruct(self, x, random):
        """(reconstruction, weighted loss of the latents): of a Gaussian its divergence from the unit one, summed over a latent and divided by the numbers of a
        picture, since the published weight stands beside sums over pixels."""
        if self.options.kind == "vq":
            quantised, loss, _ = self.first_stage.quantize(encode(self.first_stage, x))
            return self.first_stage.decoder(self.first_stage.post_quant_conv(quantised)), self.options.codebook_weight * loss
        posterior = self.first_stage.encode(x).latent_dist
        spread = torch.randn(posterior.mean.shape, generator=random).to(x.device)
        y = self.first_stage.decode(posterior.mean + posterior.std * spread).sample
        return y, self.options.kl_weight * posterior.kl().mean() / x[0].numel()

    def note(self, losses):
        """Keep the losses of the step just made for `train.csv`; returns them as a row."""
        row = {"step": self.done - 1, "seconds": round(time.time() - self.started, 1), **{name: float(value) for name, value in losses.items()}}
        if not all(value == value for value in row.values()):
            raise InputError(f"the loss is not finite at step {self.done}; lower lr")
        self.rows.append(row)
        return row

    def save(self, folder):
        """Write a checkpoint."""
        tensors = {}
        for part, module, optimizer in self._parts():
            tensors |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
            for name, parameter in module.named_parameters():
                tensors |= {f"{part}.{key}.{name}": optimizer.state[parameter][key] for key in STATE if parameter in optimizer.state}
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic(folder / "state.safetensors") as path:
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, path, metadata={"step": str(self.done)})
        files.write_json(folder / "rows.json", {"rows": self.rows})

    def resume(self, folder):
        """Restore a checkpoint, if there is one."""
        if not (folder / "state.safetensors").is_file():
            return
        tensors = weights.load_tensors(folder / "state.safetensors", f"remove {folder} to begin again")
        with weights.restoring(folder / "state.safetensors", folder):
            self.done = int(weights.header(folder / "state.safetensors")["step"])
            for part, module, optimizer in self._parts():
                module.load_state_dict({name: tensors[f"{part}.{name}"] for name in module.state_dict()})
                for name, parameter in module.named_parameters():
                    found = {key: tensors[f"{part}.{key}.{name}"] for key in STATE if f"{part}.{key}.{name}" in tensors}
                    if found:
                        optimizer.state[parameter] = {key: value if key == "step" else value.to(parameter.device) for key, value in found.items()}
        if (folder / "rows.json").is_file():
            self.rows = [row for row in files.read_object(folder / "rows.json", "rows")["rows"] if row["step"] < self.done]
        self.started -= self.rows[-1]["seconds"] if self.rows else 0.0

    def _parts(self):
        return zip(("first_stage", "discriminator"), (self.first_stage, self.discriminator), self.optimizers, strict=True)


@torch.no_grad()
def _inverse_deviation(network, pictures, options, count=256):
    x, _ = pictures.draw(count, "first-stage-scale", options.seed)
    return float(1 / torch.cat([encode(network, part.to(network.device)) for part in x.split(32)]).std())
