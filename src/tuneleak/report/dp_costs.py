"""What each way of private training costs: seconds of a noisy step, seconds of a model, and peak memory, from a run's benchmarks and training logs."""

from pathlib import Path

import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.report import names, tex

RULES = ("finetune_private", "mean_features", "aggregate_embeddings")


def per_method(results, benchmarks):
    """{"<world>/<method>": {models, seconds_per_step, seconds_per_model, peak_memory_mb}} of the private trainings below `results` (`<results>/dp/`).

    benchmarks: folder of Snakemake's benchmark TSVs, of which those of `RULES` count. A step's seconds are the median of train.csv, absent where a method takes
    no noisy steps; a model's are those of its job, start-up and encoding of the pictures included. Cells without a benchmark are left out.
    """
    found = {}
    for manifest in sorted(Path(results).glob("dp/*/*/*/manifest.csv")):
        world, recipe, epsilon = manifest.parts[-4:-1]
        cost = _benchmark(Path(benchmarks), f"{world}.{recipe}.{epsilon}.tsv")
        if cost is None:
            continue
        models = files.read_table(manifest, ["method"], "run that training again")
        mine = found.setdefault(f"{world}/{models.method.iloc[0]}", {"models": 0, "seconds": 0.0, "peak_memory_mb": 0.0, "steps": []})
        mine["models"] += len(models)
        mine["seconds"] += cost[0]
        mine["peak_memory_mb"] = max(mine["peak_memory_mb"], cost[1])
        log = manifest.with_name("train.csv")
        if log.is_file() and "seconds" in (table := pd.read_csv(log)):
            mine["steps"] += list(table.seconds)
    return {name: _told(facts) for name, facts in found.items()}


def table(methods, recorded=None):
    """TeX tabular: a block per world, a row per method, of the recorded run and of this run; both as `per_method` gives them, or None."""
    methods, recorded = methods or {}, recorded or {}
    body, worlds = [], {}
    for key in {**recorded, **methods}:
        world, _, method = key.partition("/")
        worlds.setdefault(world, []).append(method)
    for world in names.worlds_in_order(worlds):
        body.append(tex.heading(tex.escape(names.world_name(world)), 9))
        for method in names.methods_in_order(worlds[world]):
            key = f"{world}/{method}"
            body.append([tex.escape(names.method_name(method)), *_cells(recorded.get(key)), *_cells(methods.get(key))])
    body = body or [[tex.MISSING, *_cells(None), *_cells(None)]]
    head = [["", r"\multicolumn{4}{c}{recorded}", r"\multicolumn{4}{c}{this run}"], r"\cmidrule(lr){2-5}\cmidrule(l){6-9}"]
    return tex.tabular("@{}lrrrrrrrr@{}", [*head, ["", *["models", "s/step", "s/model", "MB"] * 2]], body)


def _benchmark(folder, name):
    """(seconds, peak MB) of a job, or None if it was not measured."""
    path = next((path for rule in RULES if (path := folder / rule / name).is_file()), None)
    if path is None:
        return None
    measured = pd.read_csv(path, sep="\t")
    if "s" not in measured:
        raise InputError(f"{path} is not a benchmark of Snakemake: it has no column `s`")
    memory = pd.to_numeric(measured.get("max_rss", pd.Series(dtype=float)), errors="coerce").max()
    return float(pd.to_numeric(measured["s"], errors="coerce").fillna(0).sum()), 0.0 if pd.isna(memory) else float(memory)


def _told(facts):
    told = {"models": facts["models"], "seconds_per_model": round(facts["seconds"] / facts["models"], 2), "peak_memory_mb": facts["peak_memory_mb"]}
    return told | ({"seconds_per_step": round(float(pd.Series(facts["steps"]).median()), 3)} if facts["steps"] else {})


def _cells(facts):
    if facts is None:
        return [tex.NOT_RECORDED] * 4
    step = tex.number(facts["seconds_per_step"], 2) if "seconds_per_step" in facts else tex.NOT_RECORDED
    return [str(facts["models"]), step, f"{facts['seconds_per_model']:.0f}", f"{facts['peak_memory_mb']:.0f}"]
