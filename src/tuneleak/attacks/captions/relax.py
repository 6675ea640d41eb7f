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
from tuneleak.attacks.captions.grow import CHECKED, PART, SLACKS, GrownSearch, growing
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
TOGETHER = 2**20  # entries of the updates, times templates relaxed at a time: 9 in the embedded world, 1 of Stable Diffusion's


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
    return options.draws * (grown + scanned + anchored + options.rounds * exchanged + -(-options.rounds // 2) * opened + decisive) + PILOTS * INTERVALS


def find(likelihood, decisive, encoder, options, tokens, start):
    """(token ids, `Explanation`) of the likeliest caption that is found with a likelihood, beginning with `start` too; the last word has the `decisive` one, of
    `LAST` times as many gradients."""
    options = options.model_copy(update={"longest": longest(options)})
    grown = GrownSearch(likelihood, encoder, options, tokens).run([start]).ids
    found = RelaxedSearch(likelihood, encoder, options, tokens).run([start, grown])
    last = RelaxedSearch(decisive, encoder, options, tokens)
    last.add(found[:FINALISTS])
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
        self.together = max(TOGETHER // sum(rows.numel() for rows in likelihood.rows), 1)
        self.found = {}  # likelihoods of captions of token ids

    def run(self, starts=()):
        """The best caption (token ids) of every length, likeliest first; `starts`: captions to begin with."""
        self.add(starts)
        self.decide([(None,) * length for length in range(1, self.longest + 1)], FIRST)
        self.anchor()
        self.improve()
        return self.best()

    def add(self, captions):
        """Judge captions of token ids."""
        self.found.update(zip(captions, self.likelihood.likelihoods(captions), strict=True))

    def best(self):
        """The best caption of every length, likeliest first."""
        by_length = {}
        for ids in sorted(self.found, key=self.found.get):
            by_length[len(ids)] = ids
        return sorted(by_length.values(), key=self.found.get, reverse=True)

    def relax(self, templates, pace, mixtures=None, factors=None):
        """The open places of some templates follow the gradient. pace: (steps, size); mixtures: logits `(m, V)` of each template to begin with, or None;
        factors: of each template's divisors to begin with.

        Yields for each template (logits, embeddings of the words `(m, d')`, likelihood, factors)."""
        mixtures = mixtures or [None] * len(templates)
        for first in range(0, len(templates), self.together):
            some = slice(first, first + self.together)
            yield from self._relaxed(templates[some], pace, mixtures[some], factors and factors[some])

    def _relaxed(self, templates, pace, mixtures, factors):
        steps, size = pace
        lengths, device = [*map(len, templates)], self.embeddings.device
        most = max(lengths)
        whole = [(*template, *self.encoder.closing(len(template))) for template in templates]
        words = self.encoder.embedded([[self.encoder.end if token is None else token for token in tokens] for tokens in whole])  # (n, L - 1, d')
        is_open = torch.tensor([[token is None for token in tokens[:most]] for tokens in whole], device=device)[..., None]
        logits = torch.zeros(len(templates), most, len(self.tokens), device=device)
        for own, given in zip(logits, mixtures, strict=True):
            if given is not None:
                own[: len(given)] = given
        logits.requires_grad_()
        optimizer = torch.optim.Adam([logits], size)

        def mixed(logits):
            return torch.cat([torch.where(is_open, torch.softmax(logits, -1) @ self.embeddings, words[:, :most]), words[:, most:]], 1)

        for step in range(steps):
            encodings = self.encoder.mixed(mixed(logits))
            if step % REFRESHED == 0:
                if step or factors is None:
                    factors = [*self.likelihood.factors(encodings)]
                stacked = [torch.stack(kind) for kind in zip(*factors, strict=True)]
            likelihoods = self.likelihood.judge(encodings, stacked)[0]
            logits.grad = -torch.autograd.grad(likelihoods.sum(), logits)[0]
            optimizer.step()
        logits = logits.detach()
        for own, told, length, likelihood, kinds in zip(logits, mixed(logits), lengths, likelihoods.tolist(), factors, strict=True):
            yield own[:length], told[:length], likelihood, kinds

    def decide(self, templates, pace, mixtures=None):
        """The captions that some templates become, their open places relaxed and decided one after the other; mixtures: as `relax`."""
        decided, mixtures = [*templates], list(mixtures or [None] * len(templates))
        while waiting := [number for number, template in enumerate(decided) if None in template]:
            relaxed = self.relax([decided[number] for number in waiting], pace, [mixtures[number] for number in waiting])
            for number, (mixture, words, _, factors) in zip(waiting, relaxed, strict=True):
                template, mixtures[number] = decided[number], mixture
                place, token = self._surest(template, mixture, words, factors)
                decided[number] = (*template[:place], token, *template[place + 1 :])
            pace = STEPS
        self.add(decided)
        return decided

    def _surest(self, template, mixture, words, factors):
        """(place, token) of the likeliest decision in one open place of a template that is relaxed, given as `relax` yields it."""
        places = [place for place, token in enumerate(template) if token is None]
        width = min(WIDTHS[len(places) <= 2], len(self.tokens))
        tried = [(place, number) for place in places for number in mixture[place].topk(width).indices.tolist()]
        made = words.repeat(len(tried), 1, 1)
        for row, (place, number) in enumerate(tried):
            made[row, place] = self.embeddings[number]
        place, number = tried[int(self.judged(made, factors).argmax())]
        return place, self.tokens[number]

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
        unsure = [template for template in templates if None in template]
        self.take(self.relax(unsure, BRIEF), unsure, (1, BRIEF[1]))
        self.add([template for template in templates if None not in template])

    def exchange(self, ids):
        """Change single words of a caption: the `CHECKED` likeliest changes by the caption's divisors get divisors of their own."""
        explanation, made = self.likelihood.explain(ids), set()
        grown = Search(explanation.evidence, self.encoder, self.options, tokens=self.tokens)
        near = min(NEAR, len(self.tokens))
        templates = [(*ids[:place], None, *ids[place + 1 :]) for place in range(len(ids))]
        for place, (mixtures, *_) in enumerate(self.relax(templates, BRIEF, factors=[explanation.factors] * len(ids))):
            orders = [mixtures[place], *grown.fits(ids[:place], SLACKS)]
            numbers = {number for order in orders for number in order.topk(near).indices.tolist()}
            made.update((*ids[:place], self.tokens[number], *ids[place + 1 :]) for number in numbers)
        made = sorted(made - {ids})
        if made:
            likelihoods = self.judged(self.encoder.embedded(made), explanation.factors)
            self.add([made[number] for number in likelihoods.topk(min(CHECKED, len(made))).indices.tolist()])

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
        places = [(length, place) for length in range(1, self.longest + 1) for place in range(length)]
        quick = {token: [] for token in anchors}
        for first in range(0, len(places), self.together):
            factors = None  # where a word stands tells most of them
            for token in anchors:
                templates = [(*[None] * place, token, *[None] * (length - place - 1)) for length, place in places[first : first + self.together]]
                *_, likelihoods, factors = zip(*self.relax(templates, QUICK, factors=factors), strict=True)
                quick[token] += zip(likelihoods, templates, strict=True)
        likely = [template for token in anchors for _, template in sorted(quick[token], key=lambda item: item[0], reverse=True)[:ANCHORED]]
        self.take(self.relax(likely, SLOW), likely, STEPS)

    def take(self, relaxed, templates, pace):
        """Decide the `TAKEN` likeliest of templates that are relaxed, given with what `relax` yields."""
        told = [(likelihood, template, mixture) for (mixture, _, likelihood, _), template in zip(relaxed, templates, strict=True)]
        likely = sorted(told, key=lambda item: item[0], reverse=True)[:TAKEN]
        self.decide([template for _, template, _ in likely], pace, [mixture for *_, mixture in likely])


def windows(ids):
    """Templates of a caption of token ids in which two neighbouring words are open, one or two new ones, or one in place of one or two that are gone."""
    for old, new in ((2, 2), (0, 1), (1, 2), (1, 0), (2, 1)):
        for first in range(len(ids) - old + 1):
            yield (*ids[:first], *[None] * new, *ids[first + old :])
