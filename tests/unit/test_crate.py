"""The description of a finished run: what Snakemake noted, the manifest, and the RO-Crate as its validator sees it."""

import base64
import json
from pathlib import Path

import pytest

from tuneleak.errors import InputError
from tuneleak.report import crate, jobs

ROOT = Path(__file__).resolve().parents[2]
LONG = "results/made/models/" + "x" * 150 + "/manifest.csv"  # its note has a name longer than a file may have


def note(folder, output, **facts):
    """One of Snakemake's notes, named and divided as Snakemake does it."""
    name = base64.urlsafe_b64encode(output.encode()).decode()
    parts = [name[start : start + 200] for start in range(0, len(name), 200)]
    path = folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"incomplete": False, "input": [], "log": [f"results/made/logs/{facts['rule']}.log"], **facts}))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder where a made-up run of three jobs ended, and the working directory."""
    monkeypatch.chdir(tmp_path)
    results, notes = Path("results/made"), Path(".snakemake/metadata")
    for name, text in {"metrics.csv": "a\n1\n", "claims.csv": "b\n", "figures/a b.png": "png", LONG.removeprefix("results/made/"): "m\n"}.items():
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(text)
    machine = {"processor": "P", "cores": 2}
    Path(f"{LONG}.meta.json").write_text(json.dumps({"model_calls": 700, "machine": machine, "git": {"commit": "c"}}))
    Path("results/made/metrics.csv.meta.json").write_text(json.dumps({"machine": machine, "git": {"commit": "d"}}))
    Path("resources").mkdir()
    Path("resources/base.bin").write_text("weights")
    note(notes, LONG, rule="train", input=["resources/base.bin"], starttime=1_700_000_000.0, endtime=1_700_000_060.0)
    note(notes, "results/made/metrics.csv", rule="join", input=[LONG], starttime=1_700_000_070.0, endtime=1_700_000_071.0)
    for output in ("claims.csv", "figures/a b.png"):
        note(notes, f"results/made/{output}", rule="report", input=["results/made/metrics.csv"], starttime=1_700_000_080.0, endtime=1_700_000_082.0)
    note(notes, "results/made/deleted.csv", rule="gone", starttime=1.0, endtime=2.0)
    note(notes, "results/other/metrics.csv", rule="join", starttime=1.0, endtime=2.0)
    note(notes, "results/made/half.csv", rule="half", starttime=1.0, endtime=2.0, incomplete=True)
    for rule, seconds in (("train", 60), ("join", 1), ("report", 2)):
        path = results / "benchmarks" / f"{rule}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"s\tmax_rss\n{seconds}\t10\n")
    Path("overlay.yaml").write_text("preset: made\npathvars: {results: results/made, logs: results/made/logs, benchmarks: results/made/benchmarks}\n")
    return results


def describe(run, **changes):
    crate.crate(run, **{"configuration": ROOT / "config.yaml", "overlay": [Path("overlay.yaml")]} | changes)
    return json.loads((run / "run-manifest.json").read_text()), json.loads((run / "ro-crate-metadata.json").read_text())


def test_jobs_are_those_that_made_what_is_there(run):
    found = jobs.read(run)
    assert [job.rule for job in found] == ["train", "join", "report"]
    assert found[0].outputs == (LONG,) and found[2].outputs == ("results/made/claims.csv", "results/made/figures/a b.png")
    assert (found[0].ended - found[0].started, found[1].inputs) == (60.0, (LONG,))
    assert jobs.calls_per_rule(found) == {"train": 700}
    assert jobs.read("results/nothing") == [] == jobs.read(run, "nowhere")


def test_the_manifest_says_what_ran_with_what_and_how_long(run):
    manifest, _ = describe(run)
    assert manifest["preset"] == "made" and manifest["configuration"]["pathvars"]["results"] == "results/made"
    assert (manifest["started"], manifest["finished"]) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:14:42+00:00")
    assert manifest["rules"]["train"] == {"jobs": 1, "seconds": 60.0, "peak_memory_mb": 10.0, "calls": 700}
    assert [state["commit"] for state in manifest["git"]] == ["c", "d"] and manifest["machine"] == [{"processor": "P", "cores": 2}]


def test_the_crate_names_every_job_with_what_it_read_and_wrote(run):
    _, found = describe(run)
    entities = {item["@id"]: item for item in found["@graph"]}
    train, report = entities["#job-0"], entities["#job-2"]
    assert train["instrument"] == {"@id": "#rule-train"} and train["object"] == {"@id": "#resources/base.bin"}
    assert train["result"] == {"@id": LONG.removeprefix("results/made/")} and train["endTime"] == "2023-11-14T22:14:20+00:00"
    assert report["result"] == [{"@id": "claims.csv"}, {"@id": "figures/a%20b.png"}]
    assert entities["claims.csv"]["sha256"] == "0263829989b6fd954f72baaf2fc64bc2e2f01d692d4de72986ea808f6e99813f"  # of "b\n"
    assert entities["./"]["mainEntity"] == {"@id": "workflow/Snakefile"} and (run / "workflow/Snakefile").is_file()
    assert entities["#run"]["instrument"] == {"@id": "workflow/Snakefile"}
    assert {item["@id"] for item in entities["./"]["mentions"]} == {"#job-0", "#job-1", "#job-2", "#run"}
    for item in found["@graph"]:
        if "File" in item["@type"] and item["@id"] != "ro-crate-metadata.json":
            assert (run / item["@id"].replace("%20", " ")).is_file(), item["@id"]
    assert describe(run)[1] == found, "a second description is the same"


def test_what_cannot_be_described_is_said(run):
    with pytest.raises(InputError, match="writes to results/embedded, not to results/made"):
        describe(run, overlay=None)
    with pytest.raises(InputError, match="knows no job that wrote to results/made"):
        describe(run, metadata=Path("nowhere"))
    with pytest.raises(InputError, match="holds no Snakefile"):
        Path("config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
        describe(run, configuration="config.yaml")
    (run / "metrics.csv").unlink()
    with pytest.raises(InputError, match="finish the run first"):
        describe(run)


def test_the_crate_is_valid(run, crate_issues):
    _, found = describe(run)
    assert crate_issues(run) == []
    found["@graph"] = [item for item in found["@graph"] if item["@id"] != "#run"]  # and it sees what is missing
    (run / "ro-crate-metadata.json").write_text(json.dumps(found))
    assert any("mainEntity" in issue for issue in crate_issues(run))
