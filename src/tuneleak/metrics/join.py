"""The verb `join-metrics`: the metrics tables of all studies as one."""

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
        table = files.read_table(path, advice="make it with `tuneleak evaluate`")
        if list(table) != list(COLUMNS):
            raise InputError(f"{path} has the columns {', '.join(table)}; a metrics table must have {', '.join(COLUMNS)}")
        tables.append(table)
    if not tables:
        raise InputError("there are no metrics to join")
    result = pd.concat(tables, ignore_index=True)
    twice = result[result.duplicated(KEY)]
    if len(twice):
        told = ", ".join(f"{name}={value}" for name, value in twice.iloc[0][KEY].items())
        raise InputError(f"two rows describe the same number: {told}; give each table once")
    files.write_csv(out, result)
    files.write_meta(out, None, metrics=[str(path) for path in metrics], rows=len(result))
