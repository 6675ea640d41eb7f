import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak.errors import InputError
from tuneleak.finetune import generate, loop, utility
from tuneleak.models import modelset, pipeline
from tuneleak.options import FinetuneOptions, UtilityOptions

OPTIONS = UtilityOptions(generations=2, steps=2, noise_levels=4)


class MeanColour:
    """Embeds a picture as its direction in RGB around grey: what the discs' ground colours differ in."""

    def embed(self, pixels):
        means = pixels.reshape(len(pixels), -1, 3).mean(1) - 127.5
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def measured(tiny_base, tiny_images, tmp_path, monkeypatch):
    monkeypatch.setattr(utility, "load_embedder", lambda folder, device: MeanColour())
    options = FinetuneOptions(method="dreambooth", images_per_concept=2, steps_per_image=20, batch=4, lr=1e-2)
    loop.finetune(base=tiny_base, images=tiny_images, world="w", split="test", start=0, stop=1, out=tmp_path / "models", options=options, device="cpu")

    def measure(images=tiny_images):
        utility.utility(tmp_path / "models", images, tiny_base, "mean-colour", tmp_path / "utility.csv", OPTIONS, device="cpu")
        return pd.read_csv(tmp_path / "utility.csv")

    return measure


def test_training_lowers_the_loss_on_its_pictures_and_the_base_is_a_row(measured, make_tiny_images, tmp_path):
    table = measured()
    assert list(table.model_id) == ["base", "w-cyd-dreambooth-s0"] and list(table.step) == [0, 40] and list(table.n_generated) == [2, 2]
    base, tuned = table.loc[0], table.loc[1]
    assert tuned.loss_train < 0.97 * base.loss_train and tuned.loss_heldout < base.loss_heldout
    assert table[["similarity_heldout", "similarity_train"]].abs().le(1).all(axis=None)
    assert (tmp_path / "utility.csv.meta.json").is_file()
    with pytest.raises(InputError, match="no heldout pictures of concept 'cyd'"):
        measured(make_tiny_images(tmp_path / "bare", heldout=0))


def test_losses_of_a_model_with_an_autoencoder_of_its_own_are_on_its_latents(tiny_base, tiny_images, tmp_path, monkeypatch):
    """At rate zero they are the base's; else they are what the model says of its own latents, not of the base's."""
    monkeypatch.setattr(utility, "load_embedder", lambda folder, device: MeanColour())
    tables = {}
    for name, lr in (("still", 0.0), ("moved", 1e-2), ("plain", 1e-2)):
        options = FinetuneOptions(method="end-to-end", train_autoencoder=True, images_per_concept=2, steps_per_image=4, batch=2, lr=lr)
        loop.finetune(tiny_base, tiny_images, "w", "test", tmp_path / name, options, 0, 1, device="cpu")
        if name == "plain":
            (autoencoder,) = (tmp_path / name).glob("*/vae")
            shutil.rmtree(autoencoder)
        utility.utility(tmp_path / name, tiny_images, tiny_base, "mean-colour", tmp_path / f"{name}.csv", OPTIONS, device="cpu")
        tables[name] = pd.read_csv(tmp_path / f"{name}.csv")
    losses = ["loss_heldout", "loss_train"]
    assert (tables["still"].loc[1, losses] == tables["still"].loc[0, losses]).all()
    assert (tables["moved"].loc[0, losses] == tables["plain"].loc[0, losses]).all(), "the base has latents of its own"
    assert tables["moved"].loc[1, "similarity_heldout"] == tables["plain"].loc[1, "similarity_heldout"], "the decoder is the base's"
    assert not np.isclose(tables["moved"].loc[1, losses].astype(float), tables["plain"].loc[1, losses].astype(float), rtol=1e-4).any()


def test_guidance_of_scale_one_is_the_captioned_prediction_and_zero_the_null_one(tiny_base):
    base = pipeline.load_base(tiny_base)
    null, context = base.encode_text([""]), base.encode_text(["picture of person ada"])
    noise = generate.starting_noise(base.latent_shape, ("a", 0), ("a", 1))
    assert torch.equal(noise[1], generate.starting_noise(base.latent_shape, ("a", 1))[0])
    for scale, alone in ((1.0, context), (0.0, null)):
        guided = generate.guided_latents(base, base.noise_pred, null, context, noise, 3, scale)
        assert torch.allclose(guided, base.sample(lambda x, t, alone=alone: base.noise_pred(x, t, alone.expand(2, -1, -1)), noise, 3), atol=1e-4)


def test_a_model_set_names_its_models_by_what_they_are(tmp_path):
    with pytest.raises(InputError, match="not a model set"):
        utility.utility(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path / "u.csv", OPTIONS, device="cpu")
    assert modelset.model_id("w", "cyd", "dreambooth", "s0") == "w-cyd-dreambooth-s0"
