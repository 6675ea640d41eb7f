"""One set of versions: pyproject.toml's ranges, constraints.txt's pins, the conda environments, and what the code imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml", "open_clip": "open-clip-torch", "dicebear": "dicebear-core"}
CONDA = {"pytorch": "torch", "matplotlib-base": "matplotlib", "open-clip-torch": "open-clip-torch"}
NOT_OF_JOBS = {"snakemake", "psutil", "rocrate"}  # used beside the rules, never in them


def declared(extra=None):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def environment(name):
    """{package: version or None} of envs/<name>.yaml, its pip section included."""
    listed = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())["dependencies"]
    lines = [line for line in listed if isinstance(line, str)] + [line for part in listed if isinstance(part, dict) for line in part["pip"]]
    split = [re.split("==?", line) for line in lines]
    return {canonicalize_name(CONDA.get(words[0], words[0])): words[1] if len(words) > 1 else None for words in split}


def imported():
    """Third-party packages that src/ imports."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [item.name for item in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
    return {canonicalize_name(MODULES.get(name, name)) for name in found - set(sys.stdlib_module_names) - {"tuneleak"}}


def test_every_import_is_declared():
    assert imported() <= set(declared()), "declare it in pyproject.toml"


def test_every_pin_is_a_declared_dependency_within_its_range():
    known = declared() | declared("dev")
    for name, version in pins().items():
        assert name in known, f"constraints.txt pins {name}, which pyproject.toml does not declare"
        assert known[name].specifier.contains(version), f"{name}=={version} is outside of {known[name]}"
    assert set(known) <= set(pins()), "every direct dependency has a tested version"


def test_torch_is_a_range_and_what_draws_pixels_is_exact():
    assert str(declared()["torch"].specifier) == "<2.15,>=2.9"
    for name in ("dicebear-core", "dicebear-styles", "resvg-py"):
        assert [item.operator for item in declared()[name].specifier] == ["=="]


@pytest.mark.parametrize("name", ["models", "report"])
def test_conda_environments_hold_the_tested_versions(name):
    for package, version in environment(name).items():
        if package in pins():
            assert version == pins()[package], f"envs/{name}.yaml: {package}"
        else:
            assert package in {"python", "pip"}, f"envs/{name}.yaml: {package} is not in constraints.txt"


def test_the_models_environment_has_everything_the_code_imports():
    assert imported() - NOT_OF_JOBS <= set(environment("models"))


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.pin.txt")))
def test_a_pin_file_names_every_package_of_its_environment(path):
    found = dict(re.findall(r"/([^/]+)-([^-/]+)-[^-/]+\.(?:conda|tar\.bz2)", path.read_text()))
    for line in yaml.safe_load((ROOT / f"envs/{path.name.split('.')[0]}.yaml").read_text())["dependencies"]:
        if isinstance(line, str):
            name, _, version = line.partition("=")
            assert found.get(name, "").startswith(version), f"{path.name}: {name}"


def test_what_conda_does_not_hold_is_installed_after_a_pin_file_too():
    """Snakemake makes an environment from its pin file alone, without the part for pip, and then runs its post-deploy script."""
    (listed,) = (part["pip"] for part in yaml.safe_load((ROOT / "envs/models.yaml").read_text())["dependencies"] if isinstance(part, dict))
    script = (ROOT / "envs/models.post-deploy.sh").read_text()
    assert sorted(re.findall(r"[\w-]+==[\w.]+", script)) == sorted(listed)
    assert not any(isinstance(part, dict) for part in yaml.safe_load((ROOT / "envs/report.yaml").read_text())["dependencies"])


def test_the_container_installs_the_tex_that_the_makefile_names():
    tex = re.search(r"^TEX = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(tex) <= set((ROOT / "Dockerfile").read_text().split())
