"""Rows of the table of `evaluate attacker`, and the interval of one value per model."""

from tuneleak.metrics import intervals

SYSTEM = "finextract-attacker"
BLOCK = ["world", "base", "method", "defence"]
SHARE, DIFFERENCE = (0, 1), (-1, 1)  # least and greatest value of a share, and of a difference of two


def row(key, metric, interval, table, qualifier=""):
    """One row; key: dict of `BLOCK`, attack and setting; interval: `intervals.Interval`; table: the rows behind it (for n and seeds)."""
    note = "" if interval.unit == "concepts" else f"; interval={interval.unit}"
    seeds = ";".join(sorted(set(table.seed.astype(str)), key=lambda seed: (len(seed), seed))) if "seed" in table else ""
    numbers = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}
    return {"system": SYSTEM, **key, "setting": key["setting"] + qualifier + note, "metric": metric, **numbers, "seeds": seeds}


def mean_of_models(values, table, options, span=None):
    """`intervals.per_model` of one value per model (rows of `table`)."""
    settings = {"replicates": options.bootstrap, "confidence": options.confidence, "seed": options.seed}
    return intervals.per_model(values, table.concept, table.seed, span, **settings)
