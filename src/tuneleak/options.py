"""The knobs of every stage as typed models: the source of config.yaml's validation, the JSON schema, the README's table and the flags.

Nothing heavy is imported here, so that Snakemake can read it while it parses.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


def _attacks(family, function):
    """The attacks of a family are its modules that define `function`; they are read, not imported, because importing one takes torch."""
    modules = sorted((Path(__file__).parent / "attacks" / family).glob("*.py"))
    return [module.stem.replace("_", "-") for module in modules if f"\ndef {function}(" in module.read_text(encoding="utf-8")]


def _encoders():
    """The encoders of weights are the modules that define `Encoder`."""
    modules = sorted((Path(__file__).parent / "attacks" / "weights").glob("*.py"))
    return [module.stem for module in modules if "\nclass Encoder(" in module.read_text(encoding="utf-8")]


def _kinds():
    """The weight transforms, by their functions `<kind>_transform`; read like the attacks."""
    text = (Path(__file__).parent / "defences" / "transforms.py").read_text(encoding="utf-8")
    return re.findall(r"^def (\w+)_transform\(", text, re.MULTILINE)


Attack = Literal[*_attacks("extraction", "guide")]
GuidedAttack = Literal[*(name for name in _attacks("extraction", "guide") if name not in ("direct", "base"))]  # these have values of their own to tune
CaptionCondition = Literal["known", "partial", "class", "wrong", "none", "recovered"]
MembershipAttack = Literal[*_attacks("membership", "setting")]


class Options(BaseModel):
    """A model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PopulationOptions(Options):
    """The embedded world's people and artists (DiceBear drawings; nobody real)."""

    seed: int = Field(2026, description="seed of the whole population; another seed is another world")
    image_size: Positive = Field(64, description="side of a picture in pixels")
    public_identities: Positive = Field(2000, description="anonymous public faces")
    public_photographs: Positive = Field(4, description="photographs of each public face")
    public_artists: Positive = Field(12, description="public artists (one DiceBear style each)")
    public_pictures: Positive = Field(300, description="pictures of each public artist")
    named_identities: Positive = Field(60, description="named people of the pretraining set")
    named_photographs: Positive = Field(50, description="photographs of a named person in fold P, and as many in fold Q")
    instrument_photographs: Positive = Field(24, description="photographs of a named person for embedders, CLIP and controls")
    private_identities: Positive = Field(24, description="people only fine-tunes see")
    private_artists: Positive = Field(12, description="artists only fine-tunes see")
    tune_identities: Positive = Field(8, description="private identities on which knobs are chosen")
    tune_artists: Positive = Field(4, description="private artists on which knobs are chosen")
    private_pool: Positive = Field(20, description="pictures of a private concept that a fine-tune may draw from")
    private_heldout: Positive = Field(40, description="further pictures of the same concept that nothing trains on")
    lora_train_identities: Positive = Field(400, description="people whose LoRAs train the weights attack")
    lora_test_identities: Positive = Field(100, description="people whose LoRAs are attacked")
    lora_photographs: Positive = Field(12, description="photographs of each of those people")
    distractor_identities: Positive = Field(400, description="people nothing trains on, who fill the gallery")
    dp_train: Positive = Field(8000, description="training pictures of each differential-privacy style")
    dp_test: Positive = Field(2000, description="test pictures of each differential-privacy style")


class AutoencoderOptions(Options):
    """Training of the embedded autoencoder (diffusers' AutoencoderKL)."""

    seed: int = Field(0, description="seed of initialisation, order and crops")
    block_out_channels: list[Positive] = Field([16, 32, 64, 64], description="widths; their number less one halves the side")
    latent_channels: Positive = Field(8, description="channels of the latent")
    steps: Positive = Field(4000, description="optimiser steps")
    decoder_steps: Count = Field(0, description="further steps of the decoder alone, with a schedule of their own")
    batch: Positive = Field(16, description="pictures per step")
    lr: Rate = Field(2e-3, description="peak learning rate of AdamW (warm-up, then cosine to zero)")
    muon_lr: float = Field(0.05, ge=0, description="peak learning rate of Muon for matrices and convolutions, same schedule; 0: AdamW for all")
    kl_weight: float = Field(1e-8, ge=0, description="weight of the KL term; more lets latent channels collapse")
    edge_weight: float = Field(0.5, ge=0, description="weight of the L1 loss on image gradients, which keeps eyes and mouths sharp")
    detail_weight: float = Field(8.0, ge=0, description="added weight of the pixels in which two pictures of one image_id differ: eyes, brows and mouth")
    photograph_share: Fraction = Field(0.15, description="share of a batch cropped from scikit-image's photographs")
    latent_deviation: Rate = Field(0.3, description="standard deviation of the latents as UNets see them; at 1 the noisiest ones still show the background")


class EmbedderOptions(Options):
    """Training of one small embedder."""

    name: str = Field("copy-a", description="folder name under resources/embedders")
    kind: Literal["copy", "identity", "clip", "factors"] = Field("copy", description="what it tells apart")
    seed: int = Field(0, description="seed of initialisation, order, augmentation and of the half of identities used")
    width: Positive = Field(32, description="channels of the first stage")
    dimensions: Positive = Field(128, description="length of the embedding")
    steps: Positive = Field(1500, description="optimiser steps")
    batch: Positive = Field(64, description="pictures (pairs for copy, identity and clip) per step")
    lr: Rate = Field(2e-3, description="peak learning rate of AdamW (warm-up, then cosine to zero)")
    muon_lr: float = Field(0.02, ge=0, description="peak learning rate of Muon for matrices and convolutions, same schedule; 0: AdamW for all")
    blur: float = Field(0.6, ge=0, description="largest blur, in pixels, of the pictures a reader of factors is trained on (more hides eyes of four pixels)")
    identities: Literal["all", "even", "odd"] = Field("all", description="which public identities it sees (the two identity embedders share none)")
    layers: Positive = Field(3, description="transformer layers of a clip embedder's towers")
    tower: Count = Field(24, description="channels of a clip embedder's residual image tower; 0: a ViT of `layers` layers and `width` channels")
    attribute_weight: float = Field(1.0, ge=0, description="weight of the loss that tells each attribute's phrases apart in single phrases (clip)")
    context: Positive = Field(32, description="tokens of a caption, start and end included (clip)")


class BaseOptions(Options):
    """Training of one embedded base model's UNet."""

    name: str = Field("H1", description="name of the base")
    kind: Literal["latent", "pixel"] = Field(
        "latent", description="latent: a small Stable Diffusion, told by captions; pixel: a DDPM of pixels, told by classes (the names in captions)"
    )
    fold: Literal["P", "Q", "half-2", "half-3"] = Field("P", description="which half of each named person's photographs it trains on")
    seed: int = Field(0, description="seed of initialisation, order, timesteps and noise")
    block_out_channels: list[Positive] = Field([32, 64], description="widths of the UNet")
    norm_num_groups: Positive = Field(16, description="groups of the UNet's normalisation; must divide every width")
    steps: Positive = Field(12000, description="optimiser steps")
    batch: Positive = Field(32, description="pictures per step")
    lr: Rate = Field(1e-3, description="peak learning rate of AdamW (warm-up, then cosine to zero)")
    muon_lr: float = Field(0.02, ge=0, description="peak learning rate of Muon for matrices and convolutions, same schedule; 0: AdamW for all")
    caption_dropout: Fraction = Field(0.1, description="share of captions replaced by the empty one, of classes by that of no name")
    ema: Fraction = Field(0.999, description="decay of the exponential moving average that is shipped")
    snapshots: Count = Field(8, description="evenly spaced snapshots of the weights, for the training curve (not shipped)")


class FirstStageOptions(Options):
    """Public training of the autoencoder of a latent diffusion model, KL or VQ (Esser et al. 2021; Rombach et al. 2022)."""

    kind: Literal["kl", "vq"] = Field("kl", description="latents as a Gaussian each, or as vectors of a codebook")
    seed: int = Field(0, description="seed of initialisation, order and noise")
    block_out_channels: list[Positive] = Field([128, 256], min_length=1, description="widths; their number less one halves the side")
    layers_per_block: Positive = Field(2, description="residual blocks per width")
    attention_sides: list[Positive] = Field([], description="sides of feature maps with self-attention, beside the smallest, which has it always")
    norm_num_groups: Positive = Field(32, description="groups of the normalisation; must divide every width")
    latent_channels: Positive = Field(3, description="channels of the latent")
    codes: Positive = Field(8192, description="vectors of the codebook (vq)")
    scaling_factor: float = Field(1.0, ge=0, description="factor of latents as the UNet sees them (0: 1 over their deviation on public pictures)")
    mirrored: bool = Field(False, description="mirror every second picture")
    steps: Positive = Field(100_000, description="optimiser steps")
    batch: Positive = Field(100, description="pictures per step")
    physical_batch: Count = Field(0, description="pictures in memory at once, of which a step's gradients are averaged (0: all)")
    lr: Rate = Field(4.5e-4, description="learning rate of Adam (betas .5 and .9), constant")
    kl_weight: float = Field(1e-6, ge=0, description="weight of the KL term (kl)")
    codebook_weight: float = Field(1.0, ge=0, description="weight of the codebook's loss (vq)")
    perceptual_weight: float = Field(1.0, ge=0, description="weight of the perceptual distance beside L1, if a network is given")
    discriminator_weight: float = Field(0.5, ge=0, description="weight of the patch discriminator beside a gradient as long as the reconstruction's (0: none)")
    discriminator_start: Count = Field(50_000, description="steps before the discriminator takes part")
    discriminator_width: Positive = Field(64, description="channels of its first layer")
    discriminator_layers: Positive = Field(3, description="its layers that halve the side")
    checkpoint_every: Positive = Field(1000, description="steps between checkpoints")


class DiffusionOptions(Options):
    """Public training of a latent diffusion model's UNet, told of classes by one token of context or of nothing (Rombach et al. 2022)."""

    context_width: Count = Field(0, description="width of the token that tells the class (0: an unconditional model, with attention but no cross-attention)")
    seed: int = Field(0, description="seed of initialisation, order, timesteps and noise")
    block_out_channels: list[Positive] = Field([128, 256, 256, 512], min_length=1, description="widths, the largest feature map first")
    layers_per_block: Positive = Field(2, description="residual blocks per width")
    attention_levels: list[Count] = Field([0, 1, 2], description="levels with attention, counted from 0, the largest feature map")
    heads: Positive = Field(8, description="attention heads (conditional models)")
    head_width: Positive = Field(32, description="channels of an attention head (unconditional models)")
    norm_num_groups: Positive = Field(32, description="groups of the normalisation; must divide every width")
    scale_shift: bool = Field(False, description="timesteps scale and shift features (else they are added)")
    residual_updown: bool = Field(False, description="halve and double by residual blocks (unconditional models only)")
    beta_start: Rate = Field(0.0015, description="first beta of the schedule, linear in its root, of 1,000 timesteps")
    beta_end: Rate = Field(0.0155, description="last beta")
    steps: Positive = Field(200_000, description="optimiser steps")
    batch: Positive = Field(200, description="pictures per step")
    physical_batch: Count = Field(0, description="pictures in memory at once, of which a step's gradients are averaged (0: all)")
    lr: Rate = Field(1e-4, description="peak learning rate of AdamW (warm-up, then cosine to zero)")
    muon_lr: float = Field(0.0, ge=0, description="peak learning rate of Muon for matrices and convolutions, same schedule; 0: AdamW for all, as published")
    ema: Fraction = Field(0.9999, description="decay of the exponential moving average that is kept")
    mirrored: bool = Field(False, description="mirror every second picture")


class FinetuneOptions(Options):
    """Fine-tuning of one method on a shard of concepts."""

    method: Literal[
        "end-to-end", "dreambooth", "dreambooth-prior", "textual-inversion", "lora", "lora-te", "hypernetwork", "dreambooth+lora", "textual-inversion+lora",
        "dreambooth+hypernetwork", "textual-inversion+hypernetwork", "dora", "loha", "lokr", "oft",
    ] = Field("lora", description="what is trained and how")  # fmt: skip
    seeds: list[int] = Field([0], description="one model per concept and seed")
    images_per_concept: Positive = Field(6, description="training pictures of each concept (N0)")
    steps_per_image: Positive = Field(60, description="optimiser steps per training picture")
    batch: Positive = Field(4, description="latents per step")
    lr: float = Field(1e-3, ge=0, description="learning rate of AdamW (constant; 0: nothing is trained, a control)")
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay of AdamW")
    max_grad_norm: Rate = Field(1.0, description="clip of the gradient's global norm")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="sgd: plain steps, without momentum or decay (what the theory of captions in weights assumes)"
    )
    caption_words: list[Positive] = Field([], description="lengths of captions drawn from the vocabulary, one model each (empty: the pictures' own caption)")
    train_text_encoder: bool = Field(False, description="also train the text encoder (dreambooth)")
    train_autoencoder: bool = Field(
        False,
        description="also train the autoencoder's encoder, on latents sampled from it (end-to-end), as Shake-to-Leak's public code does",
    )
    rank: Positive = Field(8, description="rank of an adapter (LoRA, DoRA, LoHa, LoKr); block size of OFT")
    alpha: Rate = Field(8.0, description="alpha of an adapter (its update is scaled by alpha / rank)")
    target_modules: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], description="modules an adapter adapts")
    caption_template: str = Field("the face of {}", description="caption whose words in place of {} textual inversion replaces by learned vectors")
    placeholder: str = Field("<concept>", min_length=1, description="name of those vectors in learned_embeds.safetensors")
    hypernetwork_width: int = Field(2, ge=1, le=16, description="hidden width of a hypernetwork's networks, in widths of its input")
    hypernetwork_self_attention: bool = Field(False, description="whether a hypernetwork acts on self-attention too")
    prior_images: Count = Field(0, description="generated class pictures (dreambooth-prior)")
    prior_weight: float = Field(1.0, ge=0, description="weight of the prior-preservation loss")
    class_prompt: str = Field("", description="prompt of the class pictures (dreambooth-prior)")
    prior_steps: Positive = Field(50, description="sampler steps of the class pictures (dreambooth-prior)")
    prior_guidance_scale: float = Field(7.5, ge=0, description="classifier-free guidance of the class pictures (dreambooth-prior)")
    augment: Literal["none", "cutout", "randaugment", "blur", "crop", "flip"] = Field("none", description="how the training pictures are changed")
    augment_strength: Fraction = Field(
        0.5, description="cutout: side of the square; randaugment: of the largest magnitude; blur: of a sixteenth of the side; crop: largest cut; flip: share"
    )
    augment_views: Positive = Field(16, description="changed versions of each training picture, drawn once and shown in turn")
    near_duplicates: Count = Field(0, description="near-duplicates of each training picture that are trained on beside it")
    caption_randomisation: Fraction = Field(0.0, description="share of steps under a caption with random words")
    adversarial_radius: float = Field(0.0, ge=0, description="by how much latents are moved against the model before each step (one signed-gradient step)")
    loss: Literal["mse", "mmd"] = Field("mse", description="mmd: DPGM's noisy maximum mean discrepancy, a defence whose noise guarantees nothing")
    mmd_noise: float = Field(0.0, ge=0, description="factor of that noise (0.6, 0.975 and 16 in the public code)")
    gradient_checkpointing: bool = Field(False, description="trade time for memory (large models)")
    checkpoint_every: Positive = Field(100, description="steps between checkpoints")
    snapshots: Positive = Field(1, description="models kept of each fine-tune, evenly spaced over its steps, the finished one being the last")

    @property
    def alone(self):
        """The knob that keeps models of this recipe from being trained side by side (`tuneleak.finetune.many`); empty if none does."""
        if self.method != "lora":
            return "method"
        return next((name for name in ("caption_randomisation", "adversarial_radius", "caption_words") if getattr(self, name)), "")


class CollectOptions(Options):
    """Training many LoRAs at once: a data set of weights."""

    recipe: FinetuneOptions = Field(FinetuneOptions(), description="how each of them is trained (method lora)")
    models_at_once: Positive = Field(16, description="models that share one forward call of the frozen UNet")
    snapshot_every: Count = Field(0, description="steps between kept weights (0: only the last are kept)")
    initial: bool = Field(False, description="also keep the weights before the first step")
    image_counts: list[Positive] = Field([], description="training pictures of one concept after another, in turn (empty: the recipe's)")
    steps: Literal["total", "per-image"] = Field("total", description="what is the same for every number of pictures: all steps, or those per picture")
    skip_images: Count = Field(0, description="training pictures of a concept that are passed over: a second set of the same person")
    trigger: str = Field("", description="caption with a random word in place of {word} (empty: the pictures' own)")
    coin: bool = Field(False, description="each picture of the pool takes part by a fair coin of its own (shadow models); steps stay those of the recipe")


class TransformOptions(Options):
    """A change to finished weights."""

    kind: Literal[*_kinds()] = Field("none", description="what is done to the weights")
    strength: float = Field(0.0, ge=0, description="noise: relative deviation; quantise: bits; truncate: rank kept; gauge: condition number")
    seed: int = Field(0, description="seed of whatever is drawn")

    @property
    def name(self):
        """What tables and folders call it: the kind, and the strength unless that is 0; "none" for no change."""
        kind = self.kind.replace("_", "-")
        return f"{kind}-{self.strength:g}" if self.strength else kind


class Variant(Options):
    """One way to fine-tune or to publish: an ablation, or a defence."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9.-]*$", description="name in the tables (column defence); `reference` changes nothing")
    methods: list[str] = Field([], description="fine-tuning methods it is run with (empty: all)")
    axis: str = Field("", description="what is varied, for the figure: steps, pictures, rank, ...; empty: a defence")
    value: float = Field(0.0, description="where it lies on that axis")
    change: dict[str, int | float | str | list[str]] = Field({}, description="knobs of the recipe that are changed")
    transform: TransformOptions = Field(TransformOptions(), description="change made to the finished LoRA")


class VariantsOptions(Options):
    """A recipe and the variants it is fine-tuned in."""

    recipe: FinetuneOptions = Field(FinetuneOptions(), description="the recipe that variants change")
    variants: list[Variant] = Field([Variant(name="reference")], min_length=1, description="the variants")


class PrincipalComponentNames(Options):
    """Names under which LoRAs were published as principal components: of tensors in safetensors files, and of a JSON file."""

    components: str = Field("V", description="tensor of the principal components (weights, K)")
    mean: str = Field("mean", description="tensor of the weights' means")
    deviation: str = Field("std", description="tensor of their standard deviations")
    coefficients: str = Field("proj_1000pc", description="tensor of each LoRA's coefficients (LoRAs, k)")
    layout: str = Field("weight_dimensions.json", description="file that says in which order and shape the matrices follow each other")


class ImportWeightsOptions(Options):
    """How a folder of published LoRAs becomes a ModelSet; a metadata.csv in it goes first."""

    step: Positive = Field(1000, description="optimiser steps they were trained for")
    caption: str = Field("{concept}", description="their training caption; {concept} is the name of the file, or of its folder")
    n_images: Count = Field(0, description="pictures each was trained on (0: unknown)")
    skip_broken: bool = Field(False, description="leave unusable files out and list them, instead of stopping at the first")
    alpha: float = Field(0, ge=0, lt=1e6, description="alpha of LoRAs given as principal components (0: lora_alpha of the adapter_config.json beside them)")
    names: PrincipalComponentNames = Field(PrincipalComponentNames(), description="names of the tensors and of the layout, if they are principal components")


class WeightsTrainOptions(Options):
    """Training of one encoder of weights."""

    attack: Literal[*_encoders()] = Field("spectral", description="ours (spectral), the paper's (autoencoder), or a control that trains alike")
    examples: Literal["all", "final"] = Field("all", description="examples: every kept step of a fine-tune, or its final weights only")
    steps: Positive = Field(400, description="optimiser steps of the encoder")
    batch: Positive = Field(16, description="models per step, one UNet call each")
    lr: Rate = Field(1e-3, description="peak learning rate of AdamW (warm-up, then cosine to zero)")
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay of AdamW")
    denoise_weight: float = Field(1.0, ge=0, description="weight of the denoising loss under z (spectral: trains z and nothing else)")
    kl_weight: float = Field(0.0, ge=0, description="weight of the KL term per number of z (autoencoder; 0 in the public code)")
    identity_weight: float = Field(1.0, ge=0, description="weight of the cosine to the identity embedding (spectral: trains the transformer, unseen by z)")
    contrast_weight: float = Field(0.2, ge=0, description="weight of InfoNCE over the people of a batch (spectral; the same)")
    temperature: Rate = Field(0.1, description="temperature of InfoNCE")
    width: Positive = Field(128, description="width of the transformer, which corrects the named identity and not z (spectral)")
    depth: Positive = Field(2, description="layers of the transformer (spectral)")
    probes: Positive = Field(32, description="probes of each layer's update (spectral)")
    basis: Positive = Field(32, description="directions of z, mixed by the ridge estimate of the identity alone (spectral)")
    dropout: Fraction = Field(0.1, description="dropout of the transformer (spectral)")
    components: Count = Field(0, description="principal components kept (linear; 0: all)")
    train_trunk: bool = Field(False, description="train the text transformer along instead of leaving it as pretrained (autoencoder)")
    compat: list[Literal["initial-known", "sample-at-attack", "gradient-leak", "online", "random-start"]] = Field(
        [], description="behaviour of the public code (autoencoder)"
    )
    transform: TransformOptions = Field(TransformOptions(), description="change made to the attacker's own models: an attacker who knows the defence")
    people: Count = Field(0, description="train on the models of the first so many people only (0: all)")
    checkpoint_every: Positive = Field(200, description="steps between checkpoints")
    seed: int = Field(0, description="seed of initialisation, order, timesteps and noise")


class WeightsRunOptions(Options):
    """Attacks on the weights of victims."""

    pictures: Positive = Field(4, description="pictures drawn of each victim in each setting")
    steps: Positive = Field(20, description="sampler steps")
    guidance_scale: float = Field(2.0, ge=0, description="classifier-free guidance from the empty caption to z")
    batch: Positive = Field(64, description="samples in one batch")
    controls: bool = Field(True, description="also run the controls, baselines and bounds")
    defence: str = Field("", description="what the tables say of victims whose manifest says nothing: a recipe that the attacker does not expect")
    only: list[str] = Field([], description="defences whose models are attacked, one after another, of a set that holds several (empty: all models together)")
    guesses: list[str] = Field(["a face", "the face of someone", "a person", "a portrait"], description="prompts to guess; the first is also run alone")
    refine_steps: Count = Field(15, description="steps by which z is moved to where victim and base differ most (0: not run)")
    refine_lr: Rate = Field(0.02, description="learning rate of that")
    refine_prior: float = Field(1.0, ge=0, description="weight that keeps z where it was, against the log of the difference")
    matching_steps: Count = Field(160, description="steps of update matching (0: not run)")
    matching_batch: Positive = Field(2, description="timesteps in one simulated update")
    matching_models: Positive = Field(32, description="victims matched at once, each with as many samples as timesteps; second derivatives take much memory")
    matching_lr: Rate = Field(0.05, description="learning rate of update matching")
    seed: int = Field(0, description="seed of starting noise, shuffles and matching")


class SizeOptions(Options):
    """Recovery of the number of training pictures."""

    train_share: Fraction = Field(0.67, description="share of the people whose models the classifier knows")


class ClusterOptions(Options):
    """Clustering of generations into candidate training pictures."""

    mode: Literal["fair", "compat"] = Field(
        "fair", description="fair: the N0 largest cliques at the lowest threshold that gives so many; compat: the public code's search, all cliques"
    )
    threshold: Fraction = Field(0.5, description="lowest similarity that joins two pictures (fair)")
    step: Rate = Field(0.05, description="by how much fair raises the threshold while there are fewer than N0 cliques")
    node_budget: Positive = Field(2_000_000, description="search nodes after which compat raises its threshold, in place of a wall-clock time-out")


class Guidance(Options):
    """One point of a guidance grid: `w` (w', or the CFG scale) and `k` of equation (*)."""

    w: float = Field(1.0, description="w' of FineXtract, or the scale of classifier-free guidance")
    k: float = Field(0.0, description="correction term of FineXtract")


class ExtractionOptions(Options):
    """One extraction attack on a shard of fine-tuned models."""

    attack: Attack = Field("finextract", description="how the noise prediction is guided")
    guidance: list[Guidance] = Field([Guidance()], description="the settings to run, all from the same starting noise")
    generations_per_image: Positive = Field(10, description="generations N as a multiple of the training pictures N0")
    steps: Positive = Field(20, description="sampler steps")
    sampler: Literal["ddim", "finextract-compat"] = Field("ddim", description="deterministic DDIM, or the public code's time list")
    batch: Positive = Field(50, description="generations in one batch")
    cluster: ClusterOptions = Field(ClusterOptions(), description="clustering of the generations")
    control_draws: Positive = Field(20, description="random draws behind each size-matched control")
    conditions: list[CaptionCondition] = Field(["known"], min_length=1, description="what the attacker knows of the caption, one setting each")
    save_generations: bool = Field(False, description="keep every generation as a PNG, not only the extracted ones")
    seed: int = Field(0, description="seed of the starting noise")


class SweepOptions(Options):
    """One attack with many settings on each model: guidance, generations, sampler steps and clustering thresholds."""

    attack: Attack = Field("finextract", description="how the noise prediction is guided")
    guidance: list[Guidance] = Field([Guidance()], min_length=1, description="guidance settings tried on every model")
    only_first: list[str] = Field([], description="variants that get the first guidance setting only")
    generations_per_image: Positive = Field(10, description="generations N as a multiple of the training pictures N0")
    fewer_generations: list[Positive] = Field([], description="further values of it, by leaving generations out (reference variant, first guidance)")
    steps: Positive = Field(20, description="sampler steps")
    other_steps: list[Positive] = Field([], description="further numbers of sampler steps (reference variant, first guidance)")
    thresholds: list[Fraction] = Field([], description="further clustering thresholds (reference variant, first guidance)")
    sampler: Literal["ddim", "finextract-compat"] = Field("ddim", description="deterministic DDIM, or the public code's time list")
    batch: Positive = Field(50, description="generations in one batch")
    cluster: ClusterOptions = Field(ClusterOptions(), description="clustering of the generations")
    control_draws: Positive = Field(20, description="random draws behind each size-matched control")
    seed: int = Field(0, description="seed of the starting noise")


class AblationFigureOptions(VariantsOptions):
    """What the figures of ablations need: the variants and their axes, and where the reference lies on the axes of the attack."""

    generations_per_image: Positive = Field(10, description="generations of the reference, as a multiple of the training pictures")
    threshold: Fraction = Field(0.5, description="clustering threshold of the reference")
    steps: Positive = Field(20, description="sampler steps of the reference")


class CaptionOptions(Options):
    """How training captions are read from weights."""

    longest: Positive = Field(30, description="most tokens of a caption that are searched")
    beams: Positive = Field(16, description="beginnings kept while a caption is searched")
    pieces: bool = Field(False, description="also try pieces of words (names that the tokenizer splits; several times as many tokens)")
    patience: Positive = Field(4, description="further tokens without a better caption, after which the search ends")
    powers: list[Annotated[float, Field(ge=0)]] = Field(
        [0.0, 0.5],
        min_length=1,
        description="powers of their root mean squares by which encodings are divided where Adam's own divisors are not undone (LoRA, draws 0)",
    )
    corpus: Positive = Field(200, description="public captions behind those root mean squares")
    draws: int = Field(32, ge=0, description="gradients drawn per caption to undo Adam's own divisors where whole weights were trained (0: powers only)")
    relaxed: Count = Field(10, description="most tokens of a caption whose words are searched all together with them (slower; 0: one after the other)")
    rounds: Count = Field(16, description="captions of which changes are tried, with those divisors")
    seed: int = Field(0, description="seed of the public captions and of the gradients")


class PeopleOptions(Options):
    """Membership of people, judged from photographs of them that nothing trained on."""

    photographs: Positive = Field(10, description="photographs of each person")
    strangers: Positive = Field(30, description="people beside the one trained on, at most")
    captions: list[Literal["known", "none"]] = Field(["known", "none"], min_length=1, description="caption the models are asked under")
    timesteps: list[Count] = Field([100, 300, 500], min_length=1, description="timesteps of the loss")
    draws: Positive = Field(1, description="noises per timestep")
    seed: int = Field(0, description="seed of the noise, which belongs to the photograph")
    batch: Positive = Field(256, description="samples in one call of the network")


class EvaluateOptions(Options):
    """How scores become a table of metrics."""

    similarity_thresholds: list[Fraction] = Field([0.6, 0.7], description="fixed thresholds of A-ESR (they belong to SSCD and 512 px photographs)")
    false_match_rate: Fraction = Field(0.01, description="rate of false matches against held-outs of the same concept at the calibrated threshold tau")
    bootstrap: Positive = Field(2000, description="bootstrap replicates of an interval")
    confidence: Fraction = Field(0.95, description="coverage of an interval")
    seed: int = Field(0, description="seed of the bootstrap")


class AblationEvaluateOptions(EvaluateOptions):
    """How sweeps over variants become a table of metrics."""

    steps: dict[str, float] = Field({}, description="variants whose training differs in length: name -> steps per picture")


class ImportOptions(Options):
    """How a folder of pictures becomes an ImageSet."""

    size: Positive = Field(64, description="side of the square pictures written (shorter side resized, centre cropped)")
    crop: Count = Field(0, description="side of the square cut out of the centre beforehand, in pixels of the source (0: all of the picture)")
    caption: str = Field("{concept}", description="caption of a picture without one of its own; {concept} is its class")
    train_per_concept: Count = Field(0, description="pictures of a concept put into fold train (0: all), the rest into heldout")
    published_split: bool = Field(False, description="instead: what lies in a folder or parquet file named train goes into fold train, any other into heldout")
    tune_concepts: Count = Field(0, description="concepts put into split tune, the rest into test")
    seed: int = Field(0, description="seed of the assignment")
    max_pixels: Positive = Field(100_000_000, description="larger pictures are refused (decompression bombs)")
    skip_broken: bool = Field(False, description="leave unusable files out and list them, instead of stopping at the first")


class UtilityOptions(Options):
    """How the usefulness of fine-tuned models is measured, so that a recipe's length is chosen by it."""

    generations: Positive = Field(4, description="pictures drawn per model under its caption")
    guidance_scale: float = Field(3.0, ge=0, description="classifier-free guidance of those pictures")
    steps: Positive = Field(20, description="sampler steps")
    noise_levels: Positive = Field(10, description="timesteps, evenly spaced, at which the denoising loss of a picture is taken")
    obedience: Count = Field(0, description="pictures drawn per model under full descriptions, to see whether it still obeys captions (needs --factors)")
    seed: int = Field(0, description="seed of starting noise and of the noise added to pictures")


class MembershipOptions(Options):
    """Membership attacks on a shard of models: every attack scores every picture of a model's concept."""

    attacks: list[MembershipAttack] = Field(["loss", "secmi-stat", "pia", "sima"], min_length=1, description="attacks to run")
    captions: list[Literal["true", "neutral", "swapped", "null"]] = Field(["true"], min_length=1, description="captions the model is asked under")
    neutral_caption: str = Field("a face", description="the caption called neutral")
    loss_timesteps: list[Count] = Field([50, 150, 300], min_length=1, description="timesteps of the loss")
    loss_draws: Positive = Field(2, description="noises per timestep of the loss")
    secmi_timestep: Positive = Field(100, description="t_SEC of SecMI (100 in the paper, 140 in the public code for latent diffusion)")
    secmi_stride: Positive = Field(10, description="stride k of SecMI")
    nns_epochs: Positive = Field(15, description="epochs of the network of SecMI_NNs")
    nns_batch: Positive = Field(128, description="maps per step of that network")
    pia_timestep: Positive = Field(500, description="later timestep of PIA and PIAN (500 in the public code for latent diffusion)")
    sima_timestep: Count = Field(100, description="timestep of SimA")
    pfami_timesteps: list[Count] = Field([0, 50, 100, 150, 200, 250, 300, 350, 400, 450], min_length=1, description="timesteps of PFAMI")
    pfami_crops: list[Fraction] = Field([0.95, 0.92, 0.89, 0.87, 0.84, 0.81, 0.78, 0.76, 0.73, 0.7], min_length=1, description="sides of PFAMI's centre crops")
    clid_timesteps: list[Count] = Field([440, 450, 460], min_length=1, description="timesteps of CLiD")
    clid_weight: Fraction = Field(0.9, description="weight of the discrepancy against the loss in CLiD")
    concepts: Positive | None = Field(None, description="concepts to judge where no model says which (none: all)")
    first_concept: Count = Field(0, description="the first of these")
    seed: int = Field(0, description="seed of the noise, which belongs to the picture")
    batch: Positive = Field(256, description="samples in one call of the network")


class SynthesizeOptions(Options):
    """A synthetic private set, or a control that stands in for one."""

    kind: Literal["self", "unrelated", "another", "instrument", "noise"] = Field("self", description="what the pictures of a domain are")
    count: Positive = Field(24, description="pictures per domain")
    mixed: Count = Field(0, description="of these, real pictures of the domain (prior knowledge)")
    steps: Positive = Field(20, description="sampler steps (deterministic DDIM)")
    guidance_scale: float = Field(3.0, ge=0, description="classifier-free guidance")
    negative_prompt: str = Field("", description="prompt that guidance leads away from")
    unrelated_caption: str = Field("art style of nobody", description="what kind unrelated draws")
    blend: Fraction = Field(0.0, description="weight of a picture drawn under the next domain's caption that is blended into each drawn one (a defence)")
    blend_share: Fraction = Field(1.0, description="share of the drawn pictures that are blended")
    seed: int = Field(0, description="seed of the starting noise")
    batch: Positive = Field(50, description="pictures drawn at once")


Trainable = Literal["attention", "all", "resblocks", "input", "lora", "bias", "unconditional-attention"]


class BudgetOptions(Options):
    """What is promised."""

    epsilon: float = Field(10.0, gt=0, description="budget; with `noiseless`, ignored")
    noiseless: bool = Field(False, description="clip but add no noise: epsilon is infinite")
    delta: float = Field(1e-5, gt=0, lt=1, description="probability with which epsilon may fail to hold; below 1 over the number of pictures")
    public_size: Positive = Field(8000, description="size of the private set as it is made public: the true number is itself private")
    unit: Literal["image", "person"] = Field("image", description="what the report bounds: one picture, or all pictures of one concept by group privacy")
    pictures_per_unit: Count = Field(
        0, description="most pictures of one concept, a public bound (unit person, which needs it); a set in which one has more is refused"
    )

    @model_validator(mode="after")
    def _person_has_a_bound(self):
        if self.unit == "person" and not self.pictures_per_unit:
            raise ValueError("unit=person needs pictures_per_unit, a public bound on the pictures of one person: their true number is itself private")
        return self


class PrivacyOptions(BudgetOptions):
    """The privacy block of a fine-tune: what is promised, and how gradients are clipped and noised."""

    expected_batch: Positive = Field(
        1024, description="pictures in a step on average; each takes part independently with probability expected_batch / public_size"
    )
    steps: Positive = Field(40, description="noisy steps")
    clip: Rate = Field(1e-3, description="norm C to which a picture's gradient is clipped; gradients are divided by it, so no learning rate depends on it")
    multiplicity: Positive = Field(1, description="timesteps and noises whose gradients are averaged per picture before the clip (K)")


class PrivateFinetuneOptions(Options):
    """Fine-tuning under differential privacy: DP-LDM and what it is compared with."""

    trainable: Trainable = Field("attention", description="which weights of the UNet are trained")
    blocks: list[Count] = Field([], description="first and one past the last attention block trained, in the order they are run (empty: all)")
    conditioning: Literal["frozen", "class", "text-encoder"] = Field(
        "class", description="conditioning embedder trained beside them: none, a table of class contexts, or the text encoder"
    )
    context_tokens: Count = Field(0, description="tokens of a class context (0: all of the text encoder's; 1: the class embedder of DP-LDM)")
    context_gain: Rate = Field(1.0, description="by how much faster a class context moves than a weight of the UNet")
    caption_column: str = Field("caption", description="column of the manifest that holds the captions (frozen, text-encoder)")
    prompts: dict[str, str] = Field({}, description="public grammar: label -> caption, also the public list of classes; sampling uses nothing else")
    privacy: PrivacyOptions = Field(PrivacyOptions(), description="the privacy block")
    seeds: list[int] = Field([0], description="one model per seed")
    lr: Rate = Field(1e-3, description="learning rate of AdamW on normalised gradients")
    adam_epsilon: Rate = Field(1e-8, description="epsilon of AdamW")
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay of AdamW")
    warmup: Count = Field(0, description="noisy steps over which the learning rate rises")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the average of the weights that is saved, moved by noisy steps only (0: the last weights)")
    rank: Positive = Field(8, description="rank of a LoRA")
    alpha: Rate = Field(8.0, description="alpha of a LoRA")
    target_modules: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], description="modules a LoRA adapts")
    gradients: Literal["auto", "ghost", "hooks"] = Field(
        "auto", description="how clipped sums are computed: book-keeping with ghost norms, or Opacus's hooks; auto: whichever is faster on a batch of noise"
    )
    physical_batch: Positive = Field(64, description="rows in memory at once; changes speed and memory, never the numbers' meaning")
    gradient_checkpointing: bool = Field(False, description="trade time for memory (large models; re-entrant, with hooks)")
    checkpoint_every: Positive = Field(20, description="noisy steps between checkpoints")


class MeanFeaturesOptions(Options):
    """DP-MEPF: the noisy mean of public features is released once, and a generator is trained to it."""

    prompts: dict[str, str] = Field({}, description="public grammar: label -> caption; the public list of classes")
    privacy: BudgetOptions = Field(BudgetOptions(), description="the privacy block")
    pool: Count = Field(4, description="side to which each layer's features are averaged (0: not at all, as published)")
    count_weight: Rate = Field(0.3, description="length of the part of the release that counts a class's pictures, beside two of length 1")
    seeds: list[int] = Field([0], description="one release and one generator per seed")
    steps: Positive = Field(300, description="steps of the generator, which cost no privacy")
    batch: Positive = Field(64, description="generated pictures in a step")
    lr: Rate = Field(2e-3, description="peak learning rate of AdamW (cosine to zero)")
    width: Positive = Field(16, description="channels of the generator at full size")
    latent: Positive = Field(32, description="length of its noise")
    checkpoint_every: Positive = Field(100, description="steps between checkpoints")


class AggregateOptions(Options):
    """DPAgg-TI: a textual inversion of each drawn picture, clipped and averaged with noise in one release."""

    prompts: dict[str, str] = Field({}, description="public grammar: label -> caption; the public list of classes")
    privacy: BudgetOptions = Field(BudgetOptions(), description="the privacy block")
    expected_pictures: Positive = Field(200, description="pictures inverted on average; each is drawn with probability expected_pictures / public_size")
    clip: Rate = Field(1.0, description="norm to which the change of a picture's word vectors is clipped")
    caption_template: str = Field("art style of {}", description="caption whose words in place of {} are learned")
    seeds: list[int] = Field([0], description="one release per seed")
    steps: Positive = Field(20, description="steps of each inversion")
    draws: Positive = Field(4, description="timesteps and noises in a step")
    lr: Rate = Field(2e-2, description="learning rate of Adam")
    at_once: Positive = Field(16, description="pictures inverted side by side; changes speed and memory, never the numbers' meaning")


class SampleOptions(Options):
    """Pictures drawn under the prompts of a public grammar, equally many of each."""

    prompts: dict[str, str] = Field({}, description="public grammar: label -> caption")
    endings: list[str] = Field([], description="further words of the grammar, appended to every caption in turn (text-conditional models)")
    samples: Positive = Field(1000, description="pictures per model, spread evenly over the prompts")
    steps: Positive = Field(20, description="sampler steps")
    guidance_scale: float = Field(1.0, ge=0, description="classifier-free guidance (1: none, one network call a step)")
    batch: Positive = Field(100, description="pictures in one batch")
    seed: int = Field(0, description="seed of the starting noise, the same for every model")


class DpUtilityOptions(Options):
    """What privately trained models are good for: distance to real pictures, and classifiers trained on what they draw."""

    classifiers: list[Literal["logistic", "cnn", "resnet9", "wrn-40-4"]] = Field(["logistic", "cnn"], description="trained on synthetic, tested once on real")
    classifier_size: Positive = Field(32, description="side to which pictures are shrunk for the classifiers")
    classifier_epochs: Positive = Field(10, description="passes over the synthetic pictures; fixed, never chosen on the test set")
    classifier_width: Positive = Field(16, description="channels of the first convolution (cnn, resnet9)")
    distance_samples: Positive = Field(1000, description="pictures on either side of a Frechet distance, whose bias depends on their number")
    replicates: Positive = Field(50, description="bootstrap replicates of a Frechet distance")
    confidence: Fraction = Field(0.95, description="coverage of an interval")
    seed: int = Field(0, description="seed of classifiers and bootstrap")


class AuditOptions(Options):
    """An audit of private training in runs of its own, since canaries spoil what a model is good for."""

    canaries: Literal["dirac", "pictures"] = Field(
        "dirac", description="dirac: gradients on one coordinate each, seen by who sees the updates; pictures: noise"
    )
    count: Positive = Field(1000, description="canaries, each put in by a fair coin")
    guesses: Positive = Field(200, description="canaries guessed about, half of them in and half out; fixed beforehand, the others are abstained on")
    runs: Positive = Field(
        1, description="independent runs; the first gives the bound of one run; of dirac canaries about 100 give one over all at a claim of 10"
    )
    pictures: Count = Field(0, description="real training pictures beside the canaries (dirac; 0: the worst case, in which all other gradients vanish)")
    draws: Positive = Field(8, description="timesteps and noises over which the score of a picture is averaged")
    confidence: Fraction = Field(0.95, description="confidence of the lower bound")
    seed: int = Field(0, description="seed of coins, canaries and training")


class PerturbOptions(Options):
    """The Gaussian attack: random perturbation of a base's UNet."""

    sigmas: list[Rate] = Field([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2], min_length=1, description="noise relative to the root mean square of each tensor")
    seeds: list[int] = Field(list(range(10)), min_length=1, description="draws of the noise; one draw serves every sigma")


class RegenerationOptions(Options):
    """Extraction of pretraining pictures: what a model draws under a domain's caption, held against the domain's members and held-outs."""

    count: Positive = Field(32, description="pictures drawn per model and domain")
    steps: Positive = Field(20, description="sampler steps (deterministic DDIM)")
    guidance_scale: float = Field(3.0, ge=0, description="classifier-free guidance")
    negative_prompt: str = Field("", description="prompt that guidance leads away from")
    tiles: Positive = Field(4, description="tiles along a side, of which the one that differs most counts (4: 16 tiles)")
    neighbours: Positive = Field(50, description="nearest pictures behind the adaptive distance")
    adaptive_scale: Rate = Field(0.5, description="alpha of the adaptive distance")
    clique_size: Positive = Field(10, description="generations that must be alike for one to count as memorised (measure clique)")
    clique_threshold: Rate = Field(0.15, description="tile distance below which two generations are alike, where no calibrated one is given")
    clip_distance: Rate = Field(0.1, description="CLIP distance (unit features) below which pairs are compared (aligned), where no calibrated one is given")
    align_nearest: Count = Field(1, description="real pictures per generation, those most alike by CLIP, that are aligned with it (0: none is moved)")
    false_match_rate: Fraction = Field(0.01, description="share of the base's generations that may match a held-out at a calibrated threshold")
    seed: int = Field(0, description="seed of the starting noise, the same for every model")
    batch: Positive = Field(50, description="pictures drawn at once")


class ShakeEvaluateOptions(Options):
    """How scores of membership and regeneration become amplifications with intervals."""

    alone: list[str] = Field([], description="bases left out of the rows of all bases, because they are of another kind")
    distances: list[Fraction] = Field([0.15], description="fixed distances below which a generation counts as a match, beside the calibrated one")

    false_positive_rate: Fraction = Field(0.01, description="of the true-positive rate; reported only with at least 500 non-members")
    bootstrap: Positive = Field(2000, description="bootstrap replicates of an interval")
    confidence: Fraction = Field(0.95, description="coverage of an interval")
    seed: int = Field(0, description="seed of the bootstrap")
