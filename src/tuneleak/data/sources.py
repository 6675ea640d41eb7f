"""Finds the pictures of a folder, with their concepts and captions: class folders, a `metadata.csv`, or a hub data set's parquet files."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tuneleak import files
from tuneleak.data.pictures import SUFFIXES
from tuneleak.errors import InputError

CONCEPT_COLUMNS = ("concept", "label", "class", "identity", "celeb_id", "artist", "subject", "fine_label")
CAPTION_COLUMNS = ("caption", "text", "prompt")
IMAGE_COLUMNS = ("image", "img", "picture", "photo")
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Entry:
    """One candidate: where it was found, what it shows, and its path or bytes; or the `problem` that makes it unusable."""

    name: str
    stem: str = ""
    concept: str = ""
    caption: str = ""
    data: Path | bytes | None = None
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """What a folder holds: `total` entries in a fixed order, and facts for the sidecar."""

    entries: Iterator[Entry]
    total: int
    facts: dict = field(default_factory=dict)


def find(root):
    """Look at the folder `root` and return its `Source`; raises `InputError` when it holds no pictures or is ambiguous."""
    root = root.resolve()
    pictures, tables, parquet, links, ignored = _walk(root)
    if tables:
        source = _from_tables(root, tables, len(pictures))
    elif parquet:
        source = _from_parquet(root, parquet)
    elif pictures or links:
        source = _from_folders(root, pictures, links)
    else:
        held = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(ignored.items())) or "nothing"
        raise InputError(
            f"{root} holds no pictures ({', '.join(SUFFIXES)}), no metadata.csv and no parquet files; it holds {held}; give the folder that has them"
        )
    source.facts["ignored_files"] = dict(sorted(ignored.items()))
    return source


def text(name):
    """A file name as valid Unicode (bytes that are not UTF-8 become replacement characters)."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _walk(root):
    def refuse(error):
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    pictures, tables, parquet, links, ignored = [], [], [], [], Counter()
    for folder, folders, leaves in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        links += [Path(folder, name).relative_to(root) for name in folders if Path(folder, name).is_symlink()]
        for leaf in leaves:
            relative, suffix = Path(folder, leaf).relative_to(root), Path(leaf).suffix.lower()
            if leaf.startswith("."):
                continue
            kind = tables if leaf == "metadata.csv" else parquet if suffix == ".parquet" else pictures if suffix in SUFFIXES else None
            if kind is None:
                ignored[text(suffix)] += 1
            else:
                kind.append(relative)
    return *(sorted(kind, key=lambda path: text(path.as_posix())) for kind in (pictures, tables, parquet, links)), ignored


def _file(root, relative, concept, caption=""):
    name, stem = text(relative.as_posix()), text(relative.stem)
    try:
        path = files.inside(root, relative)
    except InputError:
        return Entry(name, problem="is a link or path that leaves the folder (copy the picture itself; `tuneleak fetch` writes real files)")
    if not path.is_file():
        return Entry(name, problem="does not exist or is not a file")
    return Entry(name, stem, concept, caption, path)


def _from_folders(root, pictures, links):
    """The concept is the first level at which folders branch (below train/test folders); a flat folder is one concept."""
    parents = [list(path.parts[:-1]) for path in pictures]
    flat = root.name
    while parents and all(parent and parent[0] == parents[0][0] for parent in parents):
        flat = parents[0][0] if parents[0][0].lower() not in SPLIT_FOLDERS else flat
        parents = [parent[1:] for parent in parents]
    if parents and all(parent and parent[0].lower() in SPLIT_FOLDERS for parent in parents):
        parents = [parent[1:] for parent in parents]
    loose = [path for path, parent in zip(pictures, parents, strict=True) if not parent]
    if loose and len(loose) < len(pictures):
        raise InputError(f"{root} holds class folders and also pictures beside them ({text(loose[0])}); put every picture into the folder of its class")
    entries = [_file(root, path, text(parent[0] if parent else flat)) for path, parent in zip(pictures, parents, strict=True)]
    entries += [Entry(text(link.as_posix()), problem="is a link to a folder, which is not followed; copy the folder itself") for link in links]
    return Source(iter(entries), len(entries), {"layout": "folders"})


def _first(columns, wanted):
    return next((name for name in wanted if name in columns), "")


def _from_tables(root, tables, n_pictures):
    import pandas as pd

    entries, seen, facts = [], set(), {"layout": "metadata.csv"}
    for relative in tables:
        try:
            table = pd.read_csv(files.inside(root, relative), dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
        except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
            raise InputError(f"{root / relative}: cannot be read as a UTF-8 CSV table ({error})") from None
        table.columns = [str(name).strip() for name in table.columns]
        if "file_name" not in table:
            raise InputError(f"{root / relative} needs a column file_name (caption or text, and concept, label or class may follow); it has {', '.join(table)}")
        concept, caption = _first(table, CONCEPT_COLUMNS), _first(table, CAPTION_COLUMNS)
        facts["columns"] = {"concept": concept, "caption": caption}
        for _, row in table.iterrows():
            path = relative.parent / row["file_name"].strip()
            if path in seen:
                raise InputError(f"{root / relative} lists {row['file_name']!r} twice; remove one of the rows")
            seen.add(path)
            folder = text(path.parent.name) if path.parent.name.lower() not in {"", *SPLIT_FOLDERS} else root.name
            entries.append(_file(root, path, row[concept].strip() if concept else folder, row[caption] if caption else ""))
    entries.sort(key=lambda entry: entry.name)
    facts["unlisted_pictures"] = max(0, n_pictures - len(seen))
    return Source(iter(entries), len(entries), facts)


def _from_parquet(root, paths):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{root} holds parquet files; reading them needs pyarrow: pip install pyarrow") from None
    shards = []
    for relative in paths:
        try:
            shards.append((relative, pyarrow.parquet.ParquetFile(files.inside(root, relative))))
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{root / relative}: not a readable parquet file ({error}); fetch it again") from None
    schema = shards[0][1].schema_arrow
    for relative, shard in shards:
        if shard.schema_arrow.names != schema.names:
            raise InputError(f"{root / paths[0]} and {root / relative} have different columns: they belong to two data sets; give --source the folder of one")
    image, concept, caption = (_first(schema.names, wanted) for wanted in (IMAGE_COLUMNS, CONCEPT_COLUMNS, CAPTION_COLUMNS))
    if not image:
        raise InputError(f"{root / paths[0]} has no column of pictures ({', '.join(IMAGE_COLUMNS)}); it has {', '.join(schema.names)}")
    names = _class_names(root, schema, concept)
    columns = [name for name in (image, concept, caption) if name]
    rows = _rows(root, shards, columns)
    entries = (_parquet_entry(root, where, index, [row.get(name) for name in (image, concept, caption)], concept, names) for where, index, row in rows)
    facts = {"layout": "parquet", "columns": {"image": image, "concept": concept, "caption": caption}}
    return Source(entries, sum(shard.metadata.num_rows for _, shard in shards), facts)


def _rows(root, shards, columns):
    import pyarrow

    index = 0
    for relative, shard in shards:
        first = index
        try:
            for batch in shard.iter_batches(batch_size=64, columns=columns):
                for row in batch.to_pylist():
                    yield f"{text(relative.as_posix())}#{index - first}", index, row
                    index += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{root / relative}: broken after row {index - first} ({error}); fetch it again") from None


def _parquet_entry(root, where, index, values, concept_column, names):
    picture, concept, caption = values
    picture = picture if isinstance(picture, dict) else {"bytes": picture}
    data, path = picture.get("bytes"), picture.get("path") or ""
    stem = Path(path).stem or f"{index:06d}"
    if not concept_column:
        concept = root.name
    elif isinstance(concept, int) and names:
        if not 0 <= concept < len(names):
            return Entry(where, problem=f"has the class {concept}, but only 0 to {len(names) - 1} have names")
        concept = names[concept]
    if concept is None or isinstance(concept, float | list | dict):
        return Entry(where, problem=f"has no usable class in the column {concept_column!r} ({concept!r})")
    caption = caption[0] if isinstance(caption, list) and caption else caption
    caption = caption if isinstance(caption, str) else ""
    if data is None and path:
        found = _file(root, Path(path), str(concept), caption)
        return Entry(where, found.stem, found.concept, found.caption, found.data, found.problem and f"names the file {path!r}, which {found.problem}")
    if not isinstance(data, bytes):
        return Entry(where, problem="holds no picture")
    return Entry(where, stem, str(concept), caption, data)


def _class_names(root, schema, column):
    """Names of a hub data set's integer classes, from the parquet metadata or else from the README's header; [] if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        pass
    for folder in (root, root.parent):
        names = _readme_names(folder / "README.md", column)
        if names:
            return names
    return []


def _readme_names(readme, column):
    import yaml

    try:
        header = yaml.safe_load(readme.read_text(encoding="utf-8").split("---")[1])
        infos = header["dataset_info"]
        for info in infos if isinstance(infos, list) else [infos]:
            for feature in info["features"]:
                if feature["name"] == column:
                    names = feature["dtype"]["class_label"]["names"]
                    return [str(names[key]) for key in sorted(names, key=int)]
    except (OSError, UnicodeDecodeError, IndexError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return []
    return []
