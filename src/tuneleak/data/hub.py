"""The verb `fetch`: a model or data set of the Hugging Face hub becomes a local folder of files that cannot run code."""

import re
import shutil
from pathlib import Path

from tuneleak import files, runtime
from tuneleak.errors import InputError

# Only these are fetched: a pickle (.bin, .ckpt, .pt, .pkl) can run code when it is loaded, and so can a repository's .py files.
SAFE_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.parquet", "*.jpg", "*.jpeg", "*.png", "*.csv", "README.md", "LICENSE*")
SIDECAR = "fetch.meta.json"
_HINT = {"model": "safetensors weights", "dataset": "parquet files or pictures"}
_NEEDED = {"model": (".safetensors",), "dataset": (".parquet", ".jpg", ".jpeg", ".png")}


def fetch(repository, revision, kind, out):
    """Fetch `repository` at `revision` into the folder `out`, with a sidecar `fetch.meta.json` that holds the sha256 of every file.

    The hub's cache (`HF_HOME`) is used, so an interrupted download resumes, and `HF_HUB_OFFLINE=1` works from a filled cache. A folder
    that already holds the files its sidecar lists, checked by their sha256, is left as it is without any network.

    Args:
        repository: hub id, `owner/name`.
        revision: full commit hash (40 hexadecimal digits).
        kind: `model` or `dataset`.
        out: folder to write; a folder that `fetch` did not make is never replaced.

    Raises:
        InputError: for a moving revision, a hub that cannot be reached, a gated or missing repository, or one without safe files.
    """
    out = Path(out)
    _check(repository, revision, kind, out)
    with runtime.output_lock(out):
        if _is_complete(out, repository, revision, kind):
            return
        snapshot = _download(repository, revision, kind, out)
        with files.atomic_folder(out) as folder:
            digests = _copy_safe(snapshot, folder)
            if not any(name.endswith(_NEEDED[kind]) for name in digests):
                raise InputError(
                    f"{repository} at {revision} has no {_HINT[kind]} (found: {', '.join(sorted(digests)[:8]) or 'no safe file'}); other formats,"
                    " such as pickled .bin or .ckpt weights, are refused because loading them can run code. Choose a revision that has them"
                )
            files.write_meta(folder / SIDECAR.removesuffix(".meta.json"), None, repository=repository, revision=revision, kind=kind, files=digests)


def _check(repository, revision, kind, out):
    if kind not in _NEEDED:
        raise InputError(f"--kind {kind!r} is unknown; use model or dataset")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository, re.ASCII) or ".." in repository:
        raise InputError(f"--repository {repository!r} is not a hub id such as owner/name")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(
            f"--revision {revision!r} is not a full commit hash (40 hexadecimal digits): a branch, tag or short hash can come to mean other files,"
            f" and results could not be repeated. `git ls-remote {_page(repository, kind)} HEAD` prints the current one"
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SIDECAR).is_file())):
        raise InputError(f"{out} exists and `tuneleak fetch` did not make it; choose a new folder or remove it")


def _page(repository, kind):
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"


def _is_complete(out, repository, revision, kind):
    """Whether `out` holds exactly the files its sidecar lists, for this request."""
    if not (out / SIDECAR).is_file():
        return False
    try:
        meta = files.read_json(out / SIDECAR)
        if (meta["repository"], meta["revision"], meta["kind"]) != (repository, revision, kind):
            return False
        listed = runtime.progress(sorted(meta["files"].items()), f"checking {out.name}")
        return all(files.sha256(files.inside(out, name)) == facts["sha256"] for name, facts in listed)
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return False


def _download(repository, revision, kind, out):
    """Fill the hub's cache and return its snapshot folder; every failure becomes an `InputError` that says what to do."""
    import huggingface_hub
    from huggingface_hub import errors

    command = f"tuneleak fetch --repository {repository} --revision {revision} --kind {kind} --out {out}"
    page = _page(repository, kind)
    try:
        return Path(huggingface_hub.snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=list(SAFE_PATTERNS)))
    except errors.GatedRepoError:
        problem = f"{repository} is gated: accept its terms at {page} with your account, log in here with `hf auth login`, and run again\n  {command}"
    except errors.RevisionNotFoundError:
        problem = f"{repository} has no commit {revision}; its commits are listed at {page}/commits/main"
    except errors.RepositoryNotFoundError:
        problem = f"{repository} is no {kind} on the hub, or it is private: check the name and --kind at {page}; for a private one run `hf auth login` first"
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        switched_off = huggingface_hub.constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set and the cache lacks these files" if switched_off else f"the hub cannot be reached ({_cause(error)})"
        problem = (
            f"{repository} could not be fetched: {reason}.\nOn a connected machine run\n  {command}\nand copy the folder {out} here; or copy that machine's"
            " cache (HF_HOME, by default ~/.cache/huggingface), point HF_HOME at the copy, set HF_HUB_OFFLINE=1 and run the same command here"
        )
        raise InputError(problem) from error
    except Exception as error:  # the hub's client raises its own, httpx's and the operating system's errors
        problem = f"{repository} could not be fetched ({type(error).__name__}: {error}). What has arrived is kept: run again to resume\n  {command}"
        raise InputError(problem) from error
    raise InputError(problem) from None


def _cause(error):
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else 'no details'}"


def _copy_safe(snapshot, folder):
    """Copy the safe files of a cache snapshot (links to blobs) as real files; returns {name: {sha256, bytes}}."""
    from huggingface_hub.utils import filter_repo_objects

    # The cache may hold pickles that another program asked for, so the patterns are applied again; a blob outside the repository's cache is refused.
    cache = snapshot.parents[1]
    names = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    digests = {}
    for name in runtime.progress(list(filter_repo_objects(names, allow_patterns=list(SAFE_PATTERNS))), "copying and checking"):
        blob = (snapshot / name).resolve()
        if not blob.is_relative_to(cache.resolve()):
            raise InputError(f"{snapshot / name} leads outside the hub's cache; remove {cache} and fetch again")
        target = files.inside(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(blob, target)
        digest = files.sha256(target)
        # The cache names the blob of a large file by its sha256, as the hub states it; of a small file by its git hash (40 digits).
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and blob.name != digest:
            raise InputError(f"{blob} is damaged (its sha256 is {digest}); remove that file and fetch again")
        digests[name] = {"sha256": digest, "bytes": target.stat().st_size}
    return digests
