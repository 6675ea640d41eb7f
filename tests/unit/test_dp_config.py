"""The dp_ldm section: its cells, what it refuses, and what it costs."""

import copy
from pathlib import Path

import pytest
import yaml

from tuneleak import config
from tuneleak.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def study(**changes):
    values = copy.deepcopy(SHIPPED)
    values["dp_ldm"] |= changes
    return config.load(values).dp_ldm


def test_a_cell_is_a_world_a_method_and_a_budget_filled_in():
    made = study(epsilons=[10, 1], noiseless=True, mean_features=[], aggregates=[])
    assert [epsilon for _, _, epsilon in made.cells()] == ["1", "10", "inf"]
    world, recipe, _ = made.cells()[0]
    options = made.training(world, recipe, "1")
    assert (options.privacy.epsilon, options.privacy.noiseless, options.prompts) == (1.0, False, world.prompts)
    assert made.training(world, recipe, "inf").privacy.noiseless


def test_a_recipe_may_be_for_one_world_only():
    world = SHIPPED["dp_ldm"]["worlds"][0]
    recipe = SHIPPED["dp_ldm"]["recipes"][0]
    made = study(worlds=[world, world | {"name": "other"}], recipes=[recipe | {"worlds": ["other"]}], mean_features=[], aggregates=[])
    assert {place.name for place, _, _ in made.cells()} == {"other"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epsilons": [1, 1.0]}, "a budget occurs twice"),
        ({"epsilons": [0]}, "greater than 0"),
        ({"recipes": SHIPPED["dp_ldm"]["recipes"] * 2}, "must be unique"),
        ({"recipes": [SHIPPED["dp_ldm"]["recipes"][0], SHIPPED["dp_ldm"]["recipes"][0] | {"name": "again"}]}, "two recipes train the same weights"),
        ({"recipes": [SHIPPED["dp_ldm"]["recipes"][0] | {"worlds": ["nowhere"]}]}, "'nowhere' is not in dp_ldm.worlds"),
        ({"mean_features": [SHIPPED["dp_ldm"]["mean_features"][0], SHIPPED["dp_ldm"]["mean_features"][0] | {"name": "again"}]}, "two entries in world"),
        ({"recipes": [SHIPPED["dp_ldm"]["recipes"][0] | {"budgets": ["5"]}]}, "which is none of"),
        ({"perceptual": SHIPPED["dp_ldm"]["embedder"]}, "another than the one behind"),
        ({"worlds": [SHIPPED["dp_ldm"]["worlds"][0] | {"images": "nothing"}]}, "one of them is not listed"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        study(**changes)


def test_a_method_runs_at_its_own_budgets():
    first = SHIPPED["dp_ldm"]["recipes"][0]
    found = study(epsilons=[1, 10], noiseless=True, recipes=[first | {"budgets": ["10", "inf"]}], mean_features=[]).cells()
    assert [(recipe.name, epsilon) for _, recipe, epsilon in found] == [("attention", "10"), ("attention", "inf")]


def test_public_classes_are_those_that_the_population_draws():
    from tuneleak.data import avatars, population, vocabulary

    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml").dp_ldm
    artists = [caption.removeprefix("art style of ") for caption in next(world for world in full.worlds if world.name == "few").prompts.values()]
    every = vocabulary.artist_names(len(population.PUBLIC_STYLES) + len(population.PRIVATE_STYLES))
    assert artists == every[len(population.PUBLIC_STYLES) :]
    for world in full.worlds:
        if world.images not in population.DP_STYLES:
            continue
        _, labels = avatars.CLASS_COMPONENT[population.DP_STYLES[world.images]]
        assert tuple(world.prompts) == tuple(labels)


def test_a_recipe_decides_whether_late_blocks_suffice():
    """The claim is about a method that preset full trains in its world at its budget: the attention blocks of the base's way up, and no others."""
    from diffusers import UNet2DConditionModel

    from tuneleak.finetune import private
    from tuneleak.privacy import trainable
    from tuneleak.report import registry

    full = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml").dp_ldm
    (claim,) = [item for item in registry.load(ROOT / "paper/reference/claims.yaml", "full").claims if item.family.id == "dp-late-suffices"]
    reference, _, late = claim.select["method"].partition("-minus-")
    cells = {
        (world.name, private.method_name(item.options), f"epsilon={epsilon}"): (world, item) for world, item, epsilon in full.cells() if item in full.recipes
    }
    assert (claim.select["world"], reference, claim.select["defence"]) in cells
    world, recipe = cells[claim.select["world"], late, claim.select["defence"]]
    architecture = UNet2DConditionModel.load_config(ROOT / "resources/bases" / world.base)
    names = trainable.select(UNet2DConditionModel.from_config(architecture), "attention", recipe.options.blocks).names
    every = trainable.select(UNet2DConditionModel.from_config(architecture), "attention").names
    assert set(names) == {name for name in every if name.startswith("up_blocks.")}
