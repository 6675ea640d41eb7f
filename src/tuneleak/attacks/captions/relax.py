"""Search for a caption all of whose words are open at first: in every place a mixture of tokens, moved by the gradient of the caption's likelihood.

Behind Adam a caption cannot grow word by word: the divisors that have to be undone depend on all its words, and as long as most are wrong, a right one looks
no better than others. What grows is right for few words, and one beginning here. But a mixture of the embeddings of all tokens in each place has encodings,
divisors and a likelihood too (`AdamLikelihood`), and from an even mixture the likelihood rises towards the true words (relaxed tokens, as in Guo et al., arXiv
2104.13733, who attack with them). So, for every length:

1. all places are relaxed: their mixtures follow the gradient, with divisors that are estimated again on the way;
2. they are decided one after the other, the surest word first, the others being relaxed again;
3. what one word says most clearly may be stuck in a wrong place: the words that matter most are tried in every place of every length, all others open;
4. the best captions of the likeliest lengths are improved: single words are exchanged, one or two words or a gap opened, relaxed and decided again.

A template is a caption of token ids some of which are None: open.
"""

import torch

from tuneleak.attacks.captions.adam import INTERVALS, PILOTS
from tuneleak.attacks.captions.grow import CHECKED, SLACKS, GrownSearch, growing
from tuneleak.attacks.captions.search import Search, searched_tokens

REFRESHED = 12  # steps with the same divisors
FIRST, STEPS = (48, 0.3), (12, 0.3)  # steps and their size: of a caption all of whose words are open, and between decisions
QUICK, SLOW, BRIEF = (8, 1.0), (24, 0.5), (12, 0.7)  # of all words but one, at first and if they promise something; of one or two words
WIDTHS = (8, 32)  # likeliest tokens among which is decided: of many open places, of one or two
NEAR = 64  # tokens tried in a place by mixture and by either slack of `Evidence.fit`
TAKEN = 3  # templates that are decided
LENGTHS, PATIENCE = 4, 5  # of which the best captions are improved, and rounds without a better one
HEARD, ANCHORS, ANCHORED = 6, 3, 6  # captions that tell which words matter, words tried in all places, and templates of them that are relaxed
LAST, FINALISTS = 6, 4  # times as many gradients decide between the best captions of so many lengths, and changes of the best one
REPEATED = 2  # times as many words as there are tokens to choose from, at most
PART = 16  # captions judged at a time


def longest(options):
    """Most tokens of a caption that is searched here."""
    return min(options.longest, options.relaxed)


def gradients(options, words):
    """Gradients of single samples that reading a caption of so many words asks for with `CaptionOptions`: at most, if no longer one is ever the best and places
    are opened in every other round."""

    def relaxed(pace):
        return -(-pace[0] // REFRESHED)

    def decided(places, first):  # and then judged as a whole
        return relaxed(first) + relaxed(STEPS) * (places - 1) + 1

    most = longest(options)
    words = min(words, most)
    scanned = sum(decided(length, FIRST) for length in range(1, most + 1))
    anchored = HEARD + most * (most + 1) // 2 + ANCHORS * ANCHORED * relaxed(SLOW) + TAKEN * decided(most, STEPS)
    exchanged, opened = 1 + CHECKED, (5 * words - 1) * relaxed(BRIEF) + TAKEN * decided(2, BRIEF)
    decisive = LAST * (FINALISTS + exchanged + 1)
    grown = growing(options.model_copy(update={"longest": most}), words)
    return options.draws * (grown + scanned + anchored + options.rounds * exchanged + -(-options.rounds // 2) * opened + decisive) + 2 * PILOTS * INTERVALS


def find(likelihood, decisive, encoder, options, tokens, start):
    """(token ids, `Explanation`) of the likeliest caption that is found with a likelihood, beginning with `start` too; the last word has the `decisive` one, of
    `LAST` times as many gradients."""
    options = options.model_copy(update={"longest": longest(options)})
    grown = GrownSearch(likelihood, encoder, options, tokens).run([start]).ids
    found = RelaxedSearch(likelihood, encoder, options, tokens).run([start, grown])
    last = RelaxedSearch(decisive, encoder, options, tokens)
    for ids in found[:FINALISTS]:
        last.add(ids)
    last.exchange(last.best()[0])
    ids = last.best()[0]
    return ids, decisive.explain(ids)


class RelaxedSearch:
    """Search with a likelihood (`AdamLikelihood`), a `CausalEncoder`, `CaptionOptions`, and the token ids to choose from (None: `searched_tokens`)."""

    def __init__(self, likelihood, encoder, options, tokens=None):
        self.likelihood, self.encoder, self.options = likelihood, encoder, options
        self.tokens = searched_tokens(encoder.tokenizer, options.pieces) if tokens is None else list(tokens)
        self.embeddings = encoder.embedded(self.tokens)
        self.longest = min(longest(options), REPEATED * len(self.tokens), encoder.length - 2)
        self.found = {}  # likelihoods of captions of token ids

    def run(self, starts=()):
        """The best caption (token ids) of every length, likeliest first; `starts`: captions to begin with."""
        for ids in starts:
            self.add(ids)
        for length in range(1, self.longest + 1):
            self.decide((None,) * length, FIRST)
        self.anchor()
        self.improve()
        return self.best()

    def add(self, ids):
        """Likelihood of a caption of token ids."""
        ids = tuple(ids)
        if ids not in self.found:
            self.found[ids] = self.likelihood.explain(ids).likelihood
        return self.found[ids]

    def best(self):
        """The best caption of every length, likeliest first."""
        by_length = {}
        for ids in sorted(self.found, key=self.found.get):
            by_length[len(ids)] = ids
        return sorted(by_length.values(), key=self.found.get, reverse=True)

    def relax(self, template, pace, mixtures=None, factors=None):
        """Open places follow the gradient. pace: (steps, size); mixtures: logits `(n, V)` to begin with; factors: of divisors to begin with.

        Returns (logits, embeddings of the words `(n, d')`, likelihood, factors)."""
        steps, size = pace
        device = self.embeddings.device
        is_open = torch.tensor([token is None for token in template], device=device)[:, None]
        words = self.encoder.embedded([self.encoder.end if token is None else token for token in template])
        logits = (torch.zeros(len(template), len(self.tokens), device=device) if mixtures is None else mixtures.clone()).requires_grad_()
        optimizer = torch.optim.Adam([logits], size)
        for step in range(steps):
            embedded = torch.where(is_open, torch.softmax(logits, -1) @ self.embeddings, words)
            encodings = self.encoder.mixed(embedded[None])
            if factors is None or (step and step % REFRESHED == 0):
                factors = self.likelihood.factors(encodings[0])
            likelihood = self.likelihood.judge(encodings, factors)[0][0]
            logits.grad = -torch.autograd.grad(likelihood, logits)[0]
            optimizer.step()
        logits = logits.detach()
        return logits, torch.where(is_open, torch.softmax(logits, -1) @ self.embeddings, words), float(likelihood.detach()), factors

    def decide(self, template, pace, mixtures=None):
        """The caption that a template becomes, its open places relaxed and decided one after the other."""
        template = list(template)
        while None in template:
            mixtures, words, _, factors = self.relax(template, pace, mixtures)
            places = [place for place, token in enumerate(template) if token is None]
            width = min(WIDTHS[len(places) <= 2], len(self.tokens))
            tried = [(place, number) for place in places for number in mixtures[place].topk(width).indices.tolist()]
            made = words.repeat(len(tried), 1, 1)
            for row, (place, number) in enumerate(tried):
                made[row, place] = self.embeddings[number]
            place, number = tried[int(self.judged(made, factors).argmax())]
            template[place], pace = self.tokens[number], STEPS
        self.add(template)
        return tuple(template)

    @torch.no_grad()
    def judged(self, words, factors):
        """Likelihoods `(n,)` of captions given by embeddings `(n, m, d')`, with the same divisors' moments."""
        return torch.cat([self.likelihood.judge(self.encoder.mixed(part), factors)[0] for part in words.split(PART)])

    def improve(self):
        """Rounds of changes to the best captions of the `LENGTHS` likeliest lengths, those of the least tried length first."""
        tried, opened, stale = [], set(), 0
        for _ in range(self.options.rounds):
            waiting = [ids for ids in self.best()[:LENGTHS] if ids not in tried]
            if not waiting or stale == PATIENCE:
                break
            ids = min(waiting, key=lambda ids: (sum(len(other) == len(ids) for other in tried) // 3, -self.found[ids]))
            before = max(self.found.values())
            tried.append(ids)
            self.exchange(ids)
            if max((other for other in self.found if len(other) == len(ids)), key=self.found.get) == ids:
                self.reopen([template for template in dict.fromkeys(windows(ids)) if template not in opened and 0 < len(template) <= self.longest])
                opened.update(windows(ids))
            stale = 0 if max(self.found.values()) > before else stale + 1

    def reopen(self, templates):
        """Decide the `TAKEN` of some templates that promise most, and add those that have no open place."""
        self.take([(self.relax(template, BRIEF), template) for template in templates if None in template], (1, BRIEF[1]))
        for template in templates:
            if None not in template:
                self.add(template)

    def exchange(self, ids):
        """Change single words of a caption: the `CHECKED` likeliest changes by the caption's divisors get divisors of their own."""
        explanation, made = self.likelihood.explain(ids), set()
        grown = Search(explanation.evidence, self.encoder, self.options, tokens=self.tokens)
        near = min(NEAR, len(self.tokens))
        for place in range(len(ids)):
            mixtures = self.relax((*ids[:place], None, *ids[place + 1 :]), BRIEF, factors=explanation.factors)[0]
            orders = [mixtures[place], *(grown.fits(ids[:place], slack) for slack in SLACKS)]
            numbers = {number for order in orders for number in order.topk(near).indices.tolist()}
            made.update((*ids[:place], self.tokens[number], *ids[place + 1 :]) for number in numbers)
        made = sorted(made - {ids})
        if made:
            likelihoods = self.judged(self.encoder.embedded(made), explanation.factors)
            for number in likelihoods.topk(min(CHECKED, len(made))).indices.tolist():
                self.add(made[number])

    def weights(self, ids):
        """What a caption's likelihood loses, per place `(n,)`, if the word there becomes the even mixture of all tokens."""
        words = self.encoder.embedded(ids).repeat(len(ids), 1, 1)
        places = torch.arange(len(ids))
        words[places, places] = self.embeddings.mean(0)
        explanation = self.likelihood.explain(ids)
        return explanation.likelihood - self.judged(words, explanation.factors)

    def anchor(self):
        """Try the words that matter most in every place of every length, all other places open."""
        matter = {}
        for ids in self.best()[:HEARD]:
            for token, weight in zip(ids, self.weights(ids).clamp_min(0).tolist(), strict=True):
                matter[token] = matter.get(token, 0) + weight
        anchors = sorted(matter, key=matter.get, reverse=True)[:ANCHORS]
        quick = {token: [] for token in anchors}
        for length in range(1, self.longest + 1):
            for place in range(length):
                factors = None  # where a word stands tells most of them
                for token in anchors:
                    template = (*[None] * place, token, *[None] * (length - place - 1))
                    *_, likelihood, factors = self.relax(template, QUICK, factors=factors)
                    quick[token].append((likelihood, template))
        likely = [template for token in anchors for _, template in sorted(quick[token], key=lambda item: item[0], reverse=True)[:ANCHORED]]
        self.take([(self.relax(template, SLOW), template) for template in likely], STEPS)

    def take(self, relaxed, pace):
        """Decide the `TAKEN` likeliest of templates that are relaxed, given as (what `relax` returned, template)."""
        for (mixtures, *_), template in sorted(relaxed, key=lambda item: item[0][2], reverse=True)[:TAKEN]:
            self.decide(template, pace, mixtures)


def windows(ids):
    """Templates of a caption of token ids in which two neighbouring words are open, one or two new ones, or one in place of one or two that are gone."""
    for old, new in ((2, 2), (0, 1), (1, 2), (1, 0), (2, 1)):
        for first in range(len(ids) - old + 1):
            yield (*ids[:first], *[None] * new, *ids[first + old :])
