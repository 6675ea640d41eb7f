"""A full disk, a disk that may not be written, files half written: jobs stop with a sentence, leave no half result, and go on once there is room."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
FEW = json.dumps({"lora_test_identities": 2, "lora_photographs": 6})  # some 40 KB of pictures

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and mounts are those of Linux")


def tuneleak(*command, limit=None):
    """A verb in a process of its own, which may write no file larger than `limit` bytes."""

    def restrict():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "tuneleak", *command], env=environment, capture_output=True, text=True, preexec_fn=restrict)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def render(out, limit=None):
    return tuneleak("render", "--name", "lora-test", "--out", out, "--options", FEW, limit=limit)


def digests(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".meta." not in path.name]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "set"
    assert render(folder).returncode == 0
    return digests(folder)


@pytest.fixture
def disk(tmp_path):
    """`disk(options)`: a file system of its own in memory, mounted (again) with options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        remount = ["remount"] if os.path.ismount(folder) else []
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([*remount, options]), "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")
        return folder

    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system to fill")
    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def test_a_full_disk_stops_a_job_and_more_room_lets_it_go_on(disk, undisturbed):
    folder = disk("size=24k") / "set"
    done = render(folder)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert not (folder / "manifest.csv").exists() and not list(folder.parent.glob(".*tmp*/manifest.csv"))
    disk("size=16m")
    assert render(folder).returncode == 0 and digests(folder) == undisturbed


def test_a_full_disk_stops_a_training_at_a_checkpoint_and_it_goes_on_from_the_one_before(disk, tiny_base, tiny_images, tmp_path):
    options = json.dumps({"method": "lora", "images_per_concept": 4, "steps_per_image": 4, "batch": 2, "lr": 1e-3, "rank": 4, "checkpoint_every": 3})

    def train(folder):
        return tuneleak("finetune", "--base", tiny_base, "--images", tiny_images, "--world", "w", "--split", "test", "--out", folder, "--options", options)

    folder = disk("size=130k") / "models"  # room for one checkpoint of 72 KB
    done = train(folder)
    assert done.returncode == 1 and "No space left on device" in done.stderr and not (folder / "manifest.csv").exists()
    (kept,) = folder.rglob("*-000003.safetensors")
    disk("size=16m")
    assert train(folder).returncode == 0 and not kept.exists()
    assert train(tmp_path / "undisturbed").returncode == 0
    for path in (tmp_path / "undisturbed").rglob("*.safetensors"):
        here, there = load_file(path), load_file(folder / path.relative_to(tmp_path / "undisturbed"))
        assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.workflow
def test_a_workflow_goes_on_once_its_results_have_room(disk, clone):
    folder = disk("size=24k")
    (clone.folder / "few.yaml").write_text(f"pathvars: {{results: {folder}/results}}\npopulation: {FEW}\n")
    asked = ("--configfile", "workflow/presets/smoke.yaml", "few.yaml", "--", f"{folder}/results/data/lora-test/manifest.csv")
    said = clone.snakemake(*asked, fails=True).stdout
    (log,) = {clone.folder / line.split()[1] for line in said.splitlines() if line.strip().startswith("log: ")}
    assert "No space left on device" in log.read_text()
    disk("size=16m")
    clone.snakemake("--rerun-incomplete", *asked)
    assert len(list((folder / "results/data/lora-test").rglob("*.png"))) == 12


def test_a_disk_that_may_not_be_written_is_named(disk):
    folder = disk("size=1m") / "set"
    disk("ro")
    done = render(folder)
    assert done.returncode in (1, 2) and "Read-only file system" in done.stderr and str(folder.parent) in done.stderr


def test_a_limit_on_files_stops_a_job_and_without_it_it_goes_on(tmp_path, undisturbed):
    """The full disk of those who are not root."""
    folder = tmp_path / "set"
    done = render(folder, limit=700)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert not (folder / "manifest.csv").exists()
    assert render(folder).returncode == 0 and digests(folder) == undisturbed


def test_what_a_killed_job_left_half_written_is_replaced(tmp_path, undisturbed):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "manifest.csv").write_text("image_id,conc")
    (folder / ".manifest.csv.99.tmp.csv").write_text("image")
    assert render(folder).returncode == 0
    assert {name: digest for name, digest in digests(folder).items() if not name.startswith(".")} == undisturbed
