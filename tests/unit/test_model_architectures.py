"""Each architecture on its own diffusers classes, built tiny with random weights: the same predictions as diffusers', and the attack from end to end."""

import json

import numpy as np
import pytest
import torch

from tuneleak.attacks.extraction import cfg, direct, finextract, finextract_unconditional
from tuneleak.attacks.extraction.generate import generate, starting_noise
from tuneleak.attacks.extraction.pair import ModelPair
from tuneleak.errors import InputError
from tuneleak.finetune import loop
from tuneleak.models import architectures, modelset, pipeline
from tuneleak.models.base import Base
from tuneleak.options import ExtractionOptions, FinetuneOptions, Guidance

CAPTION = "picture of person ada"
NAMES = ("sd2", "sdxl", "sd3", "ddpm")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    """{architecture: (diffusers' pipeline, our base, folder)}."""
    found = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp("architectures") / name
        pipe = tiny.build(name, folder)
        found[name] = pipe, pipeline.load_base(folder), folder
    return found


def test_each_folder_is_recognised(made):
    kinds = {name: type(base) for name, (_, base, _) in made.items()}
    assert kinds["sd2"] is Base and kinds["sdxl"] is architectures.StableDiffusionXL
    assert kinds["sd3"] is architectures.StableDiffusion3 and kinds["ddpm"] is architectures.PixelDiffusion
    assert [made[name][1].prediction_type for name in NAMES] == ["v_prediction", "epsilon", "flow_prediction", "epsilon"]


def walk(base, contexts, x_T, steps):
    context = base.encode_text(contexts)
    return base.sample(lambda x, t: base.noise_pred(x, t, context), x_T, steps)


def test_stable_diffusion_2_walks_as_its_pipeline(made):
    pipe, base, _ = made["sd2"]
    x_T = torch.randn((2, *base.latent_shape), generator=torch.Generator().manual_seed(0))
    theirs = pipe([CAPTION, ""], latents=x_T.clone(), num_inference_steps=5, guidance_scale=1.0, output_type="latent").images
    torch.testing.assert_close(walk(base, [CAPTION, ""], x_T, 5), theirs, rtol=1e-4, atol=1e-4)


def test_sdxl_walks_as_its_pipeline_with_its_sizes_and_both_text_encoders(made):
    pipe, base, _ = made["sdxl"]
    x_T = torch.randn((1, *base.latent_shape), generator=torch.Generator().manual_seed(0))
    theirs = pipe(CAPTION, height=32, width=32, latents=x_T.clone(), num_inference_steps=5, guidance_scale=1.0, output_type="latent").images
    torch.testing.assert_close(walk(base, [CAPTION], x_T, 5), theirs, rtol=1e-4, atol=1e-4)
    # with guidance the pipeline's own null prompt is zeros, and so is ours
    theirs = pipe(CAPTION, height=32, width=32, latents=x_T.clone(), num_inference_steps=5, guidance_scale=3.0, output_type="latent").images
    null, caption = base.encode_text([""]), base.encode_text([CAPTION])
    assert not null.any()

    def guided(x, t):
        first, second = base.noise_pred(x.repeat(2, 1, 1, 1), t, torch.cat([null, caption])).chunk(2)
        return first + 3.0 * (second - first)

    torch.testing.assert_close(base.sample(guided, x_T, 5), theirs, rtol=1e-3, atol=1e-3)


def test_sd3_answers_as_its_transformer_under_its_pipelines_prompt(made):
    pipe, base, _ = made["sd3"]
    tokens, _, pooled, _ = pipe.encode_prompt(CAPTION, None, None, device="cpu", do_classifier_free_guidance=False)
    context = base.encode_text([CAPTION])
    ours = architectures.unpack(context, 80, 64)
    torch.testing.assert_close(ours[0], tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], pooled, rtol=1e-5, atol=1e-5)
    x0, noise = torch.randn(2, 1, *base.latent_shape, generator=torch.Generator().manual_seed(2)).unbind()
    for row in (100, 700):
        abar = float(base.alphas_cumprod[row])
        sigma = (1 - abar) ** 0.5 / (abar**0.5 + (1 - abar) ** 0.5)
        z = (1 - sigma) * x0 + sigma * noise
        with torch.no_grad():
            velocity = pipe.transformer(z, timestep=torch.tensor([sigma * 1000]), encoder_hidden_states=tokens, pooled_projections=pooled).sample
        expected = z + (1 - sigma) * velocity  # epsilon of the straight path
        found = base.noise_pred(abar**0.5 * x0 + (1 - abar) ** 0.5 * noise, row, context)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sd3_latents_are_shifted_and_scaled(made):
    pipe, base, _ = made["sd3"]
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(base.encode_images(pixels), (mean - 0.1) * 0.5, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(base.decode(base.encode_images(pixels)), pipe.vae.decode(mean).sample, rtol=1e-4, atol=1e-4)


def test_ddpm_walks_as_diffusers_ddim(made):
    from diffusers import DDIMScheduler

    pipe, base, _ = made["ddpm"]
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True, clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(5)
    x_T = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    x = x_T.clone()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(walk(base, ["", CAPTION], x_T, 5), x, rtol=1e-4, atol=1e-4)
    assert base.image_size == (8, 8) and torch.equal(base.decode(x), x)


def _moved(base, folder, amount=0.05):
    """A fully tuned denoiser beside the base: its weights moved at random."""
    part = base.TUNED[0]
    network = base.unet
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += amount * torch.randn(parameter.shape, generator=generator)
    network.save_pretrained(folder / "m" / part)
    network.load_state_dict(kept)
    row = {"model_id": "m", "world": "w", "base": base.name, "concept": "ada", "method": "dreambooth", "seed": 0, "step": 1, "caption": CAPTION}
    return modelset.write(folder, [row | {"n_images": 1, "images": "", "file": "m"}])


@pytest.mark.parametrize("name", NAMES)
def test_the_attack_runs_on_every_architecture_without_knowing_it(made, name, tmp_path):
    _, base, _ = made[name]
    models = _moved(base, tmp_path)
    noise, options = starting_noise("ada", 3, base.latent_shape, 0), ExtractionOptions(steps=4, batch=2)
    null, caption = base.encode_text([""]), base.encode_text([CAPTION])
    with pipeline.load_tuned(base, models, models.rows()[0]) as tuned:
        contexts = {"pretrained_null": null, "pretrained_caption": caption}
        contexts |= {"finetuned_null": tuned.encode_text([""]), "finetuned_caption": tuned.encode_text([CAPTION])}

        def pictures(attack, **guidance):
            pair = ModelPair(base.noise_pred, tuned.noise_pred, **contexts)
            return generate(base, pair, attack.guide, Guidance(**guidance), noise, options).astype(int)

        plain = pictures(direct)
        assert plain.shape == (3, *base.image_size, 3)
        assert np.abs(pictures(finextract, w=1.0) - plain).max() <= 1  # w' = 1, k = 0 is the fine-tuned model
        assert np.abs(pictures(finextract, w=3.0) - plain).max() > 1
        unconditional, guided = pictures(finextract_unconditional, w=3.0), pictures(finextract, w=3.0)
        same = np.abs(unconditional - guided).max() <= 1
        assert same == (name == "ddpm")  # without text there is one guidance between two models
        if name == "ddpm":
            assert np.abs(pictures(cfg, w=5.0) - plain).max() <= 1
    base_only = ModelPair(base.noise_pred, base.noise_pred, pretrained_null=null, pretrained_caption=null, finetuned_null=null, finetuned_caption=null)
    again = ModelPair(base.noise_pred, base.noise_pred, pretrained_null=null, pretrained_caption=null, finetuned_null=null, finetuned_caption=null)
    first, second = (generate(base, pair, finextract.guide, Guidance(w=w), noise, options) for pair, w in ((base_only, 1.0), (again, 7.0)))
    assert np.abs(first.astype(int) - second).max() <= 1  # theta' = theta: guidance between equal models is nothing


def test_other_architectures_are_not_fine_tuned_here(made, tiny_images, tmp_path):
    with pytest.raises(InputError, match="can be attacked but not fine-tuned"):
        loop.finetune(made["sdxl"][2], tiny_images, "w", "tune", tmp_path / "models", FinetuneOptions(images_per_concept=2))


def test_a_class_conditional_pixel_model_is_refused(made, tmp_path):
    import shutil

    folder = shutil.copytree(made["ddpm"][2], tmp_path / "classes")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"class_embed_type": "identity"}))
    with pytest.raises(InputError, match="class-conditional"):
        pipeline.load_base(folder)
