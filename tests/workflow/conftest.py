"""Copies of the project in temporary folders, and Snakemake run in them."""

import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config.yaml", "workflow", "src", "envs", "paper", "resources")


@dataclass(frozen=True)
class Clone:
    """A copy of the project: its code and workflow can be edited, its results deleted."""

    folder: Path

    def command(self, *arguments, cores=2):
        return [sys.executable, "-m", "snakemake", "--cores", str(cores), *map(str, arguments)]

    def snakemake(self, *arguments, cores=2, fails=False, **environment):
        """Run Snakemake to its end; returns the process with its whole output in `.stdout` and the processor seconds it took in `.seconds`."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = self.command(*arguments, cores=cores)
        done = subprocess.run(command, cwd=self.folder, env=self.environment(**environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        done.seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert (done.returncode != 0) == fails, done.stdout[-8000:]
        return done

    def tuneleak(self, *arguments):
        """Run one verb of the clone's own code."""
        done = subprocess.run([sys.executable, "-m", "tuneleak", *map(str, arguments)], cwd=self.folder, env=self.environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    def environment(self, **changes):
        """This process's environment with the clone's code first, and without what a test runner or an outer workflow put there."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TUNELEAK_", "SNAKEMAKE_"))}
        return {**kept, "PYTHONPATH": str(self.folder / "src"), **changes}

    def overlay(self, text):
        """Write a configuration overlay; returns its path."""
        path = self.folder / "overlay.yaml"
        path.write_text(text)
        return path


def make_clone(folder, *parts):
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts or PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            shutil.copy2(source, folder / part)
    return Clone(folder)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """One copy of the project for a module's tests; they must not edit its code."""
    return make_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture
def mini(tmp_path):
    """`mini(rules)`: a copy with the project's common.smk and these rules only."""

    def build(rules):
        made = make_clone(tmp_path / "mini", "config.yaml", "workflow", "src")
        (made.folder / "Snakefile").write_text(f'configfile: "config.yaml"\ninclude: "workflow/rules/common.smk"\n{rules}\n')
        return made

    return build
