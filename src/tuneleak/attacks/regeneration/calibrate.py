"""The verb `calibrate-regeneration`: what counts as a match, set on tune domains with pictures that the base itself draws.

Writes JSON: for each measure the distance below which at most `false_match_rate` of the base's generations have a held-out of their domain; `clip`: the CLIP
distance that keeps 99 % of real pictures beside their own reconstruction by the autoencoder, than which hardly any generation is nearer; `reconstruction`: the
median l2 of those reconstructions, the floor of any regeneration; `generations` and `concepts` behind it.
"""

import numpy as np

from tuneleak import files, runtime
from tuneleak.attacks.regeneration.judge import MEASURES
from tuneleak.attacks.regeneration.run import Judged, draw
from tuneleak.data.imageset import as_tensor, from_tensor
from tuneleak.models.pipeline import load_base

KEPT = 0.99  # of reconstructions by the CLIP distance


def calibrate(images, base, out, options, members, clip=None, start=0, stop=None, device="auto", dtype="float32"):
    """Write the thresholds; arguments as those of `attack regeneration`, the concepts being tune concepts."""
    device = runtime.pick_device(device)
    judged, loaded = Judged(images, members, clip, start, stop, device), load_base(base, device, dtype)
    domains = [judged.domain(concept) for concept in judged.concepts]
    floor, limits = [], {"clip": options.clip_distance, "tile": options.clique_threshold}
    near = []
    for domain, _ in domains:
        again = from_tensor(loaded.decode(loaded.encode_images(as_tensor(domain.pixels))))
        difference = (again.astype(float) - domain.pixels) / 255
        floor.append(np.sqrt(np.square(difference).reshape(len(again), -1).mean(1)))
        if domain.clip:
            near.append(np.linalg.norm(domain.clip.embed(again) - domain.features, axis=1))
    if near:
        limits["clip"] = float(np.quantile(np.concatenate(near), KEPT))
    reached = {name: [] for name in MEASURES}
    for concept, (domain, table) in zip(judged.concepts, domains, strict=True):
        drawn = draw(loaded, None, None, concept, judged.captions[concept], options)
        measures, _, _ = domain.judge(drawn, options, limits)
        for name in set(MEASURES) & set(measures):
            reached[name].append(measures[name][:, ~table.member.to_numpy()].min(1))
    found = {name: threshold(np.concatenate(values), options.false_match_rate) for name, values in reached.items() if values}
    found["clique"] = found["tile"]  # both judge by tiles; a clique is what is required besides
    facts = {"generations": options.count * len(domains), "concepts": judged.concepts, "reconstruction": float(np.median(np.concatenate(floor)))}
    files.write_json(out, found | {"clip": limits["clip"]} | facts)
    files.write_meta(out, options, base=str(base))


def threshold(distances, rate):
    """The largest distance d at which at most a share `rate` of `(n,)` distances lies strictly below d; 1, farther than any picture is, where no d has more."""
    finite = np.sort(distances[np.isfinite(distances)])
    allowed = int(np.floor(rate * len(distances) + 1e-9))
    return float(finite[allowed]) if allowed < len(finite) else 1.0
