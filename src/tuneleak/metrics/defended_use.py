"""What defended models are still good for, and how privacy and use stand to each other: parts of `evaluate defences`.

- `similarity` (to held-out pictures of the concept under its caption), `KID`, `caption accuracy`, `held-out loss`, and their paired differences from no defence
- `similarity kept`: (similarity - the base's) / (that of no defence - the base's): 1 is all of what the fine-tune gave, 0 none of it; left out if it
  gave nothing
- `Pareto frequency`, per attack: share of bootstrap replicates (over concepts, or over models below eight) in which no other defence both leaks less and keeps
  more similarity, by more than rounding. 1: on the front whatever is drawn
- defence `best-at-kept-utility-minus-none`, per attack: for each concept, the defence that leaks least *on the other concepts* among those that keep
  there at least the stated share of similarity, minus no defence, on this concept. Below 0: a defence exists that helps and costs little
- attack `all`, `Kendall tau over attacks` (`seeds`): mean of Kendall's tau of the rankings of defences by two attacks (two seeds), with the
  bootstrap's interval; `over places`, where the scores are of several bases or worlds: of the rankings by one attack in two of them
"""

from collections import defaultdict
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from tuneleak.errors import InputError
from tuneleak.metrics import finextract, intervals
from tuneleak.metrics.defended_scores import NONE, SYSTEM

USE = {"similarity_heldout": "similarity", "kid_heldout": "KID", "caption_accuracy": "caption accuracy", "loss_heldout": "held-out loss"}
BEST = "best-at-kept-utility"
TIE = 1e-4  # what rounding makes of the similarity of pictures that are drawn twice is below
MODEL = ["method", "defence", "concept", "seed"]


def read(paths):
    """utility.csv files under one another; the base's rows keep an empty defence."""
    tables = [pd.read_csv(path, keep_default_na=False, dtype={"seed": str, "concept": str}) for path in paths]
    if not tables:
        return pd.DataFrame(columns=["model_id", *MODEL, "world", "base", *USE])
    table = pd.concat(tables, ignore_index=True)
    missing = [name for name in ("model_id", *MODEL, "loss_heldout") if name not in table]
    if missing:
        raise InputError(f"a utility table lacks the columns {', '.join(missing)}; it is not one of `tuneleak utility`")
    return table


def rows(table, options):
    """Rows of a utility table."""
    tuned, made = table[table.model_id != "base"].assign(image_id=""), []
    for (world, base, method), group in tuned.groupby(["world", "base", "method"], sort=True):
        key = {"system": SYSTEM, "world": world, "base": base, "method": method, "attack": "", "setting": ""}
        reference = group[group.defence == NONE]
        for column, metric in USE.items():
            for name, part in group.groupby("defence", sort=False):
                both = part.merge(reference[["concept", "seed", column]], on=["concept", "seed"], suffixes=("", "_none")) if column in part else part[:0]
                values = [pd.to_numeric(both[name_], errors="coerce") for name_ in (column, f"{column}_none")] if len(both) else []
                if not values or values[0].isna().any() or values[1].isna().any():
                    continue
                made.append(_row(key | {"defence": name}, both, metric, values[0], options))
                if name != NONE:
                    made.append(_row(key | {"defence": f"{name}-minus-{NONE}"}, both, metric, values[0] - values[1], options))
        made += _kept(key, table[(table.world == world) & (table.base == base)], group, options)
    return made


def _row(key, both, metric, values, options):
    return finextract.row(key, both, metric, "", finextract.bootstrap_models(values.to_numpy(float), both, options)) | {"system": SYSTEM}


def likeness(table):
    """Likeness of each model and of the base to held-outs, a row per (method, defence, concept, seed): columns `use` and `use_base`."""
    base = table[table.model_id == "base"].drop_duplicates("concept").set_index("concept").similarity_heldout.astype(float)
    tuned = table[table.model_id != "base"]
    return tuned[MODEL].assign(use=tuned.similarity_heldout.astype(float), use_base=tuned.concept.map(base).to_numpy())


def _kept(key, table, group, options):
    """`similarity kept`, a ratio of means over concepts; resampled as everything else."""
    use = likeness(table)
    use = use[use.method == key["method"]]
    wide, base = _wide(use, "use"), _wide(use, "use_base")
    if NONE not in wide or len(wide) < 2 or not (wide[NONE] - base[NONE]).mean() > 0:
        return []  # a fine-tune that gained nothing has nothing to keep
    made, draws = [], _draws(wide, options)
    for name in wide:
        gained, whole = (wide[name] - base[name]).to_numpy(), (wide[NONE] - base[NONE]).to_numpy()
        value = gained.mean() / whole.mean()
        drawn = gained[draws].mean(1) / whole[draws].mean(1)
        made.append(_interval(key | {"defence": name}, "similarity kept", value, drawn, wide, options))
    return made


def _wide(table, value):
    """Rows: (concept, seed); columns: defences, in order; those that lack a model are left out."""
    wide = table.pivot_table(index=["concept", "seed"], columns="defence", values=value, sort=False)
    return wide.dropna(axis=1)


def _draws(wide, options):
    """Row numbers `(replicates, n)`: concepts are resampled with all their models from eight on, else the models."""
    rng = np.random.default_rng(options.seed)
    concepts = wide.index.get_level_values("concept")
    if concepts.nunique() < intervals.MINIMUM_CLUSTERS or wide.groupby(level="concept").size().nunique() > 1:
        return rng.integers(0, len(wide), (options.bootstrap, len(wide)))
    rows_of = np.array([np.flatnonzero(concepts == name) for name in concepts.unique()])
    return rows_of[rng.integers(0, len(rows_of), (options.bootstrap, len(rows_of)))].reshape(options.bootstrap, -1)


def _interval(key, metric, value, drawn, wide, options):
    concepts = wide.index.get_level_values("concept").nunique()
    by_concept = concepts >= intervals.MINIMUM_CLUSTERS
    low, high = np.nanquantile(drawn, intervals.tails(options.confidence, concepts if by_concept else len(wide)))
    told = {"value": value, "ci_low": min(low, value), "ci_high": max(high, value), "n": len(wide), "seeds": _seeds(wide)}
    return {**key, "setting": key["setting"] + ("" if by_concept else "; interval=models"), "metric": metric, **told}


def _seeds(wide):
    return ";".join(sorted(set(wide.index.get_level_values("seed"))))


def planes(leaks, table, options):
    """Rows of every attack's privacy-utility plane, and of rankings. leaks: `attack, setting, metric, world, base` and `MODEL`, `value` (higher: more)."""
    made, places = [], defaultdict(dict)
    for (world, base, method), block in leaks.groupby(["world", "base", "method"], sort=True):
        key = {"system": SYSTEM, "world": world, "base": base, "method": method}
        metrics = {names: part.metric.iloc[0] for names, part in block.groupby(["attack", "setting"], sort=True)}
        wide = {names: _wide(part, "value") for names, part in block.groupby(["attack", "setting"], sort=True)}
        wide = {names: part for names, part in wide.items() if NONE in part and part.shape[1] > 1}
        mine = table[(table.world == world) & (table.base == base)]  # twins of one base have the same people
        if len(mine):
            use = likeness(mine)
            liked = _wide(use[use.method == method], "use"), _wide(use[use.method == method], "use_base")
            for (attack, setting), part in wide.items():
                made += _plane(key | {"attack": attack, "setting": setting}, metrics[attack, setting], part, *liked, options)
        made += _rankings(key, wide, options)
        places[method][world, base] = wide
    return made + [row for method, found in places.items() for row in _over_places(method, found, options)]


def _plane(key, metric, leak, use, base, options):
    shared = [name for name in leak if name in use]
    rows_ = leak.index.intersection(use.index)
    if len(shared) < 2 or len(rows_) < 2:
        return []
    leak, use, base = leak.loc[rows_, shared], use.loc[rows_, shared], base.loc[rows_, shared]
    draws, made = _draws(leak, options), []
    leaked, used = leak.to_numpy()[draws].mean(1), use.to_numpy()[draws].mean(1)
    fronts = np.array([pareto(a, b) for a, b in zip(leaked, used, strict=True)]).mean(0)
    for name, share in zip(shared, fronts, strict=True):
        told = {"metric": "Pareto frequency", "value": share, "ci_low": share, "ci_high": share, "n": len(leak), "seeds": _seeds(leak)}
        made.append(key | {"defence": name} | told)
    differences = best_elsewhere(leak, use, base, options.utility_kept)
    if differences is not None:
        table = leak.index.to_frame(index=False).assign(image_id="", difference=differences)
        interval = finextract.bootstrap_models(table.difference.to_numpy(), table, options)
        made.append(finextract.row(key | {"defence": f"{BEST}-minus-{NONE}"}, table, metric, "", interval) | {"system": SYSTEM})
    return made


def pareto(leaked, used):
    """Which points are on the front, `(n,)` bool: no other leaks at most as much and is of at least as much use, with one of the two better.

    Differences up to `TIE` are none: models that are the same but for rounding (other factors of one update) are on the front together or not at all.
    """
    leaked, used = np.asarray(leaked, float), np.asarray(used, float)
    less, more = leaked[:, None] - leaked[None], used[None] - used[:, None]  # row: the point, column: how much better another is
    better = (less >= -TIE) & (more >= -TIE) & ((less > TIE) | (more > TIE))
    return ~better.any(1)


def best_elsewhere(leak, use, base, kept):
    """Per row of `leak`: the defence that leaks least on the other concepts among those that keep the share `kept` of likeness there, minus no defence.

    None with a single concept. No defence itself is among the candidates, so that the difference is 0 where nothing qualifies.
    """
    concepts = leak.index.get_level_values("concept")
    if concepts.nunique() < 2:
        return None
    made = np.zeros(len(leak))
    for concept in concepts.unique():
        elsewhere, here = concepts != concept, concepts == concept
        gained = (use[elsewhere] - base[elsewhere]).mean()
        allowed = [name for name in leak if name == NONE or gained[name] >= kept * gained[NONE]]
        chosen = leak.loc[elsewhere, allowed].mean().idxmin()
        made[here] = (leak.loc[here, chosen] - leak.loc[here, NONE]).to_numpy()
    return made


def _rankings(key, wide, options):
    made, told = [], key | {"attack": "all", "defence": "", "setting": ""}
    most = max((part.shape[1] for part in wide.values()), default=0)
    wide = {names: part for names, part in wide.items() if part.shape[1] == most}  # attacks that are run on a few defences only rank nothing
    shared = [set(part) for part in wide.values()]
    common = [name for name in next(iter(wide.values()), []) if all(name in names for names in shared)]
    index = None
    for part in wide.values():
        index = part.index if index is None else index.intersection(part.index)
    if len(wide) > 1 and len(common) > 2 and len(index) > 1:
        stacked = np.stack([part.loc[index, common].to_numpy() for part in wide.values()])  # attacks, models, defences
        first = next(iter(wide.values())).loc[index]
        draws = _draws(first, options)
        drawn = np.array([mean_tau(stacked[:, rows_].mean(1)) for rows_ in draws])
        made.append(_interval(told, "Kendall tau over attacks", mean_tau(stacked.mean(1)), drawn, first, options))
        made += _over_seeds(told, wide, common, index, options)
    return made


def _over_seeds(told, wide, common, index, options):
    """Rankings of defences by one attack under two seeds of training, averaged over attacks; concepts are resampled. Needs every concept under every seed."""
    concepts, seeds = (index.get_level_values(name).unique() for name in ("concept", "seed"))
    full = pd.MultiIndex.from_product([concepts, seeds], names=["concept", "seed"])
    if len(seeds) < 2 or len(concepts) < 2 or len(index) < len(full):
        return []
    cube = np.stack([part.loc[full, common].to_numpy().reshape(len(concepts), len(seeds), -1) for part in wide.values()])  # attacks, concepts, seeds, defences

    def over_seeds(rows_):
        return float(np.mean([mean_tau(one) for one in cube[:, rows_].mean(1)]))

    drawn = np.random.default_rng(options.seed).integers(0, len(concepts), (options.bootstrap, len(concepts)))
    first = next(iter(wide.values())).loc[full]
    return [_interval(told, "Kendall tau over seeds", over_seeds(np.arange(len(concepts))), np.array([over_seeds(row) for row in drawn]), first, options)]


def _over_places(method, places, options):
    """Rankings of defences by one attack in two places, averaged over attacks and pairs; the concepts (or models) of each place are resampled on their own.

    places: {(world, base): {(attack, setting): table as of `_wide`}}.
    """
    shared = []  # of one attack: both places' models by defences, each with the seed of its place
    for (i, first), (j, second) in combinations(enumerate(places.values()), 2):
        for name in sorted(first.keys() & second.keys()):
            common = [defence for defence in first[name] if defence in second[name]]
            if len(common) > 2 and min(len(first[name]), len(second[name])) > 1:
                shared.append([(part[name][common], options.model_copy(update={"seed": options.seed + place})) for place, part in ((i, first), (j, second))])
    if not shared:
        return []
    sides = [[(part.to_numpy(), _draws(part, own)) for part, own in pair] for pair in shared]
    value = float(np.mean([mean_tau([part.mean(0) for part, _ in pair]) for pair in sides]))
    drawn = [np.mean([mean_tau([part[draws[i]].mean(0) for part, draws in pair]) for pair in sides]) for i in range(options.bootstrap)]
    worlds, bases = (";".join(sorted({place[side] for place in places})) for side in (0, 1))
    told = {"system": SYSTEM, "world": worlds, "base": bases, "method": method, "attack": "all", "defence": "", "setting": ""}
    fewest = min((part for pair in shared for part, _ in pair), key=lambda part: (part.index.get_level_values("concept").nunique(), len(part)))
    return [_interval(told, "Kendall tau over places", value, np.array(drawn), fewest, options)]


def mean_tau(values):
    """Mean of Kendall's tau-b over all pairs of rows of `values (rankings, defences)`; ties everywhere in a ranking count as 0."""
    found = [stats.kendalltau(a, b).statistic for a, b in combinations(values, 2)]
    return float(np.mean(np.nan_to_num(found)))
