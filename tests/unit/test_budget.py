"""The count of UNet calls that is printed before a study runs."""

import json
from pathlib import Path

import pytest

from tuneleak import budget, config, estimate
from tuneleak.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_the_default_preset_costs_what_its_arithmetic_says():
    study = config.read(ROOT / "config.yaml")
    rows = {(row["world"], row["method"]): row for row in budget.rows(study)}
    lora = next(recipe.options for recipe in study.finetune if (recipe.world, recipe.options.method) == ("identities", "lora"))
    # 4 test concepts x 6 pictures x 6 generations x 20 steps x (direct 1, cfg 2, finextract 2, unconditional 2, base 2) calls,
    # 2 tune concepts x 6 x 6 x 20 x 5 grid points x (2 + 2 + 2)
    assert rows["identities", "lora"]["sampling"] == 4 * 6 * 6 * 20 * 9 + 2 * 6 * 6 * 20 * 5 * 6
    assert rows["identities", "lora"]["training"] == 3 * 6 * 6 * lora.steps_per_image * lora.batch
    mine = [row["training"] + row["sampling"] for row in rows.values() if not row["method"].startswith("dp ")]
    assert sum(mine) < 800_000, "the default preset must stay within half an hour on two cores"


def test_the_weights_study_costs_what_its_arithmetic_says():
    study = config.read(ROOT / "config.yaml")
    (row,) = budget.weights_rows(study)
    # 96 + 24 + 24 LoRAs and 48 + 48 of the sizes, 78 steps of 4, but the second half of the sizes 13 steps for each of 3.5 pictures
    loras = (96 + 48 + 48) * 78 * 4 + 48 * 13 * 3.5 * 4
    assert row["models"] == 240 and row["training"] == 3 * (loras + (4 + 2) * 400 * 16)
    # spectral and autoencoder 7 settings, final 2, constant 3; guessed, searched, matched, attributes, true prompt; unconditional half a draw;
    # 4 transforms x (3 encoders + true prompt + captions), captions, 2 adaptive; spectral, autoencoder and constant refined by 15 steps of two networks
    assert row["sampling"] == 24 * 2 * 20 * 2 * (7 + 7 + 2 + 3 + 5 + 0.5 + 4 * 5 + 2 + 3 + 1) + 3 * 24 * (120 * 2 + 3 * 2 * 15 * 2)
    assert row["training"] + row["sampling"] < 450_000, "the default preset adds at most a quarter of an hour on two cores"


def test_shake_to_leak_costs_what_its_arithmetic_says():
    study = config.read(ROOT / "config.yaml")
    rows = {row["method"]: row for row in budget.shake_rows(study)}
    # 4 domains x 100 photographs x (loss 2 x 2, SecMI 10 + 2, PIA 2, SimA 1) calls; 4 domains x 24 pictures x 6 steps x batch 4, three calls each
    assert rows["H1, lora"] == {"world": "named", "models": 4, "method": "H1, lora", "training": 3 * 4 * 24 * 6 * 4, "sampling": 4 * 100 * 19}
    assert rows["H1, draw self"]["sampling"] == 4 * 24 * 20 * 2 and rows["H1, dreambooth+lora (lr0)"]["training"] == 3 * 4 * 24 * 4
    full = {row["method"]: row for row in budget.shake_rows(config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml"))}
    # 20 domains x 100 photographs x (SecMI 12, PIAN 2, PFAMI 10 x 11, CLiD 15) calls, base and one tuned model
    assert full["H1, further attacks"]["sampling"] == 2 * 20 * 100 * 139 and "H1-twin, further attacks" not in full
    total = sum(row["training"] + row["sampling"] for row in rows.values())
    assert total < 150_000 * len(study.shake_to_leak.bases), "beside FineXtract, a base must not add more than six minutes on two cores"


def test_what_the_attacker_knows_costs_what_its_arithmetic_says():
    study = config.read(ROOT / "config.yaml")
    rows = {row["method"]: row for row in budget.attacker_rows(study)}
    # 4 concepts x 2 lengths x 6 pictures x 20 steps x batch 4, three calls each
    assert rows["lora, drawn captions"]["training"] == 3 * 4 * 2 * 6 * 20 * 4
    # 4 concepts x 6 pictures x 3 generations x 20 steps x 2 calls x 4 conditions; (6 + 11 x 5) photographs x 2 captions x 3 timesteps, two models
    again = 4 * 6 * 3 * 20 * 2 * 4 + 2 * 4 * (6 + 11 * 5) * 2 * 3
    assert rows["lora, looked at again"]["sampling"] == again
    assert rows["lora, drawn captions"]["sampling"] == 0

    # 4 concepts; 16 draws of each of 1 + 4 (words + 4, at most 10) beginnings, of 1 + 4 x 6 changed captions, and 4 times as many of 2 + 6 last ones; 100
    # to see where gradients are large; three calls each; 16 pictures in 20 steps
    def reading(words):
        return 3 * (16 * (1 + 4 * min(words + 4, 10) + 25 + 4 * 8) + 100) + 320

    drawn = [row["sampling"] for row in budget.attacker_rows(study) if row["method"] == "dreambooth, drawn captions"]
    assert drawn == [0, 4 * (reading(1) + reading(3))]  # plain descent is read without
    assert rows["dreambooth, looked at again"]["sampling"] == again + 2 * 6 * 6 * 20 * 2 + 4 * reading(5)  # with the base on two tune concepts
    assert sum(row["training"] + row["sampling"] for row in rows.values()) < 130_000, "at most four minutes on two cores"


# Of one sample, on two cores, start-up and everything else included. Measured: the default preset's 1.6 million calls in 42 minutes (2.3e6) on two cores of a
# Zen 5 processor; in three hours (.6e6) on two hyperthreads of an older one beside other work.
CALLS_PER_HOUR = 1.9e6


def hours(preset):
    """{system: hours on two cores by counted calls} of a preset (None: the default)."""
    study = config.read(ROOT / "config.yaml", preset and ROOT / f"workflow/presets/{preset}.yaml")
    private = list(budget.private_rows(study.dp_ldm))
    main = [row for row in budget.rows(study) if row not in private]
    systems = {
        "finextract": main,
        "finextract's questions": [*budget.ablation_rows(study), *budget.attacker_rows(study)],
        "shake-to-leak": list(budget.shake_rows(study)),
        "lora-weights": list(budget.weights_rows(study)),
        "dp-ldm": private,
    }
    return {name: sum(row["training"] + row["sampling"] for row in found) / CALLS_PER_HOUR for name, found in systems.items()}


@pytest.mark.parametrize(
    ("preset", "bars"),
    [
        (None, {"finextract": 0.5, "finextract's questions": 0.1, "shake-to-leak": 0.2, "lora-weights": 0.25, "dp-ldm": 0.2}),
        ("full", {"finextract": 5, "finextract's questions": 4, "shake-to-leak": 4, "lora-weights": 4, "dp-ldm": 5}),
    ],
)
def test_every_system_stays_within_its_hours(preset, bars):
    found = hours(preset)
    assert found.keys() == bars.keys()
    for system, limit in bars.items():
        assert 0 < found[system] <= limit, f"{system} of preset {preset or 'embedded'}: {found[system]:.2f} h by counted calls, {limit} h are allowed"


@pytest.mark.parametrize("preset", ["smoke", "full", "paper"])
def test_every_preset_has_a_budget(preset, capsys):
    budget.budget(ROOT / "config.yaml", ROOT / f"workflow/presets/{preset}.yaml")
    assert f"preset {preset}" in capsys.readouterr().out


def test_one_concept_of_everything_fits_an_afternoon_on_one_gpu():
    study = config.read(ROOT / "config.yaml", [ROOT / "workflow/presets/paper.yaml", ROOT / "workflow/overlays/paper-one.yaml"])
    costs = estimate.costs(study, estimate.count())
    assert set(costs) >= {"finextract", "shake-to-leak", "lora-weights", "dp-ldm"} and 0 < sum(cost.hours for cost in costs.values()) < 4
    assert max(cost.state_gb for cost in costs.values()) < 24


@pytest.mark.parametrize("preset", ["full", "paper"])
def test_an_encoder_s_training_set_fits_the_memory_it_asks_for(preset):
    study = config.read(ROOT / "config.yaml", ROOT / f"workflow/presets/{preset}.yaml").lora_weights
    if preset == "paper":
        network = estimate.count()
        assert estimate.trained_weights(study.recipe, network) == 16 * 99_648  # the published count per rank, of queries and values
        assert estimate.kept_models(study) == 4000  # 1,000 people, after 250, 500, 750 and 1,000 steps
    else:
        unet = json.loads((ROOT / "resources/bases/H1/config.json").read_text())
        network = estimate.count({name: value for name, value in unet.items() if not name.startswith("_")}, unet["sample_size"])
    need = estimate.encoder_memory_gb(study, network)
    assert 0 < need < study.memory_gb


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        config.read("nowhere.yaml")


def test_the_ablations_cost_what_their_arithmetic_says():
    study = config.read(ROOT / "config.yaml")
    (row,) = budget.ablation_rows(study)
    # reference, two with two pictures (120 and 40 steps each), cutout and randaugment; reference again on tune concepts
    training = 2 * (6 * 40 + 2 * 120 + 2 * 40 + 6 * 40 + 6 * 40) + 2 * 6 * 40
    assert row["models"] == 12 and row["training"] == 3 * 4 * training
    # five generations per picture, twenty steps of two calls: the reference at three weights and the frozen setting, the others at
    # that alone; then four and four pictures and the losses
    sampling = 5 * 40 * (2 * (4 * 6 + 2 + 2 + 6 + 6) + 2 * 4 * 6)
    use = 2 * sum(40 * (4 + 4) + 10 * (40 + n) for n in (6, 2, 2, 6, 6))
    assert row["sampling"] == sampling + use
    assert row["training"] + row["sampling"] < 75_000, "the default preset adds at most three minutes on two cores"
    full = list(budget.ablation_rows(config.read(ROOT / "config.yaml", ROOT / "workflow/presets/full.yaml")))
    assert sum(row["training"] + row["sampling"] for row in full) < 2_600_000, "an hour and a half on two cores"
