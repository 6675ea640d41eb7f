"""The verb `join-metrics`: the metrics tables of all studies as one."""

from pathlib import Path

import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics.finextract import COLUMNS

KEY = [*COLUMNS[:8]]


def join(metrics, out):
    """Write the tables `metrics` (paths) under one another to `out`.

    Columns must be those of the metrics table in the same order, and no two rows may have the same key (all columns up to `metric`); `InputError` otherwise.
    """
    tables = []
    for path in metrics:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if list(table) != list(COLUMNS):
            raise InputError(f"{path} has the columns {', '.join(table)}; a metrics table has {', '.join(COLUMNS)}")
        tables.append(table)
    if not tables:
        raise InputError("there are no metrics to join")
    result = pd.concat(tables, ignore_index=True)
    twice = result[result.duplicated(KEY)]
    if len(twice):
        raise InputError(f"two rows describe the same number: {', '.join(f'{name}={value}' for name, value in twice.iloc[0][KEY].items())}")
    files.write_csv(out, result)
    files.write_meta(out, None, metrics=[str(path) for path in metrics], rows=len(result))
