"""The verb `record`, which keeps a finished run under paper/reference/, and the facts about a run that its sidecars hold.

Numbers of single pictures, which figures need, are kept beside it as `scores/<name>.csv.gz` (`SCORES`), figures that show pictures as they are (`PICTURES`).
"""

import json
import shutil
from pathlib import Path

import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.report import dp_costs, jobs, rows

META = "run.meta.json"
SCORES = {  # of a results folder; `matches` in as many columns as reading it takes
    "tuning": "metrics/finextract/tuning.csv",
    "matches": "extraction/*/*/test*/*/matches.csv",
    "clusters": "attacker/clusters.csv",
    "membership": "shake-to-leak/*/scores*.csv",
}
PICTURES = ("pictures", "weights-reconstructions", "dp_samples", "shake_pairs")
LARGEST = 5_000_000  # bytes of one compressed table or figure


def record(metrics, benchmarks, out, claims=None, results=None, resources="resources"):
    """Write `<out>/<system>/{metrics.csv,run.meta.json}` for each system of a metrics table, and `<out>/claims.csv` if claims are given.

    metrics: metrics.csv of a run, with its sidecar; benchmarks: folder of Snakemake's benchmark TSVs; out: paper/reference/<preset>;
    claims: claims.csv of the same run; systems recorded from other runs keep their rows; results: folder of the run, for scores and pictures;
    resources: the shipped models. run.meta.json holds the machine, the versions, the settings, a digest of those models and the seconds, memory and UNet
    calls per rule, and what a private training of each method took (`dp_costs.per_method`).
    """
    if rows.read_metrics(metrics).empty:
        raise InputError(f"{metrics} has no row; there is nothing to record")
    facts = facts_of(metrics)
    if not facts.get("machine"):
        raise InputError(f"{metrics} has no sidecar {Path(metrics).name}.meta.json, so the machine it was made on is unknown; run the workflow to make both")
    facts |= {
        "preset": Path(out).resolve().name,
        "models": models_digest(resources),
        "rules": seconds_per_rule(benchmarks, jobs.calls_per_rule(jobs.read(Path(metrics).parent))),
        "methods": dp_costs.per_method(Path(metrics).parent, benchmarks),
    }
    as_text = pd.read_csv(metrics, dtype=str, keep_default_na=False)  # copied to the letter
    if claims:
        _record_claims(files.read_table(claims, ["system"], "make it again with `tuneleak claims`"), set(as_text.system), Path(out) / "claims.csv")
    for system, part in as_text.groupby("system"):
        files.write_csv(Path(out) / system / "metrics.csv", part)
        files.write_json(Path(out) / system / META, facts)
    if results:
        _record_scores(Path(results), Path(out))
        _record_pictures(Path(results), Path(out))


def models_digest(resources):
    """What tells one set of shipped models from another: the SHA-256 of their list of digests; empty without one."""
    listed = Path(resources) / "SHA256SUMS"
    return files.sha256(listed) if listed.is_file() else ""


def of_other_models(facts, resources):
    """Whether a recorded run (its run.meta.json) was made with other models than those under `resources`; False where either is unknown."""
    recorded, here = facts.get("models", ""), models_digest(resources)
    return bool(recorded and here) and recorded != here


def scores_file(folder, name):
    """Where the scores `name` of a recorded run lie (folder: paper/reference/<preset>)."""
    return Path(folder) / "scores" / f"{name}.csv.gz"


def _record_scores(results, out):
    for name, pattern in SCORES.items():
        tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in sorted(results.glob(pattern))]
        if not tables:
            continue
        table, path = pd.concat(tables, ignore_index=True), scores_file(out, name)
        if name == "matches":
            table = table[list(rows.MATCH_COLUMNS)]
        with files.atomic(path) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n", compression={"method": "gzip", "mtime": 0})
        if path.stat().st_size > LARGEST:
            print(f"{path}: left out, with {path.stat().st_size:,d} bytes it is larger than {LARGEST:,d}; figures drawn from it need the run")
            path.unlink()


def figure_file(folder, name):
    """Where the figure `name` of a recorded run lies (folder: paper/reference/<preset>)."""
    return Path(folder) / "figures" / f"{name}.pdf"


def _record_pictures(results, out):
    for path in (path for name in PICTURES for path in results.glob(f"figures/*/{name}.pdf")):
        if path.stat().st_size <= LARGEST:
            with files.atomic(figure_file(out, path.stem)) as temporary:
                shutil.copyfile(path, temporary)


def _record_claims(claims, systems, out):
    kept = pd.read_csv(out, dtype=str, keep_default_na=False).query("system not in @systems") if out.is_file() else claims[:0]
    files.write_csv(out, pd.concat([kept, claims[claims.system.isin(systems)]]).sort_values("system", kind="stable"))


def seconds_per_rule(benchmarks, calls=None):
    """Folder of benchmark TSVs -> {rule: {jobs, seconds, peak_memory_mb}}; the rule is the folder, or the file's name at the top.

    calls: {rule: samples through a UNet}, where it is known (`jobs.calls_per_rule`); it becomes `calls`.
    """
    folder = Path(benchmarks)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of benchmark files")
    found = {}
    for path in sorted(folder.rglob("*.tsv")):
        inside = path.relative_to(folder)
        table = pd.read_csv(path, sep="\t")
        if "s" not in table:
            raise InputError(f"{path} is not a benchmark of Snakemake: it has no column `s`")
        rule = found.setdefault(inside.parts[0] if len(inside.parts) > 1 else inside.stem, {"jobs": 0, "seconds": 0.0, "peak_memory_mb": 0.0})
        rule["jobs"] += 1
        rule["seconds"] = round(rule["seconds"] + float(pd.to_numeric(table["s"], errors="coerce").fillna(0).sum()), 2)
        memory = pd.to_numeric(table.get("max_rss", pd.Series(dtype=float)), errors="coerce").max()
        rule["peak_memory_mb"] = float(max(rule["peak_memory_mb"], 0 if pd.isna(memory) else memory))
    for rule, count in (calls or {}).items():
        if rule in found:
            found[rule]["calls"] = count
    return found


def facts_of(metrics):
    """What the sidecar of a metrics table, and of the tables it was made from, say about the run; an empty dict where there is none.

    Keys: machine, versions, git, finished; `evaluation` (options of the intervals) and `extraction` (options of an attack), both the first study's.
    """
    path = Path(metrics)
    recorded = path.with_name(META)
    if recorded.is_file():
        return files.read_json(recorded)
    own = _sidecar(path)
    facts = {name: own[name] for name in ("machine", "versions", "git", "finished") if name in own}
    for table in own.get("metrics", []):
        evaluation = _sidecar(table)
        facts["evaluation"] = (evaluation.get("options") or {}) | facts.get("evaluation", {})
        for matches in evaluation.get("matches", [])[:1]:
            facts.setdefault("extraction", _sidecar(matches).get("options") or {})
    return facts


def _sidecar(path):
    path = Path(path)
    try:
        return json.loads(path.with_name(path.name + ".meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
