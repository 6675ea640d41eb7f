"""One step of every stage on the architecture of Stable Diffusion v1.4 with random weights: on the CPU at 128 px, on a GPU at 512 px.

The pipeline is built once. What attacks ask of it runs in float32 and in bfloat16; fine-tuning in bfloat16 on a GPU, its weights in float32; differential
privacy in float32 always. Plain descent stands in for AdamW, whose two moments would take the memory of two more networks. The GPU's part runs with
`pytest -m gpu` (`make test-gpu`) and is skipped where there is none.
"""

import resource
from dataclasses import replace

import pandas as pd
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tuneleak.attacks.captions import adam, relax
from tuneleak.attacks.captions.encoder import CausalEncoder
from tuneleak.attacks.captions.updates import READS_TEXT, Updates
from tuneleak.attacks.extraction import finextract
from tuneleak.attacks.extraction.generate import generate, starting_noise
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.attacks.membership import secmi_stat
from tuneleak.attacks.membership.query import Pictures, Query
from tuneleak.attacks.weights import autoencoder, baselines, spectral
from tuneleak.attacks.weights.draw import Studio
from tuneleak.estimate import STABLE_DIFFUSION_1
from tuneleak.finetune import loop, methods, objective, private, private_data
from tuneleak.models import schedule, tokenizer
from tuneleak.models.base import Base
from tuneleak.models.batched_lora import BatchedLora
from tuneleak.models.precision import bfloat16_is_fast
from tuneleak.models.weightset import WeightSet
from tuneleak.options import (
    CaptionOptions,
    ExtractionOptions,
    FinetuneOptions,
    Guidance,
    MembershipOptions,
    PrivateFinetuneOptions,
    WeightsRunOptions,
    WeightsTrainOptions,
)
from tuneleak.privacy import gradients

CAPTION = "the face of ada"
MEMORY = 16  # GB that have to be free for the largest stage: weights, their copy in one vector, gradients
MOST = {"cpu": 20, "cuda": 24}  # GB of the process at its peak: 18.3 were measured with these tests alone, 18.7 with others before them
VAE = {
    "latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32, "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULER |= {"prediction_type": "epsilon", "set_alpha_to_one": False}

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")])]
pytestmark = pytest.mark.slow


def draw(make, device):
    """A network with random weights that keep activations finite, drawn faster than the classes' own initialisation would be."""
    with torch.device("meta"):
        network = make()
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        parameter.fill_(1.0) if name.endswith("weight") and parameter.ndim == 1 else parameter.uniform_(-0.02, 0.02, generator=generator)
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return network.to(device)


@pytest.fixture(scope="module", params=DEVICES)
def base(request, tmp_path_factory):
    """Stable Diffusion v1.4 in everything but its weights."""
    device = request.param
    if device == "cpu" and psutil.virtual_memory().available < MEMORY * 2**30:
        pytest.skip(f"less than {MEMORY} GB of memory are free")
    side = 16 if device == "cpu" else 64
    words = tokenizer.build(words=["ada", "face", "person"], length=77)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    made = Base(
        folder=tmp_path_factory.mktemp("sd"),
        index={},
        scheduler_config=SCHEDULER,
        alphas_cumprod=schedule.alphas_cumprod(SCHEDULER).to(device),
        device=torch.device(device),
        unet=draw(lambda: UNet2DConditionModel(**STABLE_DIFFUSION_1 | {"sample_size": side}), device),
        vae=draw(lambda: AutoencoderKL(sample_size=8 * side, **VAE), device),
        text_encoder=draw(lambda: CLIPTextModel(CLIPTextConfig(max_position_embeddings=77, **TEXT, **ends)), device),
        tokenizer=words,
    )

    def keep(part):
        """Instead of reading weights from disk again: what was trained stays as it is, since random is as good as random."""
        network = getattr(made, part).requires_grad_(False)
        for parameter in network.parameters():
            parameter.grad = None

    made.reload = keep
    return made


@pytest.fixture(params=["float32", "bfloat16"])
def asked(request, base):
    """The pipeline in the precision that attacks load it in.

    Where bfloat16 is slow the autoencoder stays in float32: one picture of 128 px would take its decoder a quarter of an hour.
    """
    networks = [base.unet, base.text_encoder] + [base.vae] * bfloat16_is_fast(base.device)
    for network in networks if request.param == "bfloat16" else ():
        network.bfloat16()
    yield base
    for network in networks:
        network.float()


@pytest.fixture
def batch(base):
    """One noisy latent and what it takes to learn from it, without the context."""
    generator = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(1, *base.latent_shape, generator=generator).to(base.device) for _ in range(2))
    return lambda context: objective.Batch(latents, noise, torch.tensor([500], device=base.device), context, torch.ones(1, device=base.device))


def step(base, batch, options, autocast):
    """One step of plain descent; returns (the number of trained weights, the share of them that moved, the loss)."""
    trainee = methods.prepare(base, options, torch.Generator().manual_seed(2), CAPTION)
    try:
        ids, vector = base.token_ids([CAPTION]), trainee.parameters.vector
        with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=autocast):
            context = base.text_encoder(ids)[0] if trainee.trains_text else base.encode_text([CAPTION])
        before = vector.detach()[:: max(1, vector.numel() // 1_000_000)].clone()
        optimizer = torch.optim.SGD([vector], lr=1.0)
        loss = objective.training_step(base.output, [vector], optimizer, batch(context), base.alphas_cumprod, max_grad_norm=1.0, autocast=autocast)
        moved = vector.detach()[:: max(1, vector.numel() // 1_000_000)] != before
        return trainee.count, float(moved.float().mean()), float(loss)
    finally:
        methods.restore(base, trainee)


# weights of rank 4: sum of (in + out) over to_q, to_k, to_v, to_out.0 of the UNet, and q, k, v, out of the text encoder's 12 layers
LORA, LORA_TEXT = 4 * 199_296, 4 * 12 * 4 * (768 + 768)
COUNTS = {"lora": LORA, "lora-te": LORA + LORA_TEXT, "dreambooth+lora": LORA + LORA_TEXT, "dreambooth": 859_520_964, "dreambooth-prior": 859_520_964}
COUNTS |= {"textual-inversion": 768, "textual-inversion+lora": LORA + 768, "end-to-end": 859_520_964 + 123_060_480}
WHOLE_LAST = sorted(methods.PARTS, key=methods.trains_whole_weights)  # what they leave of the weights is random too


def test_guidance_draws_a_picture(asked):
    base = asked
    null, caption = base.encode_text([""]), base.encode_text([CAPTION])
    contexts = {"pretrained_null": null, "pretrained_caption": caption, "finetuned_null": null, "finetuned_caption": caption}
    pair = ModelPair(base.noise_pred, base.noise_pred, **contexts)
    noise = starting_noise("ada", 1, base.latent_shape, 0)
    pictures = generate(base, pair, finextract.guide, Guidance(w=3.0), noise, ExtractionOptions(steps=1, batch=1))
    assert pictures.shape == (1, *base.image_size, 3) and pictures.dtype.name == "uint8" and pair.calls == 2


def test_the_autoencoder_rounds_little_in_bfloat16(base):
    """There and back, on so few pixels that any processor can."""
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(8)) * 2 - 1
    latents = base.encode_images(pixels)
    exact = base.decode(latents)
    try:
        base.vae.bfloat16()
        rounded, drawn = base.encode_images(pixels), base.decode(latents)
    finally:
        base.vae.float()
    for found, known in ((rounded, latents), (drawn, exact)):
        assert found.dtype == torch.float32 and 0 < float((found - known).norm() / known.norm()) < 0.05


def test_secmi_scores_a_picture(asked):
    base = asked
    pixels = torch.randint(256, (1, *base.image_size, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8).numpy()
    pictures = Pictures(pd.DataFrame({"image_id": ["a"]}), pixels, base.encode_images, seed=0)
    options = MembershipOptions(secmi_timestep=10, secmi_stride=10)
    query = Query(pictures, [CAPTION], base.noise_pred, base.encode_text, base.alphas_cumprod)
    score = secmi_stat.score(query, options)
    assert score.shape == (1,) and torch.isfinite(score).all() and float(score) < 0 and query.calls == secmi_stat.calls(options) == 3


def test_weights_become_tokens_of_a_caption(base):
    """The encoders of LoRA weights, on as many layers of the sizes that a LoRA of to_q and to_v has."""
    generator = torch.Generator().manual_seed(4)
    layers = {name: module for name, module in base.unet.named_modules() if name.endswith((".to_q", ".to_v"))}
    pairs = {
        name: (torch.randn(2, 4, module.in_features, generator=generator), torch.randn(2, module.out_features, 4, generator=generator))
        for name, module in layers.items()
    }
    assert len(pairs) == 64 and sum(a.shape[2] + b.shape[1] for a, b in pairs.values()) == 99_648
    start, options = torch.zeros(77, 768), WeightsTrainOptions()
    ours = spectral.Encoder(pairs, start, 16, options).eval()
    ridge = torch.nn.functional.normalize(torch.randn(2, 16, generator=generator), dim=-1)
    found = ours(spectral.Encoder.features(pairs, options) | {"ridge": ridge}, None)
    assert found.z.shape == (2, 77, 768) and torch.isfinite(found.z).all() and not torch.equal(*found.z)
    theirs = autoencoder.Encoder(pairs, start, 16, WeightsTrainOptions(attack="autoencoder", compat=["random-start"]))  # else both start at the same z
    theirs.set_trunk(base.text_encoder.cpu())
    found = theirs.eval()(autoencoder.Encoder.features(pairs, options), torch.tensor([10, 20]))
    base.text_encoder.to(base.device)
    assert found.z.shape == (2, 77, 768) and torch.isfinite(found.z).all() and not torch.equal(*found.z)


def test_update_matching_reaches_picture_and_caption(base):
    """Second derivatives through all of the UNet, of one victim's LoRA on to_q and to_v."""
    generator = torch.Generator().manual_seed(7)
    layers = {name: module for name, module in base.unet.named_modules() if name.endswith((".to_q", ".to_v"))}
    pairs = {name: (torch.randn(1, 4, module.in_features, generator=generator), torch.randn(1, module.out_features, 4, generator=generator))
             for name, module in layers.items()}  # fmt: skip
    weights = WeightSet(pd.DataFrame({"concept": ["ada"]}), pairs)
    picture, z = (part.to(base.device).requires_grad_() for part in (torch.randn(1, *base.latent_shape, generator=generator), base.encode_text([CAPTION])))
    with BatchedLora(base.unet, list(pairs)) as lora:
        studio = Studio(base, lora, weights, WeightsRunOptions(pictures=1))
        found = baselines.cosine(studio, torch.arange(1), picture, z, *baselines.draws(base, 1, [("matching", "ada")]))
        gradients_ = torch.autograd.grad(found.sum(), [picture, z])
        lora.use(None)
    assert abs(float(found.detach())) < 1 and studio.calls == 1
    assert all(torch.isfinite(part).all() and part.any() for part in gradients_)


def test_adams_divisors_are_told_for_every_layer_that_reads_the_caption(base, monkeypatch):
    monkeypatch.setattr(adam, "INTERVALS", 2)
    monkeypatch.setattr(adam, "PILOTS", 1)
    layers = {name: module for name, module in base.unet.named_modules() if READS_TEXT.search(name)}
    assert len(layers) == 32
    latents = torch.randn(1, *base.latent_shape, generator=torch.Generator().manual_seed(5)).to(base.device)
    context = base.encode_text([CAPTION])
    (found,) = adam.Divisors(base, list(layers), latents, draws=2).factors(context)
    for factors, module in zip(found, layers.values(), strict=True):
        assert factors.shape == (adam.RANK, module.out_features, 77) and torch.isfinite(adam.moments(factors, context)).all()
    assert sum(float(factors.square().sum()) for factors in found) > 0


def test_open_words_of_a_caption_follow_the_gradient(base, monkeypatch):
    monkeypatch.setattr(adam, "INTERVALS", 2)
    monkeypatch.setattr(adam, "PILOTS", 1)
    names = tuple(name for name, _ in base.unet.named_modules() if READS_TEXT.search(name))
    generator = torch.Generator().manual_seed(6)
    rows = [torch.randn(base.unet.get_submodule(name).out_features, 768, generator=generator).double() for name in names]
    options, encoder = CaptionOptions(draws=2), CausalEncoder(base.text_encoder, base.tokenizer, 77)
    judge = adam.AdamLikelihood(Updates(rows, None, names), base, encoder, options, torch.randn(1, *base.latent_shape, generator=generator))
    template = (None, base.tokenizer.convert_tokens_to_ids("face</w>"), None)
    ((logits, words, likelihood, factors),) = relax.RelaxedSearch(judge, encoder, options).relax([template], (2, 0.3))
    assert words.shape == (3, 768) and torch.isfinite(words).all() and torch.isfinite(torch.tensor(likelihood)) and len(factors) == 2
    assert bool(logits[[0, 2]].any()) and not bool(logits[1].any())


@pytest.mark.parametrize(
    ("kind", "trained", "conditioning"),
    [("ghost", "attention", "frozen"), ("ghost", "attention", "text-encoder"), ("hooks", "lora", "frozen"), ("ghost", "all", "text-encoder")],
)
def test_private_gradients_are_clipped(base, kind, trained, conditioning):
    """A picture's gradient of a trained set, and of the text encoder, counts for one however long it is."""
    if trained == "all" and base.device.type == "cpu":
        pytest.skip("eight vectors of a billion numbers: where there is a GPU")
    options = PrivateFinetuneOptions(trainable=trained, conditioning=conditioning, rank=4, prompts={"0": CAPTION})
    network, parameters, _, _ = private.prepare(base, options, seed=0)
    flat = methods.FlatParameters(parameters)
    sums = gradients.make(kind, network, parameters)
    try:
        data = private_data.NoiseRecords(base, 1, options)
        noise, timesteps = torch.randn(1, *base.latent_shape), torch.tensor([500])
        total, norms = sums.clipped(data.errors_of(torch.arange(1), noise, timesteps), 1, 1e-3)
    finally:
        sums.close()
        private.restore(base, options)
    assert float(norms[0]) > 1e-3, "else nothing is clipped"
    length = sum(float(part.double().square().sum()) for part in total) ** 0.5
    assert 1 - 1e-4 < length <= 1 + 1e-5 and sum(part.numel() for part in total) == flat.vector.numel()


@pytest.mark.parametrize("method", WHOLE_LAST)
def test_one_step_of_every_method(base, batch, method):
    """In float32 on the CPU, but for one; whole weights are float32 everywhere, the networks' arithmetic on a GPU is bfloat16."""
    if base.device.type == "cpu" and method in ("dreambooth", "dreambooth-prior"):
        pytest.skip("all weights of the UNet: so do end-to-end and dreambooth+hypernetwork, which take ten seconds each")
    options = FinetuneOptions(method=method, rank=4, alpha=4, class_prompt="a person", prior_images=1, hypernetwork_width=1)
    autocast = base.device.type == "cuda" or method == "lora"
    count, moved, loss = step(base, batch, options, autocast)
    assert count == COUNTS.get(method, count) and 0 < loss < float("inf")
    # a LoRA's A starts to move when its B is no longer zero; of the words of a text encoder that is trained, only those of the caption move
    assert moved > {"lora": 0.4, "textual-inversion": 0.9, "end-to-end": 0.5}.get(method, 0.1), moved


def test_the_autoencoder_is_trained_along(base, batch):
    """End to end with the encoder and its quant_conv: 34,163,592 + 72 weights more, which the loss of sampled latents moves."""
    options = FinetuneOptions(method="end-to-end", train_autoencoder=True)
    trainee = methods.prepare(base, options, torch.Generator().manual_seed(2), CAPTION)
    try:
        assert trainee.count == COUNTS["end-to-end"] + 34_163_592 + 72
        pixels = torch.rand(1, 3, *base.image_size, generator=torch.Generator().manual_seed(3)) * 2 - 1
        autocast = base.device.type == "cuda"
        latents = loop._latents(base, autocast)(pixels.to(base.device), torch.Generator().manual_seed(4))
        told = replace(batch(base.encode_text([CAPTION])), latents=latents)
        objective.denoising_errors(base.output, told, base.alphas_cumprod, base.prediction_type, autocast).sum().backward()
        gradient = base.vae.encoder.conv_in.weight.grad
        assert bool(gradient.any()) and bool(torch.isfinite(gradient).all()) and base.vae.decoder.conv_in.weight.grad is None
    finally:
        methods.restore(base, trainee)


def test_memory_stays_within_what_is_asked_for(base):
    """The peak of all stages above, on a GPU with what activations of 512 px add."""
    cuda = base.device.type == "cuda"
    peak = (torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30
    print(f"{base.device.type}, {base.image_size[0]} px: at most {peak:.1f} GB")
    assert 4 < peak < MOST[base.device.type]
