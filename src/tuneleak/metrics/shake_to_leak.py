"""From membership scores to amplifications: the verb `evaluate shake-to-leak`.

The table has the columns of `tuneleak.metrics.finextract.COLUMNS`. `base` is a base, or `all`; `method` is how it was fine-tuned (`base`: not at all), a
difference `a-minus-b`, or `none` for the control that sees no model; `attack` a membership attack, `reference-<attack>` (tuned minus base score: the base as
reference) or `two-score-<attack>` (a linear classifier of both scores, learned on other domains). `; control=<set>` in `setting`: fine-tuned on that set
instead of the self-made one (lr0: on it, with a rate of zero). `defence` says what was changed about the recipe (`rank=4`, `blend=0.5`; `steps=36`: after
so many steps), or what was done to the weights instead of fine-tuning (`sigma=0.01`; method gaussian). Metrics:

- AUC: mean over domains (and bases, seeds) of the area under the ROC curve within a domain; TPR@1%FPR: of scores standardised within domains, all together
- amplification: AUC of the tuned model minus that of its base, same pictures, noise and caption; also `at dose <d>`, `beyond <control>`, `per domain`, and
  `pooled` (one ROC curve over all domains, interval by DeLong clustered over domains)
- amplification beyond recipe: of a changed recipe, minus that of the recipe itself, on the domains both have
- amplification sd over seeds, highest of seeds, held-out best: of the Gaussian attack (see `tuneleak.metrics.shake_studies`)
- amplification at matched loss, over matched losses (defence `steps=matched`), set loss: along trajectories, and of two methods against each other (see there)
- amplification also of `a-minus-b`, of `dreambooth+lora-minus-others` (minus the mean of the other methods) and of `dreambooth+lora-minus-best-other`,
  minus that of the other method which amplifies most on these very domains. The highest of several is high by luck too, so this is biased against
  `dreambooth+lora`: above zero it speaks for it, below zero it refutes nothing, and it is no estimate of the distance to a method named beforehand
- shift: half the difference of the amplifications of two twin bases, each of which trained on what the other held out. An effect of membership has one sign in
  both and cancels here; a shift between the two folds reverses with the labels and is what remains
- AUC minus base best: of reference and two-score attacks, minus the base's best attack of as many model calls, chosen on the other domains
- members regenerated and the like, CLIP R@1: see `tuneleak.metrics.regeneration`
- KID, identity similarity, CLIP similarity: of the self-made sets (control=real: one half of the real pictures against the other)

Intervals: see `tuneleak.metrics.cell_rows`.
"""

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.attacks.membership.blind import linear_scores
from tuneleak.errors import InputError
from tuneleak.metrics import intervals, reading, regeneration, roc, shake_studies
from tuneleak.metrics.cell_rows import Cell, Rows, auc_of, before, difference, low_rates, standardised, tuned
from tuneleak.metrics.finextract import COLUMNS, DECIMALS
from tuneleak.metrics.shake_scores import PICTURE, read_losses, read_scores
from tuneleak.options import ShakeEvaluateOptions

SYSTEM = "shake-to-leak"
SELF = "self"
DIFFERENCES = (("lora", "end-to-end"), ("dreambooth+lora", "dreambooth"))
GAUSSIAN = "gaussian"
BEST = "dreambooth+lora"  # leaks most, says the paper: compared with the mean of the other methods


def evaluate(scores, world, out, options: ShakeEvaluateOptions, fidelity=None, pictures=(), generations=(), thresholds=(), set_losses=()):
    """Write the table (CSV; see above) of scores.csv files; world: name noted in it; fidelity: table of `tuneleak fidelity`.

    pictures, generations: tables of `attack regeneration`; thresholds: `<base>/thresholds.json` of `calibrate-regeneration` for each base of theirs.
    set_losses: scores.csv of attack loss on the self-made sets, along the trajectories of the study `steps`.
    """
    table = read_scores(scores)
    result = metrics_table(table, world, options, read_losses(set_losses))
    if pictures:
        result = pd.concat([result, regeneration.table(pictures, generations, thresholds, Rows(SYSTEM, world, options))[list(COLUMNS)]], ignore_index=True)
    if fidelity:
        result = pd.concat([result, fidelity_rows(read_fidelity(fidelity), world, options)], ignore_index=True)
    numbers = ["value", "ci_low", "ci_high"]
    result[numbers] = result[numbers].astype(float).round(DECIMALS)
    files.write_csv(out, result)
    sources = {"scores": [str(path) for path in scores], "pictures": [str(path) for path in pictures], "fidelity": str(fidelity or "")}
    files.write_meta(out, options, **sources, rows=len(table))


def metrics_table(table, world, options, losses=None):
    """The metrics table of joined scores; losses: of `shake_scores.read_losses`."""
    rows, made = [], Rows(SYSTEM, world, options)
    bases = sorted(set(table[table.model_id == "base"].base))
    if not bases:
        raise InputError("no scores of a base are there; `tuneleak attack membership` scores the base in every job")
    pooled = [base for base in bases if base not in options.alone]
    rows = _of_bases(table[table.base.isin(pooled)], "all", made, losses) if pooled else []
    for base in bases:  # of a single base, its rows stand under both names
        same = pooled == [base]
        rows += [row | {"base": base} for row in rows] if same else _of_bases(table[table.base == base], base, made, losses)
    return pd.DataFrame(rows, columns=COLUMNS)


def cells_of(scored, base_scores):
    """The cells of one kind of tuned model; `InputError` if a picture lacks its base score."""
    both = scored.merge(base_scores[[*PICTURE, "score"]], on=PICTURE, suffixes=("", "_base"), how="left")
    if both.score_base.isna().any():
        row = both[both.score_base.isna()].iloc[0]
        raise InputError(f"picture {row.image_id!r} has no score of the base {row.base!r} by attack {row.attack!r}; score the base in the same job")
    cells = []
    for (base, seed, domain), block in both.groupby(["base", "seed", "image_concept"], sort=True):
        labels = (block.pretrained == "1").to_numpy()
        if min(labels.sum(), (~labels).sum()) < 2:
            raise InputError(f"domain {domain!r} of base {base!r} needs at least two members and two non-members")
        columns = [block[name].to_numpy() for name in ("score", "score_base", "dose", "image_id")]
        cells.append(Cell(base, seed, domain, labels, *columns))
    return cells


def _of_bases(table, label, made, losses=None):
    """All rows of a group of bases, under the name `label`."""
    rows, base_scores, calls = [], table[table.model_id == "base"], table.groupby("attack").model_calls.max()
    for (attack, setting, caption), block in base_scores.groupby(["attack", "setting", "caption"], sort=True):
        key = {"base": label, "method": "base", "attack": attack, "setting": _setting(setting, caption)}
        cells = cells_of(block, block)
        rows += [made.of(key, "AUC", cells, auc_of(tuned)), *low_rates(key, made, cells, _rates(made)), *_doses(key, made, cells, "AUC", auc_of(tuned))]
    for (setting,), block in table[table.model_id == "none"].groupby(["setting"], sort=True):
        key = {"base": label, "method": "none", "attack": "model-blind", "setting": setting}
        rows.append(made.of(key, "AUC", cells_of(block, block), auc_of(tuned)))
    kinds = table[~table.model_id.isin(["base", "none"])].groupby(["attack", "setting", "caption", "method", "world"], sort=True)
    cells = {kind: cells_of(block, base_scores) for kind, block in kinds}
    for (attack, setting, caption, method, source), found in cells.items():
        changed = source if "=" in source else ""
        key = {"base": label, "method": method, "attack": attack, "setting": _setting(setting, caption), "defence": changed}
        control = "" if source == SELF or changed else source
        rows += [made.of(key, "AUC", found, auc_of(tuned), control), made.of(key, "amplification", found, difference(tuned, before), control)]
        if changed:
            rows += _shift(key, made, found)
            recipe = cells.get((attack, setting, caption, method, SELF))
            if recipe and method != GAUSSIAN:
                rows.append(_paired(key, "amplification beyond recipe", found, [recipe], made))
            rows += shake_studies.seeds(key, found, made) if method == GAUSSIAN else []
        if control or changed:
            continue
        rows += [*low_rates(key, made, found, _rates(made)), *_pooled(key, made, found), *_shift(key, made, found)]
        rows += [*_doses(key, made, found, "amplification", difference(tuned, before)), *_per_domain(key, made, found)]
        for (attack_, setting_, caption_, method_, other), against in cells.items():
            if (attack_, setting_, caption_, method_) == (attack, setting, caption, method) and other != SELF and "=" not in other:
                rows.append(_paired(key, f"amplification beyond {other}", found, [against], made))
        rows += _with_base(key, made, found, base_scores[base_scores.caption == caption], calls)
    if losses is not None:
        for attack, setting, caption in sorted({kind[:3] for kind in cells}):
            trajectories = {
                (kind[3], kind[4]): found for kind, found in cells.items() if kind[:3] == (attack, setting, caption) and kind[4].startswith("steps=")
            }
            key = {"base": label, "attack": attack, "setting": _setting(setting, caption)}
            rows += shake_studies.matched(key, trajectories, losses, BEST, made)
        rows += shake_studies.loss_rows(losses[losses.base.isin(table.base)], label, made)
    return rows + _between_methods(cells, label, made)


def _rates(made):
    return [(made.options.false_positive_rate, roc.MINIMUM_NONMEMBERS)]


def _setting(setting, caption):
    return setting if caption == "true" else f"{setting},caption={caption}"


def _doses(key, made, cells, metric, statistic):
    """Members of each dose against all non-members."""
    rows = []
    for dose in sorted({value for cell in cells for value in cell.dose[cell.labels]} - {""}, key=float):
        parts = []
        for cell in cells:
            keep = ~cell.labels | (cell.dose == dose)
            if (cell.labels & keep).sum() >= 2:
                parts.append(Cell(cell.base, cell.seed, cell.domain, *(column[keep] for column in (cell.labels, cell.tuned, cell.before, cell.dose))))
        if parts:
            rows.append(made.of(key, f"{metric} at dose {dose}", parts, statistic))
    return rows


def _per_domain(key, made, cells):
    rows = []
    for domain in sorted({cell.domain for cell in cells}):
        row = made.of(key, "amplification per domain", [cell for cell in cells if cell.domain == domain], difference(tuned, before))
        rows.append(row | {"setting": f"{key['setting']}; concept={domain}; interval=images"})
    return rows


def _pooled(key, made, cells):
    """One ROC curve of standardised scores over all domains; DeLong's variance clustered over domains (Obuchowski 1997)."""
    domains = np.concatenate([[cell.domain] * len(cell.labels) for cell in cells])
    if len(set(domains)) < intervals.MINIMUM_CLUSTERS:
        return []
    labels = np.concatenate([cell.labels for cell in cells])
    scores = [np.concatenate([standardised(score(cell)) for cell in cells]) for score in (tuned, before)]
    found = roc.delong_difference(labels, *scores, domains, made.options.confidence)
    return [made.row(key, "amplification pooled", (found.value, found.low, found.high), len(labels), seeds=sorted({cell.seed for cell in cells}))]


def _shift(key, made, cells):
    """Twins: half the difference of the amplifications under two bases that exchange members and non-members; nothing for other bases."""
    bases = sorted({cell.base for cell in cells})
    if len(bases) != 2:
        return []
    sides = [{(cell.domain, cell.seed): cell for cell in cells if cell.base == base} for base in bases]
    if sides[0].keys() != sides[1].keys() or any(len(sides[0][at].labels) != len(sides[1][at].labels) for at in sides[0]):
        return []
    if not all((sides[0][at].labels != sides[1][at].labels).all() for at in sides[0]):
        return []
    paired = difference(tuned, before)

    def statistic(cell):
        twin = sides[1][cell.domain, cell.seed]
        (first, a), (second, b) = paired(cell), paired(twin)
        return (first - second) / 2, (np.sqrt(a) + np.sqrt(b)) ** 2 / 4  # the same pictures: fully dependent is the cautious assumption

    return [made.of(key, "shift", list(sides[0].values()), statistic)]


def _paired(key, metric, cells, others, made):
    """A row of the difference of amplifications to the mean of other kinds of models, given by their cells, on the same pictures."""
    others = [{(cell.base, cell.seed, cell.domain): cell for cell in group} for group in others]
    shared = [cell for cell in cells if all((cell.base, cell.seed, cell.domain) in group for group in others)]
    if not shared:
        raise InputError(f"{metric}: the models compared share no domain, base and seed")

    def statistic(cell):
        compared = [group[cell.base, cell.seed, cell.domain].tuned for group in others]
        values, covariance = roc.auc_covariance(cell.labels, [cell.tuned, *compared])
        weights = np.array([1.0, *[-1 / len(compared)] * len(compared)])
        return weights @ values, weights @ covariance @ weights

    return made.of(key, metric, shared, statistic)


def _between_methods(cells, label, made):
    rows = []
    for attack, setting, caption in sorted({kind[:3] for kind in cells}):
        mine = {kind[3]: found for kind, found in cells.items() if kind[:3] == (attack, setting, caption) and kind[4] == SELF}
        key = {"base": label, "attack": attack, "setting": _setting(setting, caption)}
        for first, second in DIFFERENCES:
            if first in mine and second in mine:
                rows.append(_paired(key | {"method": f"{first}-minus-{second}"}, "amplification", mine[first], [mine[second]], made))
        others = [found for method, found in mine.items() if method != BEST and len(found) == len(mine.get(BEST, []))]  # not those on fewer domains
        if BEST in mine and others:
            rows.append(_paired(key | {"method": f"{BEST}-minus-others"}, "amplification", mine[BEST], others, made))
            highest = max(others, key=_mean_gain)
            rows.append(_paired(key | {"method": f"{BEST}-minus-best-other"}, "amplification", mine[BEST], [highest], made))
    return rows


def _mean_gain(cells):
    """Mean over cells of the AUC under the tuned model minus that under the base."""
    return np.mean([roc.auc(score[cell.labels], score[~cell.labels]) * sign for cell in cells for score, sign in ((cell.tuned, 1), (cell.before, -1))])


def _with_base(key, made, cells, base_scores, calls):
    """What the base adds as a reference, against the base's own best attack of as many calls, which is chosen on the other domains."""
    rows, allowed = [], 2 * calls[key["attack"]]
    rivals = {}
    for attack, block in base_scores[base_scores.attack.map(calls) <= allowed].groupby("attack"):
        rivals[attack] = {(cell.base, cell.domain): cell for cell in cells_of(block, block)}
    values = {attack: {at: roc.auc(cell.tuned[cell.labels], cell.tuned[~cell.labels]) for at, cell in found.items()} for attack, found in rivals.items()}
    domains = sorted({cell.domain for cell in cells})
    if len(domains) < 2:
        return []

    def rival(cell):
        def elsewhere(attack):
            return np.mean([value for (_, domain), value in values[attack].items() if domain != cell.domain])

        return rivals[max(sorted(rivals), key=elsewhere)][cell.base, cell.domain].tuned

    def minus_base(cell):
        return cell.tuned - cell.before

    def two_scores(cell):
        others = [other for other in cells if other.domain != cell.domain]
        stacked = [np.stack([standardised(item.before), standardised(item.tuned)], 1) for item in (*others, cell)]
        return linear_scores(np.concatenate(stacked[:-1]), np.concatenate([item.labels for item in others]).astype(float), stacked[-1])

    for name, score in (("reference", minus_base), ("two-score", two_scores)):
        mine = key | {"attack": f"{name}-{key['attack']}"}
        rows += [made.of(mine, "AUC", cells, auc_of(score)), made.of(mine, "AUC minus base best", cells, difference(score, rival))]
    return rows


def read_fidelity(path):
    """Read fidelity.csv; `InputError` if it is not one."""
    return reading.joined([path], "fidelity.csv", "fidelity", ["base", "source", "concept", "metric"], ["value", "n"], complete=["value", "n"])


def fidelity_rows(table, world, options):
    """Rows of a fidelity table: the mean over domains of each metric, interval over domains (bootstrap, whatever their number: these are no tests)."""
    rows = []
    for (base, source, metric), block in table.groupby(["base", "source", "metric"], sort=True):
        settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed, "unit": "concepts"}
        interval = intervals.bootstrap(block.value, block.concept, block.concept, block.concept, **settings)
        control = "" if source == SELF else f"; control={source}"
        key = {"system": SYSTEM, "world": world, "base": base, "method": "none", "attack": "synthesize", "defence": "", "setting": f"none{control}"}
        rows.append(key | {"metric": metric, "value": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": int(block.n.sum()), "seeds": ""})
    return pd.DataFrame(rows, columns=COLUMNS)
