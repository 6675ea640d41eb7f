"""Search for the caption whose encodings the evidence holds, token by token.

A caption is scored by its encodings' new directions (what of each place's encoding is orthogonal to those before it): the share of them that the evidence
holds, weighted by their lengths. What all captions have in common says nothing about this one and is removed first: the mean encodings of a public corpus,
which the start token, the same in every caption, dominates.

A wrong token spoils the encodings of all places behind it, so a caption grows from its beginning, and each candidate is judged as if the caption ended
there: by its own encoding and by those of the end and the padding, which depend on all that came before.
"""

import re
from dataclasses import dataclass

import torch

from tuneleak import runtime
from tuneleak.attacks.captions.encoder import CausalEncoder
from tuneleak.models.tokenizer import whole_words

JUDGED_BATCH = 1024
PATIENCE = 2  # further tokens without a better caption, after which the search ends


@dataclass(frozen=True)
class Found:
    """A caption: token ids, and its score (share of its new directions that the evidence holds, 0 to 1)."""

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


def common_directions(encoded, tolerance):
    """Orthonormal `(m, d)` directions of the mean encodings of a corpus `(n, L, d)` at each place; those below `tolerance` of the strongest are left out."""
    _, values, directions = torch.linalg.svd(encoded.mean(0), full_matrices=False)
    return directions[values > tolerance * values[0]]


def searched_tokens(tokenizer, pieces=False):
    """Ids of the tokens a caption may be made of: words of letters and digits; with `pieces` their parts too."""
    pattern = re.compile(r"[a-z0-9]+(</w>)?" if pieces else r"[a-z0-9]+</w>")
    return sorted(number for token, number in tokenizer.get_vocab().items() if pattern.fullmatch(token))


class Search:
    """Everything a search needs: the evidence `(d, d)`, a `CausalEncoder`, the common directions `(m, d)`, `CaptionOptions`, and the token ids to choose
    from (None: `searched_tokens`)."""

    def __init__(self, evidence, encoder, common, options, tokens=None):
        self.evidence, self.encoder, self.common, self.options = torch.as_tensor(evidence), encoder, common, options
        self.tokens = searched_tokens(encoder.tokenizer, options.pieces) if tokens is None else list(tokens)

    def run(self):
        """The best caption found: beginnings grow token by token until longer captions stop being better, then the best caption is mended."""
        beginnings, best = [()], None
        for length in range(1, min(self.options.longest, self.encoder.length - 2) + 1):
            beginnings = self._longer(beginnings)
            longer = max((self.judge(ids[:-1], [ids[-1:]])[0] for ids in beginnings), key=lambda found: found.score)
            if best is None or longer.score > best.score:
                best = longer
            if length - len(best.ids) >= PATIENCE:
                break
        return self.mend(best)

    def _longer(self, beginnings):
        """The best beginnings one token longer: each next token is judged by its own encoding and that of an end right behind it."""
        candidates = []
        for ids in beginnings:
            found = self.judge(ids, [(token,) for token in self.tokens], padding=0)
            candidates += sorted(found, key=lambda item: -item.score)[: self.options.beams]
        return [item.ids for item in sorted(candidates, key=lambda item: -item.score)[: self.options.beams]]

    def mend(self, found):
        """Exchange one token after another for the one that makes the whole caption score best, until none does."""
        place, unchanged = 0, 0
        while unchanged < len(found.ids):
            rest = found.ids[place + 1 :]
            better = max(self.judge(found.ids[:place], [(token, *rest) for token in self.tokens]), key=lambda item: item.score)
            if better.score > found.score + 1e-9:
                found, unchanged = better, 0
            unchanged, place = unchanged + 1, (place + 1) % len(found.ids)
        return found

    def judge(self, beginning, endings, padding=None):
        """`Found` of captions with one beginning (token ids) and endings of one length, each ended and followed by `padding` places (None: `reach`)."""
        closing = self.encoder.closing(len(beginning) + len(endings[0]), self.options.reach if padding is None else padding)
        known, scores = self._directions(beginning), []
        for part in (endings[start : start + JUDGED_BATCH] for start in range(0, len(endings), JUDGED_BATCH)):
            scores += self._score(self.encoder.endings(beginning, [[*ids, *closing] for ids in part]), *known).tolist()
        return [Found((*beginning, *ids), score, self.encoder) for ids, score in zip(endings, scores, strict=True)]

    def _directions(self, beginning):
        """Orthonormal directions of the common ones and a beginning's encodings `(k, d)`, what the evidence holds of the beginning's, and their length."""
        if not beginning:
            return self.common, 0.0, 0.0
        encoded = self.encoder.endings((), [list(beginning)])
        rest, lengths = self._new(encoded, self.common)
        held = (((self.evidence @ rest) * rest).sum(1) * lengths).sum()
        return torch.cat([self.common, rest[0].T]), float(held), float(lengths.sum())

    def _score(self, encoded, basis, held, length):
        directions, lengths = self._new(encoded, basis)
        more = (((self.evidence @ directions) * directions).sum(1) * lengths).sum(1)
        return (held + more) / (length + lengths.sum(1)).clamp_min(1e-12)

    @staticmethod
    def _new(encoded, basis):
        """New directions `(n, d, m)` of encodings `(n, m, d)` in the order of places, beyond an orthonormal basis, and their lengths `(n, m)`."""
        own = encoded - (encoded @ basis.T) @ basis
        directions, triangle = torch.linalg.qr(own.transpose(1, 2))  # Gram-Schmidt
        return directions, triangle.diagonal(dim1=1, dim2=2).abs()
