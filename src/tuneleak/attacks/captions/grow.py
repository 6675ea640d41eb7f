"""Search for a caption that grows, behind Adam: every beginning has divisors of its own (`AdamLikelihood`), and what has grown is changed word by word.

Quick, and right for captions of few words. From four or five words on most beginnings are wrong in a way that no single change puts right; see `relax`.
"""

import torch

from tuneleak.attacks.captions.adam import INTERVALS, PILOTS
from tuneleak.attacks.captions.search import Found, Search

POPULATION = 4  # captions between which the search may go back
SLACKS = (0.0, 0.1)  # by which words are proposed, see `Evidence.fit`
GROWN = 4  # beginnings kept
PART = 4  # captions judged at a time: of more, what is in the making leaves a processor's cache
LAST = 4  # times as many gradients decide between the last captions and changes of the best one
CHECKED = 6  # changed captions per round that get divisors of their own


def gradients(options, words):
    """Gradients of single samples that reading a caption of so many words asks for with `CaptionOptions`: at most, if none longer looks likelier on the way
    (of `options.longest` words: in any case) and no caption that comes back has been forgotten (see `AdamLikelihood`)."""
    return options.draws * (growing(options, words) + LAST * (2 + CHECKED)) + PILOTS * INTERVALS


def growing(options, words):
    """Captions that get divisors of their own while one of so many words grows and is changed."""
    return 1 + GROWN * min(options.longest, words + options.patience) + 1 + CHECKED * options.rounds


def find(likelihood, decisive, encoder, options, tokens, start):
    """(token ids, `Explanation`) of the likeliest caption that is found with a likelihood, beginning with `start` too; the last word has the `decisive` one, of
    `LAST` times as many gradients."""
    grown = GrownSearch(likelihood, encoder, options, tokens).run([start])
    last = GrownSearch(decisive, encoder, options, tokens)
    ids = last.improved({grown.ids, start}, 1).ids
    return ids, decisive.explain(ids)


class GrownSearch(Search):
    """Search with a likelihood (`AdamLikelihood`); other arguments as `Search`.

    A caption grows as in `Search`, every beginning, ended and padded, with divisors of its own. Then words are changed, put in and left out, and endings
    grown anew, judged by the divisors of the caption that is changed; the likeliest get divisors of their own and take its place if they explain more.
    """

    def __init__(self, judge, encoder, options, tokens=None):
        super().__init__(None, encoder, options, tokens=tokens)
        self.judge = judge

    def wholes(self, found):
        """`Found` of each of some captions of token ids, its score being the likelihood."""
        return [Found(ids, likelihood, self.encoder) for ids, likelihood in zip(found, self.judge.likelihoods(found), strict=True)]

    def longer(self, beginnings):
        """The `GROWN` best beginnings one token longer."""
        return super().longer(beginnings)[:GROWN]

    def fits(self, ids, slack=0.0):
        """How well each of the searched tokens fits behind a beginning `(tokens,)`, divisors of that beginning undone."""
        self.evidence = self.judge.explain(tuple(ids)).evidence
        return super().fits(ids, slack)

    def run(self, others=()):
        """The likeliest caption found, starting from the one that grows and from `others` (token ids)."""
        return self.improved({super().run().ids, *others}, self.options.rounds)

    def improved(self, found, rounds):
        """The likeliest caption found in so many rounds of changes to the likeliest of a set of captions (token ids)."""
        done = set()
        for _ in range(rounds):
            best = self.ordered(found)[:POPULATION]
            waiting = [item.ids for item in best if item.ids not in done]
            if not waiting:
                break
            done.add(waiting[0])
            found.update(self.changed(waiting[0]))
        return self.ordered(found)[0]

    def ordered(self, found):
        """`wholes`, likeliest first."""
        return sorted(self.wholes([*found]), key=lambda item: item.score, reverse=True)

    def changed(self, ids):
        """The `CHECKED` captions made of a caption of token ids that explain the updates best with its divisors."""
        explanation, made = self.judge.explain(ids), set()
        judged = Search(explanation.evidence, self.encoder, self.options, tokens=self.tokens)
        for place in range(len(ids) + 1):
            for fits in judged.fits(ids[:place], SLACKS):
                near = [self.tokens[number] for number in fits.topk(min(3 * self.options.beams, len(fits))).indices.tolist()]
                made.update((*ids[:place], token, *ids[place + 1 :]) for token in near)
                for token in near[: self.options.beams]:
                    made.update([(*ids[:place], token), (*ids[:place], token, *ids[place:]), (*ids[:place], token, *ids[place + 2 :])])
            made.add((*ids[:place], *ids[place + 1 :]))
        beginnings = [((), 0.0)]
        for _ in range(min(len(ids) + 2, self.longest)):
            beginnings = judged.longer(beginnings)[:GROWN]
            made.update(beginning for beginning, _ in beginnings)
        made = sorted(other for other in made if 0 < len(other) <= self.longest and other != ids)
        parts = (self.encoder.captions(made[first : first + 16 * PART]) for first in range(0, len(made), 16 * PART))
        scores = [self.judge.judge(part, explanation.factors)[0].cpu() for encodings in parts for part in encodings.split(PART)]
        order = torch.argsort(torch.cat(scores), descending=True)[:CHECKED]
        return [made[number] for number in order.tolist()]
