import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneleak.errors import InputError
from tuneleak.finetune import loop, methods
from tuneleak.models import modelset, parameterisation, pipeline
from tuneleak.models.base import UNET_FILE
from tuneleak.options import FinetuneOptions

CAPTIONS = ["picture of person ada", ""]


@pytest.fixture(scope="module")
def base(tiny_base):
    return pipeline.load_base(tiny_base)


@pytest.fixture(scope="module")
def inputs(base):
    x = torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([900, 40]), base.encode_text(CAPTIONS)


def trained_like(base, options, folder, seed=0):
    """Write a model of `options` with every trained weight moved at random: what training does, without the time."""
    generator = torch.Generator().manual_seed(seed)
    trainee = methods.prepare(base, options, generator)
    vector = trainee.parameters.vector.data
    vector += 0.05 * torch.randn(vector.shape, generator=generator)
    trainee.save(folder)
    methods.restore(base, trainee)
    row = {"model_id": "m", "world": "w", "base": "tiny", "concept": "ada", "method": options.method, "seed": 0, "step": 1, "caption": CAPTIONS[0]}
    row |= {"n_images": 1, "images": "ada-000", "file": folder.name}
    return modelset.write(folder.parent, [row])


def test_the_base_agrees_with_the_diffusers_pipeline(base, tiny_base, inputs):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, requires_safety_checker=False)
    context = pipe.encode_prompt(CAPTIONS, "cpu", 1, False)[0]
    assert torch.equal(context, inputs[2])
    start = torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(3))
    theirs = pipe(prompt_embeds=context, latents=start, num_inference_steps=4, guidance_scale=1.0, output_type="latent").images
    ours = base.sample(lambda x, t: base.noise_pred(x, t, context), start, 4)
    assert torch.allclose(ours, theirs, atol=2e-5)
    assert base.latent_shape == (4, 8, 8) and base.image_size == (32, 32) and base.name == "tiny"


def test_latents_are_the_scaled_posterior_mean_or_a_sample(base):
    pixels = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = base.vae.encode(pixels).latent_dist
    assert torch.allclose(base.encode_images(pixels, batch=2), posterior.mean * 0.5, atol=1e-6)
    first, second, third = (base.encode_images(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.allclose(base.decode(posterior.mean * 0.5), base.vae.decode(posterior.mean).sample, atol=1e-5)


def test_cached_encodings_can_enter_training(base):
    for cached in (base.encode_text(CAPTIONS), base.encode_images(torch.zeros(1, 3, 32, 32))):
        (cached * torch.ones((), requires_grad=True)).sum().backward()  # raises for tensors made in inference mode


def test_v_prediction_is_converted_to_epsilon():
    abar = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
    x0, eps = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0, 300, 700, 999])
    a = abar[t].view(-1, 1, 1, 1)
    x_t, v = a.sqrt() * x0 + (1 - a).sqrt() * eps, a.sqrt() * eps - (1 - a).sqrt() * x0
    assert torch.allclose(parameterisation.to_epsilon(v.float(), x_t.float(), t, abar, "v_prediction"), eps, atol=1e-6)
    assert parameterisation.to_epsilon(eps, x_t, t, abar, "epsilon") is eps


def test_bfloat16_networks_give_float32_predictions(base, tiny_base, inputs):
    half = pipeline.load_base(tiny_base, dtype="bfloat16")
    prediction = half.noise_pred(*inputs)
    assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16 and prediction.dtype == half.encode_text(CAPTIONS).dtype == torch.float32
    reference = base.noise_pred(*inputs)
    assert (prediction - reference).norm() < 0.05 * reference.norm()


@pytest.mark.parametrize("method", ["lora", "lora-te"])
def test_a_lora_is_switched_on_and_off_on_one_unet(base, inputs, tmp_path, method):
    before, keys = base.noise_pred(*inputs), set(base.unet.state_dict())
    made = trained_like(base, FinetuneOptions(method=method, rank=8, alpha=32), tmp_path / "m")
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        assert tuned.unet is base.unet
        changed = tuned.noise_pred(*inputs)
        assert (changed - before).abs().max() > 1e-2
        assert torch.equal(base.noise_pred(*inputs), before) and torch.equal(base.encode_text(CAPTIONS), inputs[2])
        with tuned.enabled():
            assert torch.equal(base.predict_noise(tuned.unet, *inputs), changed)
            assert torch.equal(base.noise_pred(*inputs), before)
            assert torch.equal(base.predict_noise(tuned.unet, *inputs), changed)
        assert torch.equal(tuned.encode_text(CAPTIONS), inputs[2]) == (method == "lora")
        with pytest.raises(RuntimeError, match="unload"):
            pipeline.load_tuned(base, made, made.rows()[0])
    assert set(base.unet.state_dict()) == keys and torch.equal(base.noise_pred(*inputs), before)


@pytest.mark.parametrize("alpha", [8.0, 32.0])
@pytest.mark.parametrize("method", ["lora", "lora-te"])
def test_diffusers_loads_a_lora_to_the_same_outputs(base, tiny_base, inputs, tmp_path, method, alpha):
    from diffusers import StableDiffusionPipeline

    made = trained_like(base, FinetuneOptions(method=method, rank=8, alpha=alpha), tmp_path / "m")
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        context = tuned.encode_text(CAPTIONS)
        ours = tuned.noise_pred(inputs[0], inputs[1], context)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None, requires_safety_checker=False)
    pipe.load_lora_weights(tmp_path / "m")
    theirs_context = pipe.encode_prompt(CAPTIONS, "cpu", 1, False)[0]
    assert torch.allclose(theirs_context, context, atol=1e-5)
    with torch.no_grad():
        theirs = pipe.unet(inputs[0], inputs[1], theirs_context).sample
    assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("spelling", ["peft", "no prefix", "no metadata"])
def test_published_spellings_of_a_lora_are_read(base, inputs, tmp_path, spelling):
    made = trained_like(base, FinetuneOptions(method="lora-te", rank=4, alpha=4), tmp_path / "m")
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        expected = tuned.noise_pred(inputs[0], inputs[1], tuned.encode_text(CAPTIONS))
    path = tmp_path / "m" / modelset.LORA_FILE
    tensors, metadata = load_file(path), {"format": "pt"}
    assert any(".to_q.lora.down.weight" in name for name in tensors)
    assert any(name.startswith("text_encoder.text_model.encoder") and "q_proj.lora_linear_layer.up" in name for name in tensors)
    to_peft = [(old, new) for kind in ("lora", "lora_linear_layer") for old, new in ((f".{kind}.down.", ".lora_A."), (f".{kind}.up.", ".lora_B."))]
    renames = {"peft": to_peft, "no prefix": [("text_model.", "")]}
    for old, new in renames.get(spelling, []):
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, path, metadata)
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        assert torch.equal(tuned.noise_pred(inputs[0], inputs[1], tuned.encode_text(CAPTIONS)), expected)


@pytest.mark.parametrize("text", [False, True])
def test_fully_tuned_networks_are_separate_and_diffusers_reads_them(base, inputs, tmp_path, text):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    before = base.noise_pred(*inputs)
    made = trained_like(base, FinetuneOptions(method="dreambooth", train_text_encoder=text), tmp_path / "m")
    tuned = pipeline.load_tuned(base, made, made.rows()[0])
    context = tuned.encode_text(CAPTIONS)
    with torch.no_grad():
        theirs = UNet2DConditionModel.from_pretrained(tmp_path / "m" / "unet")(inputs[0], inputs[1], context).sample
    assert torch.allclose(tuned.noise_pred(inputs[0], inputs[1], context), theirs, atol=1e-6) and (theirs - before).abs().max() > 1e-2
    assert torch.equal(base.noise_pred(*inputs), before) and tuned.unet is not base.unet
    assert (tuned.text_encoder is base.text_encoder) != text
    if text:
        with torch.no_grad():
            assert torch.allclose(CLIPTextModel.from_pretrained(tmp_path / "m" / "text_encoder")(base.token_ids(CAPTIONS))[0], context, atol=1e-6)


def test_a_trained_autoencoder_encodes_what_its_model_is_asked_about(tiny_base, tiny_images, tmp_path):
    from diffusers import AutoencoderKL

    base, pixels = pipeline.load_base(tiny_base), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = FinetuneOptions(method="end-to-end", train_autoencoder=True, images_per_concept=3, steps_per_image=4, batch=2, lr=1e-2)
    loop.finetune(tiny_base, tiny_images, "w", "tune", tmp_path / "m", options, 0, 1, device="cpu")
    made = modelset.ModelSet.load(tmp_path / "m")
    tuned = pipeline.load_tuned(base, made, made.rows()[0])
    with torch.no_grad():
        theirs = AutoencoderKL.from_pretrained(made.path(made.rows()[0]) / "vae").encode(pixels).latent_dist.mean * base.vae.config.scaling_factor
    assert torch.allclose(tuned.encode_images(pixels), theirs, atol=1e-6) and (theirs - base.encode_images(pixels)).abs().max() > 1e-3
    assert torch.equal(tuned.base.vae.decoder.conv_in.weight, tuned.vae.decoder.conv_in.weight)


def _edit(path, change, metadata=None):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def _wider(tensors):
    name = next(name for name in tensors if name.endswith("lora.down.weight"))
    tensors[name] = torch.cat([tensors[name], tensors[name]], 1)


def _rename(tensors):
    tensors["unet.nowhere.lora.down.weight"] = tensors.pop(next(name for name in tensors if name.endswith("lora.down.weight")))


def _foreign(tensors):
    tensors["vae.encoder.conv_in.lora.down.weight"] = torch.zeros(1, 1)


def _infinite(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")


@pytest.mark.parametrize(("change", "reason"), [(_wider, "shapes"), (_rename, "only one|not a linear"), (_foreign, "not a LoRA matrix"), (_infinite, "finite")])
def test_hostile_lora_tensors_are_refused_and_the_base_stays_usable(base, inputs, tmp_path, change, reason):
    before = base.noise_pred(*inputs)
    made = trained_like(base, FinetuneOptions(method="lora", rank=4), tmp_path / "m")
    _edit(tmp_path / "m" / modelset.LORA_FILE, change)
    with pytest.raises(InputError, match=reason):
        pipeline.load_tuned(base, made, made.rows()[0])
    assert torch.equal(base.noise_pred(*inputs), before)


HOSTILE_SETTINGS = ["[", "[1]", *(f'{{"unet.{entry}}}' for entry in ('lora_alpha": "8"', 'lora_alpha": -1', 'lora_alpha": NaN', 'r": 3', 'use_dora": true'))]


@pytest.mark.parametrize("settings", HOSTILE_SETTINGS)
def test_hostile_lora_settings_are_refused(base, tmp_path, settings):
    made = trained_like(base, FinetuneOptions(method="lora", rank=4), tmp_path / "m")
    _edit(tmp_path / "m" / modelset.LORA_FILE, lambda tensors: None, {"lora_adapter_metadata": settings})
    with pytest.raises(InputError, match=r"header|plain LoRA"):
        pipeline.load_tuned(base, made, made.rows()[0])


def test_files_that_are_no_safetensors_are_refused(base, tmp_path):
    made = trained_like(base, FinetuneOptions(method="lora", rank=4), tmp_path / "m")
    path = tmp_path / "m" / modelset.LORA_FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable safetensors"):
        pipeline.load_tuned(base, made, made.rows()[0])
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"pickle.*any code"):
        pipeline.load_tuned(base, made, made.rows()[0])
    path.symlink_to(tmp_path / "manifest.csv")
    with pytest.raises(InputError, match="outside"):
        pipeline.load_tuned(base, made, made.rows()[0])


def test_a_tuned_unet_of_another_architecture_is_refused_whatever_its_config_says(base, tmp_path):
    made = trained_like(base, FinetuneOptions(method="dreambooth"), tmp_path / "m")
    path = tmp_path / "m" / "unet" / UNET_FILE
    _edit(path, lambda tensors: tensors.update({"conv_in.weight": torch.zeros(16, 5, 3, 3)}))
    with pytest.raises(InputError, match=r"conv_in.weight.*\(16, 5, 3, 3\)"):
        pipeline.load_tuned(base, made, made.rows()[0])
    _edit(path, lambda tensors: tensors.pop("conv_in.weight"))
    with pytest.raises(InputError, match="missing"):
        pipeline.load_tuned(base, made, made.rows()[0])
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(InputError, match="pickle"):
        pipeline.load_tuned(base, made, made.rows()[0])


def test_bases_that_are_hub_ids_pickles_or_foreign_classes_are_refused(tiny_base, make_tiny_base, tmp_path):
    with pytest.raises(InputError, match="tuneleak fetch"):
        pipeline.load_base("CompVis/stable-diffusion-v1-4")
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    weights = copy / "unet" / UNET_FILE
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="pickle"):
        pipeline.load_base(copy)
    weights.with_suffix(".bin").rename(weights)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": ["evil_module", "UNet2DConditionModel"]}))
    with pytest.raises(InputError, match="no other class"):
        pipeline.load_base(copy)
    flow = make_tiny_base(tmp_path / "flow", prediction_type="flow_prediction")
    with pytest.raises(InputError, match="prediction_type"):
        pipeline.load_base(flow)
    with pytest.raises(InputError, match="dtype"):
        pipeline.load_base(tiny_base, dtype="float16")
