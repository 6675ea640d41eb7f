"""Reading the tables the report is made of: metrics.csv, tuning.csv and matches.csv.

A metrics table has the columns of `COLUMNS`. Its `setting` is the guidance ("w=3,k=-0.02", "w=3" or "none") followed by qualifiers
("; control=heldout", "; bound=oracle", "; concept=<name>", "; interval=images"); `read_metrics` also gives them as columns of their own.
"""

from pathlib import Path

import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError

COLUMNS = ("system", "world", "base", "method", "attack", "defence", "setting", "metric", "value", "ci_low", "ci_high", "n", "seeds")
KEY = ("system", "world", "base", "method", "attack", "defence", "guidance", "control", "bound", "concept", "metric")
QUALIFIERS = ("control", "bound", "concept", "interval")
NUMBERS = ("value", "ci_low", "ci_high", "n")
MATCH_COLUMNS = ("model_id", "world", "base", "concept", "method", "defence", "seed", "attack", "setting", "image_id", "extracted", "match_file")


def split_setting(setting):
    """A `setting` string -> dict with `guidance`, `control`, `bound`, `concept` and `interval` (empty strings where it names none)."""
    parts = {"guidance": "", **dict.fromkeys(QUALIFIERS, "")}
    for position, text in enumerate(part.strip() for part in setting.split(";")):
        name, _, value = text.partition("=")
        if name in QUALIFIERS:
            parts[name] = value
        elif position == 0:
            parts["guidance"] = text
        else:
            raise InputError(f"setting {setting!r} has the unknown qualifier {text!r}; known are {', '.join(QUALIFIERS)}")
    return parts


def guidance_values(guidance):
    """The guidance part of a setting as floats: "w=3,k=-0.02" -> {"w": 3.0, "k": -0.02}; "none" -> {}."""
    values = {}
    for item in guidance.split(","):
        name, equals, value = item.partition("=")
        if equals:
            values[name.strip()] = float(value)
    return values


def read_metrics(path):
    """Read a metrics table: string columns as strings, numbers as floats, the parts of `setting` as further columns.

    Raises `InputError` for a missing file, missing columns, an unreadable number or two rows with one key.
    """
    table = _read(path, COLUMNS)
    for name in NUMBERS:
        text = table[name].replace("", "nan")
        numbers = pd.to_numeric(text, errors="coerce")
        broken = text[numbers.isna() & (text.str.lower() != "nan")]
        if len(broken):
            raise InputError(f"{path}: column {name}, line {broken.index[0] + 2}: {broken.iloc[0]!r} is no number; run the evaluation again")
        table[name] = numbers.astype(float)
    parts = pd.DataFrame([split_setting(setting) for setting in table.setting], columns=["guidance", *QUALIFIERS], index=table.index)
    table = pd.concat([table, parts], axis=1)
    twice = table.duplicated(list(KEY))
    if twice.any():
        raise InputError(f"{path}: two rows describe the same thing: {describe(table[twice].iloc[0])}; run the evaluation again")
    return table


def read_matches(paths):
    """Read and join matches.csv files; `folder` is added: the `extracted/` image set each row's `match_file` lies in."""
    tables = []
    for path in map(Path, paths):
        table = _read(path, MATCH_COLUMNS)
        table["folder"] = str(path.parent / "extracted")
        tables.append(table)
    if not tables:
        raise InputError("no matches.csv was given")
    table = pd.concat(tables, ignore_index=True)
    table["extracted"] = pd.to_numeric(table["extracted"], errors="coerce")
    table["seed"] = pd.to_numeric(table["seed"], errors="coerce").fillna(0).astype(int)
    return table


def describe(row):
    """One row in words, for error messages: its non-empty key columns."""
    return ", ".join(f"{name}={row[name]!r}" for name in KEY if row[name] != "")


def plain(table):
    """The rows that are measurements over all concepts: no control, no bound, no single concept, no difference of attacks or methods."""
    difference = table.attack.str.contains("-minus-") | table.method.str.contains("-minus-") | table.defence.str.contains("-minus-")
    return table[(table.control == "") & (table.bound == "") & (table.concept == "") & ~difference]


def _read(path, columns):
    return files.read_table(path, columns, "run that part of the study again").astype(object)  # plain strings: selecting rows is what these tables are for
