"""Fixtures of the unit tests of the report."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def report_study():
    """The module report_study.py beside this file (tests are imported by path, so it cannot be imported by name)."""
    specification = importlib.util.spec_from_file_location("report_study", Path(__file__).with_name("report_study.py"))
    module = importlib.util.module_from_spec(specification)
    sys.modules["report_study"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def study(report_study, tmp_path_factory):
    """A made-up study of two worlds, two methods and five attacks; read only."""
    return report_study.make(tmp_path_factory.mktemp("study"))
