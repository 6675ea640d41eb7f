"""The denoising objective of latent diffusion (Ho et al. 2020, L_simple; v-prediction: Salimans & Ho 2022) and one optimiser step on it."""

import contextlib
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """What one step trains on; `n` samples.

    latents, noise: `(n, C, h, w)` float32; timesteps: `(n,)` int64; context: `(n, L, d)`; weights: `(n,)` float32, by which each sample's
    mean squared error enters the loss (their sum is 1 for a plain mean).
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    context: torch.Tensor
    weights: torch.Tensor


def add_noise(latents, noise, timesteps, alphas_cumprod):
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) epsilon; alphas_cumprod `(T,)`, timesteps `(n,)`."""
    signal, spread = _coefficients(timesteps, alphas_cumprod, latents)
    return signal * latents + spread * noise


def training_target(latents, noise, timesteps, alphas_cumprod, prediction_type):
    """What the network should say: epsilon, or v = sqrt(abar_t) epsilon - sqrt(1 - abar_t) x_0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        signal, spread = _coefficients(timesteps, alphas_cumprod, latents)
        return signal * noise - spread * latents
    raise ValueError(f"prediction_type {prediction_type!r} is neither epsilon nor v_prediction")


def denoising_errors(model, batch, alphas_cumprod, prediction_type="epsilon", autocast=False):
    """Mean squared error of each sample, `(n,)` float32 (float64 if the network is); `autocast`: run the network in bfloat16 (the loss never is).

    model: `(x_t (n, C, h, w), t (n,), context (n, L, d)) -> what it predicts (n, C, h, w)`, such as `Base.output`; how a network is told its context is
    the architecture's business.
    """
    output, target = _answer(model, batch, alphas_cumprod, prediction_type, autocast)
    return (output - target).square().flatten(1).mean(1)


def _answer(model, batch, alphas_cumprod, prediction_type, autocast):
    """(what the network predicts, what it should), `(n, C, h, w)` in float32 at least."""
    x_t = add_noise(batch.latents, batch.noise, batch.timesteps, alphas_cumprod)
    with torch.autocast(x_t.device.type, dtype=torch.bfloat16) if autocast else contextlib.nullcontext():
        output = model(x_t, batch.timesteps, batch.context)
    target = training_target(batch.latents, batch.noise, batch.timesteps, alphas_cumprod, prediction_type)
    return output.to(torch.promote_types(output.dtype, torch.float32)), target


def losses_of_models(model, batch, models, alphas_cumprod, prediction_type="epsilon", mmd=None):
    """Loss `(models,)` of each of several models whose samples, equally many, stand model after model in the batch: the mean squared error, or with a number
    per model in `mmd` the loss of `noisy_mmd`."""
    output, target = _answer(model, batch, alphas_cumprod, prediction_type, autocast=False)
    if mmd is None:
        return (output - target).square().flatten(1).mean(1).view(models, -1).mean(1)
    pairs = zip(output.chunk(models), target.chunk(models), mmd, strict=True)
    return torch.stack([(mmd_squared(mine, wanted) + noise).square() for mine, wanted, noise in pairs])


KERNEL_WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)


def mmd_squared(first, second):
    """Squared maximum mean discrepancy of two batches `(n, ...)` under sum_s exp(-|x - y|^2 / 2 s^2), s in `KERNEL_WIDTHS`; the biased estimate (all pairs)."""
    x, y = first.flatten(1), second.flatten(1)

    def kernel(a, b):
        squared = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-squared / (2 * width**2)) for width in KERNEL_WIDTHS).mean()

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def noisy_mmd(model, batch, alphas_cumprod, prediction_type, noise, autocast=False):
    """DPGM's loss, (MMD^2 + noise)^2 of predictions and targets of a batch; `noise`: the number drawn for this step; model: see `denoising_errors`.

    The method of the weights paper's public code (arXiv 2409.08482) that is called private there. It is not: see `tuneleak.privacy.published`.
    """
    return (mmd_squared(*_answer(model, batch, alphas_cumprod, prediction_type, autocast)) + noise).square()


def moved_against(model, batch, radius, alphas_cumprod, prediction_type="epsilon", autocast=False):
    """The batch with its latents moved by `radius` times their root mean square in the direction that raises the loss, sign by sign.

    One step of the inner maximisation of adversarial training (Goodfellow et al. 2015; Madry et al. 2018): the model is then fitted to pictures that are not
    quite the private ones.
    """
    latents = batch.latents.detach().clone().requires_grad_(True)
    loss = (denoising_errors(model, replace(batch, latents=latents), alphas_cumprod, prediction_type, autocast) * batch.weights).sum()
    (gradient,) = torch.autograd.grad(loss, latents)
    return replace(batch, latents=(latents + radius * latents.square().mean().sqrt() * gradient.sign()).detach())


def training_step(
    model, parameters, optimizer, batch, alphas_cumprod, prediction_type="epsilon", max_grad_norm=1.0, autocast=False, radius=0.0, mmd=None,
):  # fmt: skip
    """One step: loss, backward, clip of the global gradient norm, optimiser. Returns the loss (detached, on the device).

    model: see `denoising_errors`. `parameters` are what the optimiser holds; gradients are zeroed in place, so that they may be views of one buffer.
    radius: see `moved_against`. mmd: None, or the noise of this step for `noisy_mmd`, which then is the loss.
    """
    if radius:
        batch = moved_against(model, batch, radius, alphas_cumprod, prediction_type, autocast)
    if mmd is None:
        loss = (denoising_errors(model, batch, alphas_cumprod, prediction_type, autocast) * batch.weights).sum()
    else:
        loss = noisy_mmd(model, batch, alphas_cumprod, prediction_type, mmd, autocast)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return loss.detach()


def _coefficients(timesteps, alphas_cumprod, like):
    """sqrt(abar_t) and sqrt(1 - abar_t) `(n, 1, 1, 1)`, computed in the precision of the table and given in that of the tensor `like`."""
    tables = (alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())
    return [table.to(like.dtype).to(like.device)[timesteps].view(-1, 1, 1, 1) for table in tables]
