"""Image sets that a list names, through the workflow."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.workflow


def test_a_listed_set_is_fetched_and_imported(clone):
    folder = clone.folder / "data/listed"
    folder.mkdir(parents=True)
    rows = []
    for number in range(4):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
        digest = hashlib.sha256((folder / f"{number}.png").read_bytes()).hexdigest()
        rows.append({"path": f"{number}.png", "sha256": digest, "concept": "ab"[number % 2], "caption": f"picture {number}"})
    rows.append({"path": "gone.png", "sha256": "0" * 64, "concept": "a", "caption": ""})
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    images = yaml.safe_load((clone.folder / "config.yaml").read_text())["images"]
    source = {"name": "listed", "kind": "list", "path": "data/listed/list.csv", "options": {"size": 64, "skip_broken": True}}
    overlay = clone.overlay(yaml.safe_dump({"images": [*images, source]}))
    target = "results/embedded/data/listed/manifest.csv"
    clone.snakemake("--configfile", overlay, "--", target)
    table = pd.read_csv(clone.folder / target)
    assert list(table.concept) == ["a", "a", "b", "b"] and sorted(table.caption) == [f"picture {number}" for number in range(4)]
    assert list(pd.read_csv(clone.folder / "results/embedded/fetched/listed/missing.csv").source) == ["gone.png"]
    assert "Nothing to be done" in clone.snakemake("--configfile", overlay, "--", target).stdout
