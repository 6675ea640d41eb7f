"""Folders, metadata tables and hub data sets as ImageSets, and every kind of odd picture."""

import io
import json
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tuneleak.data import importing
from tuneleak.data.imageset import ImageSet
from tuneleak.data.pictures import read_square
from tuneleak.errors import InputError
from tuneleak.options import ImportOptions

SMALL = ImportOptions(size=8)
LENIENT = ImportOptions(size=8, skip_broken=True)


def picture(path, colour=(200, 30, 30), size=(12, 10), **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **save)
    return path


def png(colour=(9, 9, 9)):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def run(source, tmp_path, options=SMALL):
    importing.import_images(source, tmp_path / "out", options)
    return ImageSet.load(tmp_path / "out").table


def two_concepts(root, n=5):
    for concept in ("cat", "dog"):
        for number in range(n):
            picture(root / concept / f"{number:02d}.png", (10 * number, 0, 100 if concept == "cat" else 200))
    return root


def test_class_folders(tmp_path):
    table = run(two_concepts(tmp_path / "in"), tmp_path)
    assert table.concept.tolist() == ["cat"] * 5 + ["dog"] * 5
    assert table.image_id[0] == "cat-00" and table.source[0] == "cat/00.png"
    assert set(table.fold) == {"train"} and set(table.split) == {"test"}
    assert ImageSet.load(tmp_path / "out").pixels().shape == (10, 8, 8, 3)
    meta = json.loads((tmp_path / "out" / "manifest.csv.meta.json").read_text())
    assert (meta["pictures"], meta["concepts"], meta["skipped"], meta["layout"]) == (10, 2, 0, "folders")
    assert meta["options"]["size"] == 8


def test_flat_folder_is_one_concept_with_the_caption_template(tmp_path):
    picture(tmp_path / "claude monet" / "lilies.jpg")
    table = run(tmp_path / "claude monet", tmp_path, ImportOptions(size=8, caption="a painting by {concept}"))
    assert table.concept.tolist() == ["claude-monet"]
    assert table.caption.tolist() == ["a painting by claude monet"]


@pytest.mark.parametrize("prefix", ["", "dataset/", "train/", "data/test/"])
def test_concept_is_the_first_level_that_branches(tmp_path, prefix):
    picture(tmp_path / "in" / prefix / "anna" / "photos" / "0.png")
    picture(tmp_path / "in" / prefix / "ben" / "photos" / "0.png")
    assert run(tmp_path / "in", tmp_path).concept.tolist() == ["anna", "ben"]


def test_train_and_test_folders_of_one_class_are_one_concept(tmp_path):
    for part in ("train", "test"):
        for concept in ("anna", "ben"):
            picture(tmp_path / "in" / part / concept / "0.png")
    table = run(tmp_path / "in", tmp_path)
    assert table.concept.value_counts().to_dict() == {"anna": 2, "ben": 2}
    assert table.image_id.tolist() == ["anna-0", "anna-0-2", "ben-0", "ben-0-2"]


def test_a_published_split_becomes_the_folds(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for number in range(count):
            picture(tmp_path / "in" / part / "anna" / f"train-{number}.png", (number, 0, 9 if part == "train" else 200))
    table = run(tmp_path / "in", tmp_path, ImportOptions(size=8, published_split=True, train_per_concept=1))
    assert table.groupby(table.source.str.split("/").str[0]).fold.unique().map(list).to_dict() == {"train": ["train"], "test": ["heldout"]}
    picture(tmp_path / "flat" / "anna" / "train-0.png")
    with pytest.raises(InputError, match="no folder, and in no parquet file, named train or test"):
        run(tmp_path / "flat", tmp_path / "flat-out", ImportOptions(size=8, published_split=True))


@pytest.mark.parametrize(
    ("name", "fold"),
    [
        ("data/train-00000-of-00001.parquet#3", "train"),
        ("data/test-00000.parquet#0", "heldout"),
        ("validation/a/b.png", "heldout"),
        ("Training/a/b.png", "train"),
    ],
)
def test_the_published_fold_of_a_name(name, fold):
    assert importing._published_fold(name) == fold


def test_loose_pictures_beside_class_folders_are_refused(tmp_path):
    two_concepts(tmp_path / "in")
    picture(tmp_path / "in" / "loose.png")
    with pytest.raises(InputError, match=r"loose\.png"):
        run(tmp_path / "in", tmp_path)


def test_folds_and_splits_are_drawn_by_seed(tmp_path):
    source = two_concepts(tmp_path / "in", 10)
    draws = []
    for number, seed in enumerate([0, 0, 1, 2]):
        out = tmp_path / f"out{number}"
        importing.import_images(source, out, ImportOptions(size=8, train_per_concept=4, tune_concepts=1, seed=seed))
        table = ImageSet.load(out).table
        assert table[table.fold == "train"].concept.value_counts().to_dict() == {"cat": 4, "dog": 4}
        assert table.groupby("concept").split.nunique().eq(1).all() and table.groupby("split").concept.nunique().to_dict() == {"test": 1, "tune": 1}
        draws.append(tuple(table[table.fold == "train"].image_id))
    assert draws[0] == draws[1] and len({draws[0], draws[2], draws[3]}) > 1


def test_draw_is_uniform_and_independent_of_order():
    names = [f"n{i}" for i in range(10)]
    assert importing.draw(names, 3, 5) == importing.draw(names[::-1], 3, 5)
    counts = np.sum([[name in importing.draw(names, 3, seed) for name in names] for seed in range(2000)], axis=0)
    assert np.all(np.abs(counts - 600) < 5 * np.sqrt(2000 * 0.3 * 0.7))  # 5 standard deviations


def test_import_twice_gives_the_same_bytes(tmp_path):
    source = two_concepts(tmp_path / "in")
    importing.import_images(source, tmp_path / "a", SMALL)
    importing.import_images(source, tmp_path / "b", SMALL)
    importing.import_images(source, tmp_path / "b", SMALL)  # over its own output
    assert (tmp_path / "a" / "manifest.csv").read_bytes() == (tmp_path / "b" / "manifest.csv").read_bytes()


def test_more_tune_concepts_than_concepts(tmp_path):
    with pytest.raises(InputError, match="tune_concepts is 3, but there are only 2"):
        run(two_concepts(tmp_path / "in"), tmp_path, ImportOptions(size=8, tune_concepts=3))


def test_unknown_caption_placeholder(tmp_path):
    with pytest.raises(InputError, match=r"\{name\}"):
        run(two_concepts(tmp_path / "in"), tmp_path, ImportOptions(size=8, caption="{name}"))


def test_metadata_table(tmp_path):
    picture(tmp_path / "in" / "b.png")
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "unlisted.png")
    (tmp_path / "in" / "metadata.csv").write_text('file_name,text,label,more\nb.png,"a cat, lying",Cat,1\na.png,,Dog,2\n', encoding="utf-8-sig")
    table = run(tmp_path / "in", tmp_path, ImportOptions(size=8, caption="my {concept}"))
    assert table[["concept", "caption", "source"]].values.tolist() == [["Cat", "a cat, lying", "b.png"], ["Dog", "my Dog", "a.png"]]
    meta = json.loads((tmp_path / "out" / "manifest.csv.meta.json").read_text())
    assert meta["unlisted_pictures"] == 1 and meta["columns"] == {"concept": "label", "caption": "text"}


def test_the_order_of_a_metadata_table_plays_no_part(tmp_path):
    for name in "abc":
        picture(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "metadata.csv").write_text("file_name\nb.png\na.png\nc.png\n")
    table = run(tmp_path / "in", tmp_path)
    assert table.source.tolist() == ["a.png", "b.png", "c.png"] and set(table.concept) == {"in"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("path,text\na.png,x\n", "file_name"),
        ("file_name\na.png\na.png\n", "twice"),
        ("file_name\nmissing.png\n", r"missing\.png: does not exist"),
        ("file_name\n../secret.png\n", r"secret\.png: is a link or path that leaves"),
        ("file_name\n/etc/passwd\n", "passwd: is a link or path that leaves"),
        ("file_name,label\na.png,..\n", r"the concept '\.\.'"),
        ("", "CSV"),
    ],
)
def test_bad_metadata_is_named(tmp_path, content, named):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "secret.png")
    (tmp_path / "in" / "metadata.csv").write_text(content)
    with pytest.raises(InputError, match=named):
        run(tmp_path / "in", tmp_path)


def test_concept_names_become_folder_names():
    assert importing.folder_name("van Gogh / Vincent\\x") == "van-Gogh-Vincent-x"
    assert [importing.folder_name(name) for name in ("..", ".", "/", " ", "")] == [""] * 5
    assert importing.folder_name("../../etc") == "etc"
    assert importing.folder_name("Cafe\u0301") == "Caf\u00e9"
    assert len(importing.folder_name("\u00e9" * 500).encode()) == 120


def test_concepts_that_would_share_a_folder_are_refused(tmp_path):
    picture(tmp_path / "in" / "a b" / "0.png")
    picture(tmp_path / "in" / "a-b" / "0.png")
    with pytest.raises(InputError, match="share the folder name 'a-b'"):
        run(tmp_path / "in", tmp_path)


def test_names_from_anywhere(tmp_path):
    names = ["été.png", "猫.png", "sp ace;semi.png", "x.png", "x.jpg", "X.png"]
    for name in names:
        picture(tmp_path / "in" / "猫" / name)
    (tmp_path / "in" / "猫" / ".hidden.png").write_bytes(b"")
    picture(tmp_path / "plain.png")
    os.rename(os.fsencode(tmp_path / "plain.png"), os.path.join(os.fsencode(tmp_path / "in" / "猫"), b"latin\xe9.png"))
    table = run(tmp_path / "in", tmp_path)
    assert len(table) == 7 and table.image_id.str.casefold().is_unique and not table.image_id.str.contains("[; ]").any()
    assert set(table.image_id) >= {"猫-猫", "猫-été", "猫-sp-ace-semi"}
    assert all((tmp_path / "out" / name).is_file() for name in table.file)


def test_names_stay_apart_where_case_is_ignored(tmp_path):
    for path in ("a/x.png", "b/X.png"):
        picture(tmp_path / "in" / "cat" / path)
        picture(tmp_path / "in" / "dog" / path)
    assert run(tmp_path / "in", tmp_path).image_id.tolist() == ["cat-x", "cat-X-2", "dog-x", "dog-X-2"]


def odd(tmp_path):
    """One broken file of each kind; returns {name: word of the reason}."""
    folder = tmp_path / "in" / "cat"
    picture(folder / "good.png")
    (folder / "zero.png").write_bytes(b"")
    (folder / "words.jpg").write_text("not a picture")
    whole = picture(folder / "truncated.jpg", size=(200, 200)).read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    picture(folder / "huge.png", size=(400, 300))
    (folder / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    picture(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    Image.fromarray(np.ones((9, 9), np.float32)).save(folder / "float.tif")
    reasons = {"zero.png": "empty", "words.jpg": "not a picture", "truncated.jpg": "broken", "huge.png": "120000|400 x 300", "program.png": "not a picture"}
    reasons |= {"link.png": "leaves the folder", "dangling.png": "does not exist", "self.png": "leaves the folder", "float.tif": "floating-point"}
    return {f"cat/{name}": reason for name, reason in reasons.items()} | {"linked": "link to a folder"}


def test_skip_broken_lists_each_file_with_its_reason(tmp_path):
    reasons = odd(tmp_path)
    table = run(tmp_path / "in", tmp_path, LENIENT.model_copy(update={"max_pixels": 50_000}))
    assert table.source.tolist() == ["cat/good.png"]
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert set(skipped.file) == set(reasons)
    for file, reason in zip(skipped.file, skipped.reason, strict=True):
        assert pd.Series([reason]).str.contains(reasons[file]).all(), (file, reason)


def test_without_skip_broken_the_file_is_named_and_no_manifest_is_left(tmp_path):
    two_concepts(tmp_path / "in")
    importing.import_images(tmp_path / "in", tmp_path / "out", LENIENT)
    (tmp_path / "in" / "dog" / "03.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"dog/03\.png: is empty.*--skip-broken"):
        run(tmp_path / "in", tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.endswith(".tmp")) == []
    (tmp_path / "in" / "dog" / "03.png").unlink()
    assert len(run(tmp_path / "in", tmp_path)) == 9
    assert not (tmp_path / "out" / "skipped.csv").exists()


def test_nothing_usable(tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no pictures"):
        run(tmp_path / "in", tmp_path)
    (tmp_path / "in" / "cat" / "0.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"it holds 1 \.heic"):
        run(tmp_path / "in", tmp_path)
    (tmp_path / "in" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of its 1 pictures can be used; the first: cat/0\.png is empty"):
        run(tmp_path / "in", tmp_path, LENIENT)


def test_folders_that_are_refused(tmp_path):
    source = two_concepts(tmp_path / "in")
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path)
    with pytest.raises(InputError, match="unpack"):
        run(source / "cat" / "00.png", tmp_path)
    for out in (source / "out", tmp_path, source):
        with pytest.raises(InputError, match="inside each other"):
            importing.import_images(source, out, SMALL)
    picture(tmp_path / "holiday" / "mine.png")
    with pytest.raises(InputError, match="not an image set"):
        importing.import_images(source, tmp_path / "holiday", SMALL)
    assert (tmp_path / "holiday" / "mine.png").exists()


def test_a_source_that_is_itself_a_link(tmp_path):
    two_concepts(tmp_path / "real")
    (tmp_path / "in").symlink_to(tmp_path / "real")
    assert len(run(tmp_path / "in", tmp_path)) == 10


def centre(path, size=8):
    return read_square(path, size, 10**8)[size // 2, size // 2].tolist()


def test_colour_modes(tmp_path):
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    assert np.allclose(centre(tmp_path / "cmyk.jpg"), [255, 0, 0], atol=3)
    Image.fromarray(np.full((9, 9), 32896, np.uint16)).save(tmp_path / "deep.png")  # 32896 = 128 * 257
    assert centre(tmp_path / "deep.png") == [128, 128, 128]
    Image.fromarray(np.full((9, 9), 32896, np.uint16)).save(tmp_path / "deep.tif")
    assert centre(tmp_path / "deep.tif") == [128, 128, 128]
    Image.fromarray(np.full((9, 9), 257 * 220 + 100, np.uint16)).save(tmp_path / "deep.png")
    assert centre(tmp_path / "deep.png") == [220, 220, 220]
    Image.new("L", (9, 9), 77).save(tmp_path / "grey.png")
    assert centre(tmp_path / "grey.png") == [77, 77, 77]
    Image.new("1", (9, 9), 1).save(tmp_path / "bit.png")
    assert centre(tmp_path / "bit.png") == [255, 255, 255]
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert centre(tmp_path / "clear.png") == [255, 255, 255]
    Image.new("LA", (9, 9), (0, 128)).save(tmp_path / "half.png")
    assert np.allclose(centre(tmp_path / "half.png"), 127, atol=1)
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    assert centre(tmp_path / "palette.png") == [10, 20, 30]
    palette.save(tmp_path / "hole.png", transparency=1)
    assert centre(tmp_path / "hole.png") == [255, 255, 255]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if name == "a.webp" else {}))
        with Image.open(tmp_path / name) as animation:
            assert animation.n_frames == 2
        assert centre(tmp_path / name) == [255, 0, 0]
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])  # as some telephones store JPEG
    assert np.allclose(centre(tmp_path / "phone.jpg"), [255, 0, 0], atol=3)


def test_exif_rotation(tmp_path):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[0] = 255  # white line at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: the viewer turns it clockwise
    Image.fromarray(np.rot90(upright, 1)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_square(tmp_path / "turned.png", 8, 10**8), upright)


def test_shorter_side_then_centre_crop(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200  # exactly the centre square is light
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "high.png")
    for name in ("wide.png", "high.png"):
        square = read_square(tmp_path / name, 8, 10**8)
        assert square.shape == (8, 8, 3) and np.all(square[2:-2, 2:-2] > 190)
    # the same as the literal recipe: resize the shorter side, then crop
    noise = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    literal = np.asarray(Image.fromarray(noise).resize((16, 8), Image.Resampling.LANCZOS))[:, 4:12]
    assert np.abs(read_square(tmp_path / "noise.png", 8, 10**8).astype(int) - literal).max() <= 1


def test_a_crop_of_the_centre_comes_before_the_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert np.array_equal(read_square(tmp_path / "noise.png", 8, 10**8, crop=8), noise[16:24, 26:34])
    assert np.array_equal(read_square(tmp_path / "noise.png", 7, 10**8, crop=7), noise[16:23, 26:33])  # of whole pixels
    with pytest.raises(InputError, match="60 x 40 pixels, too few for a crop of 41"):
        read_square(tmp_path / "noise.png", 8, 10**8, crop=41)


def test_reduction_is_antialiased_and_a_very_long_picture_stays_cheap(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    assert np.abs(read_square(tmp_path / "board.png", 8, 10**8)[2:-2, 2:-2].astype(int) - 127).max() < 8
    Image.new("L", (200_000, 1), 50).save(tmp_path / "long.png")
    assert centre(tmp_path / "long.png", 64) == [50, 50, 50]


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="12000 x 12000 pixels"):
        read_square(tmp_path / "bomb.png", 8, 10**8)
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None


def parquet(path, columns, names=None):
    """A shard as the hub stores it: pictures as {bytes, path}, class names in the schema's `huggingface` entry."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if names:
        features = {column: {"names": labels, "_type": "ClassLabel"} for column, labels in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_hub_data_set_with_class_names(tmp_path):
    root = tmp_path / "cifar10"
    for shard, labels in (("train", [1, 0, 1]), ("test", [0])):
        images = [{"bytes": png((label * 90, 0, i)), "path": None} for i, label in enumerate(labels)]
        parquet(root / "plain_text" / f"{shard}-00000-of-00001.parquet", {"img": images, "label": labels}, {"label": ["airplane", "automobile"]})
    table = run(root, tmp_path, ImportOptions(size=8, caption="a photo of an {concept}"))
    assert table.concept.tolist() == ["airplane"] * 2 + ["automobile"] * 2
    assert table.source[0] == "plain_text/test-00000-of-00001.parquet#0" and table.image_id[0] == "airplane-000000"
    assert table.caption[3] == "a photo of an automobile"
    assert ImageSet.load(tmp_path / "out").pixels()[3, 4, 4].tolist() == [90, 0, 2]


def test_hub_data_set_with_identities_paths_and_readme_names(tmp_path):
    images = [{"bytes": png(), "path": f"{name}.jpg"} for name in ("b", "a")]
    parquet(tmp_path / "celeba" / "data" / "x.parquet", {"image": images, "celeb_id": [17, 3], "text": ["hi", None]})
    table = run(tmp_path / "celeba", tmp_path)
    assert table[["image_id", "concept", "caption"]].values.tolist() == [["17-b", "17", "hi"], ["3-a", "3", "3"]]
    parquet(tmp_path / "wikiart" / "data" / "x.parquet", {"image": images, "artist": [1, 0]})
    header = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: artist\n    dtype:\n      class_label:\n        names:\n"
    (tmp_path / "wikiart" / "README.md").write_text(header + "          '0': Unknown Artist\n          '1': claude-monet\n---\n# text\n")
    importing.import_images(tmp_path / "wikiart", tmp_path / "out2", SMALL)
    assert ImageSet.load(tmp_path / "out2").table.concept.tolist() == ["Unknown-Artist", "claude-monet"]


def test_hub_data_set_faults(tmp_path):
    images = [{"bytes": png(), "path": None}, {"bytes": None, "path": "../out.png"}, {"bytes": b"", "path": None}, {"bytes": png(), "path": None}]
    parquet(tmp_path / "in" / "a.parquet", {"image": images, "label": [0, 0, 0, 7]}, {"label": ["zero"]})
    table = run(tmp_path / "in", tmp_path, LENIENT)
    assert table.source.tolist() == ["a.parquet#0"]
    assert pd.read_csv(tmp_path / "out" / "skipped.csv").file.tolist() == ["a.parquet#1", "a.parquet#2", "a.parquet#3"]
    with pytest.raises(InputError, match=r"a\.parquet#1: names the file '\.\./out\.png'"):
        run(tmp_path / "in", tmp_path)
    parquet(tmp_path / "in" / "b.parquet", {"image": images[:1], "style": [0]})
    with pytest.raises(InputError, match="different columns"):
        run(tmp_path / "in", tmp_path)
    parquet(tmp_path / "none" / "b.parquet", {"scan": images[:1]})
    with pytest.raises(InputError, match="no column of pictures"):
        run(tmp_path / "none", tmp_path)
    (tmp_path / "none" / "b.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match=r"b\.parquet: not a readable parquet"):
        run(tmp_path / "none", tmp_path)
