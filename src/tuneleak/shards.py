"""The verbs `keep-shards` and `take-shards`: finished tables of scores of a run that need not be finished, so that no machine computes them twice.

A shard is one job's tables with their sidecars, and what Snakemake noted about that job: its parameters, among them the digest of the code, and digests of
its inputs. `keep` packs the jobs of `SYSTEMS` found below a results folder, one file each, into `<reference>/<system>/shards/`; `take` puts them back where
they are missing, notes included. Whether a shard still holds is then for Snakemake to judge, as of any output: made under other parameters or by other code
it is made again, otherwise it is not, nor what it was made from.
"""

import base64
import gzip
import json
import os
import time
from pathlib import Path

from tuneleak import files
from tuneleak.errors import InputError

SYSTEMS = {  # of the rules whose tables are kept: those that ask models
    "calibrate": "finextract",
    "extract": "finextract",
    "sweep": "finextract-ablations",
    "variant_utility": "finextract-ablations",
    "recover_captions": "finextract-attacker",
    "extract_under_conditions": "finextract-attacker",
    "judge_people": "finextract-attacker",
    "collect_clusters": "finextract-attacker",
    "dataset_size": "lora-weights",
    "measure_real": "dp-ldm",
    "measure_private": "dp-ldm",
    "audit_private": "dp-ldm",
    "shake_scores": "shake-to-leak",
    "shake_study_scores": "shake-to-leak",
    "shake_further_attacks": "shake-to-leak",
    "shake_set_losses": "shake-to-leak",
    "shake_gaussian_scores": "shake-to-leak",
    "shake_fidelity": "shake-to-leak",
    "shake_calibrate": "shake-to-leak",
    "shake_regenerate": "shake-to-leak",
    "defended_membership": "defences",
    "defended_extraction": "defences",
    "defended_people": "defences",
    "defended_utility": "defences",
    "defended_weights": "defences",
    "attack_shadows": "defences",
    "shaken_membership": "defences",
}
PICTURES = "manifest.csv"  # of a folder of pictures, which are not kept; Snakemake's note is, without which it would not judge the job's tables
NOTES = Path(".snakemake/metadata")  # of the folder Snakemake works in
ADVICE = "get it again from where it came, or leave it out: then it is computed"


def keep_shards(results, out, folder="."):
    """Pack the finished jobs below `results` (results/full) into `<out>/<system>/shards/*.json.gz`; out: paper/reference/full; folder: Snakemake's.

    Prints how many. A shard that is there already, of the same job, is not written again.
    """
    folder, kept = Path(folder).resolve(), 0
    results = _below(folder, results)
    for path, note in _notes(folder):
        if note.get("rule") not in SYSTEMS or not path.is_relative_to(results) or note.get("incomplete") or not (folder / path).is_file():
            continue
        named = () if path.name == PICTURES else (str(path), f"{path}.meta.json")
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in named if (folder / name).is_file()}
        packed = json.dumps({"path": str(path), "files": texts, "note": note}, sort_keys=True)
        if str(folder) in packed:
            raise InputError(f"{path} or its sidecar names this machine's folder {folder}; run the workflow with relative paths")
        target = Path(out) / SYSTEMS[note["rule"]] / "shards" / f"{'.'.join(path.relative_to(results).with_suffix('').parts)}.json.gz"
        if not target.is_file() or gzip.decompress(target.read_bytes()) != packed.encode():
            with files.atomic(target) as temporary:
                temporary.write_bytes(gzip.compress(packed.encode(), mtime=0))
            kept += 1
    print(f"{kept} shards written below {out}")


def take_shards(results, reference, folder="."):
    """Put the shards below `reference` (paper/reference/full) back into `results` (results/full) where a table is missing; folder: Snakemake's.

    Raises `InputError` for a file that is no shard, or that names a place outside `results`.
    """
    folder, taken, now = Path(folder).resolve(), 0, time.time()
    results = _below(folder, results)
    for shard in sorted(Path(reference).glob("*/shards/*.json.gz")):
        path, texts, note = _read(shard)
        for name in (path, *texts):
            if not Path(name).is_relative_to(results) or ".." in Path(name).parts:
                raise InputError(f"{shard} holds {name}, which is not below {results}; {ADVICE}")
        if (folder / path).is_file():
            continue
        for name, text in sorted(texts.items()):
            files.write_text(folder / name, text)
            os.utime(folder / name, (now, now))  # none is newer than what it was made from
        files.write_text(folder / NOTES / _name(path), json.dumps(note))
        taken += 1
    print(f"{taken} shards taken from {reference}; `snakemake -n` tells what is left to do")


def _below(folder, results):
    """A results folder relative to the folder Snakemake works in."""
    found = (folder / results).resolve()
    if not found.is_relative_to(folder):
        raise InputError(f"{results} is not below {folder}, where Snakemake works; start this there")
    return found.relative_to(folder)


def _name(path):
    """The name of Snakemake's note about an output; those of very long paths are cut into folders, which no table here needs."""
    return base64.urlsafe_b64encode(str(path).encode()).decode()


def _notes(folder):
    """(output, note) of every job that Snakemake noted in `folder`, by name of output."""
    found = []
    for note in (folder / NOTES).glob("*"):
        if note.is_file():
            found.append((Path(base64.urlsafe_b64decode(note.name).decode()), json.loads(note.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda item: item[0])


def _read(shard):
    try:
        packed = json.loads(gzip.decompress(shard.read_bytes()))
        path, texts, note = packed["path"], packed["files"], packed["note"]
        sound = (
            isinstance(path, str)
            and (path in texts or Path(path).name == PICTURES)
            and isinstance(note, dict)
            and all(isinstance(text, str) for text in texts.values())
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{shard} is no readable shard ({error}); {ADVICE}") from None
    if not sound:
        raise InputError(f"{shard} is no shard; {ADVICE}")
    return path, texts, note
