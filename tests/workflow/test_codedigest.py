"""The digest that makes rules run again when the code they import changes."""

import re
import shutil
from pathlib import Path

import pytest

from tuneleak.codedigest import SOURCES, attack_modules, code_digest, reachable
from tuneleak.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sources(tmp_path):
    """A small package: stage -> helper (imported inside a function) -> far; other stands apart."""
    package = tmp_path / "tuneleak"
    for name, text in {
        "__init__.py": "",
        "options.py": "KNOBS = 1\n",
        "sub/__init__.py": "",
        "sub/stage.py": "import json\nfrom tuneleak.options import KNOBS\n\ndef run():\n    from tuneleak.sub import helper\n",
        "sub/helper.py": "import tuneleak.far as far\n",
        "far.py": "VALUE = 1\n",
        "other.py": "VALUE = 1\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return tmp_path


def edit(sources, name):
    path = sources / "tuneleak" / name
    path.write_text(path.read_text() + "# edited\n")


def test_follows_imports_inside_functions_and_parent_packages(sources):
    assert reachable("tuneleak.sub.stage", sources) == {"tuneleak", "tuneleak.sub", "tuneleak.sub.stage", "tuneleak.sub.helper", "tuneleak.far"}


@pytest.mark.parametrize("name", ["sub/stage.py", "sub/helper.py", "far.py", "sub/__init__.py"])
def test_changes_with_a_module_however_far_away(sources, name):
    before = code_digest("tuneleak.sub.stage", sources=sources)
    edit(sources, name)
    assert code_digest("tuneleak.sub.stage", sources=sources) != before


@pytest.mark.parametrize("name", ["other.py", "options.py"])
def test_does_not_change_with_anything_else(sources, name):
    before = code_digest("tuneleak.sub.stage", sources=sources)
    edit(sources, name)
    assert code_digest("tuneleak.sub.stage", sources=sources) == before


def test_follows_an_import_that_an_edit_adds(sources):
    edit(sources, "sub/stage.py")
    code_digest("tuneleak.sub.stage", sources=sources)
    (sources / "tuneleak/sub/stage.py").write_text("import tuneleak.other\n")
    before = code_digest("tuneleak.sub.stage", sources=sources)
    edit(sources, "other.py")
    assert code_digest("tuneleak.sub.stage", sources=sources) != before


def test_does_not_depend_on_the_place_of_the_package(sources, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(sources / "tuneleak", moved / "tuneleak")
    assert code_digest("tuneleak.sub.stage", sources=moved) == code_digest("tuneleak.sub.stage", sources=sources)


def test_refuses_what_it_cannot_follow(sources):
    (sources / "tuneleak/sub/helper.py").write_text("from . import stage\n")
    with pytest.raises(InputError, match=r"helper\.py:1: relative import"):
        code_digest("tuneleak.sub.stage", sources=sources)
    with pytest.raises(InputError, match=r"no module tuneleak\.nowhere"):
        code_digest("tuneleak.nowhere", sources=sources)


def test_an_attack_stands_for_itself():
    """The runner finds attacks by name, so that no attack is part of another's digest."""
    names = sorted(path.stem for path in (SOURCES / "tuneleak/attacks/extraction").glob("*.py"))
    assert {"direct", "cfg", "finextract", "finextract_unconditional", "base"} <= set(names)
    runner, own = attack_modules("extraction", "finextract-unconditional")
    assert own == "tuneleak.attacks.extraction.finextract_unconditional"
    assert not {f"tuneleak.attacks.extraction.{name}" for name in ("direct", "cfg", "finextract", "finextract_unconditional", "base")} & reachable(runner)


def test_every_rule_that_runs_code_has_a_digest_of_it():
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            if "shell:" in rule:
                assert re.search(r"^        code=(code\(|\w+_code\b)", rule, re.MULTILINE), f"{path.name}: rule {rule.split(':')[0]} lacks a code param"


def test_the_workflow_never_starts_the_digest_at_the_command_line():
    """Every verb would be part of every rule."""
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for module in re.findall(r'code\("([^"]+)"', path.read_text()):
            assert "tuneleak.cli" not in reachable(module)
