"""The measuring networks: shapes, refusals, and the CLIP text tower that becomes Stable Diffusion's text encoder."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import augment, embedders, tokenizer, train_embedder, training
from tuneleak.options import EmbedderOptions


def write(folder, config):
    torch.manual_seed(0)
    network = embedders.build(config)
    training.save_half(network.state_dict(), folder / "model.safetensors")
    files.write_json(folder / "config.json", config)
    return network


PICTURES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["copy", "identity"])
def test_features_are_normalised_and_follow_the_pictures(tmp_path, kind):
    write(tmp_path, {"kind": kind, "name": kind, "width": 8, "dimensions": 16, "image_size": 64})
    embedder = embedders.load_embedder(tmp_path)
    features = embedder.embed(PICTURES)
    assert features.shape == (5, 16) and features.dtype == np.float32
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert np.allclose(embedder.embed(PICTURES[::-1]), features[::-1], atol=1e-5)


def test_other_sizes_are_resized(tmp_path):
    write(tmp_path, {"kind": "copy", "name": "c", "width": 8, "dimensions": 16, "image_size": 64})
    embedder = embedders.load_embedder(tmp_path)
    flat = np.full((1, 100, 100, 3), 90, np.uint8)
    assert np.allclose(embedder.embed(flat), embedder.embed(flat[:, :64, :64]), atol=1e-4)


def test_reader_of_factors(tmp_path):
    factors = {"mouth": ["a", "b", "c"], "eyes": ["x", "y"]}
    write(tmp_path, {"kind": "factors", "name": "f", "width": 8, "dimensions": 16, "image_size": 64, "factors": factors, "photograph_factors": ["mouth"]})
    reader = embedders.load_embedder(tmp_path)
    read = reader.read(PICTURES)
    assert reader.factors == ["mouth"] and set(read) == {"mouth", "eyes"}
    assert set(read["mouth"]) <= set(factors["mouth"]) and read["eyes"].shape == (5,)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    write(tmp_path, {"kind": "copy", "name": "c", "width": 8, "dimensions": 16, "image_size": 64})
    files.write_json(tmp_path / "config.json", {"kind": "copy", "name": "c", "width": 16, "dimensions": 16, "image_size": 64})
    with pytest.raises(InputError, match="does not fit"):
        embedders.load_embedder(tmp_path)
    files.write_json(tmp_path / "config.json", {"kind": "mystery"})
    with pytest.raises(InputError, match="unknown kind"):
        embedders.load_embedder(tmp_path)


def test_unlisted_torchscript_is_refused_unread(tmp_path):
    (tmp_path / "sscd.torchscript").write_bytes(b"not a model")
    with pytest.raises(InputError, match="can run code"):
        embedders.load_embedder(tmp_path / "sscd.torchscript")


@pytest.mark.slow
def test_only_the_published_inception_is_opened_and_its_distance_is_called_fid(tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from tuneleak.metrics import dp_utility
    from tuneleak.options import DpUtilityOptions

    path = tmp_path / "weights.pth"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *arguments, **names: state)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, values: None)
        torch.manual_seed(0)
        state = {}
        state = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="unused").state_dict()
    torch.save(state, path)
    with pytest.raises(InputError, match="only that very file is opened"):
        embedders.load_embedder(path)
    monkeypatch.setitem(embedders.TRUSTED_INCEPTION, files.sha256(path), "a random one")
    network = embedders.load_embedder(path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features = network.embed(pixels, batch=2)
    assert features.shape == (3, 2048) and np.isfinite(features).all() and not np.allclose(np.linalg.norm(features, axis=1), 1)
    study = object.__new__(dp_utility._Study)
    study.name, study.options, study.size, study.reference = (
        embedders.INCEPTION,
        DpUtilityOptions(replicates=2),
        8,
        np.random.default_rng(0).normal(size=(8, 5)),
    )
    assert study._distances(study.reference + 1)[0]["metric"] == "FID (under 1000 samples)"


def test_text_encoder_equals_the_clip_text_tower(tmp_path):
    from transformers import CLIPTextModel

    words = tokenizer.build()
    config = embedders.clip_config(64, 64, 2, 16, len(words))
    torch.manual_seed(0)
    network = embedders.build({"kind": "clip", "clip": config}).eval()
    train_embedder.write_text_encoder(network, words, config["text_cfg"], tmp_path)
    encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    assert encoder.dtype == torch.float32
    ids = words(["a face with brown hair", "art"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        x = network.token_embedding(ids) + network.positional_embedding
        expected = network.ln_final(network.transformer(x, attn_mask=network.attn_mask))
        assert torch.allclose(encoder(ids).last_hidden_state, expected, atol=5e-3)  # stored in half precision


def test_attribute_loss_of_clip_is_the_choice_between_its_phrases():
    from tuneleak.data import captions

    row = {"image_id": "0", "concept": "c", "caption": "a face", "factor_hair_colour": "blue", "factor_skin_colour": "tan", "factor_hair": "bun"}
    row |= {"factor_rear_hair": "none", "factor_beard": "none", "factor_clothes": "shirt", "factor_clothes_colour": "red", "factor_background": "grey"}
    rows = [row | {"factor_eyes": eyes, "factor_mouth": "smile", "factor_eyebrows": "sad", "concept": eyes} for eyes in ("wide", "wink")]
    rows += [{"image_id": "1", "concept": "artist", "caption": "art style of somebody"}]
    table = pd.DataFrame(rows).fillna("")
    words = tokenizer.build(length=32)
    config = {"kind": "clip", "tower": 4, "clip": embedders.clip_config(64, 32, 1, 32, len(words))}
    torch.manual_seed(0)
    network = embedders.build(config).eval()
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)

    def first_loss(**options):
        batch_at, loss_of = train_embedder._clip_loss(network, table, pixels, config, EmbedderOptions(kind="clip", batch=9, **options), words)
        return loss_of(*batch_at(0))

    plain, with_attributes = first_loss(attribute_weight=0.0), first_loss(attribute_weight=1.0)
    choices = captions.alternatives()
    assert float((with_attributes[0] - plain[0]).detach()) == pytest.approx(sum(float(with_attributes[1][name].detach()) for name in choices), rel=1e-4)
    with torch.no_grad():
        network.logit_scale.fill_(-30.0)  # at infinite temperature every phrase is as likely
    cold = first_loss()[1]
    assert all(float(cold[name].detach()) == pytest.approx(math.log(len(texts)), abs=1e-4) for name, texts in choices.items())


def test_augmentations_keep_shape_and_range_and_are_seeded():
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    first, second, other = (augment.view(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == x.shape and first.abs().max() <= 1.01
    assert torch.equal(first, second) and not torch.equal(first, other)
    flat = torch.full((1, 3, 64, 64), 0.3)
    assert torch.allclose(augment.blur(flat, torch.Generator().manual_seed(0)), flat, atol=1e-5)
