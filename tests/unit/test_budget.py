"""The count of UNet calls that is printed before a study runs."""

from pathlib import Path

import pytest

from tuneleak import budget
from tuneleak.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_the_default_preset_costs_what_its_arithmetic_says():
    study = budget.load(ROOT / "config.yaml")
    rows = {(row["world"], row["method"]): row for row in budget.rows(study)}
    lora = next(recipe.options for recipe in study.finetune if (recipe.world, recipe.options.method) == ("identities", "lora"))
    # 4 test concepts x 6 pictures x 10 generations x 20 steps x (direct 1, cfg 2, finextract 2, unconditional 2, base 2) calls,
    # 2 tune concepts x 6 x 5 x 20 x 5 grid points x (2 + 2 + 2)
    assert rows["identities", "lora"]["sampling"] == 4 * 6 * 10 * 20 * 9 + 2 * 6 * 5 * 20 * 5 * 6
    assert rows["identities", "lora"]["training"] == 3 * 6 * 6 * lora.steps_per_image * lora.batch
    assert sum(row["training"] + row["sampling"] for row in rows.values()) < 800_000, "the default preset must stay within half an hour on two cores"


@pytest.mark.parametrize("preset", ["smoke", "full", "paper"])
def test_every_preset_has_a_budget(preset, capsys):
    budget.budget(ROOT / "config.yaml", ROOT / f"workflow/presets/{preset}.yaml")
    assert f"preset {preset}" in capsys.readouterr().out


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        budget.load("nowhere.yaml")
