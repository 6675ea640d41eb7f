"""From distances between generations and real pictures to numbers of extracted pictures, for `evaluate shake-to-leak`.

Rows have `attack` regeneration-<measure> (see `tuneleak.attacks.regeneration.judge`; `aligned` is Shake-to-Leak's own measure) and as `setting` the threshold:
`tau`, calibrated on tune domains, or `d<0.15`, the papers' value for photographs. Per domain:

- members regenerated: distinct members within the threshold of some generation (control=heldout: distinct held-outs, which are false matches)
- generations matched: generations within it of some member, what the public code counts (control=heldout: of some held-out)
- members beyond held-outs: members regenerated minus held-outs regenerated, the latter scaled to as many held-outs as members
- regeneration amplification: the same of the tuned model minus that of its base, from the same starting noise
- CLIP R@1 (attack clip-rp): share of generations whose own domain's caption is the first of all domains' by CLIP (bound=real: of the real pictures), and its
  amplification
"""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak.errors import InputError
from tuneleak.files import read_json
from tuneleak.metrics import intervals, reading

MEASURES = ("l2", "tile", "adaptive", "aligned", "clique")
MODEL = ["model_id", "world", "base", "concept", "method", "defence", "seed", "step"]


def read(pictures, generations):
    """The tables of `attack regeneration`, joined; `InputError` for one that is not."""
    both = (
        reading.joined(pictures, "pictures.csv", "attack regeneration", [*MODEL, "image_id", "image_concept", "pretrained"], [*MEASURES, "own_rank"]),
        reading.joined(
            generations, "generations.csv", "attack regeneration", [*MODEL, "image_concept", "generation"],
            [*(f"{name}_{kind}" for name in MEASURES for kind in ("member", "heldout")), "own_rank"],
        ),
    )  # fmt: skip
    for table, item in zip(both, ("image_id", "generation"), strict=True):
        table["method"] = table.method.where(table.model_id != "base", "base")
        key = ["base", "method", "world", "seed", "step", "image_concept", item]
        if table.duplicated(key).any():
            row = table[table.duplicated(key)].iloc[0]
            raise InputError(f"model {row.model_id}, domain {row.image_concept!r} was judged twice; was a shard given twice?")
    return both


def metrics_rows(pictures, generations, thresholds, label, made):
    """Rows of one group of bases under the name `label`. thresholds: base -> JSON of `calibrate-regeneration`, or none; made: `cell_rows.Rows`."""
    rows = []
    for kind, mine in pictures.groupby(["method", "world"], sort=True):
        method, source = kind
        drawn = generations[(generations.method == method) & (generations.world == source)]
        before = pictures[pictures.method == "base"], generations[generations.method == "base"]
        for measure in MEASURES:
            if not pictures[measure].notna().any():
                continue
            for setting, limits in _limits(measure, sorted(set(pictures.base)), thresholds, made.options.distances):
                key = {"base": label, "method": method, "attack": f"regeneration-{measure}", "setting": setting, "source": source}
                rows += _counts(key, mine, drawn, before, measure, limits, made)
        if pictures.own_rank.notna().any():
            rows += _ranks({"base": label, "method": method, "attack": "clip-rp", "setting": "none", "source": source}, mine, drawn, before[1], made)
    return rows


def _limits(measure, bases, thresholds, fixed):
    """`(setting, {base: distance})` of a measure; the fixed distances are for root mean squares, not for the adaptive distance.

    Where fewer pairs have a distance than may match, none can be calibrated (it is 1, which nothing exceeds): then every such pair counts, as `prefiltered`.
    """
    found = [(f"d<{value:g}", dict.fromkeys(bases, value)) for value in fixed if measure != "adaptive"]
    if all(measure in thresholds.get(base, {}) for base in bases):
        limits = {base: thresholds[base][measure] for base in bases}
        found.append(("tau" if all(value < 1 for value in limits.values()) else "prefiltered", limits))
    return found


def _counts(key, pictures, generations, before, measure, limits, made):
    pictures, reference = (_hits(table, measure, limits) for table in (pictures, before[0]))
    rows = []
    for control, member in (("", "1"), ("heldout", "0")):
        chosen = pictures[pictures.pretrained == member]
        sizes = _domain_sizes(chosen)
        rows.append(row_of(key, "members regenerated", chosen, chosen.hit * sizes, made, control, most=sizes.max()))
        kind = "member" if member == "1" else "heldout"
        matched = _hits(generations, f"{measure}_{kind}", limits)
        sizes = _domain_sizes(matched)
        rows.append(row_of(key, "generations matched", matched, matched.hit * sizes, made, control, most=sizes.max()))
    rows.append(row_of(key, "members beyond held-outs", pictures, excess(pictures, pictures.hit), made))
    if key["method"] != "base":
        paired = pair(pictures, reference, ["base", "image_concept", "image_id"], "hit")
        rows.append(row_of(key, "regeneration amplification", paired, excess(paired, paired.hit - paired.hit_base), made))
    return rows


def excess(table, values):
    """Per picture, what it adds to its domain's members minus scaled held-outs, times the domain's size: a domain's mean is then its excess.

    table: `pretrained` and `image_concept` (and model columns) of `values` `(n,)`, which are 0 or 1, or a difference of such.
    """
    model = ["base", "seed", "image_concept"]
    member = table.pretrained == "1"
    members = member.groupby([table[name] for name in model]).transform("sum")
    total = member.groupby([table[name] for name in model]).transform("size")
    if not ((members > 0) & (members < total)).all():
        raise InputError("a domain was judged without members or without held-outs")
    return values * np.where(member, total, -total * members / (total - members))


def _hits(table, column, limits):
    return table.assign(hit=(table[column] < table.base.map(limits)).astype(float))


def _domain_sizes(table):
    return table.groupby(["base", "seed", "image_concept"]).image_concept.transform("size")


def _ranks(key, pictures, generations, before, made):
    generations, before = (table.assign(hit=(table.own_rank == 1).astype(float)) for table in (generations, before))
    rows = [row_of(key, "CLIP R@1", generations, generations.hit, made, most=1)]
    if key["method"] == "base":
        rows.append(row_of(key, "CLIP R@1", pictures, (pictures.own_rank == 1).astype(float), made, bound="real", most=1))
        return rows
    paired = pair(generations, before, ["base", "image_concept", "generation"], "hit")
    return [*rows, row_of(key, "CLIP R@1 amplification", paired, paired.hit - paired.hit_base, made)]


def pair(table, reference, key, column):
    """`table` with the base's value of `column` beside its own; `InputError` where there is none."""
    both = table.merge(reference[[*key, column]], on=key, suffixes=("", "_base"), how="left")
    if both[f"{column}_base"].isna().any():
        row = both[both[f"{column}_base"].isna()].iloc[0]
        raise InputError(f"domain {row.image_concept!r} has no generations of the base {row.base!r}; judge the base in the same job")
    return both


def row_of(key, metric, table, values, made, control="", bound="", most=None):
    """A row of the mean over domains of `values` `(n,)`: over domains (bootstrap) from 8 on, else over pictures or generations.

    most: of counts and shares, the greatest possible value; the least is 0.
    """
    model = table.base + "/" + table.seed
    item = table.image_id if "image_id" in table else table.generation
    settings = {"replicates": made.options.bootstrap, "confidence": made.options.confidence, "seed": made.options.seed}
    interval = intervals.bootstrap(values, table.image_concept, model, item, **settings)
    if most is not None:
        interval = intervals.within(interval, values, made.options.confidence, (0, most))
    note = (f"; bound={bound}" if bound else "") + ("; interval=images" if interval.unit == "images" else "")
    told = {name: value for name, value in key.items() if name != "source"}
    control = control if key["source"] in ("", "self") else "-".join(filter(None, (key["source"], control)))
    return made.row(told, metric, (interval.value, interval.low, interval.high), len(values), control, note, sorted(set(table.seed) - {""}))


def read_thresholds(paths):
    """{base: thresholds}, from files `<base>/thresholds.json`."""
    return {Path(path).resolve().parent.name: read_json(path) for path in paths}


def table(pictures, generations, thresholds, made):
    """All rows of the study of regeneration, each base alone and all of them together."""
    pictures, generations = read(pictures, generations)
    thresholds = read_thresholds(thresholds)
    bases = sorted(set(pictures.base))
    if thresholds and set(bases) - set(thresholds):
        missing = sorted(set(bases) - set(thresholds))[0]
        raise InputError(f"base {missing!r} has no thresholds; run `tuneleak calibrate-regeneration` into a folder of its name")
    rows = metrics_rows(pictures, generations, thresholds, "all", made)
    for base in bases:
        if len(bases) == 1:
            rows += [row | {"base": base} for row in rows]
        else:
            rows += metrics_rows(pictures[pictures.base == base], generations[generations.base == base], thresholds, base, made)
    return pd.DataFrame(rows)
