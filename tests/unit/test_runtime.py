"""Devices, seeds per item, progress, locks, and jobs that die with their parent."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tuneleak import runtime
from tuneleak.errors import InputError


def test_generator_depends_on_its_key_alone():
    import torch

    first = torch.randn(4, generator=runtime.generator("noise", 0, "cat", 3))
    runtime.generator("noise", 0, "cat", 4)
    assert torch.equal(first, torch.randn(4, generator=runtime.generator("noise", 0, "cat", 3)))
    others = [("noise", 0, "cat", 4), ("noise", 1, "cat", 3), ("noise", 0, "dog", 3), ("noise", 0, "cat", "3")]
    assert not any(torch.equal(first, torch.randn(4, generator=runtime.generator(*key))) for key in others)


def test_generator_is_the_same_in_every_process_and_version():
    assert runtime.generator("a", 1).initial_seed() == 2817767603020893852


def test_devices(monkeypatch):
    import torch

    assert runtime.pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(InputError, match=f"'{name}' asked for.*--device cpu"):
            runtime.pick_device(name)
    with pytest.raises(InputError, match="'tpu9000' is unknown"):
        runtime.pick_device("tpu9000")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert runtime.pick_device("cuda:0").index == 0
    with pytest.raises(InputError, match="1 CUDA device"):
        runtime.pick_device("cuda:1")


def test_progress_passes_items_through_and_is_quiet_in_a_log(capsys):
    assert list(runtime.progress([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_output_lock_refuses_a_second_process(tmp_path):
    target = tmp_path / "new" / "out.csv"
    code = (
        "import sys; from tuneleak import runtime\n"
        "from tuneleak.errors import InputError\n"
        "try:\n    with runtime.output_lock(sys.argv[1]): print('mine')\n"
        "except InputError as error: print(error)"
    )

    def other():
        return subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True).stdout.strip()

    with runtime.output_lock(target):
        assert other() == f"another process is writing {target}; wait for it or stop it"
    assert other() == "mine"
    with pytest.raises(RuntimeError), runtime.output_lock(target):
        raise RuntimeError
    assert other() == "mine"


JOB = """
import os, sys, time
from tuneleak.runtime import die_with_parent
die_with_parent(0.1)
with open(sys.argv[1], "w") as handle:
    handle.write(f"{os.getpid()} ")
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
os.environ["TUNELEAK_PARENT"] = str(os.getpid())
job = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
subprocess.run([sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *job] if sys.argv[3] == "shell" else job)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("between", ["nothing", "shell"])
def test_a_job_dies_with_its_parent(tmp_path, between):
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, JOB, str(note), between])
    try:
        assert _soon(lambda: note.exists() and note.read_text().endswith(" ")), "the job did not start"
        pid = int(note.read_text())
        assert _runs(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert _soon(lambda: not _runs(pid))


def test_a_job_whose_workflow_is_gone_does_not_start():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = {**os.environ, "TUNELEAK_PARENT": str(gone.pid)}
    code = "from tuneleak.runtime import die_with_parent; die_with_parent(); print('started')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and done.stdout == "" and "is gone" in done.stderr


def test_a_person_at_a_terminal_is_left_alone(monkeypatch):
    monkeypatch.delenv("TUNELEAK_PARENT", raising=False)
    before = threading.active_count()
    runtime.die_with_parent()
    assert threading.active_count() == before


def test_jobs_of_one_machine_claim_different_gpus(tmp_path):
    code = "import sys; from tuneleak.runtime import claim_gpu; print(claim_gpu(sys.argv[1], 0.05), flush=True); sys.stdin.read()"
    unset = {name: value for name, value in os.environ.items() if name not in {"CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"}}

    def job(**environment):
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.Popen(command, env={**unset, "TUNELEAK_GPUS": "2", **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    jobs = [job(), job()]
    assert {process.stdout.readline() for process in jobs} == {"0\n", "1\n"}
    third = job()  # waits for a free device
    jobs[0].communicate("")
    assert third.stdout.readline() in {"0\n", "1\n"}
    for process in (jobs[1], third):
        process.communicate("")
    for environment in ({"TUNELEAK_GPUS": "1"}, {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": ""}, {"SLURM_JOB_ID": "7"}):
        assert job(**environment).communicate("")[0] == "None\n"
    for environment in ({}, {"SLURM_JOB_ID": "7"}):  # several that somebody chose
        jobs = [job(CUDA_VISIBLE_DEVICES="2,GPU-5d8f", **environment) for _ in range(2)]
        assert {process.stdout.readline() for process in jobs} == {"2\n", "GPU-5d8f\n"}
        for process in jobs:
            process.communicate("")


def _soon(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(pid):
    """Whether the process exists and is more than a zombie that nobody has collected."""
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # no such file, or the process ended while it was read
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_not_cleared_again_by_the_kernel(keep):
    code = f"""
import ctypes, resource
from tuneleak import runtime
if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
    raise SystemExit("no glibc")
if {keep}:
    runtime.keep_freed_memory()
def step():
    blocks = [bytearray(size << 20) for size in (3, 40, 5)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if "no glibc" in done.stderr:
        pytest.skip("another C library")
    assert not done.returncode, done.stderr
    assert (int(done.stdout) < 1000) == keep  # 48 MiB are 12,288 pages, five times
