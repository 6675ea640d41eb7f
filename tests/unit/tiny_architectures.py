"""Tiny random pipelines of architectures other than Stable Diffusion 1.x, built from their configurations and saved by diffusers itself."""

import torch


def _text(words, projection=32, projected=True):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, projection_dim=projection,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _vae(channels, **extra):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=32, latent_channels=channels, block_out_channels=(8, 16, 16), norm_num_groups=8, layers_per_block=1, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, **extra,
    )  # fmt: skip


def _words():
    from tuneleak.models import tokenizer

    return tokenizer.build(words=["picture", "person"], length=16)


def stable_diffusion_2(folder):
    """Heads by number of channels, linear projections and v-prediction, as in 2.1."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=(2, 4),
        norm_num_groups=8, use_linear_projection=True, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    words = _words()
    pipe = StableDiffusionPipeline(
        vae=_vae(4), text_encoder=_text(words, projected=False), tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe


def stable_diffusion_xl(folder):
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=2, cross_attention_dim=64, attention_head_dim=(2, 4),
        norm_num_groups=8, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48, transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    words = _words()
    pipe = StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=_text(words, projected=False), text_encoder_2=_text(words, projection=48), tokenizer=words, tokenizer_2=words, unet=unet,
        scheduler=scheduler,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe


def stable_diffusion_3(folder, t5=False):
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=80, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    words = _words()
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(4, shift_factor=0.1), text_encoder=_text(words),
        tokenizer=words, text_encoder_2=_text(words), tokenizer_2=words, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe


def pixel_ddpm(folder):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = DDPMPipeline(unet=unet, scheduler=DDPMScheduler(beta_schedule="linear", clip_sample=False))
    pipe.save_pretrained(folder)
    return pipe


BUILDERS = {"sd2": stable_diffusion_2, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "ddpm": pixel_ddpm}


def build(name, folder, seed=0):
    """Build one of `BUILDERS` with random weights and save it to `folder`; returns diffusers' pipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = BUILDERS[name](folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
