"""Fixtures shared by unit tests: a made-up study for the report, and tiny pipelines of several architectures."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def report_study():
    """The module report_study.py beside this file (tests are imported by path, so it cannot be imported by name)."""
    return _beside("report_study")


def _beside(name):
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def study(report_study, tmp_path_factory):
    """A made-up study of two worlds, two methods and five attacks; read only."""
    return report_study.make(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def tiny():
    """The module tiny_architectures.py beside this file: `tiny.build(name, folder)`."""
    return _beside("tiny_architectures")
