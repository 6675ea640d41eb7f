"""The two models an extraction attack asks, with their text contexts, counting what they are asked."""

import torch


class ModelPair:
    """A pretrained and a fine-tuned noise predictor.

    pretrained, finetuned: `(x (n, C, h, w), t int, context (n, L, d)) -> epsilon (n, C, h, w)`.
    pretrained_null, pretrained_caption, finetuned_null, finetuned_caption: contexts `(1, L, d)`, each from its own model's text encoder.
    `calls`: model calls so far, where one call is one sample through one UNet.
    """

    def __init__(self, pretrained, finetuned, *, pretrained_null, pretrained_caption, finetuned_null, finetuned_caption):
        self._pretrained, self._finetuned = pretrained, finetuned
        self.pretrained_null, self.pretrained_caption = pretrained_null, pretrained_caption
        self.finetuned_null, self.finetuned_caption = finetuned_null, finetuned_caption
        self.calls = 0

    def pretrained(self, x, t, *contexts):
        """eps_theta under each context in turn: one tensor for one context, else a tuple, from a single batch."""
        return self._ask(self._pretrained, x, t, contexts)

    def finetuned(self, x, t, *contexts):
        """eps_theta' under each context in turn: one tensor for one context, else a tuple, from a single batch."""
        return self._ask(self._finetuned, x, t, contexts)

    def _ask(self, noise_pred, x, t, contexts):
        n = len(x)
        self.calls += n * len(contexts)
        context = torch.cat([context.expand(n, -1, -1) for context in contexts])
        eps = noise_pred(x.repeat(len(contexts), 1, 1, 1) if len(contexts) > 1 else x, t, context)
        return eps if len(contexts) == 1 else eps.chunk(len(contexts))
