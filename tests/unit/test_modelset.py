import pytest

from tuneleak.errors import InputError
from tuneleak.models import modelset


def row(name, **values):
    return {
        "model_id": name, "world": "w", "base": "H1", "concept": "Ada", "method": "lora", "seed": 0, "step": 12, "caption": "a, \"b\"",
        "n_images": 2, "images": "x;y", "file": name, **values,
    }  # fmt: skip


def test_a_written_set_reads_back_as_strings_in_order(tmp_path):
    modelset.write(tmp_path, [row("b"), row("a", concept="Bob", rank=4)])
    read = modelset.ModelSet.load(tmp_path)
    assert list(read.table.columns[: len(modelset.COLUMNS)]) == list(modelset.COLUMNS)
    assert [item["model_id"] for item in read.rows()] == ["b", "a"]
    assert read.rows()[0]["caption"] == 'a, "b"' and read.rows()[0]["defence"] == "" and read.rows()[0]["step"] == "12"
    assert modelset.image_ids(read.rows()[0]) == ["x", "y"]
    assert len(modelset.ModelSet.load(tmp_path / "manifest.csv").where(concept="Bob")) == 1


def test_no_manifest_missing_column_and_duplicates_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.csv"):
        modelset.ModelSet.load(tmp_path)
    modelset.write(tmp_path, [row("a"), row("a")])
    with pytest.raises(InputError, match="occurs twice"):
        modelset.ModelSet.load(tmp_path)
    (tmp_path / "manifest.csv").write_text("model_id,world\na,w\n")
    with pytest.raises(InputError, match="lacks the columns base"):
        modelset.ModelSet.load(tmp_path)


@pytest.mark.parametrize("file", ["../elsewhere", "/etc"])
def test_a_model_outside_the_folder_is_refused(tmp_path, file):
    (tmp_path / "elsewhere").mkdir()
    made = modelset.write(tmp_path / "set", [row("a", file=file)])
    with pytest.raises(InputError, match="outside"):
        made.path(made.rows()[0])


def test_a_model_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    made = modelset.write(tmp_path / "set", [row("a")])
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="outside"):
        made.path(made.rows()[0])


def test_model_ids_are_safe_folder_names():
    assert modelset.model_id("world", "Impressionism claude_monet", "lora", "s0") == "world-Impressionism-claude-monet-lora-s0"
    assert modelset.model_id("w", "../../x", "lora") == "w-x-lora"
