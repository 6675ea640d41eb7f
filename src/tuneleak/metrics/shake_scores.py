"""Scores of membership attacks on bases and models tuned from them, read from the scores.csv files of `attack membership`, and checked."""

from tuneleak.errors import InputError
from tuneleak.metrics import reading

PICTURE = ["base", "attack", "setting", "caption", "image_concept", "image_id"]  # one score of each model
NAMED = ["model_id", "world", "concept", "method", "defence", "seed", "step", "dose", "pretrained", *PICTURE]


def read_scores(paths):
    """Read and join scores.csv files; `InputError` on missing columns, unknown membership, bad numbers or a score that occurs twice."""
    table = named_by_steps(reading.joined(paths, "scores.csv", "attack membership", NAMED, ["score", "model_calls"], complete=["score"]))
    modelless = table.model_id.isin(["base", "none"])  # scored again in every job, for the same numbers
    again = table[modelless].duplicated([*PICTURE, "model_id"])
    grouped = table[modelless].groupby([*PICTURE, "model_id"]).score
    if (grouped.max() - grouped.min() > 1e-3 * table[modelless].score.abs().max()).any():
        raise InputError("jobs disagree about the scores of a base; were they run with other options or another version?")
    table = table.drop(index=again[again].index).reset_index(drop=True)
    if not table.pretrained.isin(["0", "1"]).all():
        raise InputError("a score does not say what the base was trained on; run `tuneleak attack membership` with --members")
    if table.duplicated([*PICTURE, "model_id", "world", "method", "seed"]).any():
        row = table[table.duplicated([*PICTURE, "model_id", "world", "method", "seed"])].iloc[0]
        raise InputError(f"model {row.model_id}, attack {row.attack!r} has two scores of picture {row.image_id!r}; was a shard given twice?")
    return table


def named_by_steps(table):
    """The table with `<world>=<step>` in place of a world whose models were kept after several numbers of steps."""
    steps = table.groupby(["base", "method", "world", "seed"]).step.transform("nunique")
    return table.assign(world=table.world.where((steps < 2) | (table.world == ""), table.world + "=" + table.step))


def read_losses(paths):
    """Mean denoising loss of the self-made set: columns base, method, world (`steps=<n>`; empty for the base), image_concept, loss; None without `paths`."""
    if not paths:
        return None
    table = named_by_steps(reading.joined(paths, "scores.csv", "attack membership", NAMED, ["score"], complete=["score"]))
    keys = ["base", "method", "world", "image_concept"]
    return (-table.groupby(keys).score.mean()).rename("loss").reset_index()
