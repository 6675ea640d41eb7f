"""Atomic writes, paths that stay inside, digests, and the sidecar."""

import hashlib
import json

import pandas as pd
import pytest

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.options import ImportOptions


def test_atomic_replaces_in_one_step_and_leaves_nothing_on_failure(tmp_path):
    target = tmp_path / "deep" / "table.csv"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError), files.atomic(target) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".csv" and temporary.parent == target.parent
        raise RuntimeError
    assert target.read_text() == "old" and [path.name for path in target.parent.iterdir()] == ["table.csv"]
    files.write_text(target, "new")
    assert target.read_text() == "new" and len(list(target.parent.iterdir())) == 1


def test_atomic_folder_replaces_the_whole_folder_or_nothing(tmp_path):
    target = tmp_path / "model"
    for content in ("a", "b"):
        with files.atomic_folder(target) as folder:
            (folder / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["b"]
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(target) as folder:
        (folder / "c").write_text("c")
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["b"] and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_inside_accepts_what_stays_inside(tmp_path):
    assert files.inside(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"
    assert files.inside(tmp_path, "a/../b.png").resolve() == (tmp_path / "b.png").resolve()
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert files.inside(tmp_path, "link/b.png") == tmp_path / "link" / "b.png"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "out/x", "loop/x", "nul\0x"])
def test_inside_refuses_what_leaves(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(InputError, match="outside that folder"):
        files.inside(folder, name)


def test_inside_refuses_an_absolute_path_even_into_the_folder(tmp_path):
    with pytest.raises(InputError, match="outside"):
        files.inside(tmp_path, str(tmp_path / "a.png"))


def test_json_faults_name_the_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        files.read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json: not valid JSON"):
        files.read_json(tmp_path / "broken.json")
    files.write_json(tmp_path / "good.json", {"b": "é", "a": [1]})
    assert files.read_json(tmp_path / "good.json") == {"a": [1], "b": "é"}


def test_csv_has_no_index_and_unix_lines(tmp_path):
    files.write_csv(tmp_path / "t.csv", pd.DataFrame({"a": [1], "b": ["x, y"]}))
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\n1,"x, y"\n'


def test_digests(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 1, "b": 3})
    assert len(files.digest([])) == 16


def test_sidecar_tells_how_a_file_was_made(tmp_path):
    files.write_meta(tmp_path / "out.csv", ImportOptions(size=32), seeds=[1, 2])
    meta = json.loads((tmp_path / "out.csv.meta.json").read_text())
    assert meta["options"]["size"] == 32 and meta["seeds"] == [1, 2]
    assert {"versions", "machine", "git", "wall_seconds", "peak_memory_bytes", "finished"} <= set(meta)
    assert meta["versions"]["numpy"] and meta["peak_memory_bytes"] > 1e6
