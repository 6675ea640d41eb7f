"""Folders of pictures from strangers."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

RANDOM = np.random.default_rng(0)
NOISE = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))


def encoded(format, **options):
    buffer = io.BytesIO()
    NOISE.save(buffer, format, **options)
    return buffer.getvalue()


def half(format, **options):
    data = encoded(format, **options)
    return data[: len(data) // 2]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *chunks, depth=8, colour=2):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def text_bomb():
    """A compressed text chunk that unfolds to 100 MB before the picture itself."""
    return png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 100_000_000, 9)), chunk(b"IDAT", zlib.compress(bytes(8 * 25))))


PICTURES = {
    "empty": (b"", "is empty"),
    "one-byte": (b"\x89", "not a picture"),
    "words": (b"not a picture at all\n", "not a picture"),
    "html": (b"<!doctype html><title>404</title>", "not a picture"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', "not a picture"),
    "pdf": (b"%PDF-1.4\n1 0 obj\n", "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(trace) (w) file closefile\n", "not a picture"),
    "zip": (b"PK\x03\x04" + bytes(60), "not a picture"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "not a picture"),
    "lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not a picture"),
    "png-signature-only": (b"\x89PNG\r\n\x1a\n", "broken|not a picture"),
    "png-half": (half("PNG"), "broken"),
    "png-no-pixels": (png(8, 8), "broken"),
    "png-of-no-size": (png(0, 0), "broken|not a picture"),
    "png-bad-checksum": (encoded("PNG")[:40] + b"\xff\xff" + encoded("PNG")[42:], "broken"),
    "png-bomb": (png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(1000)))), "max_pixels"),
    "png-largest-bomb": (png(2**31 - 1, 2**31 - 1), "max_pixels|broken"),
    "png-text-bomb": (text_bomb(), "broken"),
    "png-huge-chunk": (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR" + bytes(25), "broken|not a picture"),
    "jpeg-half": (half("JPEG"), "broken"),
    "jpeg-header-only": (encoded("JPEG")[:20], "broken|not a picture"),
    "jpeg-bomb": (encoded("JPEG").replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 65_000, 65_000), 1), "max_pixels"),
    "gif-half": (half("GIF"), "broken"),
    "gif-without-frames": (b"GIF89a\x08\x00\x08\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff;", "broken|not a picture"),
    "webp-half": (half("WEBP", lossless=True), "broken"),
    "bmp-half": (half("BMP"), "broken"),
    "bmp-bomb": (b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0), "max_pixels"),
    "tiff-half": (half("TIFF"), "broken|not a picture"),
    "tiff-loop": (b"II*\x00\x08\x00\x00\x00\x01\x00\x00\x01\x03\x00\x01\x00\x00\x00\x08\x00\x00\x00\x08\x00\x00\x00", "broken|not a picture"),
    "ppm-without-pixels": (b"P6 64 64 255\n", "broken"),
    "ppm-minus": (b"P6 -8 8 255\n", "broken|not a picture"),
    "float-pixels": (None, "floating-point"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, refused, tmp_path):
    data, says = PICTURES[name]
    if data is None:
        buffer = io.BytesIO()
        Image.fromarray(np.ones((9, 9), np.float32)).save(buffer, "TIFF")
        data = buffer.getvalue()
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "a.png").write_bytes(data)
    refused("import-images", "--source", tmp_path / "in", "--out", tmp_path / "out", says=says)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_a_pickle_named_png_is_not_opened(refused, tmp_path, payload):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(payload)
    refused("import-images", "--source", tmp_path / "in", "--out", tmp_path / "out", says="not a picture")


def _linked(folder, outside):
    (folder / "cat" / "a.png").symlink_to(outside)


def _looped(folder, outside):
    (folder / "cat" / "a.png").symlink_to("a.png")


def _device(folder, outside):
    (folder / "cat" / "a.png").symlink_to("/dev/zero")


def _pipe(folder, outside):
    os.mkfifo(folder / "cat" / "a.png")


def _folder(folder, outside):
    (folder / "cat" / "a.png").mkdir()


def _linked_folder(folder, outside):
    (folder / "dog").symlink_to(outside.parent)


def _table(text):
    def write(folder, outside):
        (folder / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.format(outside=outside).encode())

    return write


LAYOUTS = {
    "link-out": (_linked, "leaves the folder"),
    "link-to-itself": (_looped, "leaves the folder"),
    "link-to-a-device": (_device, "leaves the folder"),
    "pipe": (_pipe, "not a file"),
    "folder-named-png": (_folder, "no pictures"),
    "linked-folder": (_linked_folder, "link to a folder"),
    "table-empty": (_table(""), "cannot be read as a UTF-8 CSV"),
    "table-binary": (_table(b"\xff\xfe\x00file_name"), "cannot be read as a UTF-8 CSV|needs a column"),
    "table-of-something-else": (_table("a,b\n1,2\n"), "needs a column file_name"),
    "table-climbs-out": (_table("file_name\n../outside.png\n"), "leaves the folder"),
    "table-absolute": (_table("file_name\n{outside}\n"), "leaves the folder"),
    "table-nul": (_table(b"file_name\na\0b.png\n"), "leaves the folder|does not exist|cannot be read"),
    "table-missing-file": (_table("file_name\nnowhere.png\n"), "does not exist"),
    "table-twice": (_table("file_name\na.png\na.png\n"), "twice"),
    "table-concept-of-dots": (_table("file_name,concept\ncat/good.png,..\n"), "cannot be a folder's name"),
    "table-ragged": (_table("file_name,concept\na.png,x,y,z,w\nb.png\n"), "cannot be read|does not exist"),
    "table-without-rows": (_table("file_name\n"), "none of its 0 pictures"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, refused, tmp_path):
    change, says = LAYOUTS[name]
    outside = tmp_path / "elsewhere" / "outside.png"
    for path in (outside, tmp_path / "outside.png"):
        path.parent.mkdir(exist_ok=True)
        NOISE.save(path)
    (tmp_path / "in" / "cat").mkdir(parents=True)
    if name.startswith("table"):
        NOISE.save(tmp_path / "in" / "cat" / "good.png")
    change(tmp_path / "in", outside)
    refused("import-images", "--source", tmp_path / "in", "--out", tmp_path / "out", says=says)


def _parquet(columns):
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


PARQUET = {
    "empty": (lambda: b"", "not a readable parquet"),
    "words": (lambda: b"PAR1 or so", "not a readable parquet"),
    "half": (lambda: _parquet({"image": [encoded("PNG")]})[:200], "not a readable parquet"),
    "no-pictures": (lambda: _parquet({"text": ["a"]}), "no column of pictures"),
    "null-picture": (lambda: _parquet({"image": [None], "label": ["a"]}), "holds no picture"),
    "broken-picture": (lambda: _parquet({"image": [b"\x89PNG"], "label": ["a"]}), "broken|not a picture"),
    "bomb": (lambda: _parquet({"image": [png(60_000, 60_000)], "label": ["a"]}), "max_pixels"),
    "class-of-nothing": (lambda: _parquet({"image": [encoded("PNG")], "label": [None]}), "no usable class"),
    "class-not-a-number": (lambda: _parquet({"image": [encoded("PNG")], "label": [float("nan")]}), "no usable class"),
    "path-out": (lambda: _parquet({"image": [{"bytes": None, "path": "../outside.png"}], "label": ["a"]}), "leaves the folder"),
    "class-of-dots": (lambda: _parquet({"image": [encoded("PNG")], "label": ["../.."]}), "cannot be a folder's name"),
}


@pytest.mark.parametrize("name", PARQUET)
def test_parquet(name, refused, tmp_path):
    make, says = PARQUET[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.parquet").write_bytes(make())
    refused("import-images", "--source", tmp_path / "in", "--out", tmp_path / "out", says=says)


REQUESTS = {
    "no-source": (["--source", "nowhere", "--out", "out"], "no such folder"),
    "source-is-a-file": (["--source", "good.png", "--out", "out"], "unpack"),
    "out-in-source": (["--source", ".", "--out", "out"], "inside each other"),
    "out-is-a-file": (["--source", "in", "--out", "good.png"], "not an image set"),
    "out-of-somebody-else": (["--source", "in", "--out", "mine"], "not an image set"),
    "unknown-placeholder": (["--source", "in", "--out", "out", "--caption", "{name}"], "only {concept}"),
    "picture-of-a-terabyte": (["--source", "in", "--out", "out", "--size", "1000000"], "smaller --size"),
    "more-tune-than-concepts": (["--source", "in", "--out", "out", "--tune-concepts", "9"], "only 1 concepts"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(name, refused, tmp_path, monkeypatch):
    argv, says = REQUESTS[name]
    for folder in ("in", "mine"):
        (tmp_path / folder).mkdir()
        NOISE.save(tmp_path / folder / "a.png")
    NOISE.save(tmp_path / "good.png")
    monkeypatch.chdir(tmp_path)
    refused("import-images", *argv, says=says)
    assert (tmp_path / "mine" / "a.png").exists()
