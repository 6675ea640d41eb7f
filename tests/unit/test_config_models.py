"""config.yaml and the typed models: the shipped configuration is valid, and every fault names its key."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tuneleak import config
from tuneleak.errors import InputError
from tuneleak.options import ImportOptions

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))

SIZES = SHIPPED["lora_weights"]["sizes"] | {"photographs": 20}
ARTISTS = SHIPPED["lora_weights"] | {"train_images": "public-artists", "sizes": SIZES}
OTHERS = {
    "name": "artists",
    "images": "private-artists",
    "distractors": "public-artists",
    "world": "artists",
    "options": SHIPPED["lora_weights"]["recipe"] | {"images_per_concept": 3},
}


def changed(path, value):
    """The shipped configuration with the entry at `path` (keys and list positions) replaced."""
    values = copy.deepcopy(SHIPPED)
    target = values
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return values


def fails(values, says):
    with pytest.raises(InputError) as caught:
        config.load(values)
    assert says in str(caught.value), str(caught.value)


def test_the_shipped_configuration_is_valid_and_complete():
    loaded = config.load(SHIPPED)
    assert loaded.preset == SHIPPED["preset"] == "embedded"
    assert set(SHIPPED) == set(config.Config.model_fields)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["colour"], "red", "colour: Extra inputs are not permitted"),
        (["finextract", "stepz"], 20, "finextract.stepz: Extra inputs"),
        (["population", "image_sise"], 64, "population.image_sise: Extra inputs"),
        (["finextract", "steps"], "many", "finextract.steps: Input should be a valid integer"),
        (["finextract", "steps"], 0, "finextract.steps: Input should be greater than or equal to 1"),
        (["finextract", "steps"], None, "finextract.steps: Input should be a valid integer"),
        (["finextract", "evaluate", "confidence"], 95, "finextract.evaluate.confidence: Input should be less than or equal to 1"),
        (["finextract", "attacks"], "cfg", "finextract.attacks: Input should be a valid list"),
        (["finextract", "attacks", 0], "magic", "finextract.attacks.0: Input should be 'base', 'cfg', 'direct'"),
        (["finetune", 0, "options", "lr"], -1, "finetune.0.options.lr: Input should be greater than or equal to 0"),
        (["finetune", 0, "options", "lr"], float("nan"), "finetune.0.options.lr: Input should be a finite number"),
        (["dtype"], "float16", "dtype: Input should be 'float32' or 'bfloat16'"),
        (["gpus"], -1, "gpus: Input should be greater than or equal to 0"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(path, value, says):
    fails(changed(path, value), says)


@pytest.mark.parametrize("key", sorted(SHIPPED))
def test_a_missing_section_is_named(key):
    values = {name: value for name, value in SHIPPED.items() if name != key}
    fails(values, f"{key}: Field required")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["preset"], "mine", "pathvars.results: 'results/embedded' is where preset 'embedded' writes; give preset 'mine' a folder of its own"),
        (["worlds", 0, "images"], "nowhere", "image set 'nowhere', which `images` does not list"),
        (["worlds", 0, "base"], "B9", "base 'B9', which `bases` does not list"),
        (["finetune", 0, "world"], "mars", "world 'mars', which `worlds` does not list"),
        (["training", "public_sets"], ["nowhere"], "training.public_sets: 'nowhere'"),
        (["finextract", "guidance"], [], "finextract.guidance has no entry for world"),
        (["finextract", "grid", 0, "guidance"], [{"w": 1}], "finextract.grid: attacks are tuned with unequal budgets"),
        (["images"], [*SHIPPED["images"], SHIPPED["images"][0]], f"images: the name {SHIPPED['images'][0]['name']!r} occurs twice"),
        (["images", 0], {"name": "photographs", "kind": "folder"}, "'photographs' is of kind 'folder' and needs `path`"),
        (["images", 0], {"name": "faces", "kind": "hub", "revision": "0" * 40}, "'faces' is of kind 'hub' and needs `repository`"),
        (["images", 0], {"name": "faces", "kind": "hub", "repository": "a/b", "revision": "main"}, "images.0: Value error, 'faces': `revision` must be"),
        (["bases", 0], {"name": "H1", "kind": "assembled"}, "'H1' is of kind 'assembled' and needs `path`"),
        (["lora_weights", "other_recipes"], [OTHERS | {"images": "nowhere"}], "the image set 'nowhere' of 'artists' is not in `images`"),
        (["lora_weights", "other_recipes"], [OTHERS | {"world": ""}], "'artists': other victims need `images`, `distractors` and a `world` of their own"),
        (["lora_weights", "other_recipes"], [OTHERS | {"images": ""}], "'artists': other victims need `images`, `distractors` and a `world` of their own"),
        (["lora_weights", "other_recipes"], [OTHERS | {"options": OTHERS["options"] | {"rank": 2}}], "rank must be that of lora_weights.recipe"),
        (["lora_weights", "sizes", "image_counts"], [1, 13], "image_counts: 13 pictures of a person who has 12; set sizes.photographs to 13"),
        (["lora_weights"], ARTISTS, "photographs: those of lora-train can be drawn anew, not those of 'public-artists'"),
    ],
)
def test_inconsistent_entries_are_named(path, value, says):
    fails(changed(path, value), says)


def test_more_photographs_allow_more_pictures():
    values = changed(["lora_weights", "sizes"], SIZES | {"image_counts": [1, 20]})
    assert config.load(values).lora_weights.sizes.photographs == 20
    fails(changed(["lora_weights", "sizes"], SIZES | {"image_counts": [1, 21]}), "21 pictures of a person who has 20")


def test_a_new_attack_is_one_file_and_one_line(tmp_path):
    """A copy of the package with one more attack module accepts its name in the configuration."""
    package = shutil.copytree(ROOT / "src" / "tuneleak", tmp_path / "tuneleak", ignore=shutil.ignore_patterns("__pycache__"))
    text = 'CALLS_PER_STEP = 1\n\n\ndef setting(guidance):\n    return ""\n\n\ndef guide(pair, x, t, guidance):\n    return x\n'
    (package / "attacks" / "extraction" / "my_attack.py").write_text(text)
    values = changed(["finextract", "attacks"], [*SHIPPED["finextract"]["attacks"], "my-attack"])
    fails(values, f"finextract.attacks.{len(SHIPPED['finextract']['attacks'])}: Input should be")
    values["finextract"]["guidance"] += [
        {"world": recipe["world"], "method": recipe["options"]["method"], "attack": "my-attack", "guidance": {"w": 2}} for recipe in SHIPPED["finetune"]
    ]
    code = "import json, sys; from tuneleak import config; print(config.load(json.load(sys.stdin)).finextract.attacks[-1])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(values), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "my-attack\n", done.stderr


@pytest.mark.parametrize("values", [None, [], "text", {}])
def test_what_is_no_configuration_at_all(values):
    fails(values, "the configuration is not valid")


def test_one():
    loaded = config.load(SHIPPED)
    assert config.one(loaded.images, name=SHIPPED["images"][0]["name"]).kind == SHIPPED["images"][0]["kind"]
    with pytest.raises(InputError, match="0 entries match"):
        config.one(loaded.images, name="nowhere")
    with pytest.raises(InputError, match=r"\d+ entries match"):
        config.one([*loaded.images, *loaded.images], name=SHIPPED["images"][0]["name"])


def test_as_json_is_sorted_and_round_trips():
    text = config.as_json(ImportOptions(), size=32)
    assert ImportOptions.model_validate(json.loads(text)) == ImportOptions(size=32)
    assert list(json.loads(text)) == sorted(ImportOptions.model_fields)


def test_models_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ImportOptions().size = 3


def test_reading_the_configuration_imports_nothing_heavy():
    code = "import sys, tuneleak.config; print(sorted({'torch', 'pandas', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
