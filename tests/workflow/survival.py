"""Kills jobs of the smoke preset at random moments, starts the workflow again, and compares what it made bit for bit.

As a program, in the root of the checkout, it records so many kills, one row each, as they happen:

    python tests/workflow/survival.py --kills 20 --out paper/reference/survival.csv [--kinds finetune extract ...] [--folder FOLDER]

Columns: `kill` (number), `kind` (rule), `victim` (who got SIGKILL: the job, or Snakemake above it), `after` (seconds from the job's start, drawn evenly
over the time that an undisturbed job took), `left` (files that the killed job left in its folder), `orphans` (processes that outlived Snakemake),
`recovered` (the restarted workflow ended well), `equal` (files of numbers and pictures with the same bits), `different` (names of the others). A kill
that came after the job's end says `too late` in `victim` and is drawn again.
"""

import argparse
import csv
import hashlib
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from safetensors import safe_open

PRESET = ("--configfile", "workflow/presets/smoke.yaml")
KINDS = {  # kind of job: what it makes below results/smoke, its sole output folder unless it is a file
    "render": "data/lora-test/manifest.csv",
    "assemble": "bases/H1/model_index.json",
    "finetune": "models/identities/lora/tune0/manifest.csv",
    "extract": "extraction/identities/lora/tune0/cfg/matches.csv",
    "calibrate": "extraction/identities/tau.json",
    "evaluate_finextract": "metrics/finextract/tuning.csv",
    "finetune_private": "dp/near/attention/1/manifest.csv",
    "shake_scores": "shake-to-leak/H1/scores0.csv",
    "collect_weights": "weights/train/0/manifest.csv",
    "train_base": "resources/bases/H1/config.json",
}
SINGLE = {"calibrate", "evaluate_finextract", "shake_scores"}  # their folder holds others' files too
SAME = {".csv", ".json", ".png", ".safetensors"}  # of these every bit counts (see `content`), of sidecars none
COLUMNS = ["kill", "kind", "victim", "after", "left", "orphans", "recovered", "equal", "different"]


def made_by(clone, kind):
    """Files that a kind of job made, sidecars, hidden ones and checkpoints excepted: {name: sha256}."""
    target = clone.folder / "results/smoke" / KINDS[kind]
    paths = [target] if kind in SINGLE else sorted(target.parent.rglob("*"))
    shown = [
        path
        for path in paths
        if path.is_file() and path.suffix in SAME and ".meta." not in path.name and "/." not in str(path.relative_to(target.parent.parent))
    ]
    return {str(path.relative_to(target.parent)): hashlib.sha256(content(path)).hexdigest() for path in shown}


def content(path):
    """The bytes of a file that have to come back: of weights the tensors (their header is a table in random order), of a log all but the seconds."""
    if path.suffix == ".safetensors":
        with safe_open(str(path), "np") as handle:
            parts = [str(sorted((handle.metadata() or {}).items())).encode()]
            for name in sorted(handle.keys()):
                tensor = handle.get_tensor(name)
                parts.append(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
        return b"".join(parts)
    if path.name == "train.csv":
        with open(path, newline="") as handle:
            return json.dumps([{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(handle)]).encode()
    return path.read_bytes()


def remove(clone, kind):
    target = clone.folder / "results/smoke" / KINDS[kind]
    if kind in SINGLE:
        target.unlink()
    else:
        shutil.rmtree(target.parent)


def arguments(kind):
    """The job of one kind and nothing else; what it needs must be there, of whatever age."""
    return ("--rerun-incomplete", "--rerun-triggers", "input", *PRESET, "--allowed-rules", kind, "--", f"results/smoke/{KINDS[kind]}")


def job_below(snakemake):
    """The process of the running job, or None."""
    for child in snakemake.children(recursive=True):
        try:
            if "tuneleak" in child.cmdline():
                return child
        except psutil.Error:
            continue
    return None


def kill(clone, kind, victim, after):
    """Remove what a kind of job made, start it, and send SIGKILL `after` seconds to the `job` or to `snakemake`; returns (in time, left, orphans).

    A Snakemake whose job was killed ends by itself; what lives on ten seconds after a killed Snakemake is an orphan.
    """
    remove(clone, kind)
    with open(clone.folder / "killed.log", "w") as log:
        process = subprocess.Popen(clone.command(*arguments(kind), cores=1), cwd=clone.folder, env=clone.environment(), stdout=log, stderr=subprocess.STDOUT)
    snakemake, job = psutil.Process(process.pid), None
    while job is None and process.poll() is None:
        job = job_below(snakemake)
        time.sleep(0.02)
    deadline = time.monotonic() + after
    while job is not None and process.poll() is None and job.is_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    below = snakemake.children(recursive=True) if process.poll() is None else []
    in_time = job is not None and job in below
    if in_time:
        (job if victim == "job" else snakemake).send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    folder = (clone.folder / "results/smoke" / KINDS[kind]).parent
    left = len([path for path in folder.rglob("*") if path.is_file()]) if folder.is_dir() else 0
    return in_time, left, len(alive)


def restart(clone, kind):
    """Start the workflow again as its user would; returns whether it ended well."""
    clone.tuneleak("unlock")
    command = clone.command(*arguments(kind), cores=1)
    return subprocess.run(command, cwd=clone.folder, env=clone.environment(), capture_output=True).returncode == 0


def survive(clone, kind, victim, after, reference):
    """One kill and one restart; the row that describes them. reference: `made_by` of an undisturbed job."""
    in_time, left, orphans = kill(clone, kind, victim, after)
    recovered = restart(clone, kind)
    now = made_by(clone, kind)
    different = sorted(name for name in reference.keys() | now.keys() if reference.get(name) != now.get(name))
    row = {"kind": kind, "victim": victim if in_time else "too late", "after": round(after, 2), "left": left, "orphans": orphans}
    return row | {"recovered": recovered, "equal": len(reference.keys() & now.keys()) - len(set(different) & set(now)), "different": " ".join(different)}


def undisturbed(clone, kind):
    """(what an undisturbed job of a kind makes, the seconds it takes from its start)."""
    remove(clone, kind)
    with open(clone.folder / "undisturbed.log", "w") as log:
        process = subprocess.Popen(clone.command(*arguments(kind), cores=1), cwd=clone.folder, env=clone.environment(), stdout=log, stderr=subprocess.STDOUT)
    snakemake, job = psutil.Process(process.pid), None
    while job is None and process.poll() is None:
        job = job_below(snakemake)
        time.sleep(0.02)
    started = time.monotonic()
    if job is not None:
        psutil.wait_procs([job])
    seconds = time.monotonic() - started
    if process.wait():
        raise SystemExit((clone.folder / "undisturbed.log").read_text()[-4000:])
    return made_by(clone, kind), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="where to run; a folder of an earlier call goes on faster (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    specification = importlib.util.spec_from_file_location("clones", Path(__file__).with_name("conftest.py"))
    clones = importlib.util.module_from_spec(specification)
    sys.modules["clones"] = clones  # dataclasses look their module up
    specification.loader.exec_module(clones)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="survival-"))
    clone = clones.Clone(folder) if (folder / "Snakefile").exists() else clones.make_clone(folder)
    clone.snakemake(*PRESET, "--rerun-incomplete", "--", *(f"results/smoke/{KINDS[kind]}" for kind in options.kinds))
    known = {kind: undisturbed(clone, kind) for kind in options.kinds}
    draw, number, survived = random.Random(options.seed), 0, True
    with open(options.out, "w", newline="") as handle:
        table = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        table.writeheader()
        while number < options.kills:
            kind = options.kinds[number % len(options.kinds)]
            reference, seconds = known[kind]
            row = survive(clone, kind, draw.choice(["job", "snakemake"]), draw.uniform(0, seconds), reference)
            if row["victim"] != "too late":
                number += 1
                table.writerow({"kill": number, **row})
                handle.flush()
                survived &= row["recovered"] and not row["different"] and not row["orphans"]
            print(row, flush=True)
    raise SystemExit(0 if survived else 1)


if __name__ == "__main__":
    main()
