"""The verb `unlock`: frees a folder that a killed Snakemake left locked, but never one where Snakemake is alive."""

import os
import subprocess
import sys
from pathlib import Path

from tuneleak.errors import InputError


def unlock(folder="."):
    """Remove Snakemake's lock from `folder` if no live Snakemake of this machine works there; prints what was done.

    Snakemake's lock files do not say who holds them, so a process of another machine on a shared disk goes unseen.
    """
    folder = Path(folder).resolve()
    if not any((folder / ".snakemake" / "locks").glob("*")):
        return
    holders = live_snakemakes(folder)
    if holders:
        print(f"{folder}: Snakemake is at work here (process {', '.join(map(str, holders))}); its lock stays")
        return
    print(f"{folder}: left locked by a Snakemake that is gone; unlocking")
    done = subprocess.run([sys.executable, "-m", "snakemake", "--unlock"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{folder} could not be unlocked:\n{done.stderr.strip()}")


def live_snakemakes(folder):
    """Process ids of live Snakemakes whose working directory is `folder`, this process and its ancestors excepted."""
    import psutil

    own = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            named = any(Path(word).name == "snakemake" for word in words[:3])  # `snakemake`, `python .../snakemake`, `python -m snakemake`
            if process.pid not in own and named and process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
