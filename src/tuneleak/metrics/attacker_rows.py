"""Rows of the table of `evaluate attacker`, and the interval of one value per model."""

import numpy as np

from tuneleak.metrics import intervals

SYSTEM = "finextract-attacker"
BLOCK = ["world", "base", "method", "defence"]


def row(key, metric, interval, table, qualifier=""):
    """One row; key: dict of `BLOCK`, attack and setting; interval: `intervals.Interval`; table: the rows behind it (for n and seeds)."""
    note = "" if interval.unit == "concepts" else f"; interval={interval.unit}"
    seeds = ";".join(sorted(set(table.seed.astype(str)), key=lambda seed: (len(seed), seed))) if "seed" in table else ""
    numbers = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}
    return {"system": SYSTEM, **key, "setting": key["setting"] + qualifier + note, "metric": metric, **numbers, "seeds": seeds}


def mean_of_models(values, table, options, share=False):
    """Interval of the mean over concepts of one value per model (rows of `table`); share: of 0 and 1, with Wilson's bounds where all are alike."""
    values = np.asarray(values, dtype=float)
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    if table.concept.nunique() >= intervals.MINIMUM_CLUSTERS:
        found = intervals.bootstrap(values, table.concept, table.seed, table.model_id, **settings)
    else:  # too few concepts: models are resampled as if they were independent
        one = np.zeros(len(table))
        found = intervals.bootstrap(values, one, np.arange(len(table)), one, unit="models", **settings)
    if share and values.min() == values.max():
        low, high = intervals.wilson(found.units if values[0] else 0, found.units, options.confidence)
        return intervals.Interval(found.value, low, high, found.n, found.unit, found.units, found.standard_error, found.p)
    return found
