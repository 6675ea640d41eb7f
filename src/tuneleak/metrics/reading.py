"""Reading the score tables that evaluations start from: several CSV files of one kind as one table, or an error that names the file."""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak.errors import InputError


def joined(paths, kind, verb, columns, numbers=(), optional=(), complete=()):
    """The CSV files `paths` under one another; all columns are text but `numbers` and `optional` (float, NaN where empty; `optional` may be absent).

    columns: those a file must have besides `numbers`; kind, verb: what such a file is called and which verb writes it; complete: numbers without empty
    cells. Raises `InputError` for a file that is missing, lacks a column or holds something that is not a finite number, and if there is no row at all.
    """
    tables = []
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        missing = [name for name in dict.fromkeys([*columns, *numbers]) if name not in table]
        if missing:
            raise InputError(f"{path} lacks the columns {', '.join(missing)}; it is not a {kind} of `tuneleak {verb}`")
        for name in (*numbers, *optional):
            table[name] = _numbers(path, name, table) if name in table else np.nan
        empty = [name for name in complete if table[name].isna().any()]
        if empty:
            raise InputError(f"{path}: column {', '.join(empty)} has empty cells; run `tuneleak {verb}` again")
        tables.append(table)
    if not tables or not sum(map(len, tables)):
        raise InputError(f"there is no row of any {kind} to evaluate")
    return pd.concat(tables, ignore_index=True)


def _numbers(path, name, table):
    try:
        values = pd.to_numeric(table[name].where(table[name] != ""))
    except ValueError as error:
        raise InputError(f"{path}: column {name} holds something that is not a number ({error})") from None
    if np.isinf(values).any():
        raise InputError(f"{path}: column {name} holds an infinite number")
    return values
