"""Three rules of the real workflow under --use-conda, with the committed envs/report.yaml and a *double* of conda that needs no network.

Tested: Snakemake's own path through environment creation, activation, isolation and pins, with rattler as the solver and a local channel
made from what pip installed. Not tested: solving against conda-forge, and envs/models.yaml.
"""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RESULTS = Path("results/embedded")
OTHERS = ("shake-to-leak/main", "lora-weights/main", "dp-ldm/main", "finextract/ablations", "finextract/attacker", "defences/main")
COLUMNS = "system,world,base,method,attack,defence,setting,metric,value,ci_low,ci_high,n,seeds"
TARGETS = [str(RESULTS / "metrics/finextract/main.csv"), str(RESULTS / "metrics.csv"), str(RESULTS / "claims.csv")]
RULES = ["evaluate_finextract", "join_metrics", "check_claims"]  # Snakemake creates the environments of all rules it knows of
ENVIRONMENT = yaml.safe_load((ROOT / "envs/report.yaml").read_text())
PYTHON = next(line.partition("=")[2] for line in ENVIRONMENT["dependencies"] if line.startswith("python="))


def why_not():
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        return "the local channel is made for Linux on x86-64"
    if not sys.version.startswith(f"{PYTHON}."):
        return f"envs/report.yaml asks for Python {PYTHON}, and the bridge to this interpreter is {sys.version.split()[0]}"
    missing = [name for name in ("rattler", "rattler_build") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} cannot be imported (pip install -e '.[dev]')" if missing else ""


pytestmark = [pytest.mark.conda, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "can run")]


class Project:
    """A copy of the project with matches of a made-up study, and the double as its `conda`."""

    def __init__(self, folder, channels):
        self.folder, self.conda = folder / "project", folder / "conda"
        self.folder.mkdir(parents=True)
        for name in ("Snakefile", "config.yaml"):
            shutil.copy2(ROOT / name, self.folder)
        for name in ("workflow", "src", "envs", "paper", "resources"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        (self.conda / "bin").mkdir(parents=True)
        (self.conda / "bin/conda").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "conda_double.py"}" "$@"\n')
        (self.conda / "bin/conda").chmod(0o755)
        (self.conda / "bin/activate").write_text('export CONDA_PREFIX="$1" CONDA_SHLVL=1\nexport PATH="$1/bin:$PATH"\nhash -r\n')  # sourced before a job
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TUNELEAK_", "CONDA_", "PYTHONPATH"))}
        own = {"PATH": f"{self.conda / 'bin'}:{os.environ['PATH']}", "CONDA_DOUBLE_CHANNELS": str(channels), "CONDA_DOUBLE_PREFIX": str(self.conda)}
        self.environment = kept | own
        write_study(self.folder)

    def snakemake(self, *arguments, fails=False):
        flags = ["--cores", "1", "--use-conda", "--show-failed-logs", "--allowed-rules", *RULES, *arguments]
        command = [sys.executable, "-m", "snakemake", *flags, "--", *TARGETS]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert (done.returncode != 0) == fails, done.stdout[-8000:]
        return done.stdout

    def made(self):
        """Folders of the environments that were created."""
        return sorted(path for path in (self.folder / ".snakemake/conda").iterdir() if path.is_dir() and (path / "conda-meta").is_dir())

    def creations(self):
        calls = (self.conda / "calls.txt").read_text().splitlines()
        return [call for call in calls if "create" in call.split()[:2]]


def write_study(folder):
    """matches.csv and tau.json wherever the default preset's attacks on test concepts would put them (the numbers mean nothing); nothing of the others."""
    for name in OTHERS:
        table = folder / RESULTS / f"metrics/{name}.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(f"{COLUMNS}\n")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for world in config["worlds"]:
        place = folder / RESULTS / "extraction" / world["name"]
        place.mkdir(parents=True)
        (place / "tau.json").write_text(json.dumps({"world": world["name"], "tau": 0.5}))
    shards = range(-(-config["worlds"][0]["test_concepts"] // config["finextract"]["shard_concepts"]))
    for recipe, shard, attack in product(config["finetune"], shards, config["finextract"]["attacks"]):
        world, method = recipe["world"], recipe["options"]["method"]
        path = folder / RESULTS / f"extraction/{world}/{method}/test{shard}/{attack}/matches.csv"
        path.parent.mkdir(parents=True)
        with open(path, "w", newline="") as handle:
            rows = [match(world, method, attack, f"{world}-{shard}-{concept}", image) for concept in range(2) for image in range(3)]
            table = csv.DictWriter(handle, rows[0])
            table.writeheader()
            table.writerows(rows)


def match(world, method, attack, concept, image):
    number = (len(attack) + 3 * image) % 7
    row = {"model_id": f"{concept}-{method}", "world": world, "base": "H1", "concept": concept, "method": method, "defence": "", "seed": 0}
    row |= {"attack": attack, "setting": "none" if attack == "direct" else "w=2", "image_id": f"{concept}-{image}", "extracted": 0.4 + number / 20}
    row |= {"match_file": "a.png", "match_size": 2, "oracle": 0.8, "random": 0.35, "heldout": 0.3, "n_extracted": 3, "threshold": 0.5}
    return row | {"n_generated": 30, "n_images": 3, "model_calls": 1200}


@pytest.fixture(scope="module")
def channels(tmp_path_factory):
    """A folder with a local channel named conda-forge that can satisfy envs/report.yaml."""
    folder = tmp_path_factory.mktemp("channels")
    names = [line.partition("=")[0] for line in ENVIRONMENT["dependencies"] if not line.startswith("python=")]
    done = subprocess.run([sys.executable, HERE / "channel.py", folder / "conda-forge", *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory, channels):
    made = Project(tmp_path_factory.mktemp("conda"), channels)
    made.output = made.snakemake()
    return made


def test_rules_run_inside_the_environment(project):
    """The environment was created once from the committed file, and the jobs saw its packages only: this Python has torch, theirs not."""
    assert project.output.count("Activating conda environment") == len(TARGETS)
    assert len(project.made()) == len(project.creations()) == 1
    assert importlib.util.find_spec("torch") is not None
    for target in TARGETS:
        versions = json.loads((project.folder / f"{target}.meta.json").read_text())["versions"]
        assert "torch" not in versions and "snakemake" not in versions
        assert versions["pandas"] == next(line.partition("=")[2] for line in ENVIRONMENT["dependencies"] if line.startswith("pandas="))


def test_a_second_run_does_nothing_and_creates_nothing(project):
    assert "Nothing to be done" in project.snakemake()
    assert len(project.creations()) == 1


def test_what_an_environment_does_not_list_is_not_there(channels, tmp_path):
    """Were the host's packages visible, this would pass, and a forgotten dependency would be found by the first stranger."""
    stripped = Project(tmp_path, channels)
    path = stripped.folder / "envs/report.yaml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "- pandas=" not in line and "- scipy=" not in line))
    assert "ModuleNotFoundError: No module named 'pandas'" in stripped.snakemake(fails=True)


def test_an_impossible_version_stops_the_run(channels, tmp_path):
    broken = Project(tmp_path, channels)
    path = broken.folder / "envs/report.yaml"
    path.write_text(path.read_text().replace("pandas=", "pandas=9"))
    assert "Could not create conda environment" in broken.snakemake(fails=True)


def test_pins_are_used_and_a_wrong_pin_is_noticed(project, channels, tmp_path):
    command = [project.conda / "bin/conda", "list", "--explicit", "--prefix", project.made()[0]]
    pins = subprocess.run(command, env=project.environment, capture_output=True, text=True, check=True).stdout
    for number, (text, used) in enumerate({pins: True, pins.replace("#", "#0", 1): False}.items()):
        pinned = Project(tmp_path / str(number), channels)
        (pinned.folder / "envs/report.linux-64.pin.txt").write_text(text)
        output = pinned.snakemake("--conda-create-envs-only")
        assert "pin.txt" in pinned.creations()[0]
        failed = "Failed to install conda environment from pin file" in output  # Snakemake then solves the yaml
        assert failed == (not used), output
        assert len(pinned.creations()) == (1 if used else 2)
