"""The smoke preset from nothing to the paper, and what a workflow owes its user afterwards: nothing is done twice, and a killed run goes on."""

import hashlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import psutil
import pytest
import yaml


def beside(name):
    """A module of helpers that lies beside this file."""
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


survival, browser = beside("survival"), beside("browser")

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
SMOKE = ("--configfile", "workflow/presets/smoke.yaml")


@pytest.fixture(scope="module")
def smoke(clone):
    """A clone in which the smoke preset has run."""
    started = time.monotonic()
    done = clone.snakemake("--show-failed-logs", *SMOKE)
    print(f"smoke preset: {time.monotonic() - started:.0f} s, {done.seconds:.0f} s of processor time")
    return clone


def results(clone, name=""):
    return clone.folder / "results" / "smoke" / name


def reasons(output):
    """{rule: reasons} of the jobs of a dry run that have a reason of their own: those further down only wait for their inputs."""
    found = {}
    for rule, reason in re.findall(r"^rule (\w+):\n(?:    .*\n)*?    reason: (.*)$", output, re.MULTILINE):
        own = [part for part in reason.split("; ") if not part.startswith("Input files updated by another job")]
        if own:
            found.setdefault(rule, set()).update(part.split(":")[0] for part in own)
    return found


def test_makes_everything(smoke):
    assert results(smoke, "paper.pdf").read_bytes().startswith(b"%PDF")
    metrics = pd.read_csv(results(smoke, "metrics.csv"), keep_default_na=False)
    asked = yaml.safe_load((smoke.folder / SMOKE[1]).read_text())
    assert set(metrics[metrics.system != "dp-ldm"].world) == {world["name"] for world in asked["worlds"]} | {"lora-identities", "named", "all"}
    assert "near" in set(metrics[metrics.system == "dp-ldm"].world)
    assert {options["method"] for options in asked["shake_to_leak"]["methods"]} | {"base", "none"} <= set(metrics[metrics.system == "shake-to-leak"].method)
    assert {recipe["options"]["method"] for recipe in asked["finetune"]} <= set(metrics.method) and set(asked["finextract"]["attacks"]) <= set(metrics.attack)
    known = metrics[metrics.metric == "AS"].astype({"value": float, "ci_low": float, "ci_high": float})
    assert len(known) and known.value.between(-1, 1).all() and (known.ci_low <= known.value + 1e-9).all() and (known.value <= known.ci_high + 1e-9).all()
    assert set(pd.read_csv(results(smoke, "claims.csv")).status) <= {"consistent-direction", "opposite-direction", "inconclusive", "not-comparable", "not-run"}
    for name in ("pictures", "similarity", "guidance", "theory"):
        assert results(smoke, f"figures/finextract/{name}.png").read_bytes().startswith(b"\x89PNG")
    for name in ("reconstructions", "attacks", "defences", "scaling"):
        assert results(smoke, f"figures/lora-weights/weights-{name}.png").read_bytes().startswith(b"\x89PNG")
    weights = metrics[metrics.system == "lora-weights"]
    assert {"spectral", "autoencoder", "constant", "update-matching", "true-prompt"} <= set(weights.attack) and {"", "gauge-10"} <= set(weights.defence)
    ablations = metrics[metrics.system == "finextract-ablations"]
    assert {"reference", "cutout", "cutout-minus-reference"} <= set(ablations.defence) and {"AS", "best w", "similarity", "KID"} <= set(ablations.metric)
    for name in ("ablations", "defences"):
        assert results(smoke, f"figures/ablations/{name}.png").read_bytes().startswith(b"\x89PNG")
    knows = metrics[metrics.system == "finextract-attacker"]
    assert {"caption-from-weights", "known", "recovered", "recovered-minus-none", "certainty", "people", "people-minus-base"} <= set(knows.attack)
    for name in ("captions", "certainty", "people"):
        assert results(smoke, f"figures/attacker/{name}.png").read_bytes().startswith(b"\x89PNG")
    matrix = metrics[metrics.system == "defences"]
    assert {"none", "dp-10", "dp-10-minus-none"} <= set(matrix.defence) and {"reference-loss", "finextract", "finextract-no-caption"} <= set(matrix.attack)
    assert {"AUC", "AS", "similarity", "epsilon", "AUC allowed", "not run"} <= set(matrix.metric)
    for name in ("matrix", "planes", "budgets"):
        assert results(smoke, f"figures/defences/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<table>" in results(smoke, "figures/defences/matrix.html").read_text() and "epsilon" in results(smoke, "figures/defences/summary.md").read_text()
    for name in ("amplification", "roc", "dose", "regeneration", "pairs", "studies"):
        assert results(smoke, f"figures/shake-to-leak/shake_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_every_job_left_a_log_and_a_benchmark(smoke):
    logs, benchmarks = (
        {path.relative_to(results(smoke, name)).with_suffix("") for path in results(smoke, name).rglob("*.*")} for name in ("logs", "benchmarks")
    )
    assert logs == benchmarks and len(logs) > 20


def test_a_second_run_does_nothing(smoke):
    assert "Nothing to be done" in smoke.snakemake(*SMOKE).stdout


def test_nothing_is_written_outside_of_the_preset(smoke):
    assert {path.name for path in (smoke.folder / "results").iterdir()} == {"smoke"}
    assert {path for path in (smoke.folder / "resources").rglob("*") if path.stat().st_mtime > results(smoke, "logs").stat().st_ctime} == set()


def test_report(smoke):
    smoke.snakemake(*SMOKE, "--report", "results/smoke/report.zip")
    assert results(smoke, "report.zip").stat().st_size > 50_000


@pytest.mark.skipif(bool(browser.why_not()), reason=browser.why_not())
def test_the_report_opens_in_a_browser(smoke, tmp_path):
    """As a person sees it after its scripts have run: a section per system and one of claims."""
    if not results(smoke, "report.zip").is_file():
        smoke.snakemake(*SMOKE, "--report", "results/smoke/report.zip")
    shutil.unpack_archive(results(smoke, "report.zip"), tmp_path)
    (page,) = tmp_path.rglob("report.html")
    seen = re.sub(r"<script\b.*?</script>", "", browser.open_page(page, tmp_path), flags=re.DOTALL)
    for section in ("FineXtract", "LoRA weights", "DP-LDM", "Shake-to-Leak", "Defences", "Claims"):
        assert section in seen, section


def test_the_run_can_be_described(smoke, crate_issues):
    """As many jobs as logs, the calls that attacks counted, files that are there, and nothing that a validator objects to."""
    smoke.tuneleak("crate", "--results", "results/smoke", "--overlay", SMOKE[1])
    manifest, described = (json.loads(results(smoke, name).read_text()) for name in ("run-manifest.json", "ro-crate-metadata.json"))
    assert manifest["jobs"] == len([path for path in results(smoke, "benchmarks").rglob("*.tsv")])
    assert manifest["rules"]["extract"]["calls"] > 0 and manifest["rules"]["finetune"]["seconds"] > 0
    listed = [item["@id"] for item in described["@graph"] if "File" in item["@type"]]
    assert len(listed) > 100 and all(results(smoke, unquote(name)).is_file() for name in listed)
    assert crate_issues(smoke.folder / "results/smoke") == []


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("attacks/extraction/finextract.py", {"extract", "extract_under_conditions", "sweep", "defended_extraction"}),
        ("attacks/extraction/clustering.py", {"extract", "extract_under_conditions", "sweep", "defended_extraction"}),
        ("metrics/ablations.py", {"evaluate_ablations"}),  # its figures wait for metrics.csv
        ("metrics/join.py", {"join_metrics"}),
        (
            "report/rows.py",
            {"draw_finextract", "draw_lora_weights", "draw_shake", "draw_dp_ldm", "draw_ablations", "draw_attacker", "draw_defences", "write_tables"}
            | {"check_claims"},
        ),
        ("attacks/captions/search.py", {"recover_captions"}),
        ("attacks/membership/people.py", {"judge_people"}),
        ("attacks/weights/spectral.py", {"train_encoder"}),  # attack_weights waits for its encoder, so Snakemake asks no further
        ("defences/transforms.py", {"train_encoder", "transform_victims", "finetune_variants", "finetune_defended"}),
        ("attacks/membership/sima.py", {"shake_scores", "shake_study_scores"}),
        ("options.py", set()),
    ],
)
def test_an_edit_runs_exactly_the_rules_that_use_it(smoke, name, changed):
    path = smoke.folder / "src/tuneleak" / name
    text = path.read_text()
    try:
        path.write_text(text + "\n# edited\n")
        done = smoke.snakemake("--dry-run", *SMOKE)
    finally:
        path.write_text(text)
    found = reasons(done.stdout)
    assert set(found) == changed
    assert all(reason == {"Params have changed since last execution"} for reason in found.values())
    if name == "attacks/extraction/finextract.py":
        outputs = re.findall(r"output: (\S+/smoke/(?:extraction|ablations)/\S+)/matches\.csv", done.stdout)
        assert outputs and {output.rsplit("/", 1)[1] for output in outputs} == {"finextract", "sweep"}


def test_a_touched_file_runs_nothing(smoke):
    for path in (smoke.folder / "src/tuneleak/metrics/finextract.py", *(smoke.folder / "resources").rglob("*.safetensors")):
        path.touch()
    assert "Nothing to be done" in smoke.snakemake("--dry-run", *SMOKE).stdout


def test_a_killed_run_leaves_no_orphan_and_ends_with_the_same_numbers(smoke):
    before = results(smoke, "metrics.csv").read_bytes()
    victim = results(smoke, "models/identities/lora/test0")
    for made_of_it in (victim, *(results(smoke, name) for name in ("extraction/identities/lora/test0", "metrics", "figures", "tables"))):
        shutil.rmtree(made_of_it)
    for name in ("metrics.csv", "claims.csv", "paper.pdf"):
        results(smoke, name).unlink()
    with open(smoke.folder / "killed.log", "w") as log:
        snakemake = subprocess.Popen(smoke.command(*SMOKE), cwd=smoke.folder, env=smoke.environment(), stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while not any(path.is_file() for path in victim.rglob(".checkpoints/**/*")):
        assert snakemake.poll() is None and time.monotonic() < deadline, (smoke.folder / "killed.log").read_text()
        time.sleep(0.02)
    children = psutil.Process(snakemake.pid).children(recursive=True)
    assert children
    snakemake.send_signal(signal.SIGKILL)
    snakemake.wait()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, f"left running: {alive}"
    assert not (victim / "manifest.csv").exists()
    smoke.tuneleak("unlock")
    smoke.snakemake("--rerun-incomplete", *SMOKE)
    assert (victim / "manifest.csv").exists() and not (victim / ".checkpoints").exists()
    assert results(smoke, "metrics.csv").read_bytes() == before
    assert "Nothing to be done" in smoke.snakemake(*SMOKE).stdout


@pytest.mark.parametrize(("kind", "victim", "share"), survival.drawn(survival.SMOKE, 3, Path(__file__).parents[2]))
def test_a_job_that_was_killed_ends_with_the_same_bits(smoke, kind, victim, share):
    """Three kinds of jobs, drawn by the code, as the share of the time a benchmark says is; half of it, and so on, if the job is over by then."""
    reference, folder = survival.made_by(smoke, kind), results(smoke, "benchmarks")
    benchmarks = [*folder.glob(f"{kind}.tsv"), *(folder / kind).rglob("*.tsv")]  # of a rule without wildcards there is one
    after = min(float(path.read_text().splitlines()[1].split()[0]) for path in benchmarks) * share
    for _ in range(4):
        row = survival.survive(smoke, kind, victim, after, reference)
        assert row["recovered"] and not row["orphans"] and not row["different"] and row["equal"] == len(reference) >= 1, row
        if row["victim"] == victim:
            return
        after /= 2
    pytest.fail("the job was always over before it could be killed")


def test_resources_can_be_built_and_promoted(smoke, tmp_path):
    started = time.monotonic()
    done = smoke.snakemake("resources", *SMOKE)
    print(f"resources with smoke settings: {time.monotonic() - started:.0f} s, {done.seconds:.0f} s of processor time")
    smoke.tuneleak("promote", "--built", results(smoke, "resources"), "--resources", tmp_path / "resources")
    sums = [line.split(maxsplit=1) for line in (tmp_path / "resources/SHA256SUMS").read_text().splitlines()]
    names = {name for _, name in sums}
    assert {
        "autoencoder/config.json",
        "text-encoder/text_encoder/model.safetensors",
        "bases/H1/diffusion_pytorch_model.safetensors",
        "embedders/copy-a/model.safetensors",
    } <= names
    for digest, name in sums:
        assert hashlib.sha256((tmp_path / "resources" / name).read_bytes()).hexdigest() == digest


def test_the_shipped_files_are_what_their_list_says(clone):
    folder = clone.folder / "resources"
    sums = dict(reversed(line.split(maxsplit=1)) for line in (folder / "SHA256SUMS").read_text().splitlines())
    weights = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    assert weights <= set(sums), "weights that the list does not name"
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
