"""Search for the caption whose encodings the evidence holds, token by token.

A token's encoding depends on the tokens before it and on none after, so a caption grows from its beginning: of all next tokens those are kept whose encodings
fit best what the beginning leaves unexplained. Every beginning is then ended and padded, and the caption whose encodings capture most of the updates wins;
all captions have equally many encodings, so no length is favoured.

Adam divides each entry of a gradient by its own root mean square, which bends the encodings towards equal entries. Where whole weights were trained the
public base tells by how much (`tuneleak.attacks.captions.adam`). For a LoRA, whose two factors bend each other, the search is made for encodings divided by
a power of their root mean squares over public captions, for several powers, 0 (plain descent) among them, and the one whose caption captures most is kept.
"""

import re
from dataclasses import dataclass

import torch

from tuneleak import runtime
from tuneleak.attacks.captions.encoder import CausalEncoder
from tuneleak.models.tokenizer import whole_words


@dataclass(frozen=True)
class Found:
    """A caption: token ids, and its score (share of the updates' variance in the span of its encodings, 0 to 1)."""

    ids: tuple
    score: float
    encoder: CausalEncoder

    @property
    def text(self):
        """The caption in words."""
        return self.encoder.text(self.ids)


def public_corpus(tokenizer, size, longest, seed=0):
    """`size` captions of one to `longest` words drawn from the tokenizer's vocabulary: what an attacker can make without seeing any caption."""
    words, generator = whole_words(tokenizer), runtime.generator("public-corpus", seed)
    lengths = torch.randint(1, longest + 1, (size,), generator=generator).tolist()
    return [" ".join(words[index] for index in torch.randint(len(words), (length,), generator=generator)) for length in lengths]


def root_mean_square(encoder, size, seed=0):
    """Root mean square `(d,)` of all encodings of a public corpus of `size` captions."""
    corpus = public_corpus(encoder.tokenizer, size, encoder.length - 2, seed)
    return encoder.captions([encoder.ids(text) for text in corpus]).square().mean((0, 1)).sqrt()


def searched_tokens(tokenizer, pieces=False):
    """Ids of the tokens a caption may be made of: words of letters and digits; with `pieces` their parts too."""
    pattern = re.compile(r"[a-z0-9]+(</w>)?" if pieces else r"[a-z0-9]+</w>")
    return sorted(number for token, number in tokenizer.get_vocab().items() if pattern.fullmatch(token))


class Search:
    """Everything a search needs: `Evidence`, a `CausalEncoder`, `CaptionOptions`, the divisor `(d,)` of encodings (None: 1), and the token ids to choose
    from (None: `searched_tokens`)."""

    def __init__(self, evidence, encoder, options, divisor=None, tokens=None):
        self.evidence, self.encoder, self.options = evidence, encoder, options
        self.divisor = torch.ones((), dtype=torch.float64) if divisor is None else divisor
        self.tokens = tuple(searched_tokens(encoder.tokenizer, options.pieces) if tokens is None else tokens)
        self.longest = min(options.longest, encoder.length - 2)

    def run(self):
        """The best caption found: beginnings grow token by token until `patience` longer ones were no better."""
        beginnings, best = [((), 0.0)], None
        for length in range(1, self.longest + 1):
            beginnings = self.longer(beginnings)
            longer = max(self.wholes([ids for ids, _ in beginnings]), key=lambda found: found.score)
            if best is None or longer.score > best.score:
                best = longer
            if length - len(best.ids) >= self.options.patience:
                break
        return best

    def wholes(self, found):
        """`Found` of each of some whole captions of token ids."""
        scores = self.evidence.captured(self.encoder.captions(found) / self.divisor).tolist()
        return [Found(tuple(ids), score, self.encoder) for ids, score in zip(found, scores, strict=True)]

    def longer(self, beginnings):
        """The best beginnings one token longer, as (ids, sum of the logarithms of their tokens' fits)."""
        candidates = []
        for ids, fit in beginnings:
            fits = self.fits(ids)
            kept = fits.topk(min(self.options.beams, len(fits)))
            more = kept.values.clamp_min(1e-300).log().tolist()
            candidates += [((*ids, self.tokens[number]), fit + gain) for number, gain in zip(kept.indices.tolist(), more, strict=True)]
        return sorted(candidates, key=lambda item: -item[1])[: self.options.beams]

    def fits(self, ids, slack=0.0):
        """How well each of the searched tokens fits behind a beginning `(tokens,)`, see `Evidence.fit`; with several slacks `(s, tokens)`."""
        before, after = (part / self.divisor for part in self.encoder.continued(ids, self.tokens))
        return self.evidence.fit(after, self.evidence.beyond(before), slack)


def search(evidence, encoder, options, spread, tokens=None):
    """(the `Found` that captures most, its power) over `options.powers`; spread `(d,)`: see `root_mean_square`."""
    found = [(Search(evidence, encoder, options, spread**power, tokens).run(), power) for power in options.powers]
    return max(found, key=lambda item: item[0].score)
