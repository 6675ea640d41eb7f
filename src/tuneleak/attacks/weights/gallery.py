"""Whom a reconstruction looks like: a gallery of one picture of each person, and the victims' held-out and training pictures."""

from collections import Counter

import numpy as np
import torch

from tuneleak.attacks.weights.strangers import next_person
from tuneleak.errors import InputError
from tuneleak.models.modelset import image_ids

IDENTITY_FACTORS = ("hair", "rear_hair", "beard", "hair_colour", "skin_colour", "clothes_colour")
FAR = 0.01


class Gallery:
    """Features of real pictures, computed once.

    table: the victims' manifest rows. images: pictures of all people of the gallery, the victims' among them: one that no model of theirs
    trained on enters the gallery, all of those are references. distractors: one picture of each further person. instruments: embedders `A`, `B`
    (identity) and `copy`, `factors` or None, and `photographs` (a `PhotoSimilarity`) or None.
    """

    def __init__(self, table, images, distractors, instruments):
        self.table, self.instruments, self.strangers = table, instruments, next_person(table.concept, table.seed)
        trained = {image for images_of in table.to_dict("records") for image in image_ids(images_of)}
        people = list(dict.fromkeys(images.table.concept))
        self.own = np.array([people.index(name) if name in people else -1 for name in table.concept])
        if (self.own < 0).any():
            raise InputError(f"{images.folder} has no picture of {table.concept.iloc[int((self.own < 0).argmax())]!r}, of whom there is a model")
        concepts, ids = images.table.concept.to_numpy(), images.table.image_id.to_numpy()
        held_out = {name: [i for i in np.flatnonzero(concepts == name) if ids[i] not in trained] for name in people}
        if not all(held_out.values()):
            name = next(name for name, rows in held_out.items() if not rows)
            raise InputError(f"every picture of {name!r} was trained on; the gallery needs one that was not")
        enrolled = [held_out[name][0] for name in people]
        pixels, alien = images.pixels(), distractors.pixels()[distractors.table.groupby("concept", sort=False).head(1).index]
        self.size = len(enrolled) + len(alien)
        self.features, self.references = {}, {}
        for space in ("A", "B"):
            mine = instruments[space].embed(pixels)
            self.features[space] = np.concatenate([mine[enrolled], instruments[space].embed(alien)])
            self.references[space] = [mine[held_out[name]] for name in table.concept]
        copies = instruments["copy"].embed(pixels)
        position = {image: number for number, image in enumerate(ids)}
        own_pictures = [[position[image] for image in image_ids(row)] for row in table.to_dict("records")]
        self.training = [copies[rows] for rows in own_pictures]
        self.private = None
        if instruments.get("photographs"):
            self.private = [pixels[rows or held_out[name]] for rows, name in zip(own_pictures, table.concept, strict=True)]
        has_factors = all(f"factor_{name}" in images.table for name in IDENTITY_FACTORS)
        self.true_factors = {}
        if has_factors:
            firsts = images.table.groupby("concept", sort=False).first()
            self.true_factors = {name: {f: firsts.loc[name, f"factor_{f}"] for f in IDENTITY_FACTORS} for name in table.concept}

    def of_pictures(self, drawn, again=None):
        """(columns of scores.csv, drawn) of pictures uint8 `(V, n, h, w, 3)`, by embedder B; again: of the second sets."""
        features = self._embed("B", drawn)
        columns = self._against_gallery("B", _mean(features))
        columns["cosine"] = [float((mine @ real.T).mean()) for mine, real in zip(features, self.references["B"], strict=True)]
        copies = zip(self._embed("copy", drawn), self.training, strict=True)
        columns["copy_similarity"] = [float((mine @ real.T).max()) if len(real) else np.nan for mine, real in copies]  # published LoRAs do not say
        if again is not None:
            columns |= self._agreement(_mean(features), _mean(self._embed("B", again)))
        columns["n_pictures"] = drawn.shape[1]
        if self.private is not None:
            columns |= self.instruments["photographs"].of(drawn, self.private, list(self.table.caption))
        return columns | self._read(drawn), drawn

    def selected(self, drawn, embedding):
        """Of each victim's pictures `(V, n, h, w, 3)` the one nearest, by the attacker's own embedder A, to the named identity `(V, e)`: `(V, 1, h, w, 3)`."""
        similarity = np.einsum("vne,ve->vn", self._embed("A", drawn), embedding.cpu().numpy())
        return drawn[np.arange(len(drawn)), similarity.argmax(1)][:, None]

    def of_captions(self, drawn, asked):
        """The same of pictures drawn under captions: beside it the share of the asked-for factors (a dict per victim) that the reader sees in them."""
        columns, drawn = self.of_pictures(drawn)
        read = self.instruments["factors"].read(drawn.reshape(-1, *drawn.shape[2:]))
        known = [name for name in asked[0] if name in read]
        right = np.stack([read[name].reshape(drawn.shape[:2]) == np.array([factors[name] for factors in asked])[:, None] for name in known])
        return columns | {"caption_accuracy": right.mean((0, 2))}, drawn

    def of_embeddings(self, embedding, again=None):
        """The same of identities named in the space of A, `(V, e)` tensors; there is no picture."""
        mine = embedding.cpu().numpy()
        columns = self._against_gallery("A", mine)
        columns["cosine"] = [float((vector @ real.T).mean()) for vector, real in zip(mine, self.references["A"], strict=True)]
        if again is not None:
            columns |= self._agreement(mine, again.cpu().numpy())
        return columns, None

    def _against_gallery(self, space, vectors):
        similarity = vectors @ self.features[space].T
        rows = np.arange(len(vectors))
        genuine = similarity[rows, self.own]
        ranks = 1 + (similarity > genuine[:, None]).sum(1)
        ties = (similarity == genuine[:, None]).sum(1) - 1  # a constant answer must not win by being equal to all
        impostors = np.ones_like(similarity, dtype=bool)
        impostors[rows, self.own] = False
        threshold = float(np.quantile(similarity[impostors], 1 - FAR, method="higher"))
        stranger = similarity[rows, self.own[self.strangers]]
        return {"rank": ranks + ties / 2, "gallery": self.size, "genuine": genuine, "stranger": stranger, "threshold": threshold}

    def _agreement(self, first, second):
        return {"agreement": (first * second).sum(1), "stranger_agreement": (first * second[self.strangers]).sum(1)}

    def _embed(self, name, drawn):
        return self.instruments[name].embed(drawn.reshape(-1, *drawn.shape[2:])).reshape(*drawn.shape[:2], -1)

    def _read(self, drawn):
        reader = self.instruments["factors"]
        if reader is None or not self.true_factors:
            return {}
        read = reader.read(drawn.reshape(-1, *drawn.shape[2:]))
        columns = {}
        for factor in IDENTITY_FACTORS:
            columns[f"true_{factor}"] = [self.true_factors[name][factor] for name in self.table.concept]
            columns[f"read_{factor}"] = [most_frequent(row) for row in read[factor].reshape(drawn.shape[:2]).tolist()]
        return columns


def most_frequent(readings):
    """The most frequent of some readings; of equally frequent ones the first."""
    return Counter(readings).most_common(1)[0][0]


def _mean(features):
    """L2-normalised mean over each victim's pictures: `(V, n, d)` -> `(V, d)`."""
    return torch.nn.functional.normalize(torch.from_numpy(features).mean(1), dim=-1).numpy()
