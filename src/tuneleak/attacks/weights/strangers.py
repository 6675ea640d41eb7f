"""Whose model stands in for a stranger's: the control that must not be the same person again."""

import numpy as np


def next_person(concepts, seeds):
    """For each of V models the row number of a model of the next person, of the same seed if there is one: int `(V,)`. People go round in order of appearance.

    concepts, seeds: person and seed of each model. With a single person every model is its own stranger.
    """
    concepts, seeds = list(concepts), list(seeds)
    people = list(dict.fromkeys(concepts))
    first = {name: concepts.index(name) for name in people}
    places = {pair: row for row, pair in reversed(list(enumerate(zip(concepts, seeds, strict=True))))}
    after = [people[(people.index(name) + 1) % len(people)] for name in concepts]
    return np.array([places.get((name, seed), first[name]) for name, seed in zip(after, seeds, strict=True)], dtype=int)
