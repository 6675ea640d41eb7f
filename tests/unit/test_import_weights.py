"""Published LoRAs as a ModelSet: what is read, what is refused."""

import shutil

import pytest
import torch

from tuneleak.errors import InputError
from tuneleak.models import import_weights, modelset, pipeline, weights, weightset
from tuneleak.options import ImportWeightsOptions


def lora(base, folder, seed, rank=2):
    """A random LoRA of the queries of the UNet, as a file of diffusers; its path."""
    generator = torch.Generator().manual_seed(seed)
    layers = {name: layer for name, layer in base.unet.named_modules() if name.endswith("to_q")}
    matrices = {
        name: (torch.randn(rank, layer.in_features, generator=generator), torch.randn(layer.out_features, rank, generator=generator))
        for name, layer in layers.items()
    }
    weights.write_matrices(folder, {"unet": weights.Lora(rank, 2.0 * rank, matrices)})
    return folder / modelset.LORA_FILE


@pytest.fixture(scope="module")
def base(tiny_base):
    return pipeline.load_base(tiny_base)


@pytest.fixture
def published(base, tmp_path):
    folder = tmp_path / "published"
    for seed, place in enumerate(("ada.safetensors", "bob/lora_final.safetensors")):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(lora(base, tmp_path / f"made-{seed}", seed), folder / place)
    (folder / "metadata.csv").write_text("file,step,n_images,caption\nada.safetensors,800,10,sks person\n")
    return folder


def test_a_folder_becomes_a_model_set_of_the_same_updates(published, base, tiny_base, tmp_path):
    import_weights.import_weights(published, tiny_base, "public", tmp_path / "out", ImportWeightsOptions(caption="a photo of {concept}"))
    rows = modelset.ModelSet.load(tmp_path / "out").rows()
    assert [(row["concept"], row["step"], row["n_images"], row["caption"]) for row in rows] == [
        ("ada", "800", "10", "sks person"), ("bob", "1000", "0", "a photo of bob"),
    ]  # fmt: skip
    assert {row["alpha"] for row in rows} == {"4.0"} and modelset.image_ids(rows[0]) == []
    found = weightset.load([tmp_path / "out"], base)
    given = weights.read_lora(published / "ada.safetensors", {"unet": base.unet})["unet"]
    name = found.layers[0]
    a, b = given.matrices[name]
    assert torch.allclose(weightset.update(found.pairs[name])[0], 2.0 * b @ a, atol=1e-5)


def test_pickles_strangers_and_doubles_are_refused(published, base, make_tiny_base, tiny_base, tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "proj_1000pc.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"proj_1000pc.pt is a pickle"):
        import_weights.plan(tmp_path / "pickled", "w", ImportWeightsOptions())
    (published / "ada").mkdir()
    shutil.copy(published / "ada.safetensors", published / "ada" / "again.safetensors")
    with pytest.raises(InputError, match="two LoRAs would be called"):
        import_weights.plan(published, "w", ImportWeightsOptions())
    shutil.rmtree(published / "ada")
    (published / "bob" / "lora_final.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        import_weights.import_weights(published, tiny_base, "w", tmp_path / "out", ImportWeightsOptions())
    assert not (tmp_path / "out" / "manifest.csv").exists()
    import_weights.import_weights(published, tiny_base, "w", tmp_path / "out", ImportWeightsOptions(skip_broken=True))
    assert [row["concept"] for row in modelset.ModelSet.load(tmp_path / "out").rows()] == ["ada"]
    (published / "metadata.csv").write_text("file,step\nada.safetensors,many\n")
    with pytest.raises(InputError, match="no whole number"):
        import_weights.plan(published, "w", ImportWeightsOptions())
