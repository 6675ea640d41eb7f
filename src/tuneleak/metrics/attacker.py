"""What an attacker of FineXtract needs to know, and knows afterwards: the verb `evaluate attacker`.

The table has the columns of `tuneleak.metrics.finextract.COLUMNS`, system `finextract-attacker`; its parts are described where they are made: captions read
from weights and extraction under what is known of the caption (`attacker_captions`), the attacker's own certainty (`attacker_certainty`), people
(`attacker_people`). Intervals are over concepts from 8 on; below, over models (`; interval=models`) or pictures (`; interval=images`), and speak of these
concepts only.
"""

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics import intervals
from tuneleak.metrics.finextract import COLUMNS, DECIMALS
from tuneleak.options import EvaluateOptions

SYSTEM = "finextract-attacker"
BLOCK = ["world", "base", "method", "defence"]


def evaluate(out, options: EvaluateOptions, captions=(), matches=(), clusters=(), people=()):
    """Write the metrics table. captions: captions.csv of `recover-caption`; matches: matches.csv of `attack extraction` under several caption conditions;
    clusters: clusters.csv of `certainty`; people: people.csv of `attack people`. Each may be left out, not all; `InputError` for unreadable ones."""
    from tuneleak.metrics import attacker_captions, attacker_certainty, attacker_people

    parts = ((captions, attacker_captions.recovery), (matches, attacker_captions.conditions), (clusters, attacker_certainty.certainty))
    rows = [row for paths, function in (*parts, (people, attacker_people.people)) if paths for row in function(paths, options)]
    if not rows:
        raise InputError("there is nothing to evaluate: give captions, matches, clusters or people")
    result = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["value", "ci_low", "ci_high"]
    result[numbers] = result[numbers].astype(float).round(DECIMALS)
    files.write_csv(out, result)
    files.write_meta(out, options, captions=[*map(str, captions)], matches=[*map(str, matches)], clusters=[*map(str, clusters)], people=[*map(str, people)])


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
