"""What the shell prefix and the limits do to real jobs: GPUs are shared out, and jobs end with Snakemake, however it ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills process trees the Linux way")]

GPU_JOBS = """
rule all:
    input: expand("{i}.done", i=range(4))
rule job:
    output: "{i}.done"
    resources: gpu=1
    shell: "date +%s.%N > {output}; sleep 1; date +%s.%N >> {output}; echo $TUNELEAK_GPUS >> gpus"
"""
# a job as the project's rules start it, and one with a shell between it and Snakemake
LONG_JOB = """
rule job:
    output: "out.txt"
    shell: "{how}python job.py {{output}} > job.log 2>&1{after}"
"""
JOB = """
import os, sys, time
from tuneleak import runtime
runtime.die_with_parent()
with open("pid", "w") as handle:
    handle.write(f"{os.getpid()}\\n")
while True:
    time.sleep(0.1)
"""


def most_at_once(folder):
    spans = [tuple(map(float, path.read_text().split())) for path in folder.glob("*.done")]
    assert len(spans) == 4
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


@pytest.mark.parametrize(("arguments", "limit"), [((), 1), (("--resources", "gpu=2"), 2)])
def test_gpu_jobs_run_one_at_a_time_unless_more_are_allowed(mini, arguments, limit):
    made = mini(GPU_JOBS)
    made.overlay("gpus: 1")
    made.snakemake("--configfile", "overlay.yaml", *arguments, cores=4)
    assert most_at_once(made.folder) == limit
    assert (made.folder / "gpus").read_text().split() == [str(limit)] * 4  # among how many each claims its own


def test_the_scheduler_wakes_when_jobs_end_only(mini):
    """Four jobs of two seconds each, one after another, and `all`: every wake-up that finds jobs waiting says so."""
    made, said = mini(GPU_JOBS.replace("sleep 1", "sleep 2")), "Waiting for running jobs to complete"
    assert made.snakemake("--verbose", cores=1).stdout.count(said) <= 5
    limited = made.snakemake("--verbose", "--no-hooks", "--forceall", cores=1)
    assert limited.stdout.count(said) > 8, "Snakemake wakes no more often by itself: the hook in common.smk can go"


@pytest.fixture
def start():
    """`start(made)`: start Snakemake and wait until its job runs; returns both processes. What still lives after the test is killed."""
    started = []

    def run(made):
        (made.folder / "job.py").write_text(JOB)
        note = made.folder / "pid"
        with open(made.folder / "snakemake.log", "w") as log:
            snakemake = subprocess.Popen(made.command(), cwd=made.folder, env=made.environment(), stdout=log, stderr=subprocess.STDOUT)
        started.append(snakemake)
        deadline = time.monotonic() + 300
        while not (note.exists() and note.read_text().endswith("\n")):
            assert snakemake.poll() is None and time.monotonic() < deadline, (made.folder / "snakemake.log").read_text()
            time.sleep(0.05)
        started.append(psutil.Process(int(note.read_text())))
        return started

    yield run
    for process in started:
        try:
            process.kill()
            process.wait(10)
        except psutil.NoSuchProcess:
            continue


def ended(process, seconds):
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize(("how", "after"), [("exec ", ""), ("", "; true")], ids=["exec", "shell-between"])
def test_a_job_dies_with_a_killed_snakemake(mini, start, how, after):
    made = mini(LONG_JOB.format(how=how, after=after))
    snakemake, job = start(made)
    assert (job.ppid() == snakemake.pid) == (how == "exec ")
    snakemake.send_signal(signal.SIGKILL)
    snakemake.wait()
    assert ended(job, 10), "the job outlived Snakemake"


def test_unlock_frees_a_folder_only_when_snakemake_is_gone(mini, start):
    from tuneleak.unlock import live_snakemakes, unlock

    made = mini(LONG_JOB.format(how="exec ", after=""))
    snakemake, job = start(made)
    locks = made.folder / ".snakemake" / "locks"
    assert any(locks.glob("*")) and live_snakemakes(made.folder) == [snakemake.pid]
    second = made.snakemake(fails=True)
    assert "lock" in second.stdout.lower() and "Traceback" not in second.stdout, "two Snakemakes at once: the second is refused"
    assert snakemake.poll() is None and job.is_running()
    said = made.tuneleak("unlock").stdout
    assert str(snakemake.pid) in said and any(locks.glob("*"))
    snakemake.send_signal(signal.SIGKILL)
    snakemake.wait()
    assert ended(job, 10)
    refused = made.snakemake("--rerun-incomplete", fails=True)
    assert "lock" in refused.stdout.lower()
    said = made.tuneleak("unlock").stdout
    assert "unlocking" in said and not any(locks.glob("*"))
    unlock(made.folder)  # and once more: nothing to do, nothing said
    assert made.tuneleak("unlock").stdout == ""


def test_jobs_use_the_code_beside_the_snakefile(mini):
    """Not an installed copy of it, and not whatever PYTHONPATH says."""
    made = mini('rule job:\n    output: "out.txt"\n    shell: "exec python -c \'import tuneleak, sys; print(tuneleak.__file__)\' > {output}"')
    made.snakemake(PYTHONPATH=os.devnull)
    assert (made.folder / "out.txt").read_text().strip() == str(made.folder / "src/tuneleak/__init__.py")
