"""From matches to metrics of the FineXtract study: the verbs `calibrate` and `evaluate finextract`.

A metrics table has the columns `COLUMNS`, one row per number:

- `metric`: AS, A-ESR@<threshold>, A-ESR@tau, leaked bits, extracted set size (mean |X'|), similarity threshold (of the clustering),
  AS per concept, AS minimum detectable effect (of a difference, at 80 % power)
- `setting`: the guidance setting, then what qualifies the row: `; control=heldout` and `; control=random` (AS of size-matched sets of held-outs and of
  random generations), `; bound=oracle` (all generations: a bound, no control), `; concept=<name>`, and `; interval=images` (or `models`) where
  fewer than 8 concepts do not allow an interval over concepts
- `attack` a-minus-b (finextract-minus-heldout: minus its own control) and `method` lora-minus-dreambooth: paired differences; `setting` is then
  `<first> minus <second>`
- `ci_low`, `ci_high`: see metrics/intervals.py (Wilson with one trial per concept or picture where all or none are extracted); equal to `value`
  where nothing is sampled
- `n`: training pictures, counted once per model seed (for extracted set size and similarity threshold: models); `seeds`: ';'-joined
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files, runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.metrics import extraction, intervals, reading
from tuneleak.options import EvaluateOptions

COLUMNS = ("system", "world", "base", "method", "attack", "defence", "setting", "metric", "value", "ci_low", "ci_high", "n", "seeds")
GROUP = ["world", "base", "method", "attack", "defence", "setting"]
PAIR = ["concept", "seed", "image_id"]
NUMBERS = ["extracted", "oracle", "random", "heldout", "n_extracted", "threshold"]
DIFFERENCES = (("finextract", "cfg"), ("cfg", "direct"), ("finextract", "base"))
DECIMALS = 6


def calibrate(images, copy_score, n_images, out, options: EvaluateOptions, world=None, split="tune", start=0, stop=None, device="auto"):
    """Write the match threshold of a world, `tau.json`: the smallest tau with at most `options.false_match_rate` false matches (`calibrate_tau`).

    images: ImageSet with folds train and heldout. copy_score: folder of the embedder that gives the scores. n_images: N0. Concepts `start` to `stop` of
    `split` are used, in the order of the manifest. world: its name; None takes the name of the folder of `out`.
    """
    from tuneleak.models.embedders import load_embedder  # torch: only here

    chosen = ImageSet.load(images).where(split=split)
    concepts = chosen.concepts(split, start, stop)
    embedder = load_embedder(copy_score, runtime.pick_device(device))
    blocks = []
    for concept in runtime.progress(concepts, "calibrate"):
        training, heldout = (chosen.where(concept=concept, fold=fold) for fold in ("train", "heldout"))
        if not len(training) or not len(heldout):
            raise InputError(f"concept {concept!r} of {images} lacks pictures in fold train or heldout; the match threshold needs both")
        blocks.append(embedder.embed(training.pixels()) @ embedder.embed(heldout.pixels()).T)
    found = extraction.calibrate_tau(blocks, n_images, options.false_match_rate)
    facts = {"world": world or Path(out).resolve().parent.name, "false_match_rate": options.false_match_rate, "set_size": n_images, **vars(found)}
    files.write_json(out, facts)
    files.write_meta(out, options, images=str(images), copy_score=str(copy_score), split=split, concepts=concepts)


def evaluate(matches, out, options: EvaluateOptions, tau=()):
    """Write the metrics table (see above) of `matches`, a list of matches.csv; `tau`: the tau.json of their worlds (none: no A-ESR@tau).

    On tune matches with many guidance settings it gives the AS of each; `best_setting` then names the best.
    """
    table = read_matches(matches)
    taus = {facts["world"]: _tau(facts, path) for path in tau for facts in [files.read_object(path, "world", "tau")]}
    missing = sorted(set(table.world) - set(taus)) if taus else []
    if missing:
        raise InputError(f"no tau.json was given for the world {missing[0]!r}; run `tuneleak calibrate` for it")
    result = metrics_table(table, taus, options)
    files.write_csv(out, result)
    files.write_meta(out, options, matches=[str(path) for path in matches], tau=taus, rows=len(table))


def _tau(facts, path):
    value = facts["tau"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or not isinstance(facts["world"], str):
        raise InputError(f"{path}: tau must be a finite number and world a name; make it again with `tuneleak calibrate`")
    return float(value)


def read_matches(paths):
    """Read and join matches.csv files; `InputError` on missing columns, bad numbers or a model that occurs twice."""
    table = reading.joined(paths, "matches.csv", "attack extraction", [*GROUP, *PAIR], NUMBERS, complete=["extracted"])
    twice = table[table.duplicated([*GROUP, *PAIR])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(f"concept {row.concept!r}, seed {row.seed}, attack {row.attack!r} has two rows for picture {row.image_id!r}; was a shard given twice?")
    return table


def metrics_table(table, taus, options: EvaluateOptions):
    """The metrics table of joined matches; `taus` maps worlds to thresholds."""
    rows = []
    for key, group in table.groupby(GROUP, sort=True):
        rows += _of_setting(dict(zip(GROUP, key, strict=True)), group, taus.get(key[0]), options)
    for _, group in table.groupby(["world", "base", "method", "defence"], sort=True):
        for first, second in DIFFERENCES:
            rows += _difference(group, "attack", first, second, options)
        rows += _minus_heldout(group[group.attack == "finextract"], options)
    for _, group in table[table.attack == "finextract"].groupby(["world", "base", "defence"], sort=True):
        rows += _difference(group, "method", "lora", "dreambooth", options)
    result = pd.DataFrame(rows, columns=COLUMNS)
    result[["value", "ci_low", "ci_high"]] = result[["value", "ci_low", "ci_high"]].astype(float).round(DECIMALS)
    return result


def best_setting(table):
    """Of a tuning table, the setting with the highest AS per (world, base, method, attack, defence), first row on ties.

    Returns those columns and `setting`, `value`, `ci_low`, `ci_high`, `tried` (number of settings compared).
    """
    group = [name for name in GROUP if name != "setting"]
    table = table[(table.metric == "AS") & ~table.attack.str.contains("-minus-") & ~table.method.str.contains("-minus-")]
    table = table.assign(setting=table.setting.str.removesuffix("; interval=images"))
    table = table[~table.setting.str.contains(";")]
    best = table.loc[table.groupby(group, sort=True).value.idxmax()]
    tried = table.groupby(group, sort=True).setting.nunique().rename("tried").reset_index()
    return best.merge(tried, on=group)[[*group, "setting", "value", "ci_low", "ci_high", "tried"]]


def _of_setting(key, group, tau, options):
    thresholds = {f"A-ESR@{value:g}": value for value in options.similarity_thresholds} | ({} if tau is None else {"A-ESR@tau": tau})
    rows = []
    for column, suffix in (("extracted", ""), ("random", "; control=random"), ("heldout", "; control=heldout"), ("oracle", "; bound=oracle")):
        known = group[group[column].notna()]
        if not len(known):
            continue
        values = known[column].to_numpy()
        rows.append(row(key, known, "AS", suffix, bootstrap(values, known, options)))
        if column in ("extracted", "oracle"):  # the controls are means over draws, of which no success rate can be taken
            rows += [row(key, known, name, suffix, _proportion(values >= value, known, options)) for name, value in thresholds.items()]
    rows += _leaked_bits(key, group, options)
    models = group.drop_duplicates(["concept", "seed"])
    for metric, column in (("extracted set size", "n_extracted"), ("similarity threshold", "threshold")):
        rows.append(row(key, models, metric, "", bootstrap_models(models[column].to_numpy(), models, options)))
    for concept, part in group.groupby("concept", sort=True):
        interval = bootstrap(part.extracted.to_numpy(), part, options, unit="images")
        rows.append(row(key, part, "AS per concept", f"; concept={concept}", interval, say_unit=False))
    return rows


def _leaked_bits(key, group, options):
    known, labels = bits_labels(group)
    if labels is None:
        return []
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    interval = intervals.bootstrap_statistic(lambda weights: extraction.leaked_bits(*labels, weights), known.concept, known.image_id, **settings)
    return [row(key, known, "leaked bits", "", interval)]


def bits_labels(group):
    """(rows with all factors, (true, read on the match, read on held-outs) per factor as `extraction.leaked_bits` takes them); None for the latter
    without any."""
    factors = [name.removeprefix("true_") for name in group if name.startswith("true_")]
    columns = [f"{kind}_{name}" for name, kind in product(factors, ("true", "read_extracted", "read_heldout"))]
    if not factors or any(name not in group for name in columns):
        return group, None
    known = group[(group[columns].notna() & (group[columns] != "")).all(axis=1)]
    if not len(known):
        return known, None
    return known, tuple({name: pd.factorize(known[f"{kind}_{name}"])[0] for name in factors} for kind in ("true", "read_extracted", "read_heldout"))


def _difference(group, column, first, second, options):
    """Rows of the paired difference of AS between two attacks or methods; none unless each is there with a single setting."""
    parts = [group[group[column] == name] for name in (first, second)]
    if any(part.setting.nunique() != 1 for part in parts):
        return []
    pairs = parts[0].merge(parts[1][[*PAIR, "extracted", "setting"]], on=PAIR, suffixes=("", "_second"))
    if column == "attack" and (len(pairs) != len(parts[0]) or len(pairs) != len(parts[1])):
        key = parts[0].iloc[0]
        raise InputError(f"attacks {first!r} and {second!r} of {key.world}/{key.method} do not cover the same models and pictures; give all shards of both")
    if not len(pairs):
        return []
    key = pairs.iloc[0][GROUP].to_dict() | {column: f"{first}-minus-{second}", "setting": f"{pairs.setting.iloc[0]} minus {pairs.setting_second.iloc[0]}"}
    return paired(key, pairs, pairs.extracted - pairs.extracted_second, options)


def _minus_heldout(group, options):
    """Rows of FineXtract's AS minus that of as many held-outs, paired by training picture; none unless there are held-outs and a single setting."""
    known = group[group.heldout.notna()]
    if not len(known) or known.setting.nunique() != 1:
        return []
    key = known.iloc[0][GROUP].to_dict() | {"attack": "finextract-minus-heldout", "setting": f"{known.setting.iloc[0]} minus heldout"}
    return paired(key, known, known.extracted - known.heldout, options)


def paired(key, group, differences, options):
    """Rows of a paired difference of AS, `(n,)` beside the rows of `group`: the mean with its interval, and the smallest effect that could be found."""
    interval = bootstrap(differences.to_numpy(), group, options)
    effect = intervals.minimum_detectable_effect(interval.standard_error, interval.units, options.confidence)
    rows = [row(key, group, "AS", "", interval)]
    if np.isfinite(effect):
        rows.append(rows[0] | {"metric": "AS minimum detectable effect", "value": effect, "ci_low": effect, "ci_high": effect})
    return rows


def bootstrap(values, group, options, unit=None):
    """Interval of the mean over concepts of `values`, one per row of `group` (columns concept, seed, image_id)."""
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    return intervals.bootstrap(values, group.concept, group.seed, group.image_id, unit=unit, **settings)


def _proportion(hits, group, options):
    """As `bootstrap`, of shares of hits."""
    return intervals.within(bootstrap(hits.astype(float), group, options), hits.astype(float), options.confidence)


def bootstrap_models(values, models, options):
    """`intervals.per_model` of numbers of which there is one per model (columns concept, seed)."""
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    return intervals.per_model(values, models.concept, models.seed, **settings)


def row(key, group, metric, suffix, interval, say_unit=True):
    """One row of a metrics table; key: its columns up to `setting`, to which `suffix` is added; group: the rows behind it (column seed)."""
    note = "" if interval.unit == "concepts" or not say_unit else f"; interval={interval.unit}"
    numbers = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}
    seeds = ";".join(sorted(set(group.seed), key=lambda seed: (len(seed), seed)))
    return {"system": "finextract", **key, "setting": key["setting"] + suffix + note, "metric": metric, **numbers, "seeds": seeds}
