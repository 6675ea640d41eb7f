"""What Snakemake noted of the jobs it ran: rule, inputs, outputs, log, begin and end, from `.snakemake/metadata`."""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

METADATA = Path(".snakemake/metadata")


@dataclass(frozen=True)
class Job:
    """One finished job; times are seconds since 1970."""

    rule: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    log: str
    started: float
    ended: float


def read(results, metadata=METADATA):
    """Finished jobs whose outputs are below the folder `results` and still exist, by their end; an empty list where Snakemake left no notes.

    results: as the workflow writes it (`results/smoke`). Snakemake keeps a note per output, named by its path in base64 (long names in several
    folders, each but the last behind an `@`); outputs of one job share their log.
    """
    metadata, prefix = Path(metadata), f"{Path(results).as_posix()}/"
    found = {}
    for path in sorted(metadata.rglob("*")) if metadata.is_dir() else ():
        note, output = _read(path), _name(path.relative_to(metadata))
        if not note or note.get("incomplete") or not output.startswith(prefix) or not (note.get("starttime") and note.get("endtime")):
            continue
        if Path(output).exists():
            found.setdefault((note["rule"], tuple(note["log"])), []).append((output, note))
    jobs = [
        Job(
            rule=rule,
            inputs=tuple(sorted({name for _, note in notes for name in note["input"]})),
            outputs=tuple(sorted(output for output, _ in notes)),
            log=log[0] if log else "",
            started=min(note["starttime"] for _, note in notes),
            ended=max(note["endtime"] for _, note in notes),
        )
        for (rule, log), notes in found.items()
    ]
    return sorted(jobs, key=lambda job: (job.ended, job.outputs))


def sidecars(job):
    """The sidecars of a job's outputs, read."""
    return [facts for output in job.outputs if (facts := _read(Path(f"{output}.meta.json")))]


def calls_per_rule(jobs):
    """{rule: samples through a UNet}, of the rules whose sidecars count them (`model_calls`)."""
    found = {}
    for job in jobs:
        for facts in sidecars(job):
            if isinstance(facts.get("model_calls"), int):
                found[job.rule] = found.get(job.rule, 0) + facts["model_calls"]
    return found


def _read(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _name(path):
    try:
        return base64.urlsafe_b64decode("".join(part.removeprefix("@") for part in path.parts)).decode()
    except (binascii.Error, ValueError):
        return ""
