"""Files as the project writes them: atomically, with a `.meta.json` sidecar, and never outside their folder."""

import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from tuneleak.errors import InputError

_STARTED = time.time()
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "numpy", "pandas", "dicebear-core", "dicebear-styles", "resvg-py")


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path):
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on failure nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path, text):
    """Write `text` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path):
    """Read a JSON file; a missing or broken one is an `InputError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); make or fetch it again") from None


def read_object(path, *keys):
    """Read a JSON file that must hold an object with these keys."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(value).__name__}; make or fetch it again")
    missing = [key for key in keys if key not in value]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; make or fetch it again")
    return value


def read_table(path, columns=(), advice="make it again"):
    """Read a CSV file as a pandas table of strings (empty cells are empty strings).

    columns: those it must have; advice: what to do about a file that is no such table. Raises `InputError` for anything else.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8").fillna("")  # rows that are too short have holes
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {advice}") from None
    except ValueError as error:  # pandas' own errors and those of UTF-8 are ValueErrors
        raise InputError(f"{path} cannot be read as a UTF-8 CSV table ({' '.join(str(error).split())}); {advice}") from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; {advice}")
    return table


def write_csv(path, table):
    """Write a pandas table without its index, atomically."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def sha256(path):
    """Hex SHA-256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def stamps(paths):
    """Names, sizes and times of files, and of all files below folders: cheaper than reading gigabytes, and a false change only repeats work."""
    found = [file for path in map(Path, paths) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in found if file.is_file()]


def check_digests(folder):
    """Raise `InputError` unless the files of a folder are what the `SHA256SUMS` in it, or up to two folders above, says; without a list, check nothing."""
    folder = Path(folder).resolve()
    for top in (folder, *folder.parents[:2]):
        if (top / "SHA256SUMS").is_file():
            break
    else:
        return
    rows = [line.split(maxsplit=1) for line in (top / "SHA256SUMS").read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise InputError(f"{top / 'SHA256SUMS'} is not a list as sha256sum writes it (digest, two spaces, name); get it again, or remove it")
    listed = {top / name: digest for digest, name in rows if (top / name).is_relative_to(folder)}
    if not listed:  # somebody's list of other files
        return
    for path in sorted({*listed, *folder.rglob("*.safetensors")}):
        if not path.is_file() or sha256(path) != listed.get(path):
            raise InputError(f"{path} is not the file that {top / 'SHA256SUMS'} lists; get it again, or remove the list if you changed it on purpose")


def digest(value):
    """First 16 hex digits of the SHA-256 of `value` as sorted JSON: a name for a configuration."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def inside(folder, relative):
    """`folder / relative` as a path, refused when it is absolute or leaves the folder (also through a link)."""
    folder = Path(folder)
    path = folder / str(relative)
    try:
        safe = not Path(str(relative)).is_absolute() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link that leads to itself, or a NUL byte in the name
        safe = False
    if not safe:
        raise InputError(f"{str(relative)!r} in {folder} points outside that folder; refused, use a path inside it")
    return path


def provenance():
    """What made a file: versions, machine, git state, wall seconds and peak memory (bytes) of this process so far."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    accelerator = "cpu"
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        accelerator = sys.modules["torch"].cuda.get_device_name()
    return {
        "versions": versions,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system(), "accelerator": accelerator},
        "git": _git_state(),
        "wall_seconds": round(time.time() - _STARTED, 2),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_meta(output, options=None, **facts):
    """Write `<output>.meta.json`: the options used, any further `facts` (seeds, counts) and `provenance()`."""
    options = options.model_dump(mode="json") if hasattr(options, "model_dump") else options
    output = Path(output)
    write_json(output.with_name(output.name + ".meta.json"), {"options": options, **facts, **provenance()})


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_state():
    here = Path(__file__).resolve().parent
    commands = {"commit": ["git", "rev-parse", "--quiet", "--verify", "HEAD"], "changed": ["git", "status", "--porcelain", "--untracked-files=no"]}
    try:
        state = {name: subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10).stdout.strip() for name, command in commands.items()}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "changed": False}
    return {"commit": state["commit"], "changed": bool(state["changed"])}
