"""The ImageSet: written, read back, filtered, and refused when it is not one."""

import numpy as np
import pandas as pd
import pytest

from tuneleak.data import imageset
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)


def rows():
    return [{"image_id": f"i{n}", "concept": "ab"[n // 2], "caption": "NA", "split": "tune", "fold": "PQ"[n % 2], "dose": str(n)} for n in range(4)]


def test_round_trip(tmp_path, pictures):
    written = imageset.write(tmp_path / "set", rows(), pictures)
    read = ImageSet.load(tmp_path / "set" / "manifest.csv")
    assert read.table.equals(written.table.astype(str)) and len(read) == 4
    assert tuple(read.table.columns) == (*imageset.COLUMNS, "dose")
    assert read.table.caption.tolist() == ["NA"] * 4  # a text, not a missing value
    assert np.array_equal(read.pixels(), pictures)
    assert read.table.sha256.tolist() == [imageset.pixel_digest(picture) for picture in pictures]


def test_where(tmp_path, pictures):
    images = imageset.write(tmp_path, rows(), pictures)
    assert images.where(concept="a", fold="Q").table.image_id.tolist() == ["i1"]
    assert images.where(fold=["P", "Q"]).table.image_id.tolist() == ["i0", "i1", "i2", "i3"]
    assert np.array_equal(images.where(fold="Q").pixels(), pictures[1::2])
    with pytest.raises(InputError, match="no picture"):
        images.where(concept="c").pixels()


def test_what_is_not_an_image_set_is_named(tmp_path, pictures):
    with pytest.raises(InputError, match=r"has no manifest\.csv"):
        ImageSet.load(tmp_path)
    imageset.write(tmp_path, rows(), pictures)
    manifest = tmp_path / "manifest.csv"
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table.drop(columns=["fold", "sha256"]).to_csv(manifest, index=False)
    with pytest.raises(InputError, match="lacks the columns fold, sha256"):
        ImageSet.load(tmp_path)
    table.assign(image_id="same").to_csv(manifest, index=False)
    with pytest.raises(InputError, match="'same' occurs twice"):
        ImageSet.load(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path, pictures):
    imageset.write(tmp_path / "set", rows(), pictures)
    manifest = tmp_path / "set" / "manifest.csv"
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    for name in ("../other.png", "/etc/passwd"):
        table.assign(file=name).to_csv(manifest, index=False)
        with pytest.raises(InputError, match="outside that folder"):
            ImageSet.load(tmp_path / "set").pixels()
    with pytest.raises(InputError, match="outside that folder"):
        imageset.write(tmp_path / "set", [{"image_id": "x", "concept": "../..", "caption": ""}], pictures[:1])


def test_pictures_of_several_sizes(tmp_path, pictures):
    images = imageset.write(tmp_path, rows()[:2], [pictures[0], pictures[1][:4]])
    with pytest.raises(InputError, match="several sizes"):
        images.pixels()


def test_a_write_that_is_cut_short_leaves_no_manifest(tmp_path, pictures):
    imageset.write(tmp_path, rows(), pictures)
    with pytest.raises(ValueError, match="zip"):
        imageset.write(tmp_path, rows(), pictures[:2])
    assert not (tmp_path / "manifest.csv").exists()


def test_tensors_and_back(pictures):
    torch = pytest.importorskip("torch")
    tensor = imageset.as_tensor(pictures)
    assert tensor.shape == (4, 3, 6, 6) and tensor.dtype == torch.float32 and tensor.min() >= -1 and tensor.max() <= 1
    assert imageset.as_tensor(np.full((1, 1, 1, 3), 255, np.uint8)).unique().tolist() == [1.0]
    assert np.array_equal(imageset.from_tensor(tensor), pictures)
    assert np.unique(imageset.from_tensor(torch.full((1, 3, 2, 2), 7.0))).tolist() == [255]
