"""Attacks of the matrix that give each candidate a score: membership of pictures and people, LiRA and RMIA, and membership after Shake-to-Leak.

All become one table, a row per (attack, model, candidate): `attack, setting, method, defence, world, base, concept, seed, image_id, label`
(bool: was in), `score`, `base_score` (the base's own of the same candidate; NaN where membership is a coin's and nothing but chance can tell it without the
target). Metrics of each attack under each defence, and their paired differences from no defence on the same candidates:

- AUC: mean over concepts (and seeds) of that within a model; intervals as in `tuneleak.metrics.cell_rows`
- the same two with control `base`: what the base alone, which saw none of them, tells of these candidates; and `AUC minus base`, `leaked bits minus base`,
  paired. Differences from no defence need no such control: it is the same on both sides
- leaked bits: see `tuneleak.metrics.bits`; scores are standardised within a model, thresholds come from other concepts
- TPR@1%FPR with at least 500 distinct non-member pictures, TPR@0.1%FPR with at least 1,000, from 8 concepts on: a picture that several models are asked about
  is one, so the matrix prints these rates only where it has that many pictures
"""

import numpy as np
import pandas as pd

from tuneleak.errors import InputError
from tuneleak.metrics import bits, intervals, reading, roc, shadow_models
from tuneleak.metrics.cell_rows import Cell, Rows, auc_of, before, difference, low_rates, standardised, tuned

SYSTEM, NONE, REFERENCE, SHAKEN, BASE = "defences", "none", "reference", "shaken", "base"
COLUMNS = ["attack", "setting", "method", "defence", "world", "base", "concept", "seed", "image_id", "label", "score", "base_score"]
RATES = ((0.01, 500), (0.001, 1000))  # false-positive rate, and non-members it needs
_MODEL = ["model_id", "world", "base", "concept", "method", "defence", "seed"]


def read(membership=(), people=(), shadows=(), shaken=()):
    """All scores as one table; each argument: files of one kind (scores.csv, people.csv, shadows.csv, scores.csv after the shaking)."""
    parts = [_membership(membership, ""), _people(people), _shadows(shadows), _membership(shaken, f"{SHAKEN}-")]
    found = [part for part in parts if part is not None]
    if not found:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.concat(found, ignore_index=True).reindex(columns=COLUMNS)
    key = [name for name in COLUMNS if name not in ("label", "score", "base_score")]
    if table.duplicated(key).any():
        row = table[table.duplicated(key)].iloc[0]
        raise InputError(
            f"attack {row.attack!r}, defence {row.defence!r}, concept {row.concept!r} has two scores of {row.image_id!r}; was a shard given twice?"
        )
    return table


def _membership(paths, prefix):
    """Scores of tuned models, and `reference-<attack>`: minus the base's score of the same picture, which is the control of both."""
    if not paths:
        return None
    text = [*_MODEL, "attack", "setting", "caption", "image_id", "finetuned"]
    table = reading.joined(paths, "scores.csv", "attack membership", text, ["score"], complete=["score"])
    same = ["base", "attack", "setting", "caption", "image_id"]
    base = table[table.model_id == "base"].drop_duplicates(same)
    mine = table[table.model_id != "base"].merge(base[[*same, "score"]], on=same, suffixes=("", "_base"), how="left")
    learned = ~mine.attack.isin(set(base.attack))  # an attack that learns has no score of the base
    if mine.score_base[~learned].isna().any():
        raise InputError("a picture has no score of the base; `tuneleak attack membership` scores it in every job")
    mine = mine.rename(columns={"score_base": "base_score"}).assign(label=mine.finetuned == "1")
    mine = mine.assign(setting=mine.setting.where(mine.caption == "true", mine.setting + ",caption=" + mine.caption))
    own, referred = mine.assign(attack=prefix + mine.attack), mine[~learned]
    reference = referred.assign(attack=prefix + f"{REFERENCE}-" + referred.attack, score=referred.score - referred.base_score)
    return pd.concat([own, reference], ignore_index=True)


def _people(paths):
    """Photographs of the person trained on that nothing was trained on, against those of strangers; the base's score is its own loss, negated."""
    if not paths:
        return None
    text, numbers = [*_MODEL, "caption", "person", "role", "image_id"], ["base_loss", "tuned_loss"]
    table = reading.joined(paths, "people.csv", "attack people", text, numbers, complete=numbers)
    table = table[table.role != "member"]
    told = {"attack": "people", "setting": "photographs=1,caption=" + table.caption, "label": table.role == "other"}
    return table.assign(**told, score=table.base_loss - table.tuned_loss, base_score=-table.base_loss)


def _shadows(paths):
    """LiRA and RMIA, each model being the target once."""
    if not paths:
        return None
    text, numbers = ["world", "base", "concept", "method", "defence", "seed", "image_id", "role", "setting"], ["loss", "inside"]
    table, parts = reading.joined(paths, "shadows.csv", "attack shadows", text, numbers, complete=numbers), []
    for key, group in table.groupby(["world", "base", "method", "defence", "concept", "setting"], sort=True):
        told = dict(zip(["world", "base", "method", "defence", "concept", "setting"], key, strict=True))
        losses = {role: part.pivot(index="seed", columns="image_id", values="loss") for role, part in group.groupby("role")}
        if set(losses) != {"pool", "population"} or any(part.isna().any(axis=None) for part in losses.values()):
            raise InputError(
                f"shadow models of {told['concept']!r} did not score the same pictures of pool and population; run `tuneleak attack shadows` again"
            )
        inside = group[group.role == "pool"].pivot(index="seed", columns="image_id", values="inside").astype(bool)
        pool, population = losses["pool"], losses["population"].loc[losses["pool"].index]
        found = {
            "lira": shadow_models.lira(pool.to_numpy(), inside.to_numpy()),
            "rmia": shadow_models.rmia(pool.to_numpy(), inside.to_numpy(), population.to_numpy()),
        }
        for attack, scores in found.items():
            target, picture = np.isfinite(scores).nonzero()  # LiRA leaves out what has too few shadows on a side
            told_of = {"seed": pool.index[target], "image_id": pool.columns[picture], "label": inside.to_numpy()[target, picture]}
            parts.append(pd.DataFrame(told_of | {"score": scores[target, picture]}).assign(attack=attack, **told))
    return pd.concat(parts, ignore_index=True)


def rows(table, options):
    """Rows of the metrics table for a table of scores; options: `DefenceEvaluateOptions`."""
    made = []
    for key, group in table.groupby(["world", "base", "method", "attack", "setting"], sort=True):
        told = dict(zip(["world", "base", "method", "attack", "setting"], key, strict=True))
        maker = Rows(SYSTEM, told["world"], options)
        cells = {name: cells_of(part) for name, part in group.groupby("defence", sort=False)}
        cells = {name: found for name, found in cells.items() if found}
        for name, found in cells.items():
            mine = told | {"defence": name}
            made += [maker.of(mine, "AUC", found, auc_of(tuned)), *_bits(mine, found, options), *low_rates(mine, maker, found, RATES)]
            made += _beyond_base(mine, found, maker)
            if name != NONE and NONE in cells:
                both = paired_cells(found, cells[NONE])
                if both:
                    less = told | {"defence": f"{name}-minus-{NONE}"}
                    made += [maker.of(less, "AUC", both, difference(tuned, before)), *_bits(less, both, options, (tuned, before))]
    return made + _amplified(table, options)


def _beyond_base(key, cells, maker):
    """The base's own scores of the candidates as a control, and what the target adds to them."""
    if not all(np.isfinite(cell.before).all() for cell in cells):
        return []
    control = key | {"setting": f"{key['setting']}; control={BASE}"}
    made = [maker.of(control, "AUC", cells, auc_of(before)), *_bits(control, cells, maker.options, (before,))]
    beyond = _bits(key, cells, maker.options, (tuned, before), f"leaked bits minus {BASE}")
    return [*made, maker.of(key, f"AUC minus {BASE}", cells, difference(tuned, before)), *beyond]


def cells_of(group):
    """One cell per model: labels, scores and names of its candidates. `InputError` with fewer than two on a side."""
    cells = []
    for (concept, seed), part in group.sort_values("image_id").groupby(["concept", "seed"], sort=True):
        labels, scores, of_base = part.label.to_numpy(bool), part.score.to_numpy(float), part.base_score.to_numpy(float)
        if min(labels.sum(), (~labels).sum()) < 2:
            if part.attack.iloc[0] in ("lira", "rmia"):
                continue  # a coin may leave a target with one picture
            raise InputError(f"a model of {concept!r} needs at least two candidates that were in, and two that were not")
        cells.append(Cell(part.base.iloc[0], seed, concept, labels, scores, of_base, images=part.image_id.to_numpy()))
    return cells


def paired_cells(cells, others):
    """Cells of a defence with the undefended scores of the same candidates in `before`, where membership is the same in both."""
    others, found = {(cell.domain, cell.seed): cell for cell in others}, []
    for cell in cells:
        other = others.get((cell.domain, cell.seed))
        if other is None:
            continue
        where = {name: number for number, name in enumerate(other.images)}
        keep = [i for i, name in enumerate(cell.images) if name in where and other.labels[where[name]] == cell.labels[i]]
        labels, at = cell.labels[keep], [where[cell.images[i]] for i in keep]
        if len(keep) and min(labels.sum(), (~labels).sum()) > 1:
            found.append(Cell(cell.base, cell.seed, cell.domain, labels, cell.tuned[keep], other.tuned[at], images=cell.images[keep]))
    return found


def _joined(cells, score):
    return np.concatenate([standardised(score(cell)) for cell in cells])


def _bits(key, cells, options, scores=(tuned,), metric="leaked bits"):
    """Leaked bits of the first of `scores`, minus those of a second; nothing with a single concept, which leaves none to set the threshold on."""
    concepts = np.concatenate([[cell.domain] * len(cell.labels) for cell in cells]) if cells else np.array([])
    if len(set(concepts)) < 2:
        return []
    labels, images = (np.concatenate([getattr(cell, name) for cell in cells]) for name in ("labels", "images"))
    decided = [bits.held_out_decisions(labels, _joined(cells, score), concepts) for score in scores]

    def statistic(weights):
        values = [bits.weighted_bits(labels, decisions, weights) for decisions in decided]
        return values[0] - sum(values[1:])

    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    found = intervals.bootstrap_statistic(statistic, concepts, images, **settings)
    return [numbers(key, metric, found, {cell.seed for cell in cells})]


def numbers(key, metric, interval, seeds=()):
    """A row from an `intervals.Interval`."""
    note = "" if interval.unit == "concepts" else f"; interval={interval.unit}"
    told = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n, "seeds": ";".join(sorted(map(str, seeds)))}
    return {"defence": "", **key, "system": SYSTEM, "setting": key["setting"] + note, "metric": metric, **told}


def _amplified(table, options):
    """AUC after the shaking minus that of the released model, of one attack on the same pictures; and what a defence changes about that difference."""
    made = []
    for key, group in table[table.attack.str.startswith(f"{SHAKEN}-")].groupby(["world", "base", "method", "attack", "setting"], sort=True):
        told = dict(zip(["world", "base", "method", "attack", "setting"], key, strict=True))
        same = (table[["world", "base", "method", "setting"]] == [told[name] for name in ("world", "base", "method", "setting")]).all(axis=1)
        released = table[same & (table.attack == told["attack"].removeprefix(f"{SHAKEN}-"))]
        maker, found = Rows(SYSTEM, told["world"], options), {}
        for name, part in group.groupby("defence", sort=False):
            found[name] = paired_cells(cells_of(part), cells_of(released[released.defence == name]))
        for name, cells in found.items():
            if cells:
                made.append(maker.of(told | {"defence": name}, "amplification", cells, difference(tuned, before)))
            both = [(cell, other) for cell in cells for other in found.get(NONE, []) if (cell.domain, cell.seed) == (other.domain, other.seed)]
            if name != NONE and both:
                made.append(_amplified_less(told | {"defence": f"{name}-minus-{NONE}"}, both, maker))
    return made


def _amplified_less(key, pairs, maker):
    """The amplification under a defence minus that under none; pairs: cells of both on the same model's pictures (tuned: shaken, before: released)."""
    others = {(cell.domain, cell.seed): other for cell, other in pairs}

    def statistic(cell):
        other = others[cell.domain, cell.seed]
        at = {name: number for number, name in enumerate(other.images)}
        keep = [i for i, name in enumerate(cell.images) if name in at and other.labels[at[name]] == cell.labels[i]]
        theirs = [at[cell.images[i]] for i in keep]
        scores = [cell.tuned[keep], cell.before[keep], other.tuned[theirs], other.before[theirs]]
        values, covariance = roc.auc_covariance(cell.labels[keep], scores)
        weights = np.array([1.0, -1.0, -1.0, 1.0])
        return weights @ values, weights @ covariance @ weights

    return maker.of(key, "amplification", [cell for cell, _ in pairs], statistic)
