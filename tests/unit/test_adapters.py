"""Adapters as they are shared: every kind and spelling gives the outputs of the library that made it, and what does not fit is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneleak.errors import InputError
from tuneleak.finetune import methods
from tuneleak.models import adapters, modelset, pipeline, shared, weights
from tuneleak.options import FinetuneOptions

CAPTION = "picture of person ada"


@pytest.fixture(scope="module")
def base(tiny_base):
    return pipeline.load_base(tiny_base)


@pytest.fixture(scope="module")
def inputs(base):
    return torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(1)), torch.tensor([900, 40]), base.encode_text([CAPTION, ""])


def trained_like(base, inputs, folder, seed=0, **options):
    """Write a model with every trained weight moved at random; returns what it predicted while it was being trained."""
    generator = torch.Generator().manual_seed(seed)
    trainee = methods.prepare(base, FinetuneOptions(**{"rank": 4, "alpha": 6, **options}), generator)
    before = base.predict_noise(base.unet, *inputs)
    vector = trainee.parameters.vector.data
    vector += 0.05 * torch.randn(vector.shape, generator=generator)
    with torch.no_grad():
        said = base.predict_noise(base.unet, *inputs)
    trainee.save(folder)
    methods.restore(base, trainee)
    return before.detach(), said


def opened(base, folder):
    row = {"model_id": "m", "world": "w", "base": "b", "concept": "c", "method": "x", "seed": 0, "step": 1, "caption": CAPTION, "n_images": 1, "images": ""}
    made = modelset.write(folder.parent, [row | {"file": folder.name}])
    return pipeline.load_tuned(base, made, made.rows()[0])


@pytest.mark.parametrize("method", adapters.KINDS)
def test_every_kind_starts_as_nothing_and_reloads_to_what_was_trained(base, inputs, tmp_path, method):
    plain = base.noise_pred(*inputs)
    before, said = trained_like(base, inputs, tmp_path / "m", method=method)
    torch.testing.assert_close(before, plain, rtol=1e-4, atol=1e-5)
    assert float((said - plain).abs().max()) > 1e-3
    with opened(base, tmp_path / "m") as tuned:
        torch.testing.assert_close(tuned.noise_pred(*inputs), said, rtol=1e-5, atol=1e-6)
        assert torch.equal(base.noise_pred(*inputs), plain) and tuned.unet is base.unet
    assert torch.equal(base.noise_pred(*inputs), plain)


@pytest.mark.parametrize("method", ["dora", "loha", "lokr", "oft"])
def test_peft_reads_what_is_written(base, inputs, tiny_base, tmp_path, method):
    from diffusers import UNet2DConditionModel
    from peft import PeftModel

    _, said = trained_like(base, inputs, tmp_path / "m", method=method)
    theirs = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(tiny_base / "unet"), tmp_path / "m" / "unet")
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs[0], inputs[1], inputs[2]).sample, said, rtol=1e-4, atol=1e-5)


def kohya(base, folder, path, **header):
    """A LoRA folder's tensors under the names of kohya's trainers, alpha and all."""
    tensors = load_file(folder / modelset.LORA_FILE)
    found = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        module, side = rest.rsplit(".lora", 1)[0], "down" if ".down." in rest else "up"
        flat = ("lora_unet_" if part == "unet" else "lora_te_") + module.replace(".", "_")
        found[f"{flat}.lora_{side}.weight"] = value
        found[f"{flat}.alpha"] = torch.tensor(6.0)
    save_file(found, path, {key: str(value) for key, value in header.items()})
    return path


def test_kohya_files_are_read_text_encoder_and_alpha_included(base, inputs, tmp_path):
    trained_like(base, inputs, tmp_path / "m", method="lora-te")
    with opened(base, tmp_path / "m") as tuned:
        expected = tuned.noise_pred(inputs[0], inputs[1], tuned.encode_text([CAPTION, ""]))
    path = kohya(base, tmp_path / "m", tmp_path / "shared.safetensors")
    networks = base.networks()
    carrying = adapters.attach(networks, [adapters.Stacked(adapters.read(path, networks))])
    context = base.text_encoder(base.token_ids([CAPTION, ""]))[0]
    torch.testing.assert_close(base.predict_noise(base.unet, inputs[0], inputs[1], context).detach(), expected, rtol=1e-5, atol=1e-6)
    for network in carrying:
        weights.detach_lora(network)


def test_layers_may_differ_in_rank_alpha_and_kind_of_layer(base, inputs, tmp_path):
    """A LoCon: a convolution of rank 2 and a linear layer of rank 3; the update is alpha / rank * B A, added to the weights by hand."""
    generator = torch.Generator().manual_seed(0)
    conv, linear = "down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layers = dict(base.unet.named_modules())
    out, into, height, width = layers[conv].weight.shape
    a, b = torch.randn(2, into, height, width, generator=generator), torch.randn(out, 2, 1, 1, generator=generator)
    c, d = torch.randn(3, layers[linear].in_features, generator=generator), torch.randn(layers[linear].out_features, 3, generator=generator)
    flat = {name: f"lora_unet_{name.replace('.', '_')}" for name in (conv, linear)}
    tensors = {f"{flat[conv]}.lora_down.weight": a, f"{flat[conv]}.lora_up.weight": b, f"{flat[conv]}.alpha": torch.tensor(1.0)}
    tensors |= {f"{flat[linear]}.lora_down.weight": c, f"{flat[linear]}.lora_up.weight": d, f"{flat[linear]}.alpha": torch.tensor(3.0)}
    save_file(tensors, tmp_path / "locon.safetensors")
    networks = base.networks()
    for scale in (1.0, 0.5):
        stack = [adapters.Stacked(adapters.read(tmp_path / "locon.safetensors", networks), scale)]
        (network,) = adapters.attach(networks, stack)
        found = base.predict_noise(network, *inputs).detach()
        weights.detach_lora(network)
        kept = {name: layers[name].weight.data.clone() for name in (conv, linear)}
        layers[conv].weight.data += scale * 0.5 * torch.einsum("or,rihw->oihw", b[..., 0, 0], a)
        layers[linear].weight.data += scale * 1.0 * d @ c
        expected = base.noise_pred(*inputs)
        for name, value in kept.items():
            layers[name].weight.data = value
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_lycoris_products_are_what_their_names_say(base, inputs, tmp_path):
    """LoHa: (w1a w1b) * (w2a w2b); LoKr: w1 (x) (w2a w2b) -- added to the weight by hand."""
    generator, name = torch.Generator().manual_seed(0), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = dict(base.unet.named_modules())[name]
    size = layer.in_features
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.3  # noqa: E731
    hada = {"hada_w1_a": draw(size, 3), "hada_w1_b": draw(3, size), "hada_w2_a": draw(size, 3), "hada_w2_b": draw(3, size)}
    small = 4
    kron = {"lokr_w1": draw(small, small), "lokr_w2_a": draw(size // small, 2), "lokr_w2_b": draw(2, size // small)}
    cases = {
        "loha": (hada, 6.0, 6.0 / 3 * (hada["hada_w1_a"] @ hada["hada_w1_b"]) * (hada["hada_w2_a"] @ hada["hada_w2_b"])),
        "lokr": (kron, 1.0, 1.0 / 2 * torch.kron(kron["lokr_w1"], kron["lokr_w2_a"] @ kron["lokr_w2_b"])),
    }
    networks = base.networks()
    for kind, (tensors, alpha, update) in cases.items():
        path = tmp_path / f"{kind}.safetensors"
        save_file({f"lora_unet_{name.replace('.', '_')}.{key}": value for key, value in (tensors | {"alpha": torch.tensor(alpha)}).items()}, path)
        found = adapters.read(path, networks)
        assert found["unet"].kind == kind
        (network,) = adapters.attach(networks, [adapters.Stacked(found)])
        said = base.predict_noise(network, *inputs).detach()
        weights.detach_lora(network)
        kept = layer.weight.data.clone()
        layer.weight.data += update
        torch.testing.assert_close(said, base.noise_pred(*inputs), rtol=1e-4, atol=1e-5)
        layer.weight.data = kept


def test_sdxl_files_under_stabilitys_names_meet_the_same_layers(tiny, tmp_path):
    """diffusers' own conversion is the witness."""
    from diffusers import StableDiffusionXLPipeline

    tiny.build("sdxl", tmp_path / "base")
    base = pipeline.load_base(tmp_path / "base")
    names = [name for name, layer in base.unet.named_modules() if name.endswith(("attn1.to_q", "attn2.to_v")) and isinstance(layer, torch.nn.Linear)]
    assert {name.split(".")[0] for name in names} == {"down_blocks", "mid_block", "up_blocks"}
    place = {"down_blocks.1.attentions.0": "input_blocks_4_1", "down_blocks.1.attentions.1": "input_blocks_5_1", "mid_block.attentions.0": "middle_block_1"}
    place |= {f"up_blocks.0.attentions.{number}": f"output_blocks_{number}_1" for number in range(3)}
    layers, generator, tensors = dict(base.unet.named_modules()), torch.Generator().manual_seed(0), {}
    for name in names:
        block = next(key for key in place if name.startswith(key))
        flat = f"lora_unet_{place[block]}_{name.removeprefix(block + '.').replace('.', '_')}"
        tensors[f"{flat}.lora_down.weight"] = torch.randn(2, layers[name].in_features, generator=generator)
        tensors[f"{flat}.lora_up.weight"] = torch.randn(layers[name].out_features, 2, generator=generator)
        tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    path = tmp_path / "xl.safetensors"
    save_file(tensors, path)
    found = adapters.read(path, base.networks())["unet"]
    assert found.modules == sorted(names, key=found.modules.index) and len(found.tensors) == 2 * len(names)
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "base")
    pipe.load_lora_weights(path)
    x, context = torch.randn(1, 4, 8, 8, generator=generator), base.encode_text([CAPTION])
    adapters.attach(base.networks(), [adapters.Stacked({"unet": found})])
    with torch.no_grad():
        ours, theirs = (base.call(network, x, torch.tensor([500]), context) for network in (base.unet, pipe.unet))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_adapters_add_up_with_their_scales(base, inputs, tmp_path):
    """Two LoRAs at scales 1 and .5 are the sum of their updates; the sum is made by concatenating factors, whose product it is."""
    for seed, name in enumerate(("one", "two")):
        trained_like(base, inputs, tmp_path / name, seed=seed, method="lora", alpha=4)
    first, second = (weights.read_lora(tmp_path / name / modelset.LORA_FILE, base.networks())["unet"] for name in ("one", "two"))
    both = {name: (torch.cat([a, second.matrices[name][0]]), torch.cat([b, 0.5 * second.matrices[name][1]], 1)) for name, (a, b) in first.matrices.items()}
    weights.write_matrices(tmp_path / "sum", {"unet": weights.Lora(8, 8.0, both)})
    with opened(base, tmp_path / "sum") as tuned:
        expected = tuned.noise_pred(*inputs)
    made = shared.import_models([tmp_path / name for name in ("one", "two")], tmp_path / "models", base.folder, CAPTION, 3, scales=[1.0, 0.5])
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        torch.testing.assert_close(tuned.noise_pred(*inputs), expected, rtol=1e-4, atol=1e-5)
    assert made.rows()[0]["method"] == "adapter+adapter" and made.rows()[0]["n_images"] == "3"


def test_a_merged_checkpoint_is_a_whole_network(base, inputs, tmp_path):
    _, said = trained_like(base, inputs, tmp_path / "merged", method="dreambooth")
    made = shared.import_models([tmp_path / "merged"], tmp_path / "models", base.folder, CAPTION, 4)
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        torch.testing.assert_close(tuned.noise_pred(*inputs), said, rtol=1e-5, atol=1e-6)
    assert made.rows()[0]["method"] == "merged"


def test_a_merged_checkpoint_in_one_file_is_taken_apart(base, inputs, tmp_path):
    """The tiny base's weights, moved, under the names of the original code; two levels of one layer each."""
    moved = {name: value + 0.02 for name, value in base.unet.state_dict().items()}
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    resnet |= {"conv_shortcut": "skip_connection"}
    places = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0"}
    places |= {"conv_out": "out.2", "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.attentions.0": "input_blocks.1.1"}
    places |= {
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "mid_block.resnets.0": "middle_block.0",
    }
    places |= {"mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2", "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv"}
    places |= {f"up_blocks.{i}.resnets.{j}": f"output_blocks.{2 * i + j}.0" for i in range(2) for j in range(2)}
    places |= {f"up_blocks.1.attentions.{j}": f"output_blocks.{2 + j}.1" for j in range(2)}
    tensors = {}
    for name, value in moved.items():
        place = next(key for key in sorted(places, key=len, reverse=True) if name.startswith(f"{key}."))
        rest = name.removeprefix(f"{place}.")
        layer, _, end = rest.rpartition(".")
        rest = f"{resnet[layer]}.{end}" if ".resnets." in place else rest
        tensors[f"model.diffusion_model.{places[place]}.{rest}"] = value
    text = {name: value + 0.02 for name, value in base.text_encoder.state_dict().items()}
    tensors |= {f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": value for name, value in text.items()}
    save_file(tensors | {"first_stage_model.decoder.conv_in.bias": torch.zeros(1)}, tmp_path / "merged.safetensors")
    made = shared.import_models([tmp_path / "merged.safetensors"], tmp_path / "models", base.folder, CAPTION, 4)
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        assert all(torch.equal(value, moved[name]) for name, value in tuned.unet.state_dict().items())
        assert all(torch.equal(value, text[name]) for name, value in tuned.text_encoder.state_dict().items() if value.is_floating_point())
    save_file(tensors | {"conditioner.embedders.0.weight": torch.zeros(1)}, tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match="convert it to a pipeline folder"):
        shared.import_models([tmp_path / "xl.safetensors"], tmp_path / "models", base.folder, CAPTION, 4)


def test_what_a_file_tells_about_its_training(base, inputs, tmp_path):
    trained_like(base, inputs, tmp_path / "m", method="lora")
    header = {"ss_sd_model_name": "tiny.safetensors", "ss_num_train_images": 120, "ss_steps": 1200, "ss_network_dim": 4}
    header |= {"ss_dataset_dirs": json.dumps({"20_ada": {"n_repeats": 20, "img_count": 6}})}
    header |= {"ss_tag_frequency": json.dumps({"20_ada": {"person ada": 6, "smile": 2}})}
    path = kohya(base, tmp_path / "m", tmp_path / "ada.safetensors", **header)
    told = shared.facts(path)
    assert told == shared.Facts("tiny.safetensors", 6, 20, 1200, 4, ("person ada", "smile"))
    assert shared.find_base(base.folder.parent, told) == base.folder  # found by name among pipeline folders
    with pytest.raises(InputError, match=r"'tiny\.safetensors'.*tuneleak fetch"):
        shared.find_base(None, told)
    with pytest.raises(InputError, match=r"--caption.*person ada, smile"):
        shared.import_models([path], tmp_path / "models", base.folder)
    made = shared.import_models([path], tmp_path / "models", base.folder.parent, CAPTION)
    assert [made.rows()[0][name] for name in ("n_images", "step", "base", "model_id")] == ["6", "1200", "tiny", "ada"]
    config = tmp_path / "peft"
    config.mkdir()
    (config / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/tiny"}))
    assert shared.facts(config).base == "someone/tiny"
    (config / "adapter_config.json").unlink()
    (config / "README.md").write_text("---\nlicense: mit\nbase_model: someone/else\n---\nA card.\n")
    assert shared.facts(config).base == "someone/else"


HOSTILE = [
    ({"init_lora_weights": "pissa"}, "changes the base model"),
    ({"bias": "all"}, "bias"),
    ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
    ({"r": 10**9}, "whole numbers"),
    ({"rank_pattern": {"to_q": 10**9}}, "whole numbers"),
    ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING|prompt_tuning"),
    ({"lora_alpha": "8"}, "number above 0"),
    ({"r": 3}, "shapes"),
]


@pytest.mark.parametrize(("change", "reason"), HOSTILE)
def test_hostile_configurations_are_refused_and_the_base_stays_usable(base, inputs, tmp_path, change, reason):
    plain = base.noise_pred(*inputs)
    trained_like(base, inputs, tmp_path / "m", method="dora")
    path = tmp_path / "m" / "unet" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=reason):
        opened(base, tmp_path / "m")
    assert torch.equal(base.noise_pred(*inputs), plain) and not hasattr(base.unet, "peft_config")


def test_a_file_larger_than_the_base_is_refused_before_it_is_read(base, inputs, tmp_path):
    trained_like(base, inputs, tmp_path / "m", method="lora")
    path = kohya(base, tmp_path / "m", tmp_path / "big.safetensors")
    limit = 8 * sum(parameter.numel() for network in base.networks().values() for parameter in network.parameters())
    tensors = load_file(path)
    save_file(tensors | {"padding": torch.zeros(limit // 4)}, path)
    with pytest.raises(InputError, match="another base model"):
        adapters.read(path, base.networks())


def test_pickles_and_stacks_that_leave_their_folder_are_refused(base, inputs, tmp_path):
    trained_like(base, inputs, tmp_path / "m", method="lora")
    (tmp_path / "lora.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickle"):
        adapters.read(tmp_path / "lora.bin", base.networks())
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "adapters.json").write_text(json.dumps([{"file": "../m"}]))
    with pytest.raises(InputError, match="outside"):
        adapters.read_folder(tmp_path / "stack", base.networks())


def test_extraction_straight_from_a_shared_file(base, inputs, tiny_base, tiny_images, tmp_path):
    """Without pictures: extracted pictures and clusters. With them: matches, as for any model set."""
    import pandas as pd

    from tuneleak.attacks.extraction import run
    from tuneleak.data.imageset import ImageSet
    from tuneleak.models import embedders
    from tuneleak.options import ClusterOptions, ExtractionOptions, Guidance

    config = {"kind": "copy", "width": 4, "dimensions": 8, "image_size": 32, "name": "copy"}
    (tmp_path / "copy").mkdir()
    save_file(embedders.build(config).state_dict(), tmp_path / "copy" / "model.safetensors")
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    trained_like(base, inputs, tmp_path / "m", method="lora")
    path = kohya(base, tmp_path / "m", tmp_path / "ada.safetensors", ss_sd_model_name="tiny", ss_num_train_images=2)
    options = ExtractionOptions(guidance=[Guidance(w=2.0), Guidance(w=4.0)], generations_per_image=2, steps=2, cluster=ClusterOptions())
    run.extract([path], tmp_path / "copy", tmp_path / "out", options, base=tiny_base.parent, caption=CAPTION, device="cpu")
    clusters = pd.read_csv(tmp_path / "out" / "clusters.csv")
    extracted = ImageSet.load(tmp_path / "out" / "extracted")
    assert list(clusters.file) == list(extracted.table.file) and set(clusters.setting) == {"w=2,k=0", "w=4,k=0"}
    assert clusters.n_generated.eq(4).all() and clusters.n_images.eq(2).all() and clusters.model_calls.eq(2 * 2 * 4).all()
    assert clusters.groupby("setting").cluster_size.sum().le(4).all() and clusters.density.between(-1, 1.0001).all()
    folders = {"base": tiny_base, "images": tiny_images, "concept": "ada", "copy_score": tmp_path / "copy"}
    run.extract([path], tmp_path / "copy", tmp_path / "matched", options, **folders, device="cpu")
    matches = pd.read_csv(tmp_path / "matched" / "matches.csv")
    assert set(matches.image_id) == {f"ada-{number:03d}" for number in range(4)} and matches.extracted.between(-1, 1.0001).all()
    with pytest.raises(InputError, match="copy-score"):
        run.extract([tmp_path / "matched" / "models"], tmp_path / "copy", tmp_path / "out", options, base=tiny_base, images=tiny_images, device="cpu")
