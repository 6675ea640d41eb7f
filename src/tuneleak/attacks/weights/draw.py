"""Pictures of many victims at once, each drawn by its own UNet under its own conditioning."""

import numpy as np
import torch

from tuneleak.data.imageset import from_tensor
from tuneleak.errors import InputError
from tuneleak.finetune.generate import starting_noise


class Studio:
    """Draws with V victims. weights: their `WeightSet`; lora: the `BatchedLora` in the base's UNet; options: `WeightsRunOptions`.

    Every setting starts from the same noise, keyed by the victim's person and the number of the picture; other victims' pictures from noise of their own, so
    that what they have in common with the first ones is not the noise. `calls`: samples sent through a UNet so far.
    """

    def __init__(self, base, lora, weights, options):
        self.base, self.lora, self.weights, self.options, self.calls = base, lora, weights, options, 0
        self.noise, self.other_noise = (self._noise(weights.table.concept, kind) for kind in ("weights-run", "weights-run-others"))
        self.null = base.encode_text([""])

    def _noise(self, names, kind):
        keys = [(kind, self.options.seed, name, i) for name in names for i in range(self.options.pictures)]
        return starting_noise(self.base.latent_shape, *keys).view(len(names), self.options.pictures, *self.base.latent_shape)

    @torch.inference_mode()
    def draw(self, z, weights=None, tuned=True, from_base=False):
        """z `(V, L, d)` (None: unconditional) -> uint8 `(V, pictures, h, w, 3)`; weights: other victims' (a `WeightSet`); tuned=False: the base's UNet.

        from_base: guidance from the pretrained model's null prediction to the victim's under z, which is FineXtract's without its caption.
        """
        noise, n = self.noise if weights is None else self.other_noise, self.options.pictures
        weights = weights or self.weights
        at_once, pictures = max(1, self.options.batch // (2 * n)), []
        for first in range(0, len(weights), at_once):
            rows = torch.arange(first, min(first + at_once, len(weights)))
            self.use(weights, rows if tuned else None)
            mine = None if z is None else z[rows.to(z.device)].to(self.base.device)
            guided = self._from_base(mine, weights, rows, n) if from_base else self._guided(mine, len(rows), n)
            latents = self.base.sample(guided, noise[rows].flatten(0, 1), self.options.steps)
            if not torch.isfinite(latents).all():
                raise InputError("sampling diverged (not a number); use a smaller guidance_scale")
            pictures.append(from_tensor(self.base.decode(latents)))
        self.lora.use(None)
        pictures = np.concatenate(pictures)
        return pictures.reshape(-1, n, *pictures.shape[1:])

    def use(self, weights, rows):
        """Put the victims of these rows into the UNet (None: nobody, the base)."""
        pairs = None if rows is None else {name: tuple(side.to(self.base.device) for side in pair) for name, pair in weights.chosen(rows).items()}
        self.lora.use(pairs)

    def _guided(self, z, k, n):
        """Noise prediction of k victims' n samples: epsilon(null) + scale (epsilon(z) - epsilon(null)); the null one alone without z."""
        null, scale = self.null.expand(k * n, -1, -1), self.options.guidance_scale
        if z is None:
            return lambda x, t: self._ask(x, t, null)
        contexts = torch.stack([self.null.expand(k, -1, -1), z], 1).repeat_interleave(n, 1).flatten(0, 1)

        def guided(x, t):
            both = x.view(k, 1, n, *x.shape[1:]).expand(-1, 2, *(-1,) * (x.ndim)).reshape(2 * len(x), *x.shape[1:])
            plain, conditional = self._ask(both, t, contexts).view(k, 2, n, *x.shape[1:]).unbind(1)
            return (plain + scale * (conditional - plain)).flatten(0, 1)

        return guided

    def _from_base(self, z, weights, rows, n):
        """Noise prediction epsilon_base(null) + scale (epsilon_victim(z) - epsilon_base(null)) of the rows' n samples each."""
        null, context, scale = self.null.expand(len(rows) * n, -1, -1), z.repeat_interleave(n, 0), self.options.guidance_scale

        def guided(x, t):
            self.lora.use(None)
            plain = self._ask(x, t, null)
            self.use(weights, rows)
            return plain + scale * (self._ask(x, t, context) - plain)

        return guided

    def _ask(self, x, t, context):
        self.calls += len(x)
        return self.base.predict_noise(self.base.unet, x, t, context)
