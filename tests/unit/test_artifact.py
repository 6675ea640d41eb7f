"""ARTIFACT.md says what the claims, the recorded runs and the configuration say, and the estimates follow from counts that can be checked by hand."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneleak import budget, config, estimate, files
from tuneleak.errors import InputError
from tuneleak.options import FinetuneOptions
from tuneleak.report import artifact, record

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 8), "cross_attention_dim": 16,
    "attention_head_dim": 2, "norm_num_groups": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D",
    "CrossAttnUpBlock2D"),
}  # fmt: skip


def test_the_shipped_file_is_up_to_date():
    artifact.artifact(ROOT)


def test_a_stale_file_is_named_and_can_be_written_anew(tmp_path, monkeypatch):
    for name in itertools.chain(*artifact.BLOCKS.values()):
        monkeypatch.setattr(artifact, f"{name}_table", lambda *_, name=name: f"table of {name}")
    monkeypatch.setattr(artifact, "estimated_costs", lambda root: {"paper": {}})
    monkeypatch.setattr(artifact, "planned_jobs", lambda root: {"paper": {}})
    for path, blocks in artifact.BLOCKS.items():
        (tmp_path / path).write_text("".join(f"before\n<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n" for name in blocks))
    with pytest.raises(InputError, match="artifact --write"):
        artifact.artifact(tmp_path)
    artifact.artifact(tmp_path, write=True)
    artifact.artifact(tmp_path)
    for path, blocks in artifact.BLOCKS.items():
        assert (tmp_path / path).read_text() == "".join(f"before\n<!-- {name}:begin -->\ntable of {name}\n<!-- {name}:end -->\n" for name in blocks)
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(InputError, match=r"README\.md needs the line"):
        artifact.artifact(tmp_path)


def test_a_claim_without_a_recorded_run_says_so(tmp_path):
    shutil.copytree(ROOT / "paper/reference", tmp_path / "paper/reference", ignore=shutil.ignore_patterns("embedded", "full"))
    for table in (artifact.claims_table(tmp_path), artifact.studies_table(tmp_path), artifact.findings_table(tmp_path)):
        assert table.splitlines()[2:] and all("not recorded yet" in line for line in table.splitlines()[2:])


def test_a_run_with_models_shipped_earlier_says_so(tmp_path):
    shutil.copytree(ROOT / "paper/reference", tmp_path / "paper/reference")
    (tmp_path / "resources").mkdir()
    listed = tmp_path / "resources/SHA256SUMS"
    listed.write_text("aa  bases/H1/config.json\n")
    assert "embedded (with models shipped earlier): " in artifact.claims_table(tmp_path) and "(with models shipped earlier)" in artifact.runs_table(tmp_path)
    for path in (tmp_path / "paper/reference").glob("*/*/run.meta.json"):
        files.write_json(path, files.read_json(path) | {"models": record.models_digest(listed.parent)})
    assert "shipped earlier" not in artifact.claims_table(tmp_path) + artifact.runs_table(tmp_path)


def test_operations_grow_with_the_picture_as_convolutions_and_attention_do():
    """A quarter of the pixels: at most a quarter of the work of convolutions, a sixteenth of that of self-attention; only the time embedding stays."""
    large, small = estimate.count(SMALL, 16), estimate.count(SMALL, 8)
    assert 4 <= large.flops / small.flops <= 16 and large.weights == small.weights


def test_models_are_as_large_as_what_they_train():
    network = estimate.Network(flops=10**12, weights=1000, per_rank={"to_q": 3, "to_v": 5})
    lora = FinetuneOptions(method="lora", rank=4, target_modules=["to_q", "to_v"])
    assert estimate.trained_weights(lora, network) == 32
    assert estimate.trained_weights(FinetuneOptions(method="dreambooth"), network) == 1000
    assert estimate.trained_weights(FinetuneOptions(method="end-to-end"), network) == 1000 + estimate.TEXT_WEIGHTS
    assert estimate.trained_weights(lora.model_copy(update={"method": "dreambooth+lora"}), network) == 1032
    assert estimate.trained_weights(SimpleNamespace(trainable="lora", method="", rank=2, target_modules=["to_q"]), network) == 6


def test_hours_follow_from_calls_and_the_rate():
    study = config.read(ROOT / "config.yaml")
    network = estimate.Network(flops=3600 * 10**12, weights=10**9, per_rank={})
    costs = estimate.costs(study, network, teraflops=1.0)
    rows = list(budget.shake_rows(study))
    assert costs["shake-to-leak"].calls == sum(row["training"] + row["sampling"] for row in rows)
    assert all(cost.hours == pytest.approx(cost.calls * (2 if system == "dp-ldm" else 1)) for system, cost in costs.items())  # float32: half the rate
    text = 4e-9 * estimate.TEXT_WEIGHTS
    assert costs["finextract"].state_gb == pytest.approx(4 + 12 + text) and costs["lora-weights"].state_gb == pytest.approx(4 + text)
    assert costs["dp-ldm"].state_gb == pytest.approx(8 * 4 + text)


def test_each_study_tells_once_what_it_took_and_needs_at_the_papers_scale():
    """Every claim names a study that has a row of its own, which alone holds command and costs."""
    needs = {system: estimate.Cost(models=1, calls=10, hours=234.0, disk_gb=56.0, state_gb=7.8) for system in artifact.TARGETS}
    needs["finextract-ablations"] = estimate.Cost(0, 0, 0.0, 0.0, 0.0)
    studies = {line.split(" | ")[0].removeprefix("| "): line for line in artifact.studies_table(ROOT, needs).splitlines()[2:]}
    assert list(studies) == list(artifact.TARGETS)
    assert studies["finextract"].endswith("| 230 GPU-hours, 56 GB of disk, 7.8 GB of state |") and "`snakemake --cores all" in studies["finextract"]
    assert studies["finextract-attacker"].endswith("of state, beside finextract's |") and studies["finextract-ablations"].endswith("| not part of it |")
    claims = artifact.claims_table(ROOT).splitlines()[2:]
    assert {line.split(" | ")[2] for line in claims} == set(studies)
    assert not any("GPU-hours" in line or "snakemake" in line or " GB" in line for line in claims)


def test_the_readme_states_the_totals():
    table = artifact.estimates_table(artifact.estimated_costs(ROOT), artifact.planned_jobs(ROOT))
    total = next(line for line in table.splitlines() if line.startswith("| paper | all |")).split("|")
    assert f"{total[6].strip()} GPU-hours of one 24 GB GPU and {total[7].strip()} GB of disk in all" in (ROOT / "README.md").read_text()


def test_the_readme_states_the_totals_of_the_pairs():
    table = [[cell.strip().replace(",", "") for cell in line.split("|")[1:-1]] for line in artifact.pairs_table(ROOT).splitlines()[2:]]
    (cifar,) = (round(sum(map(float, row[3:]))) for row in table if row[0] == "cifar10")
    total = table[-1][-1].removesuffix(" in all")
    assert f"by estimate {int(total):,d} GPU-hours in all, {cifar} of them for CIFAR-10" in " ".join((ROOT / "README.md").read_text().split())


def test_jobs_of_the_paper_preset_end_within_their_limits():
    """Three attempts, of one, two and three times the limit, between which checkpoints, slices and seeds survive: a job within their sum, a seed within one."""
    study = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/paper.yaml")
    seconds, limit = 0.803 / estimate.FLOAT32, 240 * study.limits.time / 60  # of a call in float32; hours of rules that ask for 240 minutes
    private, drawn = next(item.options for item in study.dp_ldm.recipes if item.name == "all"), study.dp_ldm.sample
    (released,) = (item.options for item in study.dp_ldm.aggregates)
    training = budget.TRAINING_CALLS * private.privacy.expected_batch * private.privacy.steps * seconds / 3600
    slices = study.dp_ldm.shard_samples * drawn.steps * 2 * seconds / 3600
    inversions = budget.TRAINING_CALLS * released.expected_pictures * released.steps * released.draws * seconds / 3600
    for hours, models in ((training, private.seeds), (slices, private.seeds), (inversions, released.seeds)):
        assert hours * len(models) < (1 + 2 + 3) * limit and hours < 3 * limit
    assert 4 * study.limits.memory > 4 * 3 * 0.86 + 4  # GB of weights and moments of a whole UNet on their way to a checkpoint, and the process


def test_every_command_names_a_target_of_the_workflow():
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert all(f"\nrule {target}:\n" in rules for target in [*artifact.TARGETS.values(), "claims"])
