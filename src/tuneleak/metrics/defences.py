"""One matrix: every attack under every defence, on the same models. The verb `evaluate defences`.

The table has the columns of every metrics table, system `defences`; `defence` is a name of the configuration (`none`: no defence) or `<name>-minus-none`, a
paired difference. Its parts: scores of candidates (`defended_scores`), extraction and weights (below), use, planes and rankings (`defended_use`), and

- attack `finextract` and `finextract-no-caption` (or `finextract-<condition>`): AS, its controls, and leaked bits
- attack `weights-<encoder>`: MRR, rank-1 and leaked bits of the weights attacks; `weights-<encoder>-adaptive`: of who knows how finished weights were changed
- attack empty: `epsilon`, `delta` (for the unit that the defence protects), `person epsilon`, `person delta` (for all of a person's pictures at once), `noise
  multiplier`, and what they allow any attack on one unit at most, `AUC allowed` and `leaked bits allowed` (see `tuneleak.metrics.bits`). Computed, not sampled
- metric `not run`: a cell that is not run, without a value; `setting` says why
- `ci_low`, `ci_high`: empty where fewer than eight people allow no interval: of bits that are about people, and where all that was resampled is alike

Leaked bits are the unit of all columns: bits about membership per candidate (at most 1), about a picture's factors per training picture, about the factors of
identity per person. The latter two are beyond their control; those of membership have the base's beside them, since members are drawn like non-members.
"""

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics import bits, defended_scores, defended_use, extraction, finextract, intervals, lora_weights
from tuneleak.metrics.defended_scores import NONE, SYSTEM
from tuneleak.metrics.finextract import COLUMNS, DECIMALS, PAIR

WEIGHTS = ("MRR", "rank-1")
ADAPTIVE = "-adaptive"  # ends the name of an encoder trained on weights that were changed as the victims'; without a defence it is the plain one
_PRIVACY = ("epsilon", "delta", "person_epsilon", "person_delta", "noise_multiplier")
_MODEL = ["attack", "setting", "world", "base", "method", "defence", "concept", "seed"]


def evaluate(out, options, membership=(), people=(), shadows=(), shaken=(), matches=(), weights=(), utility=(), privacy=(), world="", base=""):
    """Write the metrics table. Each argument but `out` and `options` (`DefenceEvaluateOptions`) names tables of one verb: `attack membership`
    (membership, and shaken:
    of models after `shake-defended`), `attack people`, `attack shadows`, `attack extraction` (matches), `attack weights run`, `utility`, `finetune-defended`
    (privacy). world, base: names in rows that no model stands behind. `InputError` without any score."""
    scores = defended_scores.read(membership, people, shadows, shaken)
    made = defended_scores.rows(scores, options) if len(scores) else []
    leaks = [_aucs(scores)] if len(scores) else []
    for paths, function in ((matches, _extraction), (weights, _weights)):
        if paths:
            rows, values = function(paths, options)
            made, leaks = made + rows, [*leaks, values]
    if not made:
        raise InputError("there is nothing to evaluate: give scores of at least one attack")
    use = defended_use.read(utility)
    made += defended_use.rows(use, options)
    made += defended_use.planes(pd.concat(leaks, ignore_index=True), use, options)
    made += _private(privacy, world, base) + [_not_run(cell, world, base) for cell in options.missing]
    result = pd.DataFrame(made, columns=COLUMNS).assign(system=SYSTEM)
    numbers = ["value", "ci_low", "ci_high"]
    result[numbers] = result[numbers].astype(float).round(DECIMALS)
    result.loc[_unvaried(result), ["ci_low", "ci_high"]] = np.nan
    files.write_csv(out, result)
    sources = {"membership": membership, "people": people, "shadows": shadows, "shaken": shaken, "matches": matches, "weights": weights, "utility": utility}
    files.write_meta(out, options, scores={name: [str(path) for path in paths] for name, paths in sources.items()}, rows=len(result))


def _unvaried(table):
    """Rows whose interval has no width because too few were resampled and all of them are alike: it would claim to be certain of others too. What is
    computed, or so by definition, is left alone."""
    few, flat = table.setting.str.contains("; interval="), table.ci_low == table.ci_high
    whole = (table.metric == "similarity kept") & (table.defence == NONE)
    return few & flat & ~whole & ~table.metric.str.contains("minimum detectable effect")


def _aucs(scores):
    """The AUC of every model, as the planes need it."""
    found = []
    for key, part in scores.groupby([*_MODEL], sort=True):
        for cell in defended_scores.cells_of(part):
            value = defended_scores.auc_of(defended_scores.tuned)(cell)[0]
            found.append(dict(zip(_MODEL, key, strict=True)) | {"metric": "AUC", "value": value})
    return pd.DataFrame(found, columns=[*_MODEL, "metric", "value"])


def _extraction(paths, options):
    table = finextract.read_matches(paths)
    told = table.setting.str.partition(",caption=")
    table = table.assign(setting=told[0], attack=table.attack + told[2].map(lambda kind: f"-{'no-caption' if kind == 'none' else kind}" if kind else ""))
    made = []
    for _, group in table.groupby(["world", "base", "method", "attack"], sort=True):
        none = group[group.defence == NONE]
        for name, part in group.groupby("defence", sort=False):
            rows = finextract.metrics_table(part, {}, options).to_dict("records")
            made += [row for row in rows if row["metric"] in ("AS", "leaked bits") and "-minus-" not in row["attack"] and "-minus-" not in row["method"]]
            if name != NONE and len(none):
                made += _extraction_less(name, part, none, options)
    values = table.groupby(_MODEL, sort=True).extracted.mean().rename("value").reset_index().assign(metric="AS")
    return made, values


def _extraction_less(name, part, none, options):
    """AS and leaked bits of a defence minus those of none, over the training pictures both have."""
    columns = [column for column in none if column.startswith(("true_", "read_"))]
    pairs = part.merge(none[[*PAIR, "extracted", *columns]], on=PAIR, suffixes=("", "_none"))
    if not len(pairs):
        return []
    key = pairs.iloc[0][finextract.GROUP].to_dict() | {"defence": f"{name}-minus-{NONE}"}
    rows = finextract.paired(key, pairs, pairs.extracted - pairs.extracted_none, options)
    defended, first = finextract.bits_labels(pairs.drop(columns=[f"{column}_none" for column in columns]))
    undefended = pairs.drop(columns=columns).rename(columns={f"{column}_none": column for column in columns})
    _, second = finextract.bits_labels(undefended)
    if first is None or second is None or len(defended) < len(pairs):
        return rows
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    found = intervals.bootstrap_statistic(_bits_less(first, second), pairs.concept, pairs.image_id, **settings)
    return [*rows, defended_scores.numbers(key, "leaked bits", found, set(pairs.seed))]


def _bits_less(first, second):
    """Leaked bits of the first labels minus those of the second, as a function of how often each row counts."""

    def statistic(weights):
        return extraction.leaked_bits(*first, weights) - extraction.leaked_bits(*second, weights)

    return statistic


def _weights(paths, options):
    table = lora_weights.read_scores(paths)
    table = table[~table.setting.str.contains(";") & ~table.attack.isin(["true-prompt", "captions"])]
    table = table.assign(attack="weights-" + table.attack)
    made, values, columns = [], [], ["world", "base", "method", "attack", "setting"]
    undefended = {key: part.sort_values(["concept", "seed"]) for key, part in table[table.defence == NONE].groupby(columns)}
    for key, group in table.groupby(columns, sort=True):
        told = dict(zip(columns, key, strict=True))
        parts = {name: part.sort_values(["concept", "seed"]) for name, part in group.groupby("defence", sort=False)}
        for name, part in parts.items():
            rows = lora_weights.of_setting(told | {"defence": name}, part, options)
            made += [row for row in rows if row["metric"] in (*WEIGHTS, "leaked bits")]
            values.append(part[["attack", "setting", "world", "base", "method", "defence", "concept", "seed"]].assign(metric="MRR", value=1 / part["rank"]))
            none = undefended.get((*key[:3], key[3].removesuffix(ADAPTIVE), key[4]))
            if name != NONE and none is not None and list(zip(part.concept, part.seed, strict=True)) == list(zip(none.concept, none.seed, strict=True)):
                less = lora_weights.paired(part, none, part.attack.iloc[0], told["setting"], WEIGHTS, options, effects=False)
                made += [row | {"defence": f"{name}-minus-{NONE}"} for row in less]
                first, second = lora_weights.bits_labels(part), lora_weights.bits_labels(none)
                if first and second:
                    key_ = told | {"defence": f"{name}-minus-{NONE}"}
                    found = lora_weights.bits_interval(_bits_less(first, second), part, options)
                    made.append(defended_scores.numbers(key_, "leaked bits", found, set(part.seed)))
    return made, pd.concat(values, ignore_index=True)


def _private(paths, world, base):
    """What each private defence promises and allows; of several models the weakest promise."""
    if not paths:
        return []
    tables = [files.read_table(path, ["method", "defence", "unit", *_PRIVACY], "make it again with `tuneleak finetune-defended`") for path in paths]
    table, made = pd.concat(tables, ignore_index=True), []
    for (method, defence), part in table.groupby(["method", "defence"], sort=False):
        found = {name: float(pd.to_numeric(part[name]).max()) for name in _PRIVACY}
        epsilon, delta = found["epsilon"], found["delta"]
        values = {name.replace("_", " "): value for name, value in found.items() if np.isfinite(value)}
        if np.isfinite(epsilon):
            values |= {"AUC allowed": bits.largest_auc(epsilon, delta), "leaked bits allowed": bits.largest_bits(epsilon, delta)}
        key = {"world": world, "base": base, "method": method, "attack": "", "defence": defence, "setting": f"unit={part.unit.iloc[0]}", "seeds": ""}
        made += [key | {"metric": metric, "value": value, "ci_low": value, "ci_high": value, "n": len(part)} for metric, value in values.items()]
    return made


def _not_run(cell, world, base):
    key = {"world": world, "base": base, "method": cell.method, "attack": cell.attack, "defence": cell.defence, "setting": cell.reason, "metric": "not run"}
    return key | {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": 0, "seeds": ""}
