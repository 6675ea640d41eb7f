"""The verb `import-images`: a folder of pictures, or a fetched hub data set, becomes an ImageSet."""

import hashlib
import itertools
import re
import tempfile
import unicodedata
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from tuneleak import files, runtime
from tuneleak.data import imageset, sources
from tuneleak.data.pictures import read_square
from tuneleak.errors import InputError

_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|;\s]+')  # ';' joins image ids in a ModelSet's manifest
_LONGEST = 120  # bytes of a name; file systems allow 255, and temporary names are longer


def import_images(source, out, options):
    """Import the folder `source` into the ImageSet `out`.

    Three layouts are understood: class sub-folders (a flat folder is one concept named after the folder); `metadata.csv` files
    with `file_name` and optionally `caption`/`text` and `concept`/`label`/`class`; parquet files as the hub stores data sets. Each
    concept gets a split (`tune` or `test`) and each picture a fold (`train` or `heldout`) by a coin seeded with `options.seed`, or as published.
    Written are the ImageSet, with a column `source` that says where each picture was, a sidecar, and with `options.skip_broken`
    a `skipped.csv` (columns `file`, `reason`).

    Args:
        source: folder to read; never written to.
        out: folder of the ImageSet, outside `source`.
        options: an `ImportOptions`.

    Raises:
        InputError: if the folder is unusable, or at the first unusable picture unless `options.skip_broken`.
    """
    source, out = Path(source), Path(out)
    _check(source, out, options)
    found = sources.find(source)
    with runtime.output_lock(out / "manifest.csv"), tempfile.TemporaryFile(dir=out) as spool:
        rows, skipped = _read(source, found, options, spool)
        if not rows:
            first = f"; the first: {skipped[0][0]} {skipped[0][1]}" if skipped else ""
            raise InputError(f"{source}: none of its {found.total} pictures can be used{first}; put readable pictures there")
        rows = _arrange(rows, options)
        pixels = np.memmap(spool, np.uint8, "r", shape=(len(rows), options.size, options.size, 3))
        order = runtime.progress([row.pop("position") for row in rows], "writing pictures")
        written = imageset.write(out, rows, (np.asarray(pixels[position]) for position in order))
    (out / "skipped.csv").unlink(missing_ok=True)
    if options.skip_broken:
        files.write_csv(out / "skipped.csv", pd.DataFrame(skipped, columns=["file", "reason"]))
    identical = int(written.table.duplicated(["concept", "sha256"]).sum())
    counts = {"pictures": len(rows), "concepts": written.table.concept.nunique(), "skipped": len(skipped), "identical_pictures": identical}
    files.write_meta(out / "manifest.csv", options, source=str(source), **counts, **found.facts)


def folder_name(name):
    """A concept or image name that is safe as a file name everywhere; empty if nothing is left of it (as of `..`)."""
    name = _UNSAFE.sub("-", unicodedata.normalize("NFC", str(name)).strip()).strip("-.")
    return name.encode()[:_LONGEST].decode(errors="ignore")


def draw(names, count, *key):
    """`count` of `names` by a seeded coin: names are ranked by a hash of `key` and themselves, so their order plays no part."""
    return set(sorted(names, key=lambda name: hashlib.sha256(repr((*key, name)).encode()).digest())[:count])


def _check(source, out, options):
    if not source.is_dir():
        hint = "unpack it first, and give the folder" if source.is_file() else "check the path"
        raise InputError(f"{source}: no such folder; {hint}")
    if out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"the image set {out} and its source {source} must not lie inside each other")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_ours(out))):
        raise InputError(f"{out} exists and is not an image set; choose a new folder")
    if options.size**2 > options.max_pixels:
        raise InputError(f"--size {options.size} makes pictures of more than max_pixels = {options.max_pixels} pixels; use a smaller --size")
    unknown = re.search(r"\{(?!concept\})[^}]*\}?", options.caption)
    if unknown:
        raise InputError(f"--caption: {unknown.group()!r} is not known; only {{concept}} is replaced")


def _is_ours(folder):
    """Whether an import (finished or cut short) made the folder: its manifest, its sidecar or its lock is there."""
    return any((folder / name).exists() for name in ("manifest.csv", "manifest.csv.meta.json", ".manifest.csv.lock"))


def _read(source, found, options, spool):
    """Decode every entry into `spool` (raw RGB, so that memory stays small); returns the rows and what was skipped."""
    rows, skipped, concepts = [], [], {}
    for entry in runtime.progress(found.entries, "reading pictures", total=found.total):
        try:
            if entry.problem:
                raise InputError(entry.problem)
            concept = folder_name(entry.concept)
            if not concept:
                raise InputError(f"has the concept {entry.concept!r}, which cannot be a folder's name")
            fold = _published_fold(entry.name) if options.published_split else ""
            pixels = read_square(entry.data, options.size, options.max_pixels, options.crop)
        except InputError as error:
            if not options.skip_broken:
                raise InputError(f"{source / entry.name}: {error}. Repair or remove it, or leave such pictures out with --skip-broken true") from error
            skipped.append((entry.name, str(error)))
            continue
        if concepts.setdefault(concept, entry.concept) != entry.concept:
            raise InputError(f"{source}: the concepts {concepts[concept]!r} and {entry.concept!r} would share the folder name {concept!r}; rename one")
        caption = " ".join(entry.caption.split()) or options.caption.replace("{concept}", entry.concept)
        rows.append({"stem": entry.stem, "concept": concept, "caption": caption, "source": entry.name, "fold": fold, "position": len(rows)})
        spool.write(pixels.tobytes())
    spool.flush()
    return rows, skipped


def _published_fold(name):
    """`train` or `heldout` by the folder below which a picture lies, or by the parquet file it lies in."""
    path = PurePosixPath(name.partition("#")[0].lower())
    words = [*path.parts[:-1], *(re.split(r"[-_.]", path.name)[:1] if path.suffix == ".parquet" else [])]
    found = [word for word in words if word in sources.SPLIT_FOLDERS]
    if not found:
        raise InputError("lies below no folder, and in no parquet file, named train or test, which published_split asks for")
    return "train" if found[0] in ("train", "training") else "heldout"


def _arrange(rows, options):
    """Sort the rows, name them uniquely, and draw splits and folds."""
    rows = sorted(rows, key=lambda row: (row["concept"], row["position"]))
    taken = set()
    for row in rows:
        row["image_id"] = _unique(folder_name(f"{row['concept']}-{row.pop('stem')}"), taken)
    concepts = sorted({row["concept"] for row in rows})
    if options.tune_concepts > len(concepts):
        raise InputError(f"tune_concepts is {options.tune_concepts}, but there are only {len(concepts)} concepts")
    tune = draw(concepts, options.tune_concepts, "tune", options.seed)
    for concept, group in itertools.groupby(rows, key=lambda row: row["concept"]):
        group = list(group)
        train = draw([row["image_id"] for row in group], options.train_per_concept or len(group), "train", options.seed, concept)
        for row in group:
            row["split"] = "tune" if concept in tune else "test"
            row["fold"] = row["fold"] or ("train" if row["image_id"] in train else "heldout")
    return rows


def _unique(name, taken):
    # Compared without case: two names must stay two files on file systems that ignore it.
    candidate, number = name, 1
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate.casefold())
    return candidate
