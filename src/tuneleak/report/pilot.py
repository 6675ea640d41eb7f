"""The verb `pilot`: hold the standard deviations that endpoints.yaml assumes against a run on tune concepts, before any test concept is attacked.

An interval over k concepts has the half-width z sd / sqrt(k), from which the deviation between concepts follows; its own interval is that of a sample
deviation of k normal values. Writes one row per registered claim with an endpoint: `claim, metric, world, assumed_sd, pilot_sd, ci_low, ci_high`,
`concepts` (of the pilot), `planned_concepts`, `planned_mde` (of endpoints.yaml), `pilot_mde` (the effect that the planned run finds if the pilot's
deviation is true) and `verdict`: confirmed (the assumption lies in the interval), too small, too large, or not measured and why.
"""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from scipy import stats

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.report import claims as decided
from tuneleak.report import registry, rows

COLUMNS = [
    "claim", "metric", "world", "assumed_sd", "pilot_sd", "ci_low", "ci_high", "concepts", "planned_concepts", "planned_mde", "pilot_mde", "verdict",
]  # fmt: skip


def pilot(metrics, claims, preset, concepts, out):
    """Write the comparison (CSV; columns `COLUMNS`). metrics: table of the pilot run; claims: claims.yaml with endpoints.yaml beside it; preset: the pilot's.

    concepts: number of concepts the pilot's intervals are over, at least 8 (below, intervals are over pictures and say nothing about concepts).
    """
    if concepts < 8:
        raise InputError(f"a pilot on {concepts} concepts has intervals over pictures; 8 concepts or more are needed")
    registered, table = registry.load(claims, preset), rows.read_metrics(metrics)
    planned = registry.planned_concepts(Path(claims))
    result = [_row(claim, table, registered, concepts, planned) for claim in registered.claims if claim.endpoint and claim.endpoint.unit == "concept"]
    files.write_csv(out, pd.DataFrame(result, columns=COLUMNS))
    files.write_meta(out, None, metrics=str(metrics), claims=str(claims), concepts=concepts)


def deviation(low, high, concepts, confidence):
    """`(sd, its lower end, its upper end)` between concepts from the interval `[low, high]` of their mean."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    value, free = (high - low) / (2 * z) * concepts**0.5, concepts - 1
    ends = [value * (free / stats.chi2.ppf(level, free)) ** 0.5 for level in (0.5 + confidence / 2, 0.5 - confidence / 2)]
    return value, *map(float, ends)


def _row(claim, table, registered, concepts, planned):
    world, endpoint = claim.select.get("world", ""), claim.endpoint
    row = dict.fromkeys(COLUMNS, np.nan) | {"claim": claim.id, "metric": endpoint.metric, "world": world, "assumed_sd": endpoint.assumed_sd}
    row |= {"concepts": concepts, "planned_concepts": planned.get(world, np.nan), "planned_mde": endpoint.minimum_detectable_effect.get(world, np.nan)}
    found, reason = decided.find(claim, table)
    if found is None or found.interval:
        return row | {"verdict": f"not measured: {reason or 'the interval is over pictures'}"}
    value, low, high = deviation(found.ci_low, found.ci_high, concepts, registered.confidence)
    normal = NormalDist()
    scale = normal.inv_cdf(0.5 + registered.confidence / 2) + normal.inv_cdf(registered.power)
    verdict = "too small" if endpoint.assumed_sd < low else "too large" if endpoint.assumed_sd > high else "confirmed"
    row |= {"pilot_sd": round(value, 6), "ci_low": round(low, 6), "ci_high": round(high, 6), "verdict": verdict}
    return row | {"pilot_mde": round(scale * value / row["planned_concepts"] ** 0.5, 6)}
