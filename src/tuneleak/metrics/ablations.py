"""From sweeps to metrics of FineXtract's ablations and defences: the verb `evaluate ablations`. system: `finextract-ablations`.

Columns are those of every metrics table; `defence` names the variant. Besides the rows that `evaluate finextract` makes for each variant and guidance:

- `defence` a-minus-reference: paired differences of AS, over the training pictures both have (a variant with fewer pictures trains on the first ones)
- metric `best w` (of a variant with several guidance settings of one k): the weight of the highest AS; its interval is that of the argmax over the bootstrap
- metric `best w slope`: change of log2(best w) per doubling of training steps, over the variants of the axis `steps`; negative if w' falls with training
- metric `AS published minus grid`, setting the published weight: AS at it minus the mean AS over the grid of weights, paired
- attack `finextract-noise-norm` and `finextract-agreement`: AS with the weight each model's own criterion chooses (see `attacks/extraction/criteria.py`)
- metric `AS chosen minus fixed`: with the rule that was better on tune concepts, minus the best fixed weight of tune concepts, on test concepts
- metric `similarity`, `KID`, `caption accuracy` and `held-out loss`: utility of the fine-tuned model, and its differences from the reference
"""

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.attacks.extraction.criteria import RULES, choose
from tuneleak.errors import InputError
from tuneleak.metrics import finextract, intervals, reading
from tuneleak.metrics.finextract import COLUMNS, DECIMALS, GROUP, NUMBERS, PAIR
from tuneleak.options import AblationEvaluateOptions

SYSTEM, REFERENCE = "finextract-ablations", "reference"
PUBLISHED = {"dreambooth": 3.0, "lora": 5.0}  # w' of the paper
UTILITY = {"similarity_heldout": "similarity", "kid_heldout": "KID", "caption_accuracy": "caption accuracy", "loss_heldout": "held-out loss"}
CRITERIA = ["noise_norm", "agreement"]


def evaluate(matches, out, options: AblationEvaluateOptions, tuning=(), utility=()):
    """Write the metrics table of `matches` (matches.csv files of `attack sweep` on test concepts).

    tuning: the same on tune concepts, which choose a fixed weight and a rule; utility: utility.csv files of the variants' models.
    """
    table = read(matches)
    rows = _plain(table, options)
    for _, group in table.groupby(["world", "base", "method", "attack"], sort=True):
        rows += _against_reference(group, options) + _best_weights(group, options) + _published(group, options)
        rows += _rules(group, _like(read(tuning), group) if tuning else None, options)
    for path in utility:
        rows += _utility(pd.read_csv(path, keep_default_na=False), options)
    result = pd.DataFrame(rows, columns=COLUMNS).assign(system=SYSTEM)
    result[["value", "ci_low", "ci_high"]] = result[["value", "ci_low", "ci_high"]].astype(float).round(DECIMALS)
    files.write_csv(out, result)
    files.write_meta(out, options, matches=[str(path) for path in matches], tuning=[str(path) for path in tuning], rows=len(table))


def read(paths):
    """Sweep tables under one another; `InputError` for a picture with two scores in one variant and setting."""
    table = reading.joined(paths, "matches.csv", "attack sweep", [*GROUP, *PAIR], [*NUMBERS, *CRITERIA], complete=["extracted"])
    twice = table[table.duplicated([*GROUP, *PAIR])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(f"variant {row.defence!r} has two scores of {row.image_id!r} at {row.setting}; was a shard given twice, or a name used twice?")
    return table


def _plain(table, options):
    """What `evaluate finextract` says about each variant and setting; differences of attacks and of methods are left to it."""
    found = []
    for _, part in table.groupby(["method", "defence", "setting"], sort=True):
        found.append(finextract.metrics_table(part, {}, options))
    made = pd.concat(found, ignore_index=True)
    made = made[~made.attack.str.contains("-minus-") & (made.metric.isin(["AS", "extracted set size"]) | made.metric.str.startswith("A-ESR"))]
    return made.to_dict("records")


def _first_setting(group):
    return group[group.setting == group.setting.iloc[0]]


def _against_reference(group, options):
    reference = _first_setting(group[group.defence == REFERENCE]) if (group.defence == REFERENCE).any() else group[:0]
    rows = []
    for name, part in group[group.defence != REFERENCE].groupby("defence", sort=False):
        pairs = _first_setting(part).merge(reference[[*PAIR, "extracted"]], on=PAIR, suffixes=("", "_reference"))
        if len(pairs):
            key = _key(pairs, defence=f"{name}-minus-{REFERENCE}", setting=pairs.setting.iloc[0])
            rows += finextract.paired(key, pairs, pairs.extracted - pairs.extracted_reference, options)
    return rows


def _key(group, **changes):
    return group.iloc[0][GROUP].to_dict() | changes


def _weights(group):
    """`group` with the column `w`, settings of the commonest k only."""
    values = [dict((name, float(value)) for name, _, value in (part.partition("=") for part in setting.split(","))) for setting in group.setting]
    group = group.assign(w=[value.get("w", np.nan) for value in values], k=[value.get("k", 0.0) for value in values])
    return group[group.k == group.k.mode().iloc[0]] if len(group) else group


def _cells(group):
    """AS by training picture (rows: concept, seed, image) and weight (columns)."""
    return _weights(group).pivot_table(index=PAIR, columns="w", values="extracted").dropna()


def _argmax_draws(cells, options):
    """Best weights of the bootstrap: concepts resampled, or pictures where there are fewer than eight."""
    concepts = cells.index.get_level_values("concept")
    unit = "concepts" if concepts.nunique() >= intervals.MINIMUM_CLUSTERS else "images"
    blocks = cells.groupby(level="concept").mean().to_numpy() if unit == "concepts" else cells.to_numpy()
    rng = np.random.default_rng(options.seed)
    drawn = rng.integers(0, len(blocks), (options.bootstrap, len(blocks)))
    return cells.columns.to_numpy()[blocks[drawn].mean(1).argmax(1)], unit


def _best(cells):
    return float(cells.columns[cells.groupby(level="concept").mean().mean().to_numpy().argmax()])


def _row(group, key, metric, value, draws, unit, options, n):
    low, high = np.quantile(draws, [0.5 - options.confidence / 2, 0.5 + options.confidence / 2])
    note = "" if unit == "concepts" else f"; interval={unit}"
    seeds = ";".join(sorted(set(group.seed), key=lambda seed: (len(seed), seed)))
    return {
        **key,
        "setting": key["setting"] + note,
        "metric": metric,
        "value": value,
        "ci_low": min(low, value),
        "ci_high": max(high, value),
        "n": n,
        "seeds": seeds,
    }


def _best_weights(group, options):
    rows, found = [], {}
    for name, part in group.groupby("defence", sort=False):
        cells = _cells(part)
        if cells.shape[1] < 2:
            continue
        draws, unit = _argmax_draws(cells, options)
        found[name] = _best(cells), draws
        rows.append(_row(part, _key(part, setting="grid"), "best w", found[name][0], draws, unit, options, len(cells)))
    places = [(options.steps[name], *found[name]) for name in found if name in options.steps]
    if len(places) > 2:
        x = np.log2([place[0] for place in places])
        draws = np.array([_slope(x, values) for values in np.stack([place[2] for place in places], 1)])
        value, unit = _slope(x, [place[1] for place in places]), rows[0]["setting"].partition("interval=")[2] or "concepts"
        rows.append(_row(group, _key(group, defence="", setting="grid"), "best w slope", value, draws, unit, options, len(places)))
    return rows


def _slope(x, weights):
    """Least-squares slope of log2(weights) over x."""
    return float(np.polyfit(x, np.log2(np.maximum(weights, 1e-6)), 1)[0])


def _named(metric, rows):
    """Rows of `finextract.paired` under another metric than AS."""
    return [row | {"metric": row["metric"].replace("AS", metric, 1)} for row in rows]


def _published(group, options):
    """AS at the published weight minus the mean over the grid, on the reference models."""
    cells = _cells(group[group.defence == REFERENCE])
    weight = PUBLISHED.get(group.method.iloc[0])
    if weight not in cells.columns or cells.shape[1] < 3:
        return []
    pairs = (cells[weight] - cells.mean(axis=1)).rename("difference").reset_index()
    return _named("AS published minus grid", finextract.paired(_key(group, defence="", setting=f"w={weight:g}"), pairs, pairs.difference, options))


def _rules(group, tuned, options):
    """AS with weights chosen without training data, and the paired difference of the better rule from the best fixed weight, both picked on tune concepts."""
    reference = _weights(group[(group.defence == REFERENCE) & group.noise_norm.notna()])
    if reference.w.nunique() < 2:
        return []
    rows, chosen = [], {}
    for rule in RULES:
        chosen[rule] = _chosen(reference, rule)
        key = _key(group, attack=f"{group.attack.iloc[0]}-{rule}", defence="", setting="chosen")
        rows.append(finextract.row(key, chosen[rule], "AS", "", finextract.bootstrap(chosen[rule].extracted.to_numpy(), chosen[rule], options)))
    tuned = _weights(tuned[(tuned.defence == REFERENCE) & tuned.noise_norm.notna()]) if tuned is not None else reference[:0]
    if tuned.w.nunique() < 2:
        return rows
    fixed = _best(_cells(tuned))
    rule = max(RULES, key=lambda name: intervals.mean_of_concepts(_chosen(tuned, name).extracted, _chosen(tuned, name).concept))
    pairs = chosen[rule].merge(reference[reference.w == fixed][[*PAIR, "extracted"]], on=PAIR, suffixes=("", "_fixed"))
    if len(pairs):
        key = _key(group, defence="", setting=f"{rule} minus w={fixed:g}")
        rows += _named("AS chosen minus fixed", finextract.paired(key, pairs, pairs.extracted - pairs.extracted_fixed, options))
    return rows


def _chosen(table, rule):
    """The rows of each model at the weight the rule picks for it."""
    parts = []
    for _, part in table.groupby(["concept", "seed"], sort=True):
        told = part.drop_duplicates("w").sort_values("w")
        parts.append(part[part.w == told.w.iloc[choose(rule, told.noise_norm.to_numpy(), told.agreement.to_numpy())]])
    return pd.concat(parts)


def _like(tuned, group):
    same = ["world", "base", "method", "attack"]
    return tuned[(tuned[same] == group.iloc[0][same]).all(axis=1)]


def _utility(table, options):
    """Means of a utility table by variant, and their paired differences from the reference; the unit is the model."""
    missing = [name for name in ("defence", "concept", "seed", "loss_heldout") if name not in table]
    if missing:
        raise InputError(f"a utility table lacks the columns {', '.join(missing)}; it is not one of `tuneleak utility`")
    table, rows = table[table.model_id != "base"].astype({"seed": str, "concept": str}).assign(image_id=""), []  # numbers of whole models
    for (world, base, method), group in table.groupby(["world", "base", "method"], sort=True):
        reference = group[group.defence == REFERENCE]
        for column, metric in UTILITY.items():
            if column not in group:
                continue
            for name, part in group.groupby("defence", sort=False):
                both = part.merge(reference[["concept", "seed", column]], on=["concept", "seed"], suffixes=("", "_reference"))
                for suffix, label in (("", name), ("_reference", f"{name}-minus-{REFERENCE}")):
                    values = pd.to_numeric(both[column], errors="coerce")
                    values = values - pd.to_numeric(both[f"{column}_reference"], errors="coerce") if suffix else values
                    if not len(values) or values.isna().any() or (suffix and name == REFERENCE):
                        continue
                    key = {"world": world, "base": base, "method": method, "attack": "", "defence": label, "setting": ""}
                    rows.append(finextract.row(key, both, metric, "", finextract.bootstrap_models(values.to_numpy(), both, options)))
    return rows
