"""The workflow's files: format, lint, and what every rule must have."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WITH_FLAG = {"factors": "--factors", "reference": "--reference", "blind": "--embedder", "fidelity": "--fidelity"}  # params that bring a flag, or nothing
RULE_FILES = sorted((ROOT / "workflow/rules").glob("*.smk"))


def rules():
    """(file name, rule name, text) of every rule that runs something."""
    for path in RULE_FILES:
        for text in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            if "localrule: True" not in text:
                yield pytest.param(text, id=text.split(":")[0])


@pytest.mark.workflow
def test_lint(clone):
    done = clone.snakemake("--lint")
    assert "Congratulations" in done.stdout


def test_format():
    done = subprocess.run([sys.executable, "-m", "snakefmt", "--check", "--diff", "Snakefile", "workflow"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", list(rules()))
def test_every_rule_is_complete(text):
    for directive in ("log", "benchmark", "conda", "threads", "resources", "params", "shell"):
        assert re.search(rf"^    {directive}:", text, re.MULTILINE), f"no {directive}:"
    assert re.search(r"^        mem_mb=", text, re.MULTILINE) and re.search(r"^        runtime=", text, re.MULTILINE)
    shell = text.split("    shell:")[1]
    assert '"exec python -m tuneleak ' in shell, "without exec a job outlives a killed Snakemake's shell"
    assert shell.rstrip().endswith('> {log} 2>&1"')


def test_target_rules_run_nothing():
    for path in [ROOT / "Snakefile", *RULE_FILES]:
        for text in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            assert ("localrule: True" in text) != ("shell:" in text)


def test_the_snakefile_fits_one_screen():
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 60


def test_no_scripts_no_run_blocks_no_checkpoints_no_directories():
    for path in [ROOT / "Snakefile", *RULE_FILES]:
        assert not re.search(r"^\s*(script|run|notebook|wrapper):|^checkpoint |directory\(", path.read_text(), re.MULTILINE), path.name


def test_every_flag_of_every_rule_exists():
    """What the rules pass is what the verbs take."""
    from tuneleak import cli

    takes = {verb.name: ({argument.flag for argument in verb.arguments} | ({"--options"} if verb.options else set()), verb) for verb in cli.VERBS}
    for path in RULE_FILES:
        for shell in re.findall(r"shell:\n((?:        .*\n)+)", path.read_text()):
            words = "".join(re.findall(r'"(.*)"', shell)).split("python -m tuneleak ")[1]
            name = next(name for name in sorted(takes, key=len, reverse=True) if words.startswith(name + " "))
            for placeholder, flag in WITH_FLAG.items():
                words = words.replace(f"{{params.{placeholder}}}", flag)
            flags = set(re.findall(r"--[a-z-]+", words))
            known, verb = takes[name]
            assert flags <= known, f"{name}: unknown {flags - known}"
            needed = {argument.flag for argument in verb.arguments if argument.required}
            assert needed <= flags, f"{name}: missing {needed - flags}"


def test_the_slurm_profile_places_every_rule_that_uses_a_gpu():
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text())
    blocks = [block for path in sorted((ROOT / "workflow/rules").glob("*.smk")) for block in re.split(r"^(?=rule )", path.read_text(), flags=re.MULTILINE)]
    rules = {block.split(":")[0].removeprefix("rule ") for block in blocks if block.startswith("rule ") and "gpu=GPU" in block}
    assert len(rules) > 10 and set(profile["set-resources"]) == rules


def test_every_rule_is_killed_or_runs_as_one_that_is():
    """A rule that is new has to be given to `survival.py`: as a kind of its own, or as a job that runs the same verb as a kind."""
    specification = importlib.util.spec_from_file_location("survival", Path(__file__).with_name("survival.py"))
    survival = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(survival)
    verbs = {rule.id: re.search(r"python -m tuneleak ((?:attack |evaluate |measure |figures )?[a-z-]+)", rule.values[0]).group(1) for rule in rules()}
    listed = [*survival.KINDS, *(rule for found in survival.LIKE.values() for rule in found), *survival.AT_ONCE, *survival.NETWORK]
    assert sorted(listed) == sorted(verbs)
    assert all(verbs[rule] == verbs[kind] for kind, found in survival.LIKE.items() for rule in found)
    assert not {verbs[rule] for rule in survival.AT_ONCE} & {verbs[kind] for kind in survival.KINDS if kind != "evaluate_finextract"}
    chosen = survival.drawn(survival.SMOKE, 3, ROOT)
    assert chosen == survival.drawn(survival.SMOKE, 3, ROOT) and len({kind for kind, *_ in chosen}) == 3
