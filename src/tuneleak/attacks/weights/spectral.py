"""Our attack: a transformer over the updates' singular triples, read so that no factorisation, sign or rotation of them matters.

One token per adapted layer. With u_i, s_i, v_i from `lora_algebra.canonical` and learned probes P, Q (rows p_h, q_h) of the layer it holds

    sum_i g(s_i) (p_h . u_i) (q_h . v_i)      probes of the update, g(s) = s / tau and s / (s + tau)
    sum_i g(s_i) (p_h . u_i)^2                of its left space alone: the right one is mostly the random A_0 (dossier, section 6.1)
    sum_i log(1 + s_i / tau)                  of its size, which says how much was learned from how many pictures

where tau is the layer's mean singular value over the training models. Every entry is even in (u_i, v_i), which is the symmetrised form of a probe that
sees a sign, and a sum over i, so near-equal singular values may rotate their vectors.

A few hundred people are too few for a transformer alone: it names those it was trained on and nobody else. So it corrects an estimate that
generalises, the ridge regression of `linear` (a function of the updates alone, too): embedding = normalise(ridge + gate * correction). In training the
transformer sees ridge estimates made without the person in question, and how much its correction is worth is decided on people it was not trained
on. The conditioning follows the ridge estimate e: z = z_0 + sum_k c_k(e) Z_k, with c linear and z_0, Z_k `(L, d)` learned.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tuneleak.attacks.weights import linear
from tuneleak.attacks.weights.encoded import Encoded
from tuneleak.models.lora_algebra import canonical

SHIFT = 10.0  # z_0 moves as much faster than the other weights: AdamW moves each by about the learning rate, and z_0 has furthest to go
GATES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
FOLDS = 5  # of people: ridge estimates for training are made without a fold; the last one decides the gate


class Encoder(nn.Module):
    """pairs: the training models' final weights (kept, as ridge regression needs them). start: z_0 at first `(L, d)`. options: `WeightsTrainOptions`."""

    def __init__(self, pairs, start, embedding_size, options):
        super().__init__()
        width, probes = options.width, options.probes
        self.layers = list(pairs)
        self.u_probes, self.v_probes = nn.ParameterList(), nn.ParameterList()
        for a, b in pairs.values():
            self.u_probes.append(nn.Parameter(torch.randn(b.shape[1], 2 * probes) * b.shape[1] ** -0.5))
            self.v_probes.append(nn.Parameter(torch.randn(a.shape[2], probes) * a.shape[2] ** -0.5))
        self.register_buffer("tau", torch.stack([canonical(pair)[1].mean().clamp_min(1e-12) for pair in pairs.values()]).float())
        self.token = nn.Linear(4 * probes + 1, width)
        self.place = nn.Parameter(torch.randn(len(pairs) + 1, width) * 0.02)  # which layer a token is of; the last is the ridge estimate's, which pools
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, options.dropout, "gelu", batch_first=True, norm_first=True)
        self.trunk = nn.TransformerEncoder(layer, options.depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.embedding = nn.Linear(width, embedding_size)
        self.guess = nn.Linear(embedding_size, width)  # the ridge estimate as a token
        self.coefficients = nn.Linear(embedding_size, options.basis)
        self.prior = linear.Encoder(pairs, start, embedding_size, options)
        self.register_buffer("gate", torch.ones(()))
        self.register_buffer("start", start.clone())
        self.shift = nn.Parameter(torch.zeros_like(start))
        self.basis = nn.Parameter(torch.randn(options.basis, *start.shape) * options.basis**-0.5 * 0.1)

    @staticmethod
    def features(pairs, options):
        """The singular triples of every layer, float32: `<layer>.u (N, r, out)`, `<layer>.s (N, r)`, `<layer>.v (N, r, in)`."""
        found = {}
        for name, pair in pairs.items():
            u, s, v = canonical(pair)
            found |= {f"{name}.u": u.transpose(1, 2).float(), f"{name}.s": s.float(), f"{name}.v": v.transpose(1, 2).float()}
        return found

    def tokens(self, features):
        """One token per layer `(n, layers, width)`."""
        found = []
        for number, name in enumerate(self.layers):
            s = features[f"{name}.s"] / self.tau[number]
            weights = torch.stack([s, s / (1 + s)], 1)  # (n, 2, r)
            u, left = (features[f"{name}.u"] @ self.u_probes[number]).chunk(2, -1)
            both = u * (features[f"{name}.v"] @ self.v_probes[number])
            size = torch.log1p(s).sum(1, keepdim=True)
            found.append(torch.cat([(weights @ both).flatten(1), (weights @ left.square()).flatten(1), size], 1))
        return self.token(F.layer_norm(torch.stack(found, 1), (self.token.in_features,)))

    def ridge(self, features):
        """The ridge estimate `(n, e)`, L2-normalised: made without the person where the training says so, else by all training models."""
        if "ridge" in features:
            return features["ridge"]
        factors = {}
        for name in self.layers:
            factors[f"{name}.A"] = features[f"{name}.s"][..., None] * features[f"{name}.v"]
            factors[f"{name}.B"] = features[f"{name}.u"].transpose(1, 2)
        return self.prior(factors, None).embedding

    def forward(self, features, steps, generator=None):
        """`Encoded` of a batch of features; the steps a model was trained for are not needed: their effect is in the singular values."""
        ridge = self.ridge(features)
        tokens = torch.cat([self.tokens(features), self.guess(ridge)[:, None]], 1) + self.place
        embedding = F.normalize(ridge + self.gate * self.embedding(self.trunk(tokens)[:, -1]), dim=-1)
        coefficients = self.coefficients(ridge * ridge.shape[1] ** 0.5)
        return Encoded(self.start + SHIFT * self.shift + torch.einsum("nk,kld->nld", coefficients, self.basis), embedding)

    def begin(self, weights, embeddings, options):
        """Fit the ridge regression; returns (further features for training, rows to train on). embeddings `(N, e)`: of each model's person."""
        people = {name: number for number, name in enumerate(dict.fromkeys(weights.table.concept))}
        fold = torch.tensor([people[name] % FOLDS for name in weights.table.concept])
        steps = weights.table.step.astype(int)
        last = torch.tensor((steps == steps.groupby(weights.table.run).transform("max")).tolist())
        self.prior.fit(embeddings[last].cpu(), list(weights.table.concept[last.numpy()]))
        ridge = torch.zeros(len(weights), embeddings.shape[1])
        for number in range(FOLDS):
            inside, outside = (last & (fold != number)).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
            if not len(outside):
                continue
            known = weights.take(inside)
            if known.table.concept.nunique() < 2:
                continue  # with so few people there is nothing to estimate from
            fitted = linear.Encoder(known.pairs, self.start, embeddings.shape[1], options).fit(embeddings[inside].cpu(), list(known.table.concept))
            ridge[outside] = fitted(linear.Encoder.features(weights.chosen(outside), options), None).embedding
        chosen = (fold != FOLDS - 1).nonzero()[:, 0] if len(people) > FOLDS else torch.arange(len(weights))
        return {"ridge": ridge}, chosen

    @torch.no_grad()
    def finish(self, features, embeddings, held_out):
        """Set the gate to the value of `GATES` with the highest mean cosine on the rows `held_out` of people the transformer was not trained on."""
        if not len(held_out):
            return
        self.eval()
        found = []
        for gate in GATES:
            self.gate.fill_(gate)
            parts = [self({name: value[rows].to(self.gate.device) for name, value in features.items()}, None).embedding for rows in held_out.split(256)]
            found.append(float((torch.cat(parts) * embeddings[held_out]).sum(1).mean()))
        self.gate.fill_(GATES[max(range(len(GATES)), key=found.__getitem__)])
