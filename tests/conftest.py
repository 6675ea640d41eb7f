"""Fixtures shared by all tests: a tiny random Stable Diffusion folder and a tiny ImageSet."""

import json
from pathlib import Path

import numpy as np
import pytest

LONGEST = ("test_smoke", "test_sd_stages", "test_slurm", "test_conda", "test_processes", "test_disk", "test_dry_run")  # files of minutes each
CONCEPTS = {"ada": "tune", "bob": "tune", "cyd": "test", "dee": "test"}
SCHEDULER = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "epsilon",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    """Long files first: run side by side, file by file, none of them is left for the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def build_tiny_base(folder, seed=0, **scheduler):
    """Write a `StableDiffusionPipeline` folder with random weights: 32 px pictures, latents 4 x 8 x 8, 16 tokens of width 32.

    Keywords replace entries of the scheduler's configuration. Returns the folder.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tuneleak.models import tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = tokenizer.build(words=["picture", "person"], length=16)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=2,
            norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            sample_size=32, latent_channels=4, block_out_channels=(8, 16, 16), norm_num_groups=8, layers_per_block=1, scaling_factor=0.5,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        )  # fmt: skip
        text = CLIPTextConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
            bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, projection_dim=32,
        )  # fmt: skip
        unet.save_pretrained(folder / "unet")
        vae.save_pretrained(folder / "vae")
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    words.save_pretrained(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | scheduler))
    parts = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"]}
    parts |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}
    parts |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", **parts}))
    return folder


def build_tiny_images(folder, train=4, heldout=5, size=32):
    """Write an ImageSet of four concepts (two in split tune, two in test): a coloured disc on a ground, place and size drawn per picture."""
    from tuneleak.data import imageset

    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    rows, pictures = [], []
    for concept, split in CONCEPTS.items():
        ground, disc = random.integers(0, 256, (2, 3))
        for index in range(train + heldout):
            centre, radius = random.uniform(0.3, 0.7, 2) * size, random.uniform(0.15, 0.3) * size
            inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
            pictures.append(np.where(inside[..., None], disc, ground).astype(np.uint8))
            fold = "train" if index < train else "heldout"
            rows.append({"image_id": f"{concept}-{index:03d}", "concept": concept, "split": split, "fold": fold, "caption": f"picture of person {concept}"})
    imageset.write(folder, rows, pictures)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a tiny random pipeline; read only."""
    return build_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def make_tiny_base():
    """`build_tiny_base(folder, seed=0, **scheduler)`, for a base of one's own."""
    return build_tiny_base


@pytest.fixture(scope="session")
def make_tiny_images():
    """`build_tiny_images(folder, train=4, heldout=5, size=32)`, for an ImageSet of one's own."""
    return build_tiny_images


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """Folder of a tiny ImageSet: concepts ada, bob (tune), cyd, dee (test), each with 4 train and 5 heldout pictures of 32 px; read only."""
    return build_tiny_images(tmp_path_factory.mktemp("images") / "discs")


@pytest.fixture
def crate_issues(monkeypatch):
    """`crate_issues(folder)`: what the checks that Workflow Run Crate 0.5 requires find fault with, as a list of texts.

    The web's RO-Crate context is replaced by the one that rocrate brings, with its older names.
    """
    models = pytest.importorskip("rocrate_validator.models", reason="roc-validator is missing (pip install -e '.[dev]')")
    import requests
    import rocrate
    from rocrate_validator import services
    from rocrate_validator.utils.http import HttpRequester

    shipped = Path(rocrate.__file__).parent / "data/ro-crate.jsonld"
    if not shipped.is_file():
        pytest.skip("this rocrate brings no context, and the web's is not fetched in tests")
    text = shipped.read_text().replace("https://bioschemas.org/terms/", "https://bioschemas.org/")

    def get(requester, url, **_):
        answer = requests.Response()
        answer.status_code, answer.url, answer._content = 200 if url == "https://w3id.org/ro/crate/1.1/context" else 404, url, text.encode()
        answer.headers["Content-Type"] = "application/ld+json"
        return answer

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)

    def issues(folder):
        asked = models.ValidationSettings(
            rocrate_uri=str(folder), profile_identifier="workflow-run-crate", requirement_severity=models.Severity.REQUIRED, offline=True
        )
        return [f"{issue.check.identifier}: {issue.message}" for issue in services.validate(asked).get_issues()]

    return issues
