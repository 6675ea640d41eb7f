"""Captions behind Adam: its divisors are undone for every caption that is considered.

Row i of the gradient of a layer that reads text is sum_p delta_ip e_p: a combination of the encodings e_p of the caption's places, whose coefficients are the
loss's gradient at the layer's output i in place p. Adam divides entry (i, j) by the root of its second moment, E[(sum_p delta_ip e_pj)^2] = e_j^T C_i e_j
with C_i = E[delta_i delta_i^T]: no longer a combination of encodings, as every row bends its columns in its own way. But the public base tells C_i under any
caption, on pictures that the tuned model draws under none (of few gradients, so it is drawn towards its layer's mean), and an update times those divisors is a
combination of encodings again: of the true caption's with the true caption's divisors, of no other caption's with that one's.

So captions compare by likelihood. The rows of the update have mean square 1, the divisors of a row have geometric mean 1 (a change of scale that gains no
volume), and what the encodings leave of their product is Gaussian noise of one size for the keys and one for the values (of keys only differences between
places count, as softmax does not see what all places share, so their noise differs).
"""

from dataclasses import dataclass

import torch

from tuneleak import runtime
from tuneleak.attacks.captions.evidence import Evidence, orthonormal
from tuneleak.finetune.generate import starting_noise
from tuneleak.finetune.objective import add_noise, training_target
from tuneleak.models.pipeline import load_tuned

PICTURES, STEPS = 16, 20  # drawn by the tuned model, in so many steps
RANK = 8  # of C_i that is kept; with all 32 directions the likelihood of a true caption differs by .01 at most
SHRUNK = 0.2  # of C_i towards its layer's mean, which few gradients tell better; of 0, .1, .3 and .6 the middle ones told true captions of tune people best
KEPT, KEPT_BYTES = 8, 2**26  # explanations kept at least (60 MB each of Stable Diffusion's), and bytes of factors while more are (73 of the embedded world's)
INTERVALS, PILOTS = 25, 4  # of time, within which timesteps are drawn alike, and gradients that tell how often


def unprompted(base, modelset, row):
    """Latents `(PICTURES, C, h, w)` that a model of a ModelSet draws under the empty caption."""
    noise = starting_noise(base.latent_shape, *(("unprompted", number) for number in range(PICTURES)))
    with load_tuned(base, modelset, row) as tuned:
        null = tuned.encode_text([""])
        return base.sample(lambda x, t: tuned.noise_pred(x, t, null.expand(len(x), -1, -1)), noise, STEPS)


class Divisors:
    """What Adam divides the layers `names` of a base's denoiser by, estimated from `draws` gradients of single samples on `latents` `(n, C, h, w)`. Samples,
    noise and timesteps are the same for all captions. Timesteps are drawn where gradients are large, and weigh the less; `density` `(T,)` says where, and is
    found out unless it is given (it is the same for all `draws` with the same latents and seed)."""

    def __init__(self, base, names, latents, draws, seed=0, density=None):
        self.base, self.batch = base, max(4096 // latents[0, 0].numel(), 4)  # 64 latents of 8 x 8 at a time, 4 of Stable Diffusion's
        modules = dict(base.unet.named_modules())
        self.layers = [modules[name] for name in names]
        generator, count = runtime.generator("divisors", seed), len(base.alphas_cumprod)
        self.density = torch.full((count,), 1 / count, dtype=torch.float64)
        self._draw(latents, PILOTS * INTERVALS, generator)  # in any case, so that what is drawn after does not depend on it
        self.density = self._where_large() if density is None else density
        self._draw(latents, draws, generator)

    def _where_large(self):
        null, count = self.base.encode_text([""]), len(self.density)
        squares = torch.cat([sum((part @ null[0]).square().sum((1, 2)) for part in parts) for parts in self._deltas(null)]).cpu().double()
        mean = squares.view(INTERVALS, -1).mean(1).sqrt()  # their timesteps are sorted
        share = torch.repeat_interleave(mean, -(-count // INTERVALS))[:count]
        return 0.9 * share / share.sum() + 0.1 / count

    def _draw(self, latents, draws, generator):
        levels = (torch.arange(draws) + torch.rand(draws, generator=generator)) / draws
        self.timesteps = torch.searchsorted(self.density.cumsum(0), levels.double()).clamp_max(len(self.density) - 1)
        self.weights = (1 / self.density[self.timesteps]).float()
        self.weights = self.weights / self.weights.sum()
        self.latents = latents[torch.randint(len(latents), (draws,), generator=generator)].to(self.base.device)
        self.noise = torch.randn(self.latents.shape, generator=generator).to(self.base.device)

    def factors(self, captions):
        """For each caption, given by encodings `(L, d)`, and each layer factors `(RANK, rows, L)` of its C_i: sum_r F_rip F_riq is C_ipq. Captions whose
        samples fit one batch share a call of the denoiser."""
        together = max(self.batch // len(self.latents), 1)
        for first in range(0, len(captions), together):
            contexts = torch.stack([part.to(self.base.device, torch.float32) for part in captions[first : first + together]])
            layers = zip(*self._deltas(contexts), strict=True)
            yield from zip(*([self._shrunk(own) for own in torch.cat(parts).chunk(len(contexts))] for parts in layers), strict=True)

    def _shrunk(self, deltas):
        """Factors `(RANK, rows, L)` of a layer's C_i from gradients at its output `(draws, rows, L)`."""
        weighted = (deltas * self.weights.to(self.base.device).sqrt()[:, None, None]).transpose(0, 1)
        size = weighted.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-30)
        shared = strongest((weighted / size).flatten(0, 1), RANK) / len(weighted) ** 0.5
        shrunk = torch.cat([(1 - SHRUNK) ** 0.5 * weighted, SHRUNK**0.5 * size * shared], 1)
        return strongest(shrunk, RANK).transpose(0, 1).contiguous()

    @torch.enable_grad()
    def _deltas(self, contexts):
        """Per batch of samples a list over the layers: the gradient of each sample's loss at the layer's output, `(batch, rows, L)`. All samples are told the
        first of the contexts `(n, L, d)`, then all the second, and so on."""
        base, outputs, draws = self.base, {}, len(self.latents)
        hooks = [layer.register_forward_hook(lambda module, _, output: outputs.__setitem__(module, output)) for layer in self.layers]
        try:
            for numbers in torch.arange(len(contexts) * draws, device=base.device).split(self.batch):
                latents, noise, times = (part[numbers % draws] for part in (self.latents, self.noise, self.timesteps.to(base.device)))
                told = contexts[numbers // draws].requires_grad_()
                target = training_target(latents, noise, times, base.alphas_cumprod, base.prediction_type)
                output = base.output(add_noise(latents, noise, times, base.alphas_cumprod), times, told)
                loss = (output.float() - target).square().flatten(1).mean(1).sum()
                yield [part.float().transpose(1, 2) for part in torch.autograd.grad(loss, [outputs[layer] for layer in self.layers])]
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class Explanation:
    """What a caption says of the updates, its own divisors undone: `likelihood`, the logarithm of the updates' likelihood per entry and kind of layer, but for
    a constant; `share` of their variance in the span of its encodings; `evidence` in the updates for words; `factors` of keys and of values."""

    likelihood: float
    share: float
    evidence: Evidence
    factors: list


class AdamLikelihood:
    """Likelihood of captions for a model whose whole weights Adam has trained. updates: `Updates`; latents: of `unprompted`; density: of `Divisors`; other
    arguments as `Search`. It remembers all likelihoods that were asked for and the latest explanations."""

    def __init__(self, updates, base, encoder, options, latents, density=None):
        self.encoder = encoder
        kinds = [[number for number, name in enumerate(updates.names) if name.endswith(ending)] for ending in ("to_k", "to_v")]
        self.kinds = [kind for kind in kinds if kind]
        rows = [torch.cat([updates.rows[number] for number in kind]).to(base.device, torch.float32) for kind in self.kinds]
        self.rows = [part / part.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30) for part in rows]
        self.divisors = Divisors(base, updates.names, latents, options.draws, options.seed, density)
        self.known, self.kept = {}, {}  # likelihoods and explanations of captions of token ids
        self.most = max(KEPT, KEPT_BYTES // (4 * RANK * encoder.length * sum(map(len, self.rows))))

    def factors(self, captions):
        """For each of some captions' encodings `(L, d)` factors `(RANK, rows, L)` of the divisors' moments, of keys and of values."""
        for layers in self.divisors.factors([part.detach() for part in captions]):
            yield [torch.cat([layers[number] for number in kind], 1) for kind in self.kinds]

    def explain(self, ids):
        """`Explanation` of a caption of token ids."""
        if ids not in self.kept:
            self._explain([ids])
        return self.kept[ids]

    def likelihoods(self, captions):
        """Likelihood of each of some captions of token ids, see `Explanation`."""
        self._explain([ids for ids in dict.fromkeys(captions) if ids not in self.known])
        return [self.known[ids] for ids in captions]

    def _explain(self, captions):
        encodings = self.encoder.captions(captions)
        for ids, told, factors in zip(captions, encodings, self.factors(encodings), strict=True):
            likelihood, share, undone = self.judge(told[None], factors)
            evidence = Evidence([[rows[0].cpu()] for rows in undone], self.encoder.length)
            self.kept[ids], self.known[ids] = Explanation(float(likelihood), float(share), evidence, factors), float(likelihood)
            if len(self.kept) > self.most:
                del self.kept[next(iter(self.kept))]

    def judge(self, encodings, factors=None):
        """(likelihood `(n,)`, share `(n,)`, rows with divisors undone) of captions' encodings `(n, L, d)`; encodings that have gradients give a likelihood that
        has. factors: of the divisors' moments, for all captions or, `(n, RANK, rows, L)`, for each its own; without them nothing is undone, as if plain descent
        had made the updates."""
        encodings = encodings.to(self.rows[0])
        basis, likelihood, share, undone = orthonormal(encodings), 0, 0, []
        for number, rows in enumerate(self.rows):
            scaled = rows[None] if factors is None else rows * geometric(moments(factors[number], encodings))
            total, held = scaled.square().sum((-1, -2)), (scaled @ basis).square().sum((1, 2))
            likelihood = likelihood - torch.log(((total - held) / len(rows)).clamp_min(1e-30))
            share = share + held / total / len(self.rows)
            undone.append(scaled)
        return likelihood, share, undone


def strongest(factors, rank):
    """Factors `(..., rank, L)` that keep the strongest directions of the `(..., L, L)` products F^T F of factors F `(..., n, L)`."""
    n, length = factors.shape[-2:]
    few = n <= length  # which of the two products is small
    product = factors @ factors.mT if few else factors.mT @ factors
    device = "cpu" if product.device.type == "mps" else product.device  # without eigenvectors there
    values, vectors = (part.to(factors.device).flip(-1)[..., :rank] for part in torch.linalg.eigh(product.to(device)))
    return vectors.mT @ factors if few else (vectors * values.clamp_min(0).sqrt()[..., None, :]).mT


def moments(factors, encodings):
    """Second moments e_j^T C_i e_j `(n, rows, d)` of captions' encodings `(n, L, d)`; factors `(RANK, rows, L)` of C, or `(n, RANK, rows, L)` of each."""
    return sum((factor @ encodings).square() for factor in factors.unbind(-3))


def geometric(squares):
    """Roots of `(..., d)` positive numbers, scaled to geometric mean 1 along d."""
    halves = squares.clamp_min(1e-30).log() / 2
    return (halves - halves.mean(-1, keepdim=True)).exp()
