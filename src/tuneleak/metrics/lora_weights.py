"""From scores of the weights attacks to metrics: the verb `evaluate lora-weights`.

A metrics table with the columns of `tuneleak.metrics.finextract` (system `lora-weights`), one row per number:

- `metric`: MRR, rank-1, rank-5 (of the true person in the gallery), TAR@FAR=1e-2, similarity (to the person's entry in it), cosine (raw, to held-out
  pictures), FaceSim = (cosine + 1) / 2 (the paper's scale), copy similarity (highest to a training picture), agreement (of what is made of two sets
  of one person, minus that of two people), leaked bits, caption accuracy (share of what a caption asks for that is read in the picture), CLIP-I,
  CLIP-T and DINO (photographs), MAE (of the number of training pictures)
- `setting`: `pictures`, `embedding` or `decoded` (of the number of pictures: `steps=total` or `steps=per-image`), then `; control=...` (mean-z,
  other-weights, shuffled-modules, base-unet, stranger) or `; bound=...`, and `; interval=models` where fewer than 8 people allow no interval over people
- `ci_low`, `ci_high`: empty where even that is none: of leaked bits below 8 people, and of a mean over fewer than 8 people who are all alike
- `attack` a-minus-b: paired differences over people; a-minus-control: minus the control or baseline named by `control`; a-minus-best-control: minus the
  one that does best in that metric. Picking the best one on the same people makes the comparison harder for the attack, never easier: only a difference above
  zero says something.
- `defence` <transform>-minus-none: paired differences of one attack on changed and on untouched weights
- leaked bits: sum over factors of identity of the mutual information between true and read value, minus that of the next person's reading, which
  is biased alike
- `n`: victims; `seeds`: of the victims, ';'-joined
"""

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.attacks.weights.strangers import next_person
from tuneleak.errors import InputError
from tuneleak.metrics import extraction, intervals, reading
from tuneleak.metrics.finextract import COLUMNS, DECIMALS

SYSTEM = "lora-weights"
GROUP = ["world", "base", "method", "attack", "defence", "setting"]
NUMBERS = ["rank", "genuine", "stranger", "threshold", "cosine"]
OPTIONAL = ["agreement", "stranger_agreement", "copy_similarity", "caption_accuracy", "clip_i", "clip_t", "dino"]
PROPORTIONS = ("rank-1", "rank-5", "TAR@FAR=1e-2")
COMPARED = ("MRR", "rank-1", "cosine")
SAME = 1e-4  # two cosines that differ by no more are one, but for rounding on the way
CAPTIONS = "caption accuracy"
FURTHER = {"caption_accuracy": CAPTIONS, "clip_i": "CLIP-I", "clip_t": "CLIP-T", "dino": "DINO"}
BASELINES = ("constant", "constant-finextract", "constant-refined", "unconditional", "guessed-prompt", "searched-prompt", "update-matching")
OURS, PAPERS, FINAL, LEAKY, ONLINE = "spectral", "autoencoder", "autoencoder-final", "autoencoder-leak", "autoencoder-online"


def evaluate(scores, out, options, sizes=()):
    """Write the metrics table of scores.csv files and of tables of `dataset-size`. options: `EvaluateOptions` (bootstrap, confidence, seed)."""
    table = read_scores(scores)
    rows = []
    for key, group in table.groupby(GROUP, sort=True):
        rows += of_setting(dict(zip(GROUP, key, strict=True)), group, options)
    for _, group in table.groupby(["world", "base", "method", "defence"], sort=True):
        rows += _differences(group, options)
    for _, group in table.groupby(["world", "base", "method", "attack", "setting"], sort=True):
        rows += _against_untouched(group, options)
    rows += _sizes(sizes, options)
    result = pd.DataFrame(rows, columns=COLUMNS)
    result[["value", "ci_low", "ci_high"]] = result[["value", "ci_low", "ci_high"]].astype(float).round(DECIMALS)
    files.write_csv(out, result)
    files.write_meta(out, options, scores=[str(path) for path in scores], sizes=[str(path) for path in sizes], rows=len(table))


def read_scores(paths):
    """Read and join scores.csv files; `InputError` on missing columns, bad numbers or a victim scored twice in one setting."""
    table = reading.joined(paths, "scores.csv", "attack weights run", [*GROUP, "concept", "seed"], NUMBERS, OPTIONAL, complete=NUMBERS)
    twice = table[table.duplicated([*GROUP, "concept", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(f"victim {row.concept!r}, seed {row.seed}, has two rows for {row.attack!r} in setting {row.setting!r}; was a table given twice?")
    return table


def values_of(group):
    """{metric: value of each victim} of one setting."""
    values = {
        "MRR": 1 / group["rank"], "rank-1": group["rank"] < 1.5, "rank-5": group["rank"] < 5.5,
        "TAR@FAR=1e-2": (group.genuine >= group.threshold), "cosine": group.cosine, "FaceSim": (group.cosine + 1) / 2,
    }  # fmt: skip
    if group.copy_similarity.notna().all():
        values["copy similarity"] = group.copy_similarity
    for column, metric in FURTHER.items():
        if column in group and group[column].notna().all():
            values[metric] = group[column]
    if group.agreement.notna().all():
        values["agreement"] = group.agreement - group.stranger_agreement
    return {name: value.to_numpy().astype(float) for name, value in values.items()}


def of_setting(key, group, options):
    """Rows of one attack in one setting; key: its columns up to `setting`."""
    rows = []
    for metric, values in values_of(group).items():
        rows.append(_row(key, group, metric, _per_model(values, group, options, (0, 1) if metric in PROPORTIONS else None)))
    if "control=" not in key["setting"] and "bound=" not in key["setting"]:
        stranger = key | {"setting": f"{key['setting']}; control=stranger"}
        rows.append(_row(stranger, group, "similarity", _per_model(group.stranger.to_numpy(), group, options)))
    rows.append(_row(key, group, "similarity", _per_model(group.genuine.to_numpy(), group, options)))
    return rows + _leaked_bits(key, group, options)


def _leaked_bits(key, group, options):
    labels = bits_labels(group)
    if labels is None:
        return []
    return [_row(key, group, "leaked bits", bits_interval(lambda weights: extraction.leaked_bits(*labels, weights), group, options))]


def bits_interval(statistic, group, options):
    """Interval over people of `statistic(weights)`, a mutual information of their factors; no ends (NaN) below eight people. They are its sample: within a
    person with one model nothing can be resampled, and further models of the same one would vary the training alone."""
    if group.concept.nunique() < intervals.MINIMUM_CLUSTERS:
        return _endless(float(statistic(np.ones(len(group), dtype=int))), len(group))
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    return intervals.bootstrap_statistic(statistic, group.concept, group.seed, **settings)


def bits_labels(group):
    """(true, read, read of the next person) per factor of identity, as `extraction.leaked_bits` takes them; None where factors were not read."""
    factors = [name.removeprefix("true_") for name in group if name.startswith("true_")]
    columns = [f"{kind}_{name}" for name in factors for kind in ("true", "read")]
    if not factors or group[columns].isna().any(axis=None) or (group[columns] == "").any(axis=None) or group.concept.nunique() < 2:
        return None
    true, read, other, strangers = {}, {}, {}, next_person(group.concept, group.seed)
    for name in factors:
        codes = {value: number for number, value in enumerate(sorted({*group[f"true_{name}"], *group[f"read_{name}"]}))}
        true[name], read[name] = (group[f"{kind}_{name}"].map(codes).to_numpy() for kind in ("true", "read"))
        other[name] = read[name][strangers]
    return true, read, other


def _differences(group, options):
    """Ours minus the paper's; every step minus final weights only; z refined or not; with gradient leak or not; each attack minus its best control."""
    by_setting = {key: part.sort_values(["concept", "seed"]) for key, part in group.groupby(["attack", "setting"], sort=True)}
    rows = []
    for first, second in ((OURS, PAPERS), (PAPERS, FINAL), (f"{OURS}-refined", OURS), (f"{PAPERS}-refined", PAPERS), (LEAKY, ONLINE)):
        if (first, "pictures") in by_setting and (second, "pictures") in by_setting:
            rows += paired(by_setting[first, "pictures"], by_setting[second, "pictures"], f"{first}-minus-{second}", "pictures", COMPARED, options)
    linear = by_setting.get(("linear", "embedding"))
    if linear is not None and (OURS, "embedding") in by_setting:
        rows += paired(by_setting[OURS, "embedding"], linear, f"{OURS}-minus-linear", "embedding", COMPARED, options)
    for (attack, setting), mine in by_setting.items():
        controls = {name: part for name, part in by_setting.items() if _is_control_of(name, attack, setting)}
        if attack in (*BASELINES, "true-prompt", "captions", "attributes") or ";" in setting or not controls:
            continue
        for name, part in sorted(controls.items()):
            what = name[1].partition("control=")[2] or name[0]
            rows += paired(mine, part, f"{attack}-minus-control", f"{setting}; control={what}", COMPARED, options, effects=False)
        for metric in COMPARED:
            best = max(sorted(controls), key=lambda name: values_of(controls[name])[metric].mean())
            rows += paired(mine, controls[best], f"{attack}-minus-best-control", setting, (metric,), options)
    return rows


def _against_untouched(group, options):
    """Each transform minus no transform, of one attack in one setting; `defence` is then `<transform>-minus-none`."""
    parts = {name: part.sort_values(["concept", "seed"]) for name, part in group.groupby("defence")}
    rows = []
    for name, part in parts.items():
        if name and "" in parts and "control=" not in part.setting.iloc[0]:
            metrics = [*COMPARED, *([CAPTIONS] if CAPTIONS in values_of(part) else [])]
            for row in paired(part, parts[""], part.attack.iloc[0], part.setting.iloc[0], metrics, options):
                rows.append(row | {"defence": f"{name}-minus-none"})
    return rows


def _is_control_of(name, attack, setting):
    """Whether the row `name` (attack, setting) is a control of an attack: its own ones, or a baseline that makes the same kind of thing, in the same way: what
    is drawn with guidance from the base, or after refinement, is held against a constant that is drawn so."""
    if name[0] == attack:
        return name[1].startswith(f"{setting}; control=")
    return setting == "pictures" == name[1] and name[0] in BASELINES and (not name[0].startswith("constant") or _decoding(name[0]) == _decoding(attack))


def _decoding(attack):
    return next((kind for kind in ("-finextract", "-refined") if attack.endswith(kind)), "")


def _sizes(paths, options):
    """MAE of each classifier of the number of training pictures, and its paired difference to always saying the median."""
    if not paths:
        return []
    needed, numbers = ("world", "base", "method", "attack", "concept", "seed", "model_id", "steps"), ("predicted", "n_images")
    table = reading.joined(paths, "table", "dataset-size", needed, numbers, complete=numbers)
    table["error"] = (table.predicted - table.n_images).abs()
    table["setting"], table["defence"], rows = "steps=" + table.steps, "", []
    for key, group in table.groupby(GROUP, sort=True):
        rows.append(_row(dict(zip(GROUP, key, strict=True)), group, "MAE", _per_model(group.error.to_numpy(), group, options)))
    for (world, base, method, setting), group in table.groupby(["world", "base", "method", "setting"], sort=True):
        wide = group.pivot_table(index=["concept", "seed", "model_id"], columns="attack", values="error").reset_index()
        key = {"world": world, "base": base, "method": method, "defence": "", "setting": setting}
        for attack in sorted({"dsire", "dsire-update"} & set(wide)):
            interval = _per_model((wide[attack] - wide["median"]).to_numpy(), wide, options)
            rows.append(_row(key | {"attack": f"{attack}-minus-median"}, wide, "MAE", interval))
    return rows


def paired(first, second, name, setting, metrics, options, effects=True):
    """Rows of the difference of two attacks, or of one on two kinds of weights, on the same victims in the same order. Where both gave the same (an invariant
    attack under what it is invariant to) it is 0 without doubt; where only the shares of some victims are, as far as so many can tell."""
    if list(first.concept) != list(second.concept) or list(first.seed) != list(second.seed):
        raise InputError(f"{name}: the two attacks do not cover the same victims; give all scores of both")
    key = first.iloc[0][GROUP].to_dict() | {"attack": name, "setting": setting}
    rows, same = [], list(first["rank"]) == list(second["rank"]) and np.allclose(first.cosine, second.cosine, rtol=0, atol=SAME)
    for metric in metrics:
        differences = values_of(first)[metric] - values_of(second)[metric]
        interval = _per_model(differences, first, options, (-1, 1) if metric in PROPORTIONS and not same else None)
        rows.append(_row(key, first, metric, interval))
        effect = intervals.minimum_detectable_effect(interval.standard_error, interval.units, options.confidence)
        if effects and np.isfinite(effect):
            rows.append(rows[-1] | {"metric": f"{metric} minimum detectable effect", "value": effect, "ci_low": effect, "ci_high": effect})
    return rows


def _per_model(values, group, options, span=None):
    """`intervals.per_model` of one value per victim."""
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    return intervals.per_model(values, group.concept, group.seed, span, **settings)


def _endless(value, models):
    """An estimate of so few models that no interval can be given."""
    unknown = float("nan")
    return intervals.Interval(value, unknown, unknown, models, "models", models, unknown, unknown)


def _row(key, group, metric, interval):
    note = "" if interval.unit == "concepts" else f"; interval={interval.unit}"
    numbers = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}
    seeds = ";".join(sorted(set(group.seed), key=lambda seed: (len(seed), seed)))
    return {"system": SYSTEM, **key, "setting": key["setting"] + note, "metric": metric, **numbers, "seeds": seeds}
