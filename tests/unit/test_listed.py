"""Pictures of a list: by path, and from a server on this machine."""

import hashlib
import http.server
import io
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tuneleak.data import listed
from tuneleak.data.imageset import ImageSet
from tuneleak.data.importing import import_images
from tuneleak.errors import InputError
from tuneleak.options import ImportOptions


def picture(number, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def server():
    """(address, {path: content}, paths asked for); a path that is not there is answered with 404."""
    held, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            data = held.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", held, asked
    running.shutdown()
    running.server_close()


def write(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_list_becomes_an_image_set_and_is_fetched_once(tmp_path, server):
    address, held, asked = server
    held["/b.jpg"] = picture(2, "JPEG")
    (tmp_path / "local").mkdir()
    (tmp_path / "local/a.png").write_bytes(picture(1))
    rows = [
        {"path": "local/a.png", "url": "", "sha256": digest(picture(1)), "caption": "a face", "concept": "ada"},
        {"path": "local/gone.png", "url": f"{address}/b.jpg", "sha256": digest(held["/b.jpg"]).upper(), "caption": "another", "concept": "bob"},
    ]
    pictures = write(tmp_path / "list.csv", rows)
    for _ in range(2):
        listed.fetch_list(pictures, tmp_path / "out")
    assert asked == ["/b.jpg"]
    assert {path.suffix for path in (tmp_path / "out/pictures").iterdir()} == {".png", ".jpg"}
    import_images(tmp_path / "out", tmp_path / "set", ImportOptions(size=8))
    table = ImageSet.load(tmp_path / "set").table
    assert list(table.concept) == ["ada", "bob"] and list(table.caption) == ["a face", "another"]


def test_what_is_gone_or_changed_is_named_or_left_out(tmp_path, server):
    address, held, _ = server
    held |= {"/changed.png": picture(3), "/text": b"no picture", "/good.png": picture(5)}
    wanted = {"gone.png": picture(1), "changed.png": picture(2), "text": b"no picture", "good.png": picture(5)}
    rows = [{"url": f"{address}/{name}", "sha256": digest(data)} for name, data in wanted.items()]
    pictures = write(tmp_path / "list.csv", rows)
    with pytest.raises(InputError, match=r"line 2: http://127.0.0.1:\d+/gone.png is answered with 404"):
        listed.fetch_list(pictures, tmp_path / "out")
    assert not (tmp_path / "out/metadata.csv").exists()
    listed.fetch_list(pictures, tmp_path / "out", skip_missing=True)
    missing = pd.read_csv(tmp_path / "out/missing.csv")
    assert list(missing.line) == [2, 3, 4] and len(pd.read_csv(tmp_path / "out/metadata.csv")) == 1
    assert "404" in missing.reason[0] and "not the listed picture" in missing.reason[1] and "not a picture" in missing.reason[2]
    with pytest.raises(InputError, match="none of its 1 pictures could be had"):
        listed.fetch_list(write(tmp_path / "none.csv", rows[:1]), tmp_path / "none", skip_missing=True)


def test_a_picture_too_large_and_a_server_that_is_not_there(tmp_path, server, monkeypatch):
    address, held, _ = server
    held["/large.png"] = picture(1)
    monkeypatch.setattr(listed, "LARGEST", 10)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        listed.fetch_list(write(tmp_path / "list.csv", [{"url": f"{address}/large.png", "sha256": digest(picture(1))}]), tmp_path / "out")
    with pytest.raises(InputError, match="cannot be fetched"):
        listed.fetch_list(write(tmp_path / "list.csv", [{"url": "http://127.0.0.1:9/x.png", "sha256": "0" * 64}]), tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"url": "http://a/b.png", "sha256": "12"}, "no SHA-256"),
        ({"url": "file:///etc/passwd", "sha256": "0" * 64}, "begins with http"),
        ({"url": "", "path": "", "sha256": "0" * 64}, "needs a path"),
        ({"path": "../secret.png", "sha256": "0" * 64}, "outside"),
        ({"path": "x.png"}, "sha256"),
    ],
)
def test_lists_that_do_not_say_what_is_meant(tmp_path, row, says):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(picture(1))
    with pytest.raises(InputError, match=says):
        listed.fetch_list(write(tmp_path / "in/list.csv", [row]), tmp_path / "out")


def test_a_picture_is_listed_once(tmp_path):
    with pytest.raises(InputError, match="line 3: the picture of line 2 again"):
        listed.fetch_list(write(tmp_path / "list.csv", [{"path": "a", "sha256": "0" * 64}, {"path": "b", "sha256": "0" * 64}]), tmp_path / "out")
    with pytest.raises(InputError, match="lists no picture"):
        (tmp_path / "empty.csv").write_text("sha256,path\n")
        listed.fetch_list(tmp_path / "empty.csv", tmp_path / "out")
