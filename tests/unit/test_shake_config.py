"""Studies of Shake-to-Leak in the configuration: what fits together, and what is refused before any job starts."""

import copy
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tuneleak import config
from tuneleak.errors import InputError
from tuneleak.options import MembershipAttack

ROOT = Path(__file__).resolve().parents[2]
POINT = {"study": "rank", "value": "4", "method": "lora", "finetune": {"rank": 4}}


@pytest.fixture(scope="module")
def values():
    found = yaml.safe_load((ROOT / "config.yaml").read_text())
    found["shake_to_leak"] |= {"study_domains": 4, "studies": [POINT]}
    return found


def test_a_point_is_the_recipe_with_something_changed(values):
    shake = config.load(values).shake_to_leak
    (point,) = shake.studies
    assert point.name == "rank-4-lora" and shake.drawn(point) is None
    assert shake.trained(point) == shake.recipe("lora").model_copy(update={"rank": 4})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"studies": [POINT | {"method": "hypernetwork"}]}, "not listed"),
        ({"studies": [POINT, POINT]}, "occurs twice"),
        ({"studies": [POINT | {"after": "3"}]}, "does not stand before it"),
        ({"studies": [POINT | {"finetune": {"rnak": 4}}]}, "rnak"),
        ({"studies": [POINT | {"synthesize": {"blend": 2}}]}, "blend"),
        ({"studies": [POINT | {"finetune": {"images_per_concept": 1000}}]}, "its set has"),
        ({"studies": [POINT | {"synthesize": {"mixed": 2}}], "reference": "", "identity": "", "clip": "", "controls": []}, "which needs `reference`"),
        ({"study_domains": 5}, "study_domains must be at most"),
        ({"further_methods": [{"method": "lora"}]}, "stands there once"),
        ({"regeneration": {"methods": ["hypernetwork"]}}, "not among `methods`"),
        ({"regeneration": {"tune_domains": 9}}, "domains before first_domain"),
        ({"further_attacks": {"bases": ["H2"]}}, "further_attacks.bases: 'H2' is not among"),
        ({"further_attacks": {"bases": ["H1"], "methods": ["hypernetwork"]}}, "further_attacks.methods: 'hypernetwork' is not among"),
        ({"further_attacks": {"bases": ["H1"], "membership": {"attacks": ["pian", "pia"]}}}, "'pia' is among membership.attacks too"),
    ],
)
def test_what_does_not_fit_is_named(values, change, says):
    changed = copy.deepcopy(values)
    changed["shake_to_leak"] |= change
    with pytest.raises(InputError, match=says):
        config.load(changed)


def test_the_full_preset_studies_what_the_paper_leaves_open():
    shake = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml").shake_to_leak
    by_study = {}
    for point in shake.studies:
        by_study.setdefault(point.study, []).append(point)
    assert [shake.trained(point).alpha for point in by_study["rank"]] == [8] * 4
    assert all(shake.trained(point).alpha == shake.trained(point).rank for point in by_study["rank-alpha"])
    steps = {shake.trained(point).images_per_concept * shake.trained(point).steps_per_image for point in by_study["size"]}
    recipe = shake.recipe("dreambooth+lora")
    assert steps == {recipe.images_per_concept * recipe.steps_per_image}, "size is varied at equal steps"
    assert [point.after for point in by_study["rounds"]] == ["self", "2", "3", "4"], "five rounds"
    assert {point.method for point in by_study["steps"]} == {options.method for options in shake.methods}
    assert {*shake.membership.attacks, *shake.further_attacks.membership.attacks} == {*get_args(MembershipAttack)}, "every attack there is"
    methods = {options.method for options in [*shake.methods, *shake.further_methods]}
    assert len(methods) == 11, "the nine of the paper, prior preservation, and LoRA with text encoder"
