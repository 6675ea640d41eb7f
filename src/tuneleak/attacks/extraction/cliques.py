"""Greedy clique partition of a graph: take a largest clique, remove its nodes, repeat.

The largest cliques are found by branch and bound, whose effort is counted in *nodes* (one node = one vertex coloured for a bound) and not in
seconds, so that every machine gives the same cliques.
"""

import heapq

import numpy as np

from tuneleak.errors import InputError

HEURISTIC_STARTS = 8


class BudgetExceeded(Exception):
    """The exact partition needs more search nodes than it was given."""


def greedy_clique_partition(adjacency, node_budget=None, min_size=1, limit=None):
    """Take a largest clique, remove its nodes, repeat: disjoint cliques (sorted node numbers) in the order they were taken.

    adjacency: bool `(n, n)`, symmetric, diagonal ignored. node_budget: search nodes for the whole partition (None: no bound), after
    which `BudgetExceeded` is raised. Cliques below `min_size` are left out; `limit` stops after so many cliques, which are then the largest.

    Ties: vertices are ordered by their colour in one greedy colouring of the graph, then by degeneracy, and equals by lowest number; of
    several largest cliques the one found first in that fixed order is taken. Singletons come last, lowest number first.
    """
    return _Partition(adjacency, node_budget).run(min_size, limit)


def partition_or_approximate(adjacency, node_budget, min_size=1, limit=None):
    """As `greedy_clique_partition`, but when the nodes run out the remaining cliques are greedy ones: `(cliques, exact)`.

    A greedy clique starts at a vertex of high degree and adds the candidate with the most neighbours among the candidates (ties: lowest number); the
    largest of `HEURISTIC_STARTS`, each from outside the ones before, is taken. Sizes need not fall, so cliques are sorted by size before `limit` cuts.
    """
    partition = _Partition(adjacency, node_budget)
    try:
        return partition.run(min_size, limit), True
    except BudgetExceeded:
        cliques = sorted(partition.run_greedily(min_size), key=len, reverse=True)
        return cliques[:limit], False


class _Partition:
    """State of one greedy partition. Vertices are renumbered; sets of vertices are Python integers used as bitsets.

    A clique belongs to its highest vertex v, and `_earlier(v)` are the candidates for the rest of it. The graph only shrinks, so an upper bound on the
    cliques of v stays valid for the whole partition: bounds wait in a heap and are tightened by a search only when they stand in the way.
    """

    def __init__(self, adjacency, node_budget):
        adjacency = np.array(adjacency, dtype=bool)
        if adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
            raise InputError("an adjacency matrix must be square")
        np.fill_diagonal(adjacency, False)
        self.left = float("inf") if node_budget is None else node_budget
        order = _degeneracy_order(adjacency)
        colours = _colour_all(_bitsets(np.packbits(adjacency[np.ix_(order, order)], axis=1, bitorder="little")))
        rank = np.lexsort((np.arange(len(order)), colours))
        self.names = order[rank]
        self.matrix = adjacency[np.ix_(self.names, self.names)]
        self.packed = np.packbits(self.matrix, axis=1, bitorder="little")
        self.rows = _bitsets(self.packed)
        self.alive = (1 << len(order)) - 1
        self.strangers = [self.alive ^ row ^ 1 << v for v, row in enumerate(self.rows)]
        self.known = []  # heap of (-size, bitset): cliques met so far, trimmed as vertices leave
        self.bounds = [(-min(int(colours[old]), (self.rows[v] & ((1 << v) - 1)).bit_count() + 1), v) for v, old in enumerate(rank)]
        heapq.heapify(self.bounds)
        self.cliques = []

    def run(self, min_size, limit):
        if self.alive:
            self._greedy()  # a good clique to start from saves most of the search
        while self.alive and (limit is None or len(self.cliques) < limit):
            size, clique = self._largest_known()
            if -self.bounds[0][0] > size:
                size, clique = self._search(size, clique)
            if size < min_size:
                break
            if size <= 1:
                self._take_singletons(limit)
                break
            self._take(clique)
        return self.cliques

    def run_greedily(self, min_size):
        """Finish the partition with greedy cliques (the exact ones taken so far stay)."""
        while self.alive:
            size, clique = max(self._largest_known(), self._greedy(), key=lambda found: found[0])
            if size < min_size:
                break
            if size <= 1:
                self._take_singletons(None)
                break
            self._take(clique)
        return self.cliques

    def _take(self, clique):
        self.cliques.append(sorted(int(self.names[v]) for v in _members(clique)))
        self.alive &= ~clique

    def _take_singletons(self, limit):
        rest = sorted(int(self.names[v]) for v in _members(self.alive))
        self.cliques += [[name] for name in (rest if limit is None else rest[: limit - len(self.cliques)])]
        self.alive = 0

    def _largest_known(self):
        while self.known:
            size, clique = self.known[0]
            if clique & self.alive == clique:
                return -size, clique
            clique &= self.alive
            if clique:
                heapq.heapreplace(self.known, (-clique.bit_count(), clique))
            else:
                heapq.heappop(self.known)
        return 1, self.alive & -self.alive

    def _search(self, size, clique):
        """A largest clique, by tightening the highest bounds until none exceeds the best clique known."""
        while self.bounds and -self.bounds[0][0] > size:
            bound, v = self.bounds[0]
            if not self.alive >> v & 1:
                heapq.heappop(self.bounds)
                continue
            candidates = self.rows[v] & ((1 << v) - 1) & self.alive
            upper = min(-bound, candidates.bit_count() + 1)
            if upper > size:
                found = self._branch(candidates, size - 1, upper - 1)
                upper = size
                if found:
                    clique = found | 1 << v
                    size = upper = clique.bit_count()
                    heapq.heappush(self.known, (-size, clique))
            heapq.heapreplace(self.bounds, (-upper, v))
        return size, clique

    def _branch(self, candidates, lower, upper):
        """The largest clique within `candidates` if it has more than `lower` vertices, else 0; the search ends at one of `upper` vertices.

        Branch and bound on bitsets with greedy colouring as the bound (Tomita and Seki 2003; San Segundo et al. 2011).
        """
        best, current = 0, 0
        branches, whole = self._colour(candidates, lower)
        if whole:
            return candidates
        stack = [(candidates, branches, 0)]
        while stack:
            candidates, branches, current = stack[-1]
            size = current.bit_count()
            if not branches or size + branches[-1][0] <= lower:
                stack.pop()
                continue
            _, v = branches.pop()
            stack[-1] = (candidates & ~(1 << v), branches, current)
            deeper, current = candidates & self.rows[v], current | 1 << v
            if size + 1 + deeper.bit_count() <= lower:
                continue
            branches, whole = self._colour(deeper, lower - size - 1)
            if whole:
                best, lower = current | deeper, size + 1 + deeper.bit_count()
                if lower >= upper:
                    break
            elif branches:
                stack.append((deeper, branches, current))
        return best

    def _colour(self, candidates, skip):
        """Greedy colouring of `candidates`: `(branches, whole)`. branches: `(colour, vertex)` of every vertex whose colour exceeds `skip`, rising: a
        clique of more than `skip` vertices holds one of them. whole: the candidates are a clique (also when empty) of more than `skip`."""
        count = candidates.bit_count()
        self.left -= count
        if self.left < 0:
            raise BudgetExceeded
        strangers, branches, colour = self.strangers, [], 0
        while candidates:
            colour += 1
            free = candidates
            while free:
                bit = free & -free
                v = bit.bit_length() - 1
                candidates ^= bit
                free &= strangers[v]
                if colour > skip:
                    branches.append((colour, v))
        return branches, colour == count > skip

    def _greedy(self):
        """The largest of a few greedy cliques among the living vertices: `(size, bitset)`. Each starts outside those before it."""
        living = np.array(list(_members(self.alive)))
        alive = np.packbits(np.bincount(living, minlength=len(self.matrix)).astype(bool), bitorder="little")
        degrees = np.bitwise_count(self.packed[living] & alive).sum(1, dtype=np.int64)
        starts, seen, best = living[np.lexsort((self.names[living], -degrees))].tolist(), 0, (0, 0)
        for _ in range(HEURISTIC_STARTS):
            start = next((v for v in starts if not seen >> v & 1), None)
            if start is None:
                break
            clique = self._greedy_from(start, living)
            seen |= clique
            heapq.heappush(self.known, (-clique.bit_count(), clique))
            best = max(best, (clique.bit_count(), clique), key=lambda item: item[0])
        return best

    def _greedy_from(self, start, living):
        chosen = living[self.matrix[start, living]]
        chosen = chosen[np.argsort(self.names[chosen], kind="stable")]
        clique = 1 << start
        shrinking = True
        while shrinking and len(chosen):  # sparse neighbourhoods shrink fast: count on bitsets; then go on in one dense block
            inside = np.packbits(np.bincount(chosen, minlength=len(self.matrix)).astype(bool), bitorder="little")
            best = chosen[int(np.argmax(np.bitwise_count(self.packed[chosen] & inside).sum(1, dtype=np.int64)))]
            clique |= 1 << int(best)
            kept = chosen[self.matrix[best, chosen]]
            shrinking, chosen = 2 * len(kept) < len(chosen), kept
        block = self.matrix[np.ix_(chosen, chosen)].astype(np.float32)
        degrees = block.sum(1)
        candidate = np.ones(len(chosen), dtype=bool)
        while candidate.any():
            best = int(np.argmax(np.where(candidate, degrees, -1)))
            clique |= 1 << int(chosen[best])
            closed = candidate & (block[best] == 0)
            closed[best] = True
            degrees -= block[closed].sum(0)
            candidate &= ~closed
        return clique


def _degeneracy_order(adjacency):
    """Vertices by core, densest first: repeatedly the vertex of lowest degree (ties: highest number) goes to the end."""
    degrees = adjacency.sum(1).astype(np.int64)
    order = np.empty(len(degrees), dtype=np.int64)
    removed = len(degrees) + 1
    for place in range(len(degrees) - 1, -1, -1):
        v = len(degrees) - 1 - int(np.argmin(degrees[::-1]))
        order[place] = v
        degrees -= adjacency[v]
        degrees[v] = 2 * removed
    return order


def _colour_all(rows):
    """Colour (1, 2, ...) of every vertex in one greedy colouring: no clique within colours 1..k has more than k vertices."""
    colours = np.empty(len(rows), dtype=np.int64)
    rest, colour = (1 << len(rows)) - 1, 0
    while rest:
        colour += 1
        free = rest
        while free:
            bit = free & -free
            v = bit.bit_length() - 1
            rest ^= bit
            free &= ~(rows[v] | bit)
            colours[v] = colour
    return colours


def _bitsets(packed):
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _members(bits):
    while bits:
        bit = bits & -bits
        yield bit.bit_length() - 1
        bits ^= bit
