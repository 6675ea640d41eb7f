"""The figures of the weights study, from made-up scores and pictures. No number here was measured."""

import numpy as np
import pandas as pd
import pytest

from tuneleak.data import imageset
from tuneleak.errors import InputError
from tuneleak.metrics import lora_weights
from tuneleak.options import EvaluateOptions
from tuneleak.report import figures_lora_weights

PEOPLE = [f"p{i}" for i in range(9)]


def write_scores(folder, defence=""):
    random = np.random.default_rng(0)
    parts = []
    for attack, settings in {
        "spectral": ["pictures", "embedding", "pictures; control=mean-z"], "autoencoder": ["pictures"], "constant": ["pictures"], "linear-50": ["embedding"],
        "linear-100": ["embedding"], "true-prompt": ["pictures; bound=true-prompt"],
    }.items():  # fmt: skip
        for setting in settings:
            table = pd.DataFrame({"concept": PEOPLE, "rank": random.integers(1, 50, 9), "cosine": random.uniform(0, 0.6, 9)})
            fixed = {"genuine": 0.5, "stranger": 0.1, "threshold": 0.4, "seed": 0, "defence": defence, "attack": attack, "setting": setting}
            parts.append(table.assign(model_id="m", world="lora-identities", base="H1", method="lora", **fixed))
    folder.mkdir(parents=True)
    pd.concat(parts).to_csv(folder / "scores.csv", index=False)
    return folder / "scores.csv"


@pytest.fixture
def study(tmp_path):
    grey = np.full((16, 16, 3), 90, np.uint8)
    real = [{"image_id": f"{name}-{i}", "concept": name, "caption": ""} for name in PEOPLE for i in range(2)]
    imageset.write(tmp_path / "images", real, [grey] * len(real))
    paths = [write_scores(tmp_path / "none"), write_scores(tmp_path / "gauge", "gauge-10")]
    drawn = [
        {"image_id": f"{name}.{attack}", "concept": name, "caption": "", "attack": attack, "setting": setting}
        for name in PEOPLE
        for attack, setting in (("spectral", "pictures"), ("autoencoder", "pictures"), ("true-prompt", "pictures; bound=true-prompt"))
    ]
    imageset.write(tmp_path / "none" / "reconstructions", drawn, [grey] * len(drawn))
    lora_weights.evaluate(paths, tmp_path / "metrics.csv", EvaluateOptions(bootstrap=50))
    return tmp_path


def test_all_figures_are_drawn_and_equal_inputs_give_equal_bytes(study):
    for out in ("one", "two"):
        figures_lora_weights.figures(study / "metrics.csv", study / "none" / "scores.csv", study / "images", study / out)
    for name in ("reconstructions", "attacks", "defences", "scaling"):
        for suffix in ("pdf", "png"):
            first, second = (study / out / f"weights-{name}.{suffix}" for out in ("one", "two"))
            assert first.stat().st_size > 1000 and first.read_bytes() == second.read_bytes(), name


def test_a_run_without_smaller_attackers_says_so_and_another_system_is_refused(study):
    table = pd.read_csv(study / "metrics.csv")
    table[~table.attack.str.startswith("linear-")].to_csv(study / "metrics.csv", index=False)
    figures_lora_weights.figures(study / "metrics.csv", study / "none" / "scores.csv", study / "images", study / "out")
    assert (study / "out" / "weights-scaling.pdf").is_file()
    table.assign(system="other").to_csv(study / "metrics.csv", index=False)
    with pytest.raises(InputError, match="no row of the system"):
        figures_lora_weights.figures(study / "metrics.csv", study / "none" / "scores.csv", study / "images", study / "out")
