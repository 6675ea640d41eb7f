"""Published LoRAs as a ModelSet: what is read, what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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


# --- principal components ----------------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "peft": "base_model.model.{module}.lora_{side}.weight",
    "peft-named": "base_model.model.{module}.lora_{side}.identity1.weight",
    "prefixed": "lora_unet_{module}_lora_{side}.weight",
    "kohya": "lora_unet_{flat}.lora_{way}.weight",
    "diffusers": "unet.{module}.lora.{way}.weight",
}


def published_components(base, folder, people=6, kept=None, rank=1, spelling="peft", together=False):
    """LoRAs of the UNet's queries and values as their principal components, as weights2weights publishes them; returns them, {module: (A, B) stacked}."""
    draw = torch.Generator().manual_seed(0)
    layers = {name: layer for name, layer in base.unet.named_modules() if name.endswith(("to_q", "to_v"))}
    loras, layout, parts = {}, {}, []
    for module, layer in sorted(layers.items()):
        for side, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
            matrix = 0.3 * torch.randn(people, *shape, generator=draw) + torch.randn(shape, generator=draw)
            way = {"A": "down", "B": "up"}[side]
            name = SPELLINGS[spelling].format(module=module, flat=module.replace(".", "_"), side=side, way=way)
            layout[name] = [[shape[0] * shape[1]], list(shape)]
            loras.setdefault(module, []).append(matrix)
            parts.append(matrix.flatten(1))
    flat = torch.cat(parts, 1)
    mean, deviation = flat.mean(0), flat.std(0)
    _, _, v = torch.linalg.svd((flat - mean) / deviation, full_matrices=False)
    components = v.T.contiguous()  # as many as there are people
    held = {"V": components, "mean": mean, "std": deviation, "proj_1000pc": (((flat - mean) / deviation) @ components)[:, :kept].contiguous()}
    folder.mkdir()
    if together:
        save_file(held, folder / "all.safetensors")
    else:
        for name, tensor in held.items():
            save_file({name: tensor}, folder / f"{name}.safetensors")
    (folder / "weight_dimensions.json").write_text(json.dumps(layout))
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 27, "r": rank, "use_dora": False, "rank_pattern": {}}))
    return {module: tuple(pair) for module, pair in loras.items()}


@pytest.mark.parametrize(("spelling", "rank", "together"), [(name, 1 + index % 2, bool(index % 2)) for index, name in enumerate(SPELLINGS)])
def test_all_principal_components_give_the_loras_back(spelling, rank, together, base, tiny_base, tmp_path):
    loras = published_components(base, tmp_path / "pc", rank=rank, spelling=spelling, together=together)
    import_weights.import_weights(tmp_path / "pc", tiny_base, "faces", tmp_path / "out", ImportWeightsOptions(step=800, caption="sks person"))
    rows = modelset.ModelSet.load(tmp_path / "out").rows()
    assert [row["concept"] for row in rows] == [f"{number:05d}" for number in range(6)]
    assert {(row["alpha"], row["rank"], row["step"], row["caption"]) for row in rows} == {("27.0", str(rank), "800", "sks person")}
    for number, row in enumerate(rows):
        found = weights.read_lora(tmp_path / "out" / row["file"] / modelset.LORA_FILE, {"unet": base.unet})["unet"]
        assert found.matrices.keys() == loras.keys()
        for module, pair in loras.items():
            for mine, theirs in zip(found.matrices[module], pair, strict=True):
                assert torch.allclose(mine, theirs[number], atol=1e-5)


def test_fewer_components_give_the_projection_and_some_people_alone(base, tiny_base, tmp_path):
    loras = published_components(base, tmp_path / "pc", kept=3)
    (tmp_path / "pc" / "metadata.csv").write_text("row,concept,seed\n4,ada,7\n")
    options = ImportWeightsOptions(alpha=2.0)
    import_weights.import_weights(tmp_path / "pc", tiny_base, "faces", tmp_path / "out", options, start=3, stop=5)
    table = modelset.ModelSet.load(tmp_path / "out").table
    assert list(table.model_id) == ["faces-00003-lora-s0", "faces-ada-lora-s7"] and set(table.alpha) == {"2.0"}
    held = {name: load_file(tmp_path / "pc" / f"{name}.safetensors")[name] for name in ("V", "mean", "std")}
    for row, number in zip(table.to_dict("records"), (3, 4), strict=True):
        found = weights.read_lora(tmp_path / "out" / row["file"] / modelset.LORA_FILE, {"unet": base.unet})["unet"].matrices
        imported, published = (
            (torch.cat([side.flatten() for module in loras for side in pairs[module]]) - held["mean"]) / held["std"]
            for pairs in (found, {module: (a[number], b[number]) for module, (a, b) in loras.items()})
        )
        left_out = published - imported  # a projection leaves out what is orthogonal to what it keeps
        assert (left_out @ held["V"][:, :3]).abs().max() < 1e-3 and left_out.norm() > 1 and imported.norm() > 1


def test_the_published_pickles_are_converted_by_the_line_of_the_readme(base, tiny_base, tmp_path, monkeypatch):
    """README's line, run on files as they are published: tensors, and a dictionary of `torch.Size`."""
    published_components(base, tmp_path / "pc")
    for name in ("V", "mean", "std", "proj_1000pc"):
        torch.save(load_file(tmp_path / "pc" / f"{name}.safetensors")[name], tmp_path / "pc" / f"{name}.pt")
        (tmp_path / "pc" / f"{name}.safetensors").unlink()
    layout = json.loads((tmp_path / "pc" / "weight_dimensions.json").read_text())
    (tmp_path / "pc" / "weight_dimensions.json").unlink()
    torch.save({name: tuple(map(torch.Size, entry)) for name, entry in layout.items()}, tmp_path / "pc" / "weight_dimensions.pt")
    with pytest.raises(InputError, match=r"is a pickle"):
        import_weights.plan(tmp_path / "pc", "w", ImportWeightsOptions())
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    line = re.search(r"python -c '([^']*weight_dimensions[^']*)'", text)[1]
    monkeypatch.chdir(tmp_path / "pc")
    subprocess.run([sys.executable, "-c", line], check=True)
    import_weights.import_weights(tmp_path / "pc", tiny_base, "faces", tmp_path / "out", ImportWeightsOptions())
    assert len(modelset.ModelSet.load(tmp_path / "out")) == 6
