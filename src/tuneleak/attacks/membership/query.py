"""What a membership attack asks: one model about the pictures of one concept, under one kind of caption, counting the model calls."""

import numpy as np
import torch

from tuneleak import runtime
from tuneleak.data.imageset import as_tensor


class Pictures:
    """Pictures of one concept, with everything about them that does not depend on the model under attack: latents, noise, crops.

    table: rows of an ImageSet's manifest; pixels: uint8 `(n, H, W, 3)`; encode: pixels `(n, 3, H, W)` in [-1, 1] -> latents `(n, C, h, w)` (the mean of
    the autoencoder's posterior, so that scores are deterministic); seed: of the noise, which belongs to the picture, never to its place.
    """

    def __init__(self, table, pixels, encode, seed):
        self.table, self.pixels, self._encode, self.seed = table, pixels, encode, seed
        self.latents = encode(as_tensor(pixels))
        self._noise, self._crops = {}, {}

    def __len__(self):
        return len(self.pixels)

    def noise(self, timestep, draw):
        """Standard normal noise `(n, C, h, w)` of one timestep and draw: the same for every attack, model and caption."""
        if (timestep, draw) not in self._noise:
            keys = [("membership", self.seed, image_id, timestep, draw) for image_id in self.table.image_id]
            drawn = [torch.randn(self.latents.shape[1:], generator=runtime.generator(*key)) for key in keys]
            self._noise[timestep, draw] = torch.stack(drawn).to(self.latents.device)
        return self._noise[timestep, draw]

    def cropped(self, share):
        """Latents `(n, C, h, w)` of the pictures' centres, `share` of each side, scaled back to full size (bilinear, antialiased)."""
        if share not in self._crops:
            pixels = as_tensor(self.pixels)
            height, width = (max(1, round(side * share)) for side in pixels.shape[-2:])
            top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
            centre = pixels[..., top : top + height, left : left + width]
            full = torch.nn.functional.interpolate(centre, pixels.shape[-2:], mode="bilinear", antialias=True, align_corners=False)
            self._crops[share] = self._encode(full)
        return self._crops[share]


class Query:
    """One model, the pictures it is asked about, and their captions. `calls`: samples sent through a UNet so far.

    noise_pred: `(x (m, C, h, w), t int, context (m, L, d)) -> epsilon`; encode_text: captions -> context `(m, L, d)`, with the text encoder that belongs to
    the model; alphas_cumprod: `(T,)`; batch: samples per call of the network.
    """

    def __init__(self, pictures, captions, noise_pred, encode_text, alphas_cumprod, batch=256):
        self.pictures, self.captions, self.batch, self.calls = pictures, list(captions), batch, 0
        self._noise_pred, self._encode_text, self._alphas_cumprod, self._texts = noise_pred, encode_text, alphas_cumprod, {}
        self.context = self.encode_text(self.captions)

    @property
    def latents(self):
        """x_0, `(n, C, h, w)` float32."""
        return self.pictures.latents

    def alpha_bar(self, timestep):
        """alpha-bar of a timestep as a float."""
        return float(self._alphas_cumprod[timestep])

    def encode_text(self, captions):
        """Contexts `(n, L, d)`; each different caption is encoded once."""
        new = [text for text in dict.fromkeys(captions) if text not in self._texts]
        if new:
            self._texts.update(zip(new, self._encode_text(new), strict=True))
        return torch.stack([self._texts[text] for text in captions])

    def noise_pred(self, x, timestep, context=None):
        """epsilon `(n, C, h, w)` float32 of the model at one timestep, under the pictures' captions unless another `context` is given."""
        context = self.context if context is None else context
        self.calls += len(x)
        return torch.cat([self._noise_pred(a, timestep, b) for a, b in zip(x.split(self.batch), context.split(self.batch), strict=True)])

    def noised(self, timestep, draw, latents=None):
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) epsilon of the pictures (or of other `latents`), and that epsilon."""
        noise, abar = self.pictures.noise(timestep, draw), self.alpha_bar(timestep)
        return abar**0.5 * (self.latents if latents is None else latents) + (1 - abar) ** 0.5 * noise, noise

    def losses(self, timestep, draw=0, latents=None, context=None):
        """L = |epsilon - eps_theta(x_t, t, c)|^2, mean over elements, `(n,)` float64; one call per picture."""
        x_t, noise = self.noised(timestep, draw, latents)
        return mean_square(self.noise_pred(x_t, timestep, context) - noise)


def mean_square(tensor):
    """Mean of squares over all but the first dimension, `(n,)` float64."""
    return tensor.cpu().double().square().flatten(1).mean(1)


def robust_scale(values):
    """(values - median) / interquartile range, `(n,)`; without spread: zeros."""
    values = np.asarray(values, dtype=float)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return (values - middle) / (high - low) if high > low else np.zeros_like(values)
