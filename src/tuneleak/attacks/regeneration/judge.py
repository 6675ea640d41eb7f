"""What one model's generations are to the real pictures of one domain: distances, cliques, and the ranks of the domain's caption."""

import numpy as np

from tuneleak.attacks.extraction.cliques import partition_or_approximate
from tuneleak.attacks.regeneration import align, distances

NODE_BUDGET = 200_000
MEASURES = ("l2", "tile", "adaptive", "aligned", "clique")


class Domain:
    """The real pictures of one domain, members and held-outs, and what about them belongs to no model.

    pixels: uint8 `(n, h, w, 3)`; captions: those of all domains, `own` the place of this one's; clip: a CLIP embedder, captions' features `told` `(k, d)`.
    """

    def __init__(self, pixels, own, clip=None, told=None):
        self.pixels, self.own, self.clip, self.told, self._points = pixels, own, clip, told, {}
        self.features = clip.embed(pixels) if clip else None

    def keypoints(self, index):
        """SIFT of one real picture, found once."""
        if index not in self._points:
            self._points[index] = align.keypoints(self.pixels[index])
        return self._points[index]

    def ranks(self, features):
        """Rank (1: best) of the domain's own caption among all captions, for pictures with CLIP features `(m, d)`: `(m,)` int."""
        likeness = features @ self.told.T
        return 1 + (likeness > likeness[:, self.own, None]).sum(1)

    def judge(self, generations, options, thresholds):
        """`(measures, sizes, ranks)` of uint8 generations `(m, h, w, 3)`.

        measures: name -> distances `(m, n)`, infinite where a measure says no match at all; sizes: `(m,)` number of generations in the clique that each is in
        (0: in none of `clique_size`); ranks: `(m,)` of the own caption, or None without CLIP. thresholds: see `calibrate`.
        """
        plain = distances.l2(generations, self.pixels)
        tile = distances.tile_max(generations, self.pixels, options.tiles)
        found = {"l2": plain, "tile": tile, "adaptive": distances.adaptive(plain, options.neighbours, options.adaptive_scale)}
        ranks = None
        if self.clip:
            features = self.clip.embed(generations)
            ranks = self.ranks(features)
            found["aligned"] = self._aligned(generations, plain, clip_distance(features, self.features), options, thresholds["clip"])
        sizes = clique_sizes(distances.tile_max(generations, generations, options.tiles) <= thresholds["tile"], options.clique_size)
        found["clique"] = np.where(sizes[:, None] > 0, tile, np.inf)
        return found, sizes, ranks

    def _aligned(self, generations, plain, semantic, options, limit):
        """Shake-to-Leak's distance: of pairs that CLIP finds alike, after alignment; of each generation the `align_nearest` most alike are aligned."""
        found = np.where(semantic < limit, plain, np.inf)
        for index, row in enumerate(semantic):
            near = np.argsort(row, kind="stable")[: options.align_nearest]
            near = near[row[near] < limit]
            points = align.keypoints(generations[index]) if len(near) else None
            for other in near:
                moved = align.aligned(self.pixels[other], generations[index], self.keypoints(other), points)
                if moved is not None:
                    found[index, other] = distances.l2(generations[index : index + 1], moved[None])[0, 0]
        return found


def clip_distance(first, second):
    """Euclidean distances `(m, n)` of unit features `(m, d)` and `(n, d)`."""
    return np.sqrt(np.maximum(2 - 2 * first @ second.T, 0))


def clique_sizes(adjacency, least):
    """Size of the clique each of `(m,)` generations falls into when the graph is partitioned greedily; 0 below `least`."""
    sizes = np.zeros(len(adjacency), dtype=int)
    for clique in partition_or_approximate(adjacency, NODE_BUDGET, min_size=least)[0]:
        sizes[list(clique)] = len(clique)
    return sizes
