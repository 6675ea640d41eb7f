"""Clique partition of generations against networkx's enumeration of all maximal cliques (the public way). Processor seconds, reported and never asserted on.

Run: python tests/benchmarks/bench_clustering.py [--pictures 100 200 500 5000] [--patience 60] [--out FILE]
"""

import argparse
import multiprocessing
import time
from itertools import product

import networkx as nx
import numpy as np
from recording import Results, add_out

from tuneleak.attacks.extraction.cliques import partition_or_approximate
from tuneleak.attacks.extraction.clustering import cluster, similarity
from tuneleak.options import ClusterOptions


def features(pictures, images, noise, seed=0, dimensions=64):
    """Made-up copy features: `images` centres, each generation near one of them."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(images, dimensions))
    return (centres[random.integers(0, images, pictures)] + noise * random.normal(size=(pictures, dimensions))).astype(np.float32)


def enumerate_cliques(adjacency, found):
    """Greedy partition by enumeration of all maximal cliques after each removal; processor seconds and largest size go to the queue `found`."""
    start, graph, largest = time.process_time(), nx.from_numpy_array(adjacency), 0
    while len(graph):
        clique = max(nx.find_cliques(graph), key=len)
        largest = max(largest, len(clique))
        graph.remove_nodes_from(clique)
    found.put((time.process_time() - start, largest))


def by_enumeration(adjacency, patience):
    """Processor seconds and size of the largest clique by networkx, in a process that is stopped after `patience` seconds (then None)."""
    found = multiprocessing.Queue()
    process = multiprocessing.Process(target=enumerate_cliques, args=(adjacency, found))
    process.start()
    process.join(patience)
    if process.is_alive():
        process.terminate()
        process.join()
        return None
    return found.get()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 200, 500, 5000])
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after which networkx is stopped")
    add_out(parser)
    arguments = parser.parse_args()
    results = Results("clustering", arguments)
    budget = ClusterOptions().node_budget
    print("pictures density noise | ours s  exact cliques largest | networkx s, ratio, largest")
    for pictures, density, noise in product(arguments.pictures, (0.1, 0.3), (0.8, 1.5)):
        values = similarity(features(pictures, max(4, pictures // 50), noise))
        adjacency = values >= np.quantile(values, 1 - density)
        start = time.process_time()
        cliques, exact = partition_or_approximate(adjacency, budget)
        ours = time.process_time() - start
        theirs = by_enumeration(adjacency, arguments.patience)
        shown = f"stopped after {arguments.patience:g} s" if theirs is None else f"{theirs[0]:.2f} {theirs[0] / ours:.0f} {theirs[1]}"
        print(f"{pictures:8} {density:7} {noise:5} | {ours:6.2f} {exact!s:>6} {len(cliques):7} {len(cliques[0]):7} | {shown}", flush=True)
        case = f"{pictures} pictures, density {density}, noise {noise}"
        results.add(f"{case}: ours", ours, "s")
        if theirs is None:
            results.add(f"{case}: networkx, stopped", arguments.patience, "s at least")
        else:
            results.add(f"{case}: networkx", theirs[0], "s")
            results.add(f"{case}: networkx to ours", theirs[0] / ours, "ratio")
    for mode, noise in product(("fair", "compat"), (0.8, 1.5)):
        start = time.process_time()
        found = cluster(features(500, 10, noise), 10, ClusterOptions(mode=mode))
        seconds = time.process_time() - start
        print(f"{mode}, 500 pictures of 10 images, noise {noise}: {seconds:.2f} s, threshold {found.threshold:.2f}, {len(found.members)} cliques", flush=True)
        results.add(f"{mode}, 500 pictures of 10 images, noise {noise}: clustering", seconds, "s")
    results.write()


if __name__ == "__main__":
    main()
