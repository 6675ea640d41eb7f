"""The process a job runs in: device, memory, progress, and dying with its parent."""

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tuneleak.errors import InputError


def pick_device(name="auto"):
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` -> torch.device; an absent accelerator is an `InputError`."""
    if name in ("auto", "cuda"):
        claim_gpu()
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name!r} asked for, but torch sees no CUDA device; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' asked for, but torch sees none; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def generator(*key):
    """A CPU `torch.Generator` seeded by a stable hash of `key` (ints and strings): one per item, whatever the order of work."""
    import hashlib

    import torch

    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1
    return torch.Generator("cpu").manual_seed(seed)


def progress(items, description, total=None):
    """A tqdm bar over `items`, quiet when the standard error is not a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, disable=not sys.stderr.isatty(), dynamic_ncols=True)


def keep_freed_memory():
    """Let glibc keep what one step frees for the next.

    By its defaults it maps every large block anew, which the kernel has to clear page by page: a fifth of the time of a small network's call. At most half a
    gigabyte stays unused; a block of a quarter or more is still mapped by itself. Nothing happens under another C library, or where the environment
    (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`) has decided.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(-3, 1 << 28)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 1 << 29)  # M_TRIM_THRESHOLD


def put_this_python_first():
    """Make `python` mean this interpreter for the programs we start, activated or not; a conda environment activated later goes before it."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def die_with_parent(seconds=0.5):
    """End this process when the workflow that started it dies, so that a killed workflow leaves no orphan writing files.

    The workflow puts its process id into `TUNELEAK_PARENT`; without it (a person at a terminal) nothing happens. On Linux the kernel
    sends SIGKILL when the direct parent dies, which is the workflow because the rules `exec` Python; a thread that looks every
    `seconds` covers other systems, a shell in between, and a workflow that died before this call.
    """
    parent = os.environ.get("TUNELEAK_PARENT", "")
    if not parent.isdigit():
        return
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    birth = _birth(int(parent))
    if birth is None or (os.getppid() == 1 and int(parent) != 1):
        raise SystemExit("the workflow that started this job is gone")

    def watch():
        while _birth(int(parent)) == birth:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _birth(pid):
    """Something that tells the process `pid` from a later one with the same number; None when there is no such process or it is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]  # field 22 of proc(5): start time
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


_CLAIMED = []


def claim_gpu(pool=None, seconds=0.5):
    """Take one of this machine's devices for the life of this process and show torch only that one; returns its name, as in `CUDA_VISIBLE_DEVICES`.

    Snakemake counts devices (`TUNELEAK_GPUS`, how many it uses at once) but hands out no numbers. Where the user or a scheduler shows several, one of
    these is taken. Nothing happens (None) where they show one or none, where SLURM names none, or when Snakemake uses fewer than two. The kernel frees the
    claim however the process ends.
    """
    count, job = int(os.environ.get("TUNELEAK_GPUS") or 0), os.environ.get("SLURM_JOB_ID", "")
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "" if job else ",".join(map(str, range(count))))
    devices = [name.strip() for name in shown.split(",")]
    if min(count, len(devices)) < 2 or _CLAIMED:
        return None
    pool = Path(pool or tempfile.gettempdir(), f"tuneleak-gpus-{os.getuid()}{job and '-'}{job}")  # two allocations may both call theirs 0
    pool.mkdir(mode=0o700, exist_ok=True)
    while True:
        for name in devices:
            handle = open(pool / f"{name.replace('/', '-')}.lock", "w")  # noqa: SIM115 - held until the process ends
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                continue
            _CLAIMED.append(handle)
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return name
        time.sleep(seconds)


@contextlib.contextmanager
def output_lock(path):
    """Hold an exclusive lock for the output `path`; a second job for the same output is refused, not interleaved."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing {path}; wait for it or stop it") from None
        yield
