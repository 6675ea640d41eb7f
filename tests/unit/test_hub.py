"""Fetching from the hub without a network: a small hub on localhost, a closed port, and every way a hub can say no."""

import hashlib
import http.server
import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tuneleak.data import hub
from tuneleak.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys, time
from pathlib import Path
from tuneleak.data.hub import fetch
time.sleep = lambda seconds: None  # the hub's client waits longer and longer between its attempts
try:
    fetch(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
except ValueError as error:
    print(type(error).__name__, error)
"""
WEIGHTS = b"\x02\0\0\0\0\0\0\0{}"  # an empty safetensors file
FILES = {
    "model_index.json": b"{}",
    "unet/config.json": b'{"a": 1}',
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "tokenizer/merges.txt": b"#version\n",
    "pipeline.py": b"import os",
    "model.ckpt": b"pickle",
    "LICENSE.md": b"terms",
}


class LocalHub(http.server.BaseHTTPRequestHandler):
    """The two calls a snapshot download makes: the list of files, and each file."""

    repositories = {}  # noqa: RUF012
    asked = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        for repository, content in self.repositories.items():
            kind = "datasets/" if repository.startswith("data/") else ""
            if path == f"/api/{kind or 'models/'}{repository}/tree/{COMMIT}":
                listing = [{"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()} for name, body in content.items()]
                return self._answer(200, json.dumps(listing).encode(), Content_Type="application/json")
            name = path.removeprefix(f"/{kind}{repository}/resolve/{COMMIT}/")
            if name in content:
                body = content[name]
                return self._answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=COMMIT)
        if path.startswith("/api/models/owner/gated"):
            return self._answer(403, b"{}", X_Error_Code="GatedRepo")
        if "/tree/" in path and any(f"/{name}/" in path for name in self.repositories):
            return self._answer(404, b"{}", X_Error_Code="RevisionNotFound")
        return self._answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def endpoint():
    pickles, data = {"config.json": b"{}", "pytorch_model.bin": b"x"}, {"README.md": b"# x", "data/a.parquet": b"PAR1"}
    LocalHub.repositories = {"owner/model": FILES, "owner/pickles": pickles, "data/set": data}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LocalHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def local_hub(endpoint, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    LocalHub.asked.clear()


def test_only_safe_files_arrive_with_their_digests(local_hub, tmp_path):
    out = tmp_path / "model"
    hub.fetch("owner/model", COMMIT, "model", out)
    safe = {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt", "LICENSE.md"}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == safe | {hub.SIDECAR}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    meta = json.loads((out / hub.SIDECAR).read_text())
    assert (meta["repository"], meta["revision"], meta["kind"]) == ("owner/model", COMMIT, "model")
    assert {name: facts["sha256"] for name, facts in meta["files"].items()} == {name: hashlib.sha256(FILES[name]).hexdigest() for name in safe}
    assert not any(path.endswith((".bin", ".ckpt", ".py")) for path in LocalHub.asked)


def test_a_complete_folder_needs_no_network_and_a_changed_one_is_mended(local_hub, tmp_path):
    out = tmp_path / "model"
    hub.fetch("owner/model", COMMIT, "model", out)
    LocalHub.asked.clear()
    hub.fetch("owner/model", COMMIT, "model", out)
    assert LocalHub.asked == []
    (out / "unet" / "config.json").write_text("changed")
    hub.fetch("owner/model", COMMIT, "model", out)
    assert (out / "unet" / "config.json").read_bytes() == FILES["unet/config.json"]


def test_pickles_that_another_program_left_in_the_cache_stay_there(local_hub, tmp_path):
    import huggingface_hub

    huggingface_hub.snapshot_download("owner/model", revision=COMMIT)
    hub.fetch("owner/model", COMMIT, "model", tmp_path / "model")
    assert list(Path(tmp_path, "cache").rglob("*.bin")) and not list((tmp_path / "model").rglob("*.bin"))


def test_data_set(local_hub, tmp_path):
    hub.fetch("data/set", COMMIT, "dataset", tmp_path / "set")
    assert (tmp_path / "set" / "data" / "a.parquet").read_bytes() == b"PAR1"


@pytest.mark.parametrize(
    ("repository", "revision", "says"),
    [
        ("owner/pickles", COMMIT, "has no safetensors weights.*pickled"),
        ("owner/gated", COMMIT, "huggingface.co/owner/gated.*hf auth login"),
        ("owner/absent", COMMIT, "owner/absent is no model on the hub"),
        ("owner/model", "f" * 40, f"has no commit {'f' * 40}"),
    ],
)
def test_refusals_of_the_hub_are_explained(local_hub, tmp_path, repository, revision, says):
    with pytest.raises(InputError, match=f"(?s){says}"):
        hub.fetch(repository, revision, "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("owner/model", "main", "model"), "not a full commit hash.*git ls-remote https://huggingface.co/owner/model HEAD"),
        (("owner/model", COMMIT[:8], "model"), "not a full commit hash"),
        (("owner/set", "v1", "dataset"), "https://huggingface.co/datasets/owner/set HEAD"),
        (("owner/model", COMMIT, "space"), "--kind 'space'"),
        (("../../etc", COMMIT, "model"), "not a hub id"),
        (("https://huggingface.co/owner/model", COMMIT, "model"), "not a hub id"),
        (("owner/mo del\n", COMMIT, "model"), "not a hub id"),
        (("owner/model", COMMIT + "\n", "model"), "not a full commit hash"),
    ],
)
def test_bad_requests_are_named_before_any_network(tmp_path, arguments, says):
    with pytest.raises(InputError, match=f"(?s){says}"):
        hub.fetch(*arguments, tmp_path / "out")


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="did not make it"):
        hub.fetch("owner/model", COMMIT, "model", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set and the cache lacks")],
)
def test_without_a_network_it_says_what_to_do(tmp_path, environment, reason):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", **environment}
    environment = {name: value for name, value in environment.items() if name.lower() not in {"http_proxy", "https_proxy", "all_proxy"}}
    command = [sys.executable, "-c", FETCH, "owner/model", COMMIT, "model", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("InputError owner/model could not be fetched: " + reason), done.stderr
    assert f"tuneleak fetch --repository owner/model --revision {COMMIT} --kind model --out {tmp_path / 'out'}" in done.stdout
    for word in ("copy the folder", "HF_HOME", "HF_HUB_OFFLINE=1"):
        assert word in done.stdout
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def raised(name):
    """An exception of the hub's own, as its client makes them."""
    from huggingface_hub import errors

    kind = getattr(errors, name)
    if not issubclass(kind, errors.HfHubHTTPError):
        return kind("why")
    client = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])  # httpx, or its successor
    return kind("why", response=client.Response(403, request=client.Request("GET", "https://huggingface.co")))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "hf auth login"),
        ("RepositoryNotFoundError", "no model on the hub, or it is private"),
        ("RevisionNotFoundError", "commits are listed at"),
        ("OfflineModeIsEnabled", "On a connected machine run"),
        ("LocalEntryNotFoundError", "On a connected machine run"),
        ("HfHubHTTPError", "run again to resume"),
        ("DisabledRepoError", "run again to resume"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("odd"), "RuntimeError: odd"),
    ],
)
def test_every_exception_of_the_client_becomes_advice(tmp_path, monkeypatch, error, says):
    import huggingface_hub

    def fail(*_, **__):
        raise raised(error) if isinstance(error, str) else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=says):
        hub.fetch("owner/model", COMMIT, "model", tmp_path / "out")


def test_a_damaged_blob_is_refused(tmp_path):
    snapshot = tmp_path / "cache" / "snapshots" / COMMIT
    blob = tmp_path / "cache" / "blobs" / hashlib.sha256(WEIGHTS).hexdigest()
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(WEIGHTS)
    (snapshot / "model.safetensors").symlink_to(blob)
    (tmp_path / "good").mkdir()
    assert hub._copy_safe(snapshot, tmp_path / "good")["model.safetensors"] == {"sha256": blob.name, "bytes": len(WEIGHTS)}
    blob.write_bytes(WEIGHTS + b" ")
    (tmp_path / "bad").mkdir()
    with pytest.raises(InputError, match="damaged"):
        hub._copy_safe(snapshot, tmp_path / "bad")
    (snapshot / "model.safetensors").unlink()
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="outside the hub's cache"):
        hub._copy_safe(snapshot, tmp_path / "bad")
