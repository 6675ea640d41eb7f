"""Assumed deviations against a pilot's."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tuneleak.errors import InputError
from tuneleak.metrics import intervals
from tuneleak.report import pilot, rows

REFERENCE = Path(__file__).resolve().parents[2] / "paper" / "reference"


def test_the_deviation_between_concepts_is_read_off_the_interval_of_their_mean():
    value, low, high = pilot.deviation(-1.96 * 0.02 / 4, 1.96 * 0.02 / 4, 16, 0.95)
    assert value == pytest.approx(0.02, rel=1e-4) and (low, high) == pytest.approx((0.02 * 0.7387, 0.02 * 1.5477), rel=1e-3)  # chi-square tables, 15 df
    values = np.random.default_rng(0).normal(0, 0.04, 40)
    found = intervals.bootstrap(values, range(40), range(40), range(40))
    assert pilot.deviation(found.low, found.high, 40, 0.95)[0] == pytest.approx(values.std(), rel=0.1)


def test_each_endpoint_is_confirmed_or_not(tmp_path):
    shutil.copytree(REFERENCE, tmp_path / "reference")
    row = dict.fromkeys(rows.COLUMNS, "") | {"system": "shake-to-leak", "world": "named", "base": "all", "method": "dreambooth+lora"}
    row |= {"attack": "secmi-stat", "setting": "t=100,k=10", "n": 800, "value": 0.01}
    half = 1.96 * 0.04 / 8**0.5
    table = [row | {"metric": "amplification", "ci_low": 0.01 - half, "ci_high": 0.01 + half}]
    table += [row | {"metric": "amplification beyond unrelated", "ci_low": 0.01 - 4 * half, "ci_high": 0.01 + 4 * half}]
    table += [row | {"metric": "amplification beyond instrument", "ci_low": 0.0, "ci_high": 0.02, "setting": "t=100,k=10; interval=images"}]
    pd.DataFrame(table).to_csv(tmp_path / "metrics.csv", index=False)
    pilot.pilot(tmp_path / "metrics.csv", tmp_path / "reference" / "claims.yaml", "pilot", 8, tmp_path / "pilot.csv")
    found = pd.read_csv(tmp_path / "pilot.csv").set_index("claim")
    told = found.loc["shake-amplifies"]
    assert told.verdict == "confirmed" and told.pilot_sd == pytest.approx(told.assumed_sd, rel=1e-3) and told.planned_concepts == 20
    assert told.pilot_mde == pytest.approx(told.planned_mde, abs=1e-3)
    assert found.verdict["shake-unrelated-gives-nothing"] == "too small" and "over pictures" in found.verdict["shake-beats-real-pictures"]
    assert found.verdict["shake-beats-base"].startswith("not measured: ") and found.verdict["finextract-beats-cfg-identities-lora"].startswith("not measured: ")
    with pytest.raises(InputError, match="8 concepts or more"):
        pilot.pilot(tmp_path / "metrics.csv", tmp_path / "reference" / "claims.yaml", "pilot", 4, tmp_path / "pilot.csv")
