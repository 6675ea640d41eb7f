"""The SLURM profile: what reaches sbatch (with a recording double, always), and a slice of the smoke preset on a real node (on request)."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
PLUGIN = "snakemake_executor_plugin_slurm"
SETTINGS = {
    "slurm-init-seconds-before-status-checks": 1,
    "seconds-between-status-checks": 1,
    "max-status-checks-per-second": 5,
    "slurm-status-command": "squeue",
}
SITE = {"account": "lab", "partition": "cpu", "gpu_partition": "accel"}
PATIENT = """
rule patient:
    output: "patient.txt"
    resources:
        mem_mb=gigabytes(1),
        runtime=minutes(1),
    shell: "if [ {resources.runtime} = 1 ]; then sleep 600; fi; echo {resources.runtime} {resources.mem_mb} > {output}"
"""

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason="the executor plugin is missing (pip install -e '.[slurm]')"),
]


def _beside(name):
    specification = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


slurm_node = _beside("slurm_node")


def write_profile(folder):
    """The project's profile with this test's site filled in, polled every second. Returns (its folder, its content)."""
    text = (HERE.parents[1] / "workflow/profiles/slurm/config.yaml").read_text()
    assert "slurm_account: CHANGE_ME\n" in text and "slurm_partition: CHANGE_ME\n" in text and "slurm_partition: CHANGE_ME_GPU\n" in text
    text = text.replace("CHANGE_ME_GPU", SITE["gpu_partition"]).replace("slurm_account: CHANGE_ME", f"slurm_account: {SITE['account']}")
    profile = yaml.safe_load(text.replace("CHANGE_ME", SITE["partition"]))
    profile |= SETTINGS
    (folder / "profile").mkdir()
    (folder / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    return folder / "profile", profile


def run(made, profile, path, *arguments, **options):
    """Snakemake with a profile, `path` first among the programs."""
    flags = ("--jobs", "4", "--profile", profile, *arguments)
    return made.snakemake(*flags, cores=8, PATH=f"{path}{os.pathsep}{os.environ['PATH']}", **options)


@pytest.fixture
def double(tmp_path, monkeypatch):
    """A folder of programs that record what is submitted to SLURM; `double.submitted()` lists it."""

    class Double:
        bin, record = tmp_path / "bin", tmp_path / "record"

        def submitted(self):
            return [json.loads(line) for line in (self.record / "submitted.jsonl").read_text().splitlines()]

    Double.bin.mkdir()
    Double.record.mkdir()
    for name in ("sbatch", "squeue", "sacct", "sacctmgr", "scontrol", "srun", "scancel"):
        (Double.bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_slurm.py"}" {name} "$@"\n')
        (Double.bin / name).chmod(0o755)
    return Double()


def put(clone, *names):
    """Files that stand for finished jobs of the smoke preset."""
    for name in names:
        path = clone.folder / "results/smoke" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made by hand\n")


def test_the_profile_reaches_sbatch(clone, double, tmp_path):
    """Jobs ask for what their rules say, where the profile says; what its time limit kills asks for more, as often as the profile says."""
    folder, profile = write_profile(tmp_path)
    overlay = clone.overlay("gpus: 1\nthreads: 3\n")
    put(clone, "bases/H1/model_index.json", "data/private-identities/manifest.csv")
    targets = [
        f"results/smoke/{name}" for name in ("models/identities/lora/test0/manifest.csv", "extraction/identities/tau.json", "data/lora-test/manifest.csv")
    ]
    arguments = ("--configfile", "workflow/presets/smoke.yaml", overlay, "--", *targets)
    done = run(clone, folder, double.bin, *arguments, fails=True, FAKE_SLURM=str(double.record), FAKE_SLURM_RUNS="rule_render")
    assert "Traceback" not in done.stdout
    assert (clone.folder / targets[2]).is_file() and not (clone.folder / targets[0]).exists()
    jobs = {}
    for record in double.submitted():
        jobs.setdefault(record["rule"].split("_wildcards")[0], []).append(record)
    assert {rule: len(found) for rule, found in jobs.items()} == {
        "rule_render": 1,
        "rule_finetune": 1 + profile["retries"],
        "rule_calibrate": 1 + profile["retries"],
    }
    asked = {rule: [tuple(job[name] for name in ("partition", "minutes", "memory_mb", "gpus", "cpus")) for job in found] for rule, found in jobs.items()}
    assert asked["rule_render"] == [("cpu", "30", "2000", None, "1")]
    assert asked["rule_finetune"] == [("accel", str(240 * attempt), str(4000 * attempt), "1", "3") for attempt in (1, 2, 3)]
    assert asked["rule_calibrate"] == [("accel", str(30 * attempt), str(4000 * attempt), "1", "1") for attempt in (1, 2, 3)]
    assert {job["account"] for found in jobs.values() for job in found} == {"lab"}
    assert {job["state"] for job in jobs["rule_finetune"]} == {"TIMEOUT"} and jobs["rule_render"][0]["state"] == "COMPLETED"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A real SLURM of one node."""
    if reason := slurm_node.why_not():
        pytest.skip(reason)
    made = slurm_node.Node(tmp_path_factory.mktemp("slurm"))
    try:
        if reason := made.unpack():
            pytest.skip(reason)
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.slow
def test_a_slice_of_the_smoke_preset_runs_on_a_real_node(clone, node, tmp_path):
    folder, _ = write_profile(tmp_path)
    overlay = clone.overlay("gpus: 1\n")
    for name in ("bases", "data", "models", "extraction"):  # what the double left
        made = clone.folder / "results/smoke" / name
        made.rename(tmp_path / name) if made.exists() else None
    targets = [f"results/smoke/{name}" for name in ("models/identities/lora/tune0/manifest.csv", "extraction/identities/tau.json")]
    done = run(clone, folder, node.bin, "--slurm-no-account", "--configfile", "workflow/presets/smoke.yaml", overlay, "--", *targets)
    assert all((clone.folder / target).is_file() for target in targets), done.stdout[-4000:]
    assert node.jobs() == {
        "render": [("COMPLETED", "00:30:00", "2000M", "", "cpu")],
        "assemble": [("COMPLETED", "00:10:00", "2000M", "", "cpu")],
        "finetune": [("COMPLETED", "04:00:00", "4000M", "gres:gpu:1", "accel")],
        "calibrate": [("COMPLETED", "00:30:00", "4000M", "gres:gpu:1", "accel")],
    }
    assert "Nothing to be done" in clone.snakemake("--configfile", "workflow/presets/smoke.yaml", overlay, "--dry-run", "--", *targets).stdout


@pytest.mark.slow
def test_a_job_killed_by_its_time_limit_is_retried_with_more(mini, node, tmp_path):
    made = mini(PATIENT)
    folder, _ = write_profile(tmp_path)
    run(made, folder, node.bin, "--slurm-no-account")
    assert (made.folder / "patient.txt").read_text().split() == ["2", "2000"]
    assert [asked[:3] for asked in node.jobs()["patient"]] == [("TIMEOUT", "00:01:00", "1000M"), ("COMPLETED", "00:02:00", "2000M")]
