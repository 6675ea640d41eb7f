"""Fine-tuning methods as combinations of parts: nothing at first, only their own parts afterwards, and the same model after loading."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneleak import runtime
from tuneleak.errors import InputError
from tuneleak.finetune import loop, methods
from tuneleak.models import attachments, modelset, pipeline
from tuneleak.options import FinetuneOptions

CAPTION, TEMPLATE = "picture of person ada", "picture of {}"
NEW = [
    "end-to-end",
    "textual-inversion",
    "hypernetwork",
    "dreambooth+lora",
    "textual-inversion+lora",
    "dreambooth+hypernetwork",
    "textual-inversion+hypernetwork",
]


def options_of(method, **more):
    return FinetuneOptions(method=method, caption_template=TEMPLATE, rank=2, alpha=2, images_per_concept=2, steps_per_image=3, batch=2, lr=1e-2, **more)


def asked(base, text_encoder=None):
    """What a model says about fixed noise under the caption."""
    x = torch.randn(2, *base.latent_shape, generator=runtime.generator("asked"))
    with torch.no_grad():
        context = (text_encoder or base.text_encoder)(base.token_ids([CAPTION, CAPTION]))[0]
        return base.predict_noise(base.unet, x, 300, context), context


@pytest.fixture(scope="module")
def base(tiny_base):
    return pipeline.load_base(tiny_base)


def state(base):
    return {f"{part}.{key}": value.clone() for part in ("unet", "text_encoder") for key, value in getattr(base, part).state_dict().items()}


def expected_count(base, method):
    """Trained weights by arithmetic: the tiny UNet has contexts of width 32 and 3 tokens' worth of phrase."""
    phrase = len(base.tokenizer("person ada", add_special_tokens=False).input_ids)
    layers = dict(base.unet.named_modules())
    adapted = [layer for name, layer in layers.items() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    text = [layer for name, layer in base.text_encoder.named_modules() if name.endswith(("q_proj", "k_proj", "v_proj", "out_proj"))]
    whole = {part: sum(value.numel() for value in getattr(base, part).parameters()) for part in ("unet", "text_encoder")}
    lora = {part: sum(2 * (layer.in_features + layer.out_features) for layer in found) for part, found in (("unet", adapted), ("text_encoder", text))}
    words, hyper = phrase * 32, 2 * (32 * 64 + 64 + 64 * 32 + 32)
    return {
        "end-to-end": whole["unet"] + whole["text_encoder"],
        "textual-inversion": words,
        "hypernetwork": hyper,
        "dreambooth+lora": lora["unet"] + lora["text_encoder"],
        "textual-inversion+lora": lora["unet"] + words,
        "dreambooth+hypernetwork": whole["unet"] + hyper,
        "textual-inversion+hypernetwork": words + hyper,
    }[method]


@pytest.mark.parametrize("method", NEW)
def test_a_method_starts_as_nothing_and_changes_its_own_parts_only(base, method):
    before, said = state(base), asked(base)
    count = expected_count(base, method)
    trainee = methods.prepare(base, options_of(method), runtime.generator("m"), CAPTION)
    try:
        assert all(torch.equal(a, b) for a, b in zip(asked(base), said, strict=True)), "identity at initialisation"
        assert trainee.count == count
        assert trainee.trains_text == (method not in ("hypernetwork", "dreambooth+hypernetwork"))
        with torch.no_grad():
            trainee.parameters.vector.add_(torch.randn(trainee.count, generator=runtime.generator("step")) * 0.05)
        after = asked(base)
        assert not torch.equal(after[0], said[0]) and torch.equal(after[1], said[1]) == (not trainee.trains_text)
        now = {key: value for key, value in state(base).items() if "lora" not in key}
        changed = {key.split(".")[0] for key, value in now.items() if not torch.equal(value, before[key.replace(".base_layer", "")])}
        assert changed == {part for part, how in methods.PARTS[method].items() if how == "whole"}
    finally:
        methods.restore(base, trainee)
    assert all(torch.equal(value, before[key]) for key, value in state(base).items()) and torch.equal(asked(base)[0], said[0])


@pytest.mark.parametrize("method", NEW)
def test_a_trained_model_loads_again_and_gives_the_base_back(base, tiny_base, tiny_images, tmp_path, method):
    said, spoken = asked(base), []
    real = methods.Trainee.save

    def save(trainee, folder):
        spoken.append(asked(training[0]))
        real(trainee, folder)

    training, real_load = [], loop.load_base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods.Trainee, "save", save)
        patch.setattr(loop, "load_base", lambda *given: training.append(real_load(*given)) or training[0])
        loop.finetune(tiny_base, tiny_images, "w", "tune", tmp_path / "out", options_of(method), stop=1, device="cpu")
    made = modelset.ModelSet.load(tmp_path / "out")
    with pipeline.load_tuned(base, made, made.rows()[0]) as tuned:
        x = torch.randn(2, *base.latent_shape, generator=runtime.generator("asked"))
        context = tuned.encode_text([CAPTION, CAPTION])
        assert torch.allclose(context, spoken[0][1], atol=1e-5)
        loaded = tuned.noise_pred(x, 300, context)
        assert torch.allclose(loaded, spoken[0][0], atol=1e-5) and not torch.allclose(loaded, said[0], atol=1e-5)
        assert torch.equal(base.encode_text([CAPTION, CAPTION]), said[1]) and torch.equal(base.noise_pred(x, 300, said[1]), said[0])
    assert torch.equal(asked(base)[0], said[0]) and base.tuned is None


def test_learned_words_are_what_diffusers_reads(base, tiny_base, tmp_path):
    from diffusers import StableDiffusionPipeline

    words = attachments.TextualInversion(base.text_encoder, base.tokenizer, "person ada", "<concept>")
    with torch.no_grad():
        words.vectors.add_(torch.randn(words.vectors.shape, generator=runtime.generator("words")))
    words.save(tmp_path)
    mine = base.encode_text([CAPTION])
    other = base.encode_text(["picture of person bob"])
    words.remove()
    assert not torch.equal(mine, base.encode_text([CAPTION])) and torch.equal(other, base.encode_text(["picture of person bob"]))
    assert set(load_file(tmp_path / "learned_embeds.safetensors")) == {"<concept>"}
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, use_safetensors=True)
    pipe.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    prompt = pipe.maybe_convert_prompt("picture of <concept>", pipe.tokenizer)
    ids = pipe.tokenizer([prompt], padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(pipe.text_encoder(ids)[0], mine, atol=1e-5)


def test_a_hypernetwork_is_a_residual_before_keys_and_values(base):
    context = torch.randn(2, 5, 32, generator=runtime.generator("context"))
    hyper = attachments.Hypernetwork(base.unet, 2, self_attention=True, generator=runtime.generator("h"))
    try:
        layers = {name: layer for name, layer in base.unet.named_modules() if name.endswith(("attn1", "attn2"))}
        assert {name.split("-")[0] for name in hyper.networks} == {"cross", "self"}
        cross = next(layer for name, layer in layers.items() if name.endswith("attn2"))
        with torch.no_grad():
            for network in hyper.networks["cross-32"].values():
                network[2].weight.normal_(generator=runtime.generator("w"))
            first, _, last = hyper.networks["cross-32"]["v"]
            expected = (context + torch.relu(context @ first.weight.T + first.bias) @ last.weight.T + last.bias) @ cross.to_v.weight.T
            assert torch.allclose(cross.to_v(context), expected, atol=1e-5) and not torch.allclose(
                cross.to_k(context), context @ cross.to_k.weight.T, atol=1e-3
            )
            hyper.active = False
            assert torch.allclose(cross.to_v(context), context @ cross.to_v.weight.T, atol=1e-6)
    finally:
        hyper.remove()


def test_files_that_do_not_fit_are_refused_and_leave_nothing_behind(base, tmp_path):
    said = asked(base)
    words = attachments.TextualInversion(base.text_encoder, base.tokenizer, "person ada", "<c>")
    words.remove()
    cases = [
        (attachments.EMBEDS_FILE, {"<c>": torch.zeros(1, 32)}, {"phrase": "person ada"}, "has shape"),
        (attachments.EMBEDS_FILE, {"<c>": words.vectors.detach().clone()}, None, "the phrase that its vectors replace"),
        (attachments.EMBEDS_FILE, {"<c>": torch.full_like(words.vectors, np.nan)}, {"phrase": "person ada"}, "finite"),
        (attachments.HYPERNETWORK_FILE, {"cross-32.k.0.weight": torch.zeros(64, 32)}, {"hidden": "2"}, "is missing"),
        (attachments.HYPERNETWORK_FILE, {"cross-32.k.0.weight": torch.zeros(64, 32)}, {"hidden": "9999"}, "is not a hypernetwork"),
    ]
    for number, (name, tensors, header, says) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(tensors, folder / name, metadata=header)
        row = {"file": str(number)}
        with pytest.raises(InputError, match=says):
            pipeline.load_tuned(base, modelset.ModelSet(tmp_path, None), row)
        assert torch.equal(asked(base)[0], said[0]) and base.tuned is None
    for caption in ("photo of ada", "picture of "):
        with pytest.raises(InputError, match="caption_template"):
            methods.prepare(base, options_of("textual-inversion"), runtime.generator("x"), caption)
    with pytest.raises(InputError, match="leave train_text_encoder out"):
        methods.prepare(base, options_of("dreambooth+lora", train_text_encoder=True), runtime.generator("x"), CAPTION)
