"""Membership scores by cell: one domain (or concept) under one model, and how numbers per cell become rows of a metrics table.

What the Shake-to-Leak study and the matrix of defences share. Intervals: over domains (bootstrap) from 8 domains on; below, over pictures (DeLong within each
domain; repeated bases and seeds of a domain count as one).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from tuneleak.metrics import intervals, roc


@dataclass(frozen=True)
class Cell:
    """One domain under one model: labels `(n,)` bool, and scores `(n,)` of the tuned model and of its base, row by row the same pictures; with their doses and
    their names, where either is known."""

    base: str
    seed: str
    domain: str
    labels: np.ndarray
    tuned: np.ndarray
    before: np.ndarray
    dose: np.ndarray | None = None
    images: np.ndarray | None = None


class Rows:
    """Makes rows: the system, the world, the options of the intervals, and how a number per cell becomes a row."""

    def __init__(self, system, world, options):
        self.system, self.world, self.options = system, world, options

    def of(self, key, metric, cells, statistic, control=""):
        """A row of the mean of `statistic(cell)` -> (value, variance over pictures) over cells, domains weighing alike."""
        found = [(cell, *statistic(cell)) for cell in cells]
        values = pd.DataFrame([(cell.domain, f"{cell.base}/{cell.seed}", value, variance) for cell, value, variance in found])
        values.columns = ["domain", "model", "value", "variance"]
        if values.domain.nunique() >= intervals.MINIMUM_CLUSTERS:
            settings = {"replicates": self.options.bootstrap, "confidence": self.options.confidence, "seed": self.options.seed}
            interval = intervals.bootstrap(values.value, values.domain, values.model, values.model, **settings)
            value, low, high, note = interval.value, interval.low, interval.high, ""
        else:
            domains = values.groupby("domain").agg(value=("value", "mean"), error=("variance", lambda column: np.sqrt(column).mean()))
            value, error = domains.value.mean(), np.sqrt(np.square(domains.error).sum()) / len(domains)
            half = stats.norm.ppf(0.5 + self.options.confidence / 2) * error
            least = 0.0 if metric.startswith("AUC") and "minus" not in metric + key.get("defence", "") else -1.0  # of a difference: -1
            low, high, note = max(value - half, least), min(value + half, 1.0), "; interval=images"
        seeds = sorted({cell.seed for cell in cells if cell.seed})
        return self.row(key, metric, (value, low, high), sum(len(cell.labels) for cell in cells), control, note, seeds)

    def row(self, key, metric, numbers, n, control="", note="", seeds=()):
        setting = key["setting"] + (f"; control={control}" if control else "") + note
        value, low, high = numbers
        counted = {"value": value, "ci_low": low, "ci_high": high, "n": n, "seeds": ";".join(seeds)}
        return {"system": self.system, "world": self.world, "defence": "", **key, "setting": setting, "metric": metric, **counted}


def auc_of(score):
    """(AUC, variance) of a cell's scores `score(cell)` within its domain."""

    def statistic(cell):
        value, covariance = roc.auc_covariance(cell.labels, [score(cell)])
        return value[0], covariance[0, 0]

    return statistic


def difference(first, second):
    """(AUC difference, variance) of two scores of the same pictures, paired (DeLong et al. 1988)."""

    def statistic(cell):
        value, covariance = roc.auc_covariance(cell.labels, [first(cell), second(cell)])
        return value[0] - value[1], covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]

    return statistic


def tuned(cell):
    return cell.tuned


def before(cell):
    return cell.before


def standardised(values):
    """Scores with mean 0 and deviation 1 within their domain (label-free), so that domains can share a threshold."""
    return (values - values.mean()) / (values.std() or 1.0)


def low_rates(key, made, cells, rates):
    """Rows of the TPR at low false-positive rates of standardised scores, all domains together. rates: (rate, non-members it needs).

    Non-members are counted as pictures: one that several models (seeds, bases, targets) are asked about is one, because its scores are not independent.
    """
    labels = np.concatenate([cell.labels for cell in cells])
    domains, values = sorted({cell.domain for cell in cells}), [standardised(cell.tuned) for cell in cells]
    of_domain = {name: [index for index, cell in enumerate(cells) if cell.domain == name] for name in domains}
    outside, rows = {name for cell in cells for name in cell.images[~cell.labels]}, []
    for rate, needed in rates:
        if len(outside) < needed or len(domains) < intervals.MINIMUM_CLUSTERS:
            continue

        def rate_of(chosen, rate=rate):
            picked = [index for name in chosen for index in of_domain[name]]
            joined, known = np.concatenate([values[i] for i in picked]), np.concatenate([cells[i].labels for i in picked])
            return roc.tpr_at_fpr(joined[known], joined[~known], rate, minimum_nonmembers=1)

        rng = np.random.default_rng(made.options.seed)
        drawn = [rate_of(rng.choice(domains, len(domains))) for _ in range(made.options.bootstrap)]
        low, high = np.quantile(drawn, intervals.tails(made.options.confidence, len(domains)))
        seeds = sorted({cell.seed for cell in cells if cell.seed})
        rows.append(made.row(key, f"TPR@{100 * rate:g}%FPR", (rate_of(domains), low, high), len(labels), seeds=seeds))
    return rows
