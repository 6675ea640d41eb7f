"""DP-LDM's pairs: a public model trained by the workflow's own rules, and private pictures with a published split, to what the private models are good for."""

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
PAIRS = ("--configfile", "workflow/presets/paper.yaml", "workflow/overlays/dp-pairs.yaml")
FIRST = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "steps": 3,
    "batch": 4,
    "discriminator_start": 1,
    "discriminator_layers": 1,
}
DIFFUSION = {"block_out_channels": [16, 32], "layers_per_block": 1, "attention_levels": [1], "heads": 2, "norm_num_groups": 4, "steps": 3, "batch": 4}


def shapes(folder, parts, count):
    """Pictures `<folder>/<part>/<class>/<n>.png` of light and dark squares."""
    for part in parts:
        for label, light in (("dark", 40), ("light", 200)):
            for number in range(count):
                path = folder / part / label / f"{part or 'all'}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng((number, light)).integers(-30, 30, (20, 20, 3))
                Image.fromarray((light + noise).astype(np.uint8)).save(path)


def overlay(clone):
    """The smoke preset's configuration with one tiny pair instead of its own worlds."""
    config = yaml.safe_load((clone.folder / "config.yaml").read_text())
    images = [
        {"name": "public", "kind": "folder", "path": "data/public", "options": {"size": 16}},
        {"name": "private", "kind": "folder", "path": "data/private", "options": {"size": 16, "published_split": True}},
    ]
    base = {
        "name": "shapes",
        "kind": "trained",
        "images": "public",
        "first_stage": FIRST | {"kind": "vq", "codes": 16},
        "diffusion": DIFFUSION | {"context_width": 4},
    }
    training = {
        "conditioning": "class",
        "context_tokens": 1,
        "privacy": {"delta": 1e-2, "expected_batch": 4, "public_size": 16, "steps": 2},
        "seeds": [0],
        "gradients": "ghost",
    }
    study = {
        "worlds": [{"name": "shapes", "base": "shapes", "images": "private", "prompts": {"dark": "light", "light": "dark"}}],
        "recipes": [{"name": "attention", "options": training}],
        "mean_features": [],
        "aggregates": [],
        "epsilons": [1],
        "sample": {"samples": 8, "steps": 2, "guidance_scale": 1},
        "utility": {"classifiers": ["logistic"], "classifier_size": 16, "classifier_epochs": 1, "replicates": 5},
        "audits": [],
    }
    values = {"images": config["images"] + images, "bases": [*config["bases"], base], "dp_ldm": study}
    return clone.overlay(yaml.safe_dump(values))


def test_a_public_model_is_trained_and_tuned_privately(clone):
    shapes(clone.folder / "data/public", [""], 6)
    shapes(clone.folder / "data/private", ["train", "test"], 8)
    targets = [f"results/smoke/dp/shapes/{name}/utility.csv" for name in ("base", "attention")]
    settings = ("--configfile", "workflow/presets/smoke.yaml", overlay(clone))
    clone.snakemake("--show-failed-logs", *settings, "--", *targets)
    table = pd.concat([pd.read_csv(clone.folder / target) for target in targets])
    assert {"base", "attention"} == set(table.method) and table[table.metric == "accuracy logistic"].n.eq(16).all()
    manifest = pd.read_csv(clone.folder / "results/smoke/data/private/manifest.csv")
    assert manifest.fold.value_counts().to_dict() == {"train": 16, "heldout": 16}
    assert (clone.folder / "results/smoke/bases/shapes/vqvae/config.json").is_file()
    assert "Nothing to be done" in clone.snakemake("--dry-run", *settings, "--", *targets).stdout


def test_the_pairs_of_the_paper_ask_for_one_public_model_each(clone):
    done = clone.snakemake("--dry-run", "--printshellcmds", *PAIRS, "--", "dp")
    assert done.stdout.count("tuneleak train-first-stage ") == done.stdout.count("tuneleak train-latent-diffusion ") == 5
    assert done.stdout.count("--perceptual data/vgg19/model.safetensors") == 5
    assert not any(f"rule {name}:" in done.stdout for name in ("fetch_base", "finetune", "extract", "shake_finetune", "collect_weights"))
    assert done.stdout.count("tuneleak finetune-private ") == 14 * 3  # three budgets
    assert "--embedder data/networks/weights-inception-2015-12-05-6726825d.pth" in done.stdout
    assert done.seconds < 20


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bases": [{"name": "H1", "kind": "trained"}]}, "'H1' is of kind 'trained' and needs `images`"),
        ({"bases": [{"name": "H1", "kind": "trained", "images": "nowhere"}]}, "'H1' is trained on the image set 'nowhere', which `images` does not list"),
        ({"bases": [{"name": "H1", "kind": "trained", "images": "dp-near"}]}, "is trained on its private pictures 'dp-near'; give it public ones"),
        (
            {
                "images": [{"name": name, "kind": "folder", "path": "data/x"} for name in ("dp-near", "again")],
                "bases": [{"name": "H1", "kind": "trained", "images": "again"}],
            },
            "is trained on its private pictures 'dp-near'; give it public ones",
        ),
    ],
)
def test_a_public_model_needs_public_pictures(clone, change, says):
    done = clone.snakemake("--dry-run", "--configfile", clone.overlay(yaml.safe_dump(change)), fails=True)
    assert says in done.stdout and "Traceback" not in done.stdout
