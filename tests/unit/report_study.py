"""A made-up FineXtract study for the tests of the report: pictures, matches and the tables computed from them. No number in it was measured."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.data import imageset
from tuneleak.report.rows import COLUMNS

ATTACKS = ("direct", "cfg", "finextract", "finextract-unconditional", "base")
DIFFERENCES = ("finextract-minus-cfg", "cfg-minus-direct", "finextract-minus-base")
CENTRE = {"direct": 0.52, "cfg": 0.55, "finextract": 0.61, "finextract-unconditional": 0.50, "base": 0.31}
SETTING = {"direct": "none", "cfg": "w=2", "finextract": "w=2,k=-0.02", "finextract-unconditional": "w=2,k=0", "base": "w=2"}


@dataclass
class Study:
    """Paths of a study, as the verbs of the report take them."""

    folder: Path
    metrics: Path
    tuning: Path
    matches: list
    images: list


def row(world, method, attack, metric, values, setting=None, defence=""):
    """One metrics row from per-concept values: mean and normal 95 % interval over concepts."""
    values = np.asarray(values, float)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    value = values.mean()
    setting = SETTING.get(attack, "none") if setting is None else setting
    cells = ("finextract", world, "H1", method, attack, defence, setting, metric, value, value - half, value + half, len(values), "0")
    return dict(zip(COLUMNS, cells, strict=True))


def make(
    folder, worlds=("identities", "artists"), methods=("dreambooth", "lora"), attacks=ATTACKS, concepts=9, n_images=3, seed=0, advantage=0.0, pictures=True
):
    """Write a study under `folder`; `advantage` is added to every similarity of FineXtract; without `pictures` only the tables are written."""
    rng = np.random.default_rng(seed)
    table, matches, images = [], [], []
    for world in worlds:
        ids = [(f"{world}-{number:02}", f"{world}-{number:02}-{index}") for number in range(concepts) for index in range(n_images)]
        if pictures:
            rows = [{"image_id": image, "concept": concept, "caption": f"a picture of {concept}", "split": "test", "fold": "train"} for concept, image in ids]
            images.append(imageset.write(folder / "data" / world, rows, [_picture(rng) for _ in rows]).folder)
        for method in methods:
            easy = {concept: rng.normal(0, 0.05) for concept, _ in ids}
            per_attack = {}
            for attack in attacks:
                centre = CENTRE[attack] + (advantage if attack == "finextract" else 0) - (0.06 if method == "lora" else 0)
                scores = [float(np.clip(centre + easy[concept] + rng.normal(0, 0.04), 0, 1)) for concept, _ in ids]
                matches += [_matches(folder, world, method, attack, ids, scores, rng)] if pictures else []
                per_attack[attack] = pd.Series(scores).groupby([concept for concept, _ in ids]).mean().to_numpy()
                table += _rows(world, method, attack, per_attack[attack])
            for name in DIFFERENCES:
                first, second = name.split("-minus-")
                if first in per_attack and second in per_attack:
                    setting = f"{SETTING[first]} minus {SETTING[second]}"
                    table.append(row(world, method, name, "AS", per_attack[first] - per_attack[second], setting=setting))
            if "finextract" in per_attack:
                setting = f"{SETTING['finextract']} minus heldout"
                table.append(row(world, method, "finextract-minus-heldout", "AS", rng.normal(0.05, 0.05, concepts), setting=setting))
        if {"dreambooth", "lora"} <= set(methods) and "finextract" in attacks:
            table.append(row(world, "lora-minus-dreambooth", "finextract", "AS", rng.normal(-0.06, 0.03, concepts), setting="w=2,k=-0.02 minus w=2,k=-0.02"))
    metrics = folder / "metrics.csv"
    files.write_csv(metrics, pd.DataFrame(table, columns=COLUMNS))
    files.write_meta(metrics)
    tuning = folder / "tuning.csv"
    files.write_csv(tuning, pd.DataFrame(_tuning(worlds, methods, attacks, rng), columns=COLUMNS))
    return Study(folder, metrics, tuning, matches, images)


def make_private(folder, budgets=("1", "10", "inf"), methods=("attention", "all", "lora")):
    """Write a made-up DP-LDM study: its metrics table, and sets of sampled and real pictures. Returns (metrics, samples, images)."""
    rng, table = np.random.default_rng(0), []

    def add(method, defence, metric, value, setting="interval=runs", world="near", attack="", n=1000, half=0.03):
        cells = ("dp-ldm", world, "H1", method, attack, defence, setting, metric, value, value - half, value + half, n, "0;1;2")
        table.append(dict(zip(COLUMNS, cells, strict=True)))

    cells = [("base", "epsilon=0"), ("real", ""), *((method, f"epsilon={budget}") for method in methods for budget in budgets)]
    for world in ("near", "far", "near-text"):
        for method, defence in cells:
            for metric in ("FD-copy-b", "accuracy cnn", "accuracy logistic", "precision", "recall"):
                add(method, defence, metric, rng.uniform(0.2, 0.9), world=world)
    for part in ("to_q", "to_k", "to_v"):
        for block in range(7):
            add("attention", "epsilon=10", f"weight change {part}", rng.uniform(0, 0.1), setting=f"concept=block {block}", half=0)
    for metric, value in (("audited epsilon (one run)", 3.1), ("audited epsilon (many runs)", 4.2), ("correct guesses", 0.8)):
        add("attention", "epsilon=10", metric, value, setting="", attack="audit-dirac", half=0)
    for metric, value in (("trained weights", 9.8e6), ("trained share", 0.108)):
        add("attention", "", metric, value, setting="", world="imagenet32-to-cifar10", n=90803075, half=0)
    metrics = folder / "private.csv"
    files.write_csv(metrics, pd.DataFrame(table, columns=COLUMNS))
    labels = [f"class{number}" for number in range(4)]
    rows = [{"image_id": f"r{number}", "concept": "style", "caption": "", "fold": "test", "label": label} for number, label in enumerate(labels)]
    images = imageset.write(folder / "private-data", rows, [_picture(rng) for _ in rows]).folder
    rows = [
        {"image_id": f"{method}{defence}{number}", "concept": method, "caption": "", "label": label, "method": method, "defence": defence, "seed": "0"}
        for method, defence in cells if method != "real" for number, label in enumerate(labels)
    ]  # fmt: skip
    return metrics, [imageset.write(folder / "private-samples", rows, [_picture(rng) for _ in rows]).folder], [images]


def meta(path, processor="a processor", versions=None):
    """Write the sidecar of `path` with a given machine, as if the table had been made there."""
    path = Path(path)
    value = {"machine": {"processor": processor}, "versions": versions or {"numpy": "0"}, "git": {"commit": "0" * 40, "changed": False}, "finished": "then"}
    path.with_name(path.name + ".meta.json").write_text(json.dumps(value))


def _picture(rng, size=32):
    y, x = np.mgrid[:size, :size] / size
    colour, turn = rng.uniform(40, 250, 3), rng.uniform(0, 3)
    shape = np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.3, 0.7)) < rng.uniform(0.15, 0.35)
    ground = 128 + 90 * np.sin(9 * (x * np.cos(turn) + y * np.sin(turn)))
    return np.where(shape[..., None], colour, ground[..., None]).astype(np.uint8)


def _matches(folder, world, method, attack, ids, scores, rng):
    out = folder / "extraction" / world / method / "test0" / attack
    pictures = [{"image_id": f"x-{image}", "concept": concept, "caption": ""} for concept, image in ids]
    written = imageset.write(out / "extracted", pictures, [_picture(rng) for _ in ids])
    rows = [
        {"model_id": f"{concept}-{method}", "world": world, "base": "H1", "concept": concept, "method": method, "defence": "", "seed": 0, "attack": attack}
        | {"setting": SETTING[attack], "image_id": image, "extracted": score, "match_file": name}
        | {"random": score - 0.05, "heldout": score - 0.1, "oracle": score + 0.02, "n_extracted": 3, "threshold": 0.5}
        | ({"true_mouth": image[-1], "read_extracted_mouth": image[-1], "read_heldout_mouth": "smile"} if world == "identities" else {})
        for (concept, image), score, name in zip(ids, scores, written.table.file, strict=True)
    ]
    files.write_csv(out / "matches.csv", pd.DataFrame(rows))
    return out / "matches.csv"


def _rows(world, method, attack, values):
    setting = SETTING[attack]
    made = [row(world, method, attack, "AS", values)]
    made += [row(world, method, attack, f"A-ESR@{name}", np.clip(values - shift, 0, 1)) for name, shift in (("0.6", 0.1), ("0.7", 0.3), ("tau", 0.2))]
    made.append(row(world, method, attack, "extracted set size", np.full(len(values), 3.0)))
    made.append(row(world, method, attack, "similarity threshold", np.full(len(values), 0.5)))
    made += [row(world, method, attack, "AS per concept", [value], setting=f"{setting}; concept={number}") for number, value in enumerate(values)]
    for control, shift in (("control=heldout", -0.1), ("control=random", -0.05), ("bound=oracle", 0.02)):
        made.append(row(world, method, attack, "AS", values + shift, setting=f"{setting}; {control}"))
    if world == "identities":
        made.append(row(world, method, attack, "leaked bits", values * 2 - 0.5))
    return made


def _tuning(worlds, methods, attacks, rng):
    made = []
    for world in worlds:
        for method in methods:
            for w in (1, 1.5, 2, 3, 5):
                height = 0.55 - 0.02 * (w - 2) ** 2
                if "cfg" in attacks:
                    made.append(row(world, method, "cfg", "AS", height - 0.03 + rng.normal(0, 0.02, 4), setting=f"w={w}"))
                for k in (0, -0.02):
                    made.append(row(world, method, "finextract", "AS", height + 3 * k**2 + rng.normal(0, 0.02, 4), setting=f"w={w},k={k}; interval=images"))
    return made
