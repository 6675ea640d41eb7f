"""The verb `claims`: what a run says about each registered claim, and with what power.

Statuses: `reproduced` and `not-reproduced` at the paper's scale (preset `paper`) only; `consistent-direction`, `opposite-direction` and
`inconclusive` at any smaller scale; `not-comparable` where published and measured values have different instruments; `not-run` where the
run has not measured it. Differences are tested against 0, two-sided, with Holm's correction within the family of a claim.
"""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
from scipy import stats

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.options import CaptionCondition, ExtractionOptions, FinetuneOptions, MembershipAttack, Trainable, WeightsTrainOptions
from tuneleak.report import registry, rows

COLUMNS = [
    "id", "family", "system", "paper", "claim", "world", "method", "published", "published_status", "metric", "value", "ci_low", "ci_high",
    "n", "unit", "seeds", "p_holm", "mde", "planned_mde", "power", "status", "reason",
]  # fmt: skip
PAPER_PRESET = "paper"
MDE = " minimum detectable effect"
MINIMUM_UNITS = 8  # below, a bootstrap's interval covers far less than it says
_METRICS = (
    "AS", "A-ESR@", "leaked bits", "extracted set size", "similarity threshold", "MRR", "rank-", "TAR@", "cosine", "FaceSim", "agreement", "MAE",
    "FD-", "FID", "CLIP-", "DINO", "accuracy ", "audited epsilon", "trained share", "AUC", "TPR@", "amplification", "shift", "best w", "similarity", "KID",
    "caption accuracy",
    "held-out loss",
    "regeneration amplification", "members ", "generations matched", "CLIP R@1",
    "exact match", "word accuracy", "words found", "average precision",
)  # fmt: skip
_CHOSEN = ("best-control", "best-other", "chance", "best-at-kept-utility")  # picked by the evaluation among rows that are there, or computed
_METHODS = set(get_args(FinetuneOptions.model_fields["method"].annotation))
_MEMBERSHIP = get_args(MembershipAttack)
_REGENERATION = {f"regeneration-{measure}" for measure in ("l2", "tile", "adaptive", "aligned", "clique")}
_VOCABULARY = {  # of each system, so that a slip in a selector is not taken for a part of the study that was left out
    "finextract": {"attack": {*get_args(ExtractionOptions.model_fields["attack"].annotation), "heldout"}, "method": _METHODS},
    "finextract-ablations": {"attack": {*get_args(ExtractionOptions.model_fields["attack"].annotation)}, "method": _METHODS},
    "finextract-attacker": {
        "attack": {*get_args(CaptionCondition), "caption-from-weights", "other-weights", "certainty", "chance", "share", "people", "pictures", "base"},
        "method": _METHODS,
    },
    "lora-weights": {
        "attack": {
            *get_args(WeightsTrainOptions.model_fields["attack"].annotation),
            "autoencoder-final",
            "autoencoder-leak",
            "autoencoder-online",
            "spectral-refined",
            "autoencoder-refined",
            "dsire",
            "dsire-update",
            "median",
            *_CHOSEN,
        },
        "method": _METHODS,
    },
    "dp-ldm": {
        "attack": {"audit-dirac", "audit-pictures"},
        "method": {*get_args(Trainable), "attention-3-7", "attention-8-16", "dp-mepf", "dpagg-ti", "base", "real"},
    },
    "defences": {
        "attack": {
            *(f"{kind}{attack}" for kind in ("", "reference-", "shaken-", "shaken-reference-") for attack in _MEMBERSHIP),
            *("lira", "rmia", "people", "finextract", *(f"finextract-{name}" for name in ("no-caption", *get_args(CaptionCondition)))),
            *(f"weights-{name}" for name in get_args(WeightsTrainOptions.model_fields["attack"].annotation)),
        },
        "method": _METHODS,
    },
    "shake-to-leak": {
        "attack": {"model-blind", "clip-rp", *_REGENERATION, *(f"{kind}{attack}" for kind in ("", "reference-", "two-score-") for attack in _MEMBERSHIP)},
        "method": _METHODS | {"base", "none", "others", "best-other", "gaussian"},
    },
}


def claims(metrics, claims, preset, out):
    """Write the table of claims (CSV; columns `COLUMNS`).

    metrics: metrics table of the run; claims: claims.yaml, with endpoints.yaml and published/ beside it; preset: name of the run's preset.
    `mde`: smallest true effect this run finds with the planned power; `planned_mde`: the one fixed in endpoints.yaml; `power`: of finding
    the planned one, given the spread this run saw; `unit`: what the interval is over. Raises `InputError` naming the claim whose selector
    matches no row, or several, though its part of the study ran.
    """
    registered, table = registry.load(claims, preset), rows.read_metrics(metrics)
    result = [_row(claim, table, registered) for claim in registered.claims]
    _decide(result, registered, preset == PAPER_PRESET)
    files.write_csv(out, pd.DataFrame(result, columns=COLUMNS))
    files.write_meta(out, None, preset=preset, metrics=str(metrics), claims=str(claims))


def find(claim, table):
    """The single row a registered claim selects, and "" -- or None and the reason why this run does not have it.

    A selector leaves columns out that the claim is not about; control, bound, concept and defence are then empty.
    """
    select = {"control": "", "bound": "", "concept": "", "defence": "", **claim.select, "system": claim.family.system}
    mine = table[table.system == select["system"]]
    if mine.empty:
        return None, f"the system {select['system']!r} was not run"
    for column, known in _VOCABULARY.get(select["system"], {}).items():
        for part in select.get(column, "").split("-minus-"):
            if part and part not in known:
                raise InputError(f"claim {claim.id!r}: there is no {column} {part!r}; known are {', '.join(sorted(known))}")
    if not select.get("metric", "").startswith(_METRICS):
        raise InputError(f"claim {claim.id!r}: there is no metric {select.get('metric')!r}")
    reason = _absent(select, mine)
    if reason:
        return None, reason
    mine = mine[np.logical_and.reduce([mine[column] == value for column, value in select.items()])]
    if len(mine) != 1:
        wanted = ", ".join(f"{name}={value!r}" for name, value in select.items())
        listed = "".join(f"\n  {rows.describe(row)}" for _, row in mine.head(5).iterrows())
        raise InputError(f"claim {claim.id!r} must select one row of the metrics; {len(mine)} have {wanted}{listed}")
    return mine.iloc[0], ""


def _absent(select, mine):
    """Which part of the study a selector needs and this run left out; "" if it has them all."""
    plain = rows.plain(mine)
    for column in ("world", "method", "attack"):
        for part in filter(None, select.get(column, "").split("-minus-")):
            if part == "heldout":
                if "heldout" not in set(mine.control[mine.world == select.get("world", "")]):
                    return "there were no held-out pictures"
            elif part in ("others", "best-other"):  # of the other methods
                if len(set(plain.method) - {"base", "none"}) < 2:
                    return "no other method was run"
            elif part not in _CHOSEN and part not in {*plain[column], *mine.control}:
                return f"{column} {part!r} was not run"
        if column == "world" and "world" in select:
            plain = plain[plain.world == select["world"]]
    for part in filter(None, select["defence"].split("-minus-")):
        if part not in ("none", *_CHOSEN, *plain.defence):
            return f"defence {part!r} was not run"
    if select.get("guidance", "") and select["guidance"] not in set(mine.guidance):
        return f"setting {select['guidance']!r} was not run"
    of_attack = set(mine.guidance[mine.attack == select.get("attack")])
    if select.get("guidance") == "tau" and of_attack and "tau" not in of_attack:
        return f"no distance of {select['attack']!r} could be calibrated: fewer pairs have one than may match"
    return "" if select["metric"] in set(mine.metric) else f"{select['metric']!r} was not measured"


def _row(claim, table, registered):
    family = claim.family
    found, reason = find(claim, table)
    row = dict.fromkeys(COLUMNS, "") | {"id": claim.id, "family": family.id, "system": family.system, "paper": family.paper, "claim": family.claim}
    row |= {"world": claim.select.get("world", ""), "method": claim.select.get("method", ""), "metric": claim.select["metric"]}
    row |= {"published": claim.published, "published_status": family.published.target if family.published else "", "reason": reason}
    row |= dict.fromkeys(("value", "ci_low", "ci_high", "n", "p_holm", "mde", "planned_mde", "power"), np.nan)
    if claim.endpoint:
        row["planned_mde"] = claim.endpoint.minimum_detectable_effect.get(claim.select.get("world", ""), np.nan)
    if found is None:
        return row | {"status": "not-run"}
    row |= {name: found[name] for name in ("value", "ci_low", "ci_high", "n", "seeds")} | {"unit": found.interval or "concepts"}
    row |= {
        "kind": family.check.kind,
        "above": any(claim.select.get(column, "").endswith(("-minus-best-control", "-minus-best-other")) for column in ("attack", "method")),
    }
    if family.needs and not _holds(replace(claim, select=claim.select | family.needs), table):
        told = ", ".join(f"{name} {value}" for name, value in family.needs.items())
        return row | {"kind": "reported", "status": "inconclusive", "reason": f"no question: {told} is not above zero itself"}
    if claim.endpoint and claim.endpoint.unit == "run" and found.interval == "images":
        return row | {"kind": "reported", "status": "inconclusive", "reason": "one training run: an interval over its pictures says nothing of another run"}
    if family.check.kind == "reported":
        return row | {"status": "not-comparable", "reason": family.check.reason}
    if found.interval != "runs" and found.n < MINIMUM_UNITS:
        return row | {"kind": "reported", "status": "inconclusive", "reason": f"{int(found.n)} {row['unit']} are too few to test with"}
    power = _power(found, table, row["planned_mde"], registered, units_of(found, claim, registered))
    return row | (power or {"reason": "the interval has no width: nothing to test against" if found.ci_low == found.ci_high else "there is no interval"})


def _holds(claim, table):
    found, _ = find(claim, table)
    return found is not None and found.ci_low > 0


def units_of(found, claim, registered):
    """How many independent units are behind a row, where that is known: training runs, or concepts (as planned for the recorded preset); else None."""
    if found.interval == "runs":
        return found.n
    world = claim.select.get("world", "all")
    planned = (claim.endpoint.concepts if claim.endpoint else None) or registered.concepts.get(world)
    return planned if not found.interval else None


def _power(found, table, planned, registered, units=None):
    """Two-sided p (from the interval's side towards 0, so that before Holm's correction a p below 1 - confidence and an interval that excludes 0 are one), the
    smallest detectable effect and the power of finding the planned one (both from the interval's width); {} without a spread. Student's t where the number of
    `units` is known, which intervals over training runs and over concepts are made for; its power is that of the central t. Else normal."""
    known = stats.t(units - 1) if units and units > 1 else stats.norm
    z = known.ppf(0.5 + registered.confidence / 2)
    error = (found.ci_high - found.ci_low) / (2 * z)
    if not math.isfinite(error) or error <= 0:
        return {}
    towards = (found.value - found.ci_low if found.value > 0 else found.ci_high - found.value) / z
    p = 2 * known.sf(abs(found.value) / (towards if towards > 0 else error))  # a value outside its interval has no such side
    same = [column for column in rows.KEY if column != "metric"]
    computed = table[(table[same] == found[same]).all(axis=1) & (table.metric == found.metric + MDE)]
    mde = computed.value.iloc[0] if len(computed) else (z + known.ppf(registered.power)) * error
    power = known.cdf(planned / error - z) if math.isfinite(planned) else np.nan
    return {"p_holm": p, "mde": mde, "power": power}


def holm(p_values):
    """Holm's step-down adjustment of p-values (list of floats) -> adjusted p-values in the same order."""
    order = np.argsort(p_values)
    adjusted, running = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def _decide(result, registered, at_paper_scale):
    """Adjust p within each family and set the statuses, in place."""
    families = {}
    for row in result:
        if row.get("kind", "reported") != "reported":
            families.setdefault(row["family"], []).append(row)
    for group in families.values():
        tested = [row for row in group if math.isfinite(row["p_holm"])]
        for row, p_value in zip(tested, holm([row["p_holm"] for row in tested]), strict=True):
            row["p_holm"] = p_value
        for row in group:
            row["status"] = _status(row, 1 - registered.confidence, at_paper_scale)
    for row in result:
        row.pop("kind", None)
        row.pop("above", None)
        row |= {name: round(row[name], 6) for name in ("value", "ci_low", "ci_high", "p_holm", "mde", "planned_mde", "power")}


def _status(row, level, at_paper_scale):
    sign = 1 if row["kind"] == "greater-than-zero" else -1
    clear = row["p_holm"] < level and (row["ci_low"] > 0 or row["ci_high"] < 0)
    holds = clear and sign * row["value"] > 0
    if at_paper_scale:
        return "reproduced" if holds else "not-reproduced"
    # the best control was picked on these very people: a difference below it is what picking alone would give
    return "consistent-direction" if holds else "opposite-direction" if clear and not row["above"] else "inconclusive"
