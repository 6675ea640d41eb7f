"""Shards of an unfinished run: kept, put back elsewhere, and judged by Snakemake itself."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tuneleak import codedigest, shards
from tuneleak.errors import InputError

SNAKEFILE = """
configfile: "config.yaml"
rule all:
    input: "results/full/metrics.csv"
rule finetune:
    output: "results/full/models/manifest.csv"
    shell: "echo trained >> trained.log; echo model > {output}"
rule extract:
    input: "results/full/models/manifest.csv"
    output:
        table="results/full/extraction/matches.csv",
        pictures="results/full/extraction/pictures/manifest.csv"
    params: w=config["w"], code=config["code"]
    shell: "echo asked >> asked.log; echo {params.w} > {output.table}; echo '{{}}' > {output.table}.meta.json; echo path > {output.pictures}"
rule join:
    input: "results/full/extraction/matches.csv"
    output: "results/full/metrics.csv"
    shell: "cp {input} {output}"
"""


def snakemake(folder, *arguments):
    done = subprocess.run([sys.executable, "-m", "snakemake", "--cores", "1", *arguments], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def kept(tmp_path):
    """(reference with the shards of a run, tables but no pictures; a fresh folder with the same workflow)."""
    first, fresh = tmp_path / "first", tmp_path / "fresh"
    for folder in (first, fresh):
        folder.mkdir()
        (folder / "Snakefile").write_text(SNAKEFILE)
        (folder / "config.yaml").write_text("{w: 2, code: a}")
    snakemake(first)
    shards.keep_shards("results/full", tmp_path / "reference", first)
    return tmp_path / "reference", fresh


def test_a_shard_is_not_computed_again_nor_what_it_was_made_from(kept, capsys):
    reference, fresh = kept
    names = ["extraction.matches.json.gz", "extraction.pictures.manifest.json.gz"]
    assert sorted(path.name for path in reference.rglob("*.gz")) == names and "finextract/shards" in str(next(reference.rglob("*.gz")))
    shards.take_shards("results/full", reference, fresh)
    assert "2 shards taken" in capsys.readouterr().out and not (fresh / "results/full/extraction/pictures").exists()
    snakemake(fresh)
    assert not (fresh / "trained.log").exists() and not (fresh / "asked.log").exists()
    assert (fresh / "results/full/metrics.csv").read_text() == "2\n" and (fresh / "results/full/extraction/matches.csv.meta.json").is_file()
    assert "Nothing to be done" in snakemake(fresh)


@pytest.mark.parametrize("change", ["{w: 3, code: a}", "{w: 2, code: b}"])
def test_other_parameters_or_other_code_make_it_again(kept, change):
    reference, fresh = kept
    (fresh / "config.yaml").write_text(change)
    shards.take_shards("results/full", reference, fresh)
    snakemake(fresh)
    assert (fresh / "asked.log").read_text() == "asked\n" and (fresh / "results/full/metrics.csv").read_text() == f"{change[4]}\n"


def test_what_is_there_is_left_alone(kept, tmp_path):
    reference, fresh = kept
    (fresh / "results/full/extraction").mkdir(parents=True)
    (fresh / "results/full/extraction/matches.csv").write_text("mine")
    shards.take_shards("results/full", reference, fresh)
    assert (fresh / "results/full/extraction/matches.csv").read_text() == "mine"
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*.gz")}
    shards.keep_shards("results/full", reference, tmp_path / "first")
    assert before == {path: path.stat().st_mtime_ns for path in reference.rglob("*.gz")}


DP, SMOKE = "results/smoke/metrics/dp-ldm/main.csv", ("--configfile", "workflow/presets/smoke.yaml")


def planned(clone, target, *overlays):
    """The outputs of a dry run of the smoke preset."""
    done = clone.snakemake("--dry-run", *SMOKE, *overlays, "--", target)
    return {path for line in re.findall(r"output: (.+)", done.stdout) for path in line.split(", ")}


@pytest.fixture(scope="module")
def private_shard(clone):
    """A clone with the pictures and the base of the DP-LDM study, and what one recipe's models are good for taken from a shard, but no model."""
    results, table = clone.folder / "results/smoke", "results/smoke/dp/near/attention/utility.csv"
    for path in planned(clone, table):
        (clone.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (clone.folder / path).write_text("made")
    clone.snakemake("--touch", "--forceall", *SMOKE, "--", table)  # Snakemake notes those jobs as done
    shards.keep_shards("results/smoke", clone.folder / "reference", clone.folder)
    for folder in (results / "dp", results / "dp-samples", clone.folder / ".snakemake/metadata"):
        shutil.rmtree(folder)
    shards.take_shards("results/smoke", clone.folder / "reference", clone.folder)
    return clone


@pytest.mark.workflow
def test_a_recipe_whose_table_was_kept_is_not_trained_again(private_shard):
    outputs = planned(private_shard, DP)
    assert {f"results/smoke/dp/near/{name}/utility.csv" for name in ("base", "dp-mepf", "dpagg-ti")} | {DP} < outputs
    assert {"results/smoke/dp/near/dp-mepf/1/manifest.csv", "results/smoke/dp/near/real.csv"} < outputs
    assert not [path for path in outputs if "/near/attention/" in path]


@pytest.mark.workflow
@pytest.mark.parametrize("change", ["recipe", "budget", "sample", "utility"])
def test_a_recipe_is_trained_again_if_it_or_what_is_asked_of_it_changed(private_shard, change):
    study = yaml.safe_load((private_shard.folder / "workflow/presets/smoke.yaml").read_text())["dp_ldm"]
    (recipe,) = study["recipes"]
    recipe["options"]["lr"] *= 2
    changes = {"recipe": {"recipes": [recipe]}, "budget": {"epsilons": [1, 2]}, "sample": {"sample": {"steps": 4}}, "utility": {"utility": {"replicates": 6}}}
    outputs = planned(private_shard, DP, private_shard.overlay(yaml.safe_dump({"dp_ldm": changes[change]})))
    assert {f"results/smoke/dp/near/attention/{name}" for name in ("1/manifest.csv", "utility.csv")} < outputs


def test_what_was_measured_holds_when_its_evaluation_changes():
    assert not codedigest.reachable("tuneleak.metrics.dp_utility") & {"tuneleak.metrics.dp_ldm", "tuneleak.metrics.dp_bars"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no gzip", "no readable shard"),
        ([1], "no readable shard"),
        ({"path": "results/full/a.csv", "files": {}, "note": {}}, "no shard"),
        ({"path": "../a.csv", "files": {"../a.csv": ""}, "note": {}}, "not below results/full"),
        ({"path": "results/full/../../a.csv", "files": {"results/full/../../a.csv": ""}, "note": {}}, "not below results/full"),
        ({"path": "results/full/a.csv", "files": {"results/full/a.csv": "", "/etc/x": ""}, "note": {}}, "not below results/full"),
    ],
)
def test_bad_shards_are_named(tmp_path, content, says):
    shard = tmp_path / "reference/finextract/shards/a.json.gz"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(content if isinstance(content, bytes) else gzip.compress(json.dumps(content).encode()))
    (tmp_path / "fresh").mkdir()
    with pytest.raises(InputError, match=says):
        shards.take_shards("results/full", tmp_path / "reference", tmp_path / "fresh")
    shutil.rmtree(tmp_path / "reference")
    assert not list(tmp_path.rglob("*.csv"))


def test_results_elsewhere_are_refused(tmp_path):
    with pytest.raises(InputError, match="not below"):
        shards.keep_shards("/somewhere/else", tmp_path / "reference", tmp_path)


def test_every_kept_rule_exists():
    from pathlib import Path

    rules = "".join(path.read_text() for path in (Path(__file__).resolve().parents[2] / "workflow/rules").glob("*.smk"))
    assert all(f"\nrule {name}:\n" in rules for name in shards.SYSTEMS)
