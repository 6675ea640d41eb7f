"""Reading the score tables that evaluations start from: several CSV files of one kind as one table, or an error that names the file."""

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError


def joined(paths, kind, verb, columns, numbers=(), optional=(), complete=()):
    """The CSV files `paths` under one another; all columns are text but `numbers` and `optional` (float, NaN where empty; `optional` may be absent).

    columns: those a file must have besides `numbers`; kind, verb: what such a file is called and which verb writes it; complete: numbers without empty
    cells. Raises `InputError` for a file that is missing, lacks a column or holds something that is not a finite number, and if there is no row at all.
    """
    tables = []
    for path in paths:
        table = files.read_table(path, dict.fromkeys([*columns, *numbers]), f"it is not a {kind} of `tuneleak {verb}`; make it with that verb")
        for name in (*numbers, *optional):
            table[name] = _numbers(path, name, table, verb) if name in table else np.nan
        empty = [name for name in complete if table[name].isna().any()]
        if empty:
            raise InputError(f"{path}: column {', '.join(empty)} has empty cells; run `tuneleak {verb}` again")
        tables.append(table)
    if not tables or not sum(map(len, tables)):
        raise InputError(f"there is no row of any {kind} to evaluate; make one with `tuneleak {verb}`")
    return pd.concat(tables, ignore_index=True)


def _numbers(path, name, table, verb):
    try:
        values = pd.to_numeric(table[name].where(table[name] != ""))
    except ValueError as error:
        raise InputError(f"{path}: column {name} holds something that is not a number ({error}); run `tuneleak {verb}` again") from None
    if np.isinf(values).any():
        raise InputError(f"{path}: column {name} holds an infinite number; run `tuneleak {verb}` again")
    return values
