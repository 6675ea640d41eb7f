"""Shipped parts: a pipeline folder that Stable Diffusion's own pipeline opens, digests that match, and promotion."""

import json
from pathlib import Path

import pytest
import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models.assemble import assemble, promote, write_checksums

RESOURCES = Path(__file__).resolve().parents[2] / "resources"


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("bases") / "H1"
    assemble(RESOURCES / "bases/H1", out, RESOURCES / "autoencoder", RESOURCES / "text-encoder")
    return out


@pytest.mark.slow
def test_stable_diffusion_pipeline_opens_it_unchanged_and_draws(pipeline_folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("the face of nobody", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert drawn.shape == (1, 64, 64, 3) and drawn.std() > 0.01
    config = pipe.scheduler.config
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (config.steps_offset, config.clip_sample, config.set_alpha_to_one, config.prediction_type) == (1, False, False, "epsilon")


def test_shipped_files_have_the_listed_digests_and_fit_the_limit():
    listed = dict(reversed(line.split("  ")) for line in (RESOURCES / "SHA256SUMS").read_text().splitlines())
    weights = {path.relative_to(RESOURCES).as_posix() for path in RESOURCES.rglob("*.safetensors")}
    assert weights <= set(listed)
    assert {path: files.sha256(RESOURCES / path) for path in listed} == listed
    assert sum(path.stat().st_size for path in RESOURCES.rglob("*") if path.is_file()) <= 25 * 2**20


def test_cards_name_every_shipped_part():
    card = (RESOURCES / "MODEL_CARD.md").read_text()
    assert [path.parent.name for path in RESOURCES.rglob("config.json.meta.json") if f"{path.parent.relative_to(RESOURCES).as_posix()}`" not in card] == []
    assert "toon-head" in (RESOURCES / "DATA_CARD.md").read_text()


def test_parts_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        assemble(tmp_path / "nothing", tmp_path / "out", RESOURCES / "autoencoder", RESOURCES / "text-encoder")


def test_promote_copies_only_what_may_be_shipped(tmp_path):
    built, resources = tmp_path / "built", tmp_path / "resources"
    (built / "part/.checkpoints").mkdir(parents=True)
    (built / "part/config.json").write_text(json.dumps({"a": 1}))
    (built / "part/model.safetensors").write_bytes(b"weights")
    (built / "part/.checkpoints/x.safetensors").write_bytes(b"not this")
    (built / "part/model.bin").write_bytes(b"nor this")
    (built / "text-encoder").mkdir()
    (built / "text-encoder/model.safetensors").write_bytes(b"no pipeline uses the image tower")
    promote(built, resources)
    assert sorted(path.name for path in resources.rglob("*") if path.is_file()) == ["SHA256SUMS", "config.json", "model.safetensors"]
    (built / "part/model.safetensors").write_bytes(b"0" * (26 * 2**20))
    with pytest.raises(InputError, match="25 MiB"):
        promote(built, resources)
    with pytest.raises(InputError, match="nothing to promote"):
        promote(tmp_path / "empty", resources)


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    write_checksums(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == f"{files.sha256(tmp_path / 'a.json')}  a.json\n"


def test_a_file_that_is_not_the_listed_one_is_refused(tmp_path):
    part = tmp_path / "bases/H1"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"weights")
    files.check_digests(part)  # no list, nothing to check
    (tmp_path / "SHA256SUMS").write_text("0  something-else.txt\n")
    files.check_digests(part)  # nor in a list of other files
    (tmp_path / "SHA256SUMS").write_text("garbage\n")
    with pytest.raises(InputError, match="not a list"):
        files.check_digests(part)
    write_checksums(tmp_path)
    files.check_digests(part)
    (part / "more.safetensors").write_bytes(b"not listed")
    with pytest.raises(InputError, match="is not the file"):
        files.check_digests(part)
    (part / "more.safetensors").unlink()
    (part / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(InputError, match="SHA256SUMS lists"):
        files.check_digests(part)
    (part / "model.safetensors").unlink()
    with pytest.raises(InputError, match="get it again"):
        files.check_digests(part)
