"""Stands in for sbatch, squeue, sacct, sacctmgr, scontrol, srun and scancel: `python fake_slurm.py sbatch ...`.

Every submission is a line of $FAKE_SLURM/submitted.jsonl. Jobs whose comment begins with one of the words of $FAKE_SLURM_RUNS are run, at once and
in the foreground; all others are killed by their time limit without having started.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

RECORD = Path(os.environ["FAKE_SLURM"]) / "submitted.jsonl"


def records():
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def value(arguments, *flags):
    """The value of `--flag value`, `--flag=value` or `-f value`; None without it."""
    for index, word in enumerate(arguments):
        name, equals, rest = word.partition("=")
        if name in flags:
            return rest if equals else arguments[index + 1]
    return None


def sbatch(arguments):
    comment, number = value(arguments, "--comment"), str(len(records()) + 1)
    state = "TIMEOUT"
    if comment.startswith(tuple(os.environ.get("FAKE_SLURM_RUNS", "").split()) or ("nothing",)):
        with open(value(arguments, "--output"), "w") as log:
            environment = os.environ | {"SLURM_JOB_ID": number}
            done = subprocess.run(value(arguments, "--wrap"), shell=True, cwd=value(arguments, "-D"), env=environment, stdout=log, stderr=log)
        state = "FAILED" if done.returncode else "COMPLETED"
    names = {"account": "-A", "partition": "-p", "minutes": "-t", "memory_mb": "--mem", "gpus": "--gpus", "cpus": "--cpus-per-task", "command": "--wrap"}
    facts = {name: value(arguments, flag) for name, flag in names.items()}
    with open(RECORD, "a") as handle:
        handle.write(json.dumps({"id": number, "rule": comment, "state": state, **facts}) + "\n")
    print(number)


def squeue(arguments):
    for record in records():
        print(f"{record['id']}|{record['state']}")


def sacctmgr(arguments):
    print("lab")


def scontrol(arguments):
    print("MaxArraySize            = 1001\nMinJobAge               = 300 sec")


def srun(arguments):
    while arguments[0].startswith("-"):
        arguments = arguments[1:]
    os.execvp(arguments[0], arguments)


def scancel(arguments):
    (RECORD.parent / "cancelled.txt").write_text(" ".join(arguments))


PROGRAMS = {"sbatch": sbatch, "squeue": squeue, "sacct": squeue, "sacctmgr": sacctmgr, "scontrol": scontrol, "srun": srun, "scancel": scancel}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2:])
