"""The JSON schema and the README's table of knobs are what the models say, and the presets obey them."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml

from tuneleak.config import Config, load
from tuneleak.errors import InputError
from tuneleak.report import schema

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "workflow/presets").glob("*.yaml"))


@pytest.fixture
def project(tmp_path):
    for name in ("README.md", "config.yaml", "workflow/schemas/config.schema.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def merged(preset):
    """config.yaml with an overlay, merged as Snakemake does: dictionaries deeply, everything else replaced."""

    def merge(old, new):
        return {**old, **{key: merge(old[key], value) if isinstance(value, dict) and isinstance(old.get(key), dict) else value for key, value in new.items()}}

    return merge(yaml.safe_load((ROOT / "config.yaml").read_text()), yaml.safe_load((ROOT / f"workflow/presets/{preset}.yaml").read_text()))


def test_in_step_with_the_models():
    schema.schema(ROOT)


@pytest.mark.parametrize("name", ["README.md", "workflow/schemas/config.schema.json"])
def test_a_stale_file_is_named_and_can_be_written_anew(project, name):
    text = (project / name).read_text()
    (project / name).write_text(text.replace("optimiser steps", "steps"))
    with pytest.raises(InputError, match=f"{name} is not what.*--write"):
        schema.schema(project)
    schema.schema(project, write=True)
    assert (project / name).read_text() == text


def test_what_stands_around_the_table_is_kept(project):
    readme = project / "README.md"
    readme.write_text(f"before\n{schema.BEGIN}\nstale rows\n{schema.END}\nafter\n")
    schema.schema(project, write=True)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale rows" not in text and "finextract.cluster.threshold" in text
    readme.write_text("no markers")
    with pytest.raises(InputError, match="knobs:begin"):
        schema.schema(project)


def test_every_knob_is_in_the_table_with_a_meaning():
    rows = [line.split(" | ") for line in schema.knob_table(yaml.safe_load((ROOT / "config.yaml").read_text())).splitlines()[2:]]
    paths = {row[0].strip("| `") for row in rows}
    assert {"preset", "worlds[].base", "finetune[].options.lr", "finextract.guidance[].guidance.w", "training.autoencoder.steps"} <= paths
    assert all(len(row) == 4 and row[3].strip("| ") for row in rows)


def test_limits_and_choices_are_shown():
    table = schema.knob_table(yaml.safe_load((ROOT / "config.yaml").read_text()))
    assert "| `gpus` | integer ≥ 0 | `0` |" in table
    assert "| `dtype` | `float32` or `bfloat16` |" in table
    assert "| `finextract.evaluate.false_match_rate` | number ≥ 0 and ≤ 1 | `0.01` |" in table


def test_a_section_that_stands_in_two_places_is_listed_once():
    table = schema.knob_table(yaml.safe_load((ROOT / "config.yaml").read_text()))
    assert "| `defences.utility` | section, as `finextract.ablations.utility` |" in table and "| `finextract.ablations.utility.noise_levels` |" in table
    assert "`defences.utility.noise_levels`" not in table and "| `defences.utility.generations` | integer ≥ 1 | `4` |" in table  # set by config.yaml
    assert "| `defences.defences[].private.unit` |" in table and "<class" not in table
    assert "| `shake_to_leak.membership.concepts` | integer ≥ 1 or nothing |" in table


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    overlay = yaml.safe_load((ROOT / f"workflow/presets/{preset}.yaml").read_text())
    described = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    jsonschema.validate(overlay, described)
    whole = load(merged(preset))
    assert whole.preset == preset and whole.pathvars.results == f"results/{preset}"
    jsonschema.validate(whole.model_dump(mode="json"), described)


def test_the_default_names_every_knob_that_has_no_default():
    assert isinstance(load(yaml.safe_load((ROOT / "config.yaml").read_text())), Config)


def test_tune_and_test_concepts_exist():
    """No world asks for more concepts than the population has."""
    for values in (yaml.safe_load((ROOT / "config.yaml").read_text()), merged("smoke"), merged("full")):
        config = load(values)
        people = config.population
        held = {
            "private-identities": (people.tune_identities, people.private_identities - people.tune_identities),
            "private-artists": (people.tune_artists, people.private_artists - people.tune_artists),
        }
        for world in config.worlds:
            assert world.tune_concepts <= held[world.images][0] and world.test_concepts <= held[world.images][1]
