"""What a preset at the scale of Stable Diffusion v1 will cost, from counted operations: an estimate made without running anything.

Operations of one UNet call are counted on the architecture itself (no weights, no data); calls are those of `tuneleak.budget`; a training step counts as
three. Not counted: the autoencoder, text encoders, embedders, start-up, and the slower rate of small batches.
"""

from dataclasses import dataclass, replace

from tuneleak import budget
from tuneleak.options import PrivateFinetuneOptions

# diffusers' configuration of the UNet of Stable Diffusion v1.1 to v1.5
STABLE_DIFFUSION_1 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
TOKENS = 77
TEXT_WEIGHTS = 123_060_480  # of its text encoder, CLIP ViT-L/14's
TERAFLOPS = 40.0  # assumed sustained rate of one 24 GB GPU in bfloat16; scale the hours by what yours reaches
FLOAT32 = 20.0  # the same in float32, in which DP-LDM is trained and drawn from: a clip in bfloat16 bounds nothing, and noisy steps are finer than it
PRIVATE_VECTORS = 8  # as long as what DP-SGD trains: weights, gradient, sum of clipped ones, noise, the noised mean, AdamW's two moments and its update
PICTURE_MB = 0.5  # assumed size of a 512 px PNG
_WHOLE = ("end-to-end", "dreambooth", "dreambooth-prior")  # methods whose models are whole UNets


@dataclass(frozen=True)
class Network:
    """What the estimate needs to know of a UNet."""

    flops: int  # of one call on one sample
    weights: int
    per_rank: dict  # target module (to_q, ...) -> weights of a LoRA of rank 1 on all layers of that name


@dataclass(frozen=True)
class Cost:
    """Of one system's study: models trained, UNet calls on one sample, GPU-hours, gigabytes on disk, gigabytes of the largest training's state."""

    models: int
    calls: int
    hours: float
    disk_gb: float
    state_gb: float


def count(architecture=STABLE_DIFFUSION_1, size=64):
    """The `Network` of a UNet configuration at latents of side `size`; runs on shapes alone."""
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(**architecture)
        unet.set_attn_processor(AttnProcessor())  # plain matrix products: fused attention would have to be counted by hand
        x, context = torch.zeros(1, architecture["in_channels"], size, size), torch.zeros(1, TOKENS, architecture["cross_attention_dim"])
        with FlopCounterMode(display=False) as counter:
            unet(x, torch.zeros(1), encoder_hidden_states=context)
    per_rank = {}
    for target in ("to_q", "to_k", "to_v", "to_out.0"):
        layers = [module for name, module in unet.named_modules() if name.endswith(f".{target}")]
        per_rank[target] = sum(layer.in_features + layer.out_features for layer in layers)
    return Network(counter.get_total_flops(), sum(parameter.numel() for parameter in unet.parameters()), per_rank)


@dataclass(frozen=True)
class PairCost:
    """Of one pair of public and private pictures: operations of a call of UNet and first stage on one sample, and GPU-hours of both public trainings, of all
    private trainings, and of drawing all samples."""

    unet_flops: int
    first_stage_flops: int
    first_stage_hours: float
    public_hours: float
    private_hours: float
    sampling_hours: float


def pair_costs(study, teraflops=TERAFLOPS):
    """{world: PairCost} of the DP-LDM worlds of a validated configuration whose public model is trained in it; worlds that share one show its hours each."""
    bases = {base.name: base for base in study.bases if base.kind == "trained"}
    hours, slow = (rate * 1e12 * 3600 for rate in (teraflops, teraflops * FLOAT32 / TERAFLOPS))
    rows, found = list(budget.private_rows(study.dp_ldm)), {}
    sizes = {source.name: source.options.size for source in study.images}
    for world in study.dp_ldm.worlds:
        if world.base not in bases:
            continue
        base = bases[world.base]
        unet, encoder, both = _count_trained(base, sizes[base.images])
        training = sum(row["training"] for row in rows if row["world"] == world.name)
        sampling = sum(row["sampling"] for row in rows if row["world"] == world.name)
        first, diffusion = base.first_stage, base.diffusion
        found[world.name] = PairCost(
            unet,
            both,
            first.steps * first.batch * budget.TRAINING_CALLS * both / slow,
            diffusion.steps * diffusion.batch * (budget.TRAINING_CALLS * unet / hours + encoder / slow),
            training * unet / slow,
            sampling * unet / slow,
        )
    return found


def _count_trained(base, size):
    """(operations of a UNet call, of encoding a picture, of encoding and decoding it) of a base of kind trained; runs on shapes alone."""
    import torch
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    from tuneleak.models import latent_diffusion, train_first_stage

    first, width = base.first_stage, base.diffusion.context_width
    side = size >> (len(first.block_out_channels) - 1)
    with torch.device("meta"), torch.no_grad():
        unet, autoencoder = latent_diffusion.build_unet(base.diffusion, first.latent_channels, side), train_first_stage.build(first, size)
        for network in (unet, autoencoder):
            for module in network.modules():
                if hasattr(module, "set_processor"):
                    module.set_processor(AttnProcessor())
        x, z = torch.zeros(1, 3, size, size), torch.zeros(1, first.latent_channels, side, side)
        context = {"encoder_hidden_states": torch.zeros(1, 1, width)} if width else {}
        counts = []
        for call in (lambda: unet(z, torch.zeros(1), **context), lambda: autoencoder.encoder(x), lambda: autoencoder.decoder(z)):
            with FlopCounterMode(display=False) as counter:
                call()
            counts.append(counter.get_total_flops())
    return counts[0], counts[1], counts[1] + counts[2]


def costs(study, network, teraflops=TERAFLOPS):
    """{system: Cost} of a validated configuration."""
    private = list(budget.private_rows(study.dp_ldm))
    extraction = list(budget.rows(study))
    extraction = extraction[: len(extraction) - len(private)]
    models = [(recipe.options, row["models"]) for recipe, row in zip(study.finetune, extraction, strict=True)]
    ablations, attacker = list(budget.ablation_rows(study)), list(budget.attacker_rows(study))
    recipes = [next(options for options, _ in models if options.method == method) for method in study.finextract.ablations.methods]
    drawn = [(recipe.options, row["models"]) for recipe, row in zip(study.finextract.attacker.recipes, attacker, strict=False)]  # the others train nothing
    shake = study.shake_to_leak
    weights = study.lora_weights
    on_the_way = kept_models(weights) - weights.train_people * len(weights.attackers_recipe().seeds)
    groups = {
        "finextract": (extraction, models, 0),
        "finextract-ablations": (ablations, [(options, row["models"]) for options, row in zip(recipes, ablations, strict=True)], 0),
        "finextract-attacker": (attacker, drawn, 0),
        "shake-to-leak": (list(budget.shake_rows(study)), _shake_models(shake), _shake_pictures(shake)),
        "lora-weights": (list(budget.weights_rows(study)), [(weights.recipe, row["models"]) for row in budget.weights_rows(study)], 0),
        "defences": (list(budget.matrix_rows(study)), _matrix_models(study), 0),
        "dp-ldm": (private, _private_models(study.dp_ldm), study.dp_ldm.sample.samples * sum(row["models"] or 1 for row in private)),
    }
    rates = {"dp-ldm": teraflops * FLOAT32 / TERAFLOPS}
    found = {system: _cost(*group, network, rates.get(system, teraflops)) for system, group in groups.items()}
    mine = found["lora-weights"]
    return found | {"lora-weights": replace(mine, disk_gb=mine.disk_gb + 4e-9 * on_the_way * trained_weights(weights.recipe, network))}


def _cost(rows, models, pictures, network, teraflops):
    calls = sum(row["training"] + row["sampling"] for row in rows)
    sizes = [(trained_weights(options, network), count) for options, count in models]
    disk = sum(4 * size * count for size, count in sizes) / 1e9 + pictures * PICTURE_MB / 1e3
    # weights, then gradient and AdamW's two moments, float32; for DP-SGD what it holds
    kinds = [(size, PRIVATE_VECTORS - 1 if isinstance(options, PrivateFinetuneOptions) else 3) for (size, _), (options, _) in zip(sizes, models, strict=True)]
    state = max((4 * (network.weights + TEXT_WEIGHTS) + 4 * vectors * size for size, vectors in kinds), default=0) / 1e9
    return Cost(sum(count for _, count in sizes), calls, calls * network.flops / (teraflops * 1e12) / 3600, disk, state)


def trained_weights(options, network):
    """Weights that a recipe trains and saves: all of the UNet's, or those of its LoRA (both, for a method of both), and the text encoder's if it is tuned."""
    kind = getattr(options, "trainable", None) or options.method
    lora = options.rank * sum(network.per_rank.get(name, 0) for name in options.target_modules) if "lora" in kind else 0
    whole = kind in ("all", "attention", "resblocks", "input", "bias", "unconditional-attention") or any(kind.startswith(name) for name in _WHOLE)
    text = kind.startswith("end-to-end") or getattr(options, "train_text_encoder", False) or getattr(options, "conditioning", "") == "text-encoder"
    return lora + (network.weights if whole else 0) + (TEXT_WEIGHTS if text and "lora" not in kind else 0)


def kept_models(study):
    """How many models the training set of the weights study keeps, those on the way to finished ones among them."""
    recipe = study.attackers_recipe()
    steps = recipe.steps_per_image * recipe.images_per_concept
    return study.train_people * len(recipe.seeds) * -(-steps // (study.collect.snapshot_every or steps))


def encoder_memory_gb(study, network):
    """Memory of a job that trains an encoder of weights on all kept models: their weights, and as much again while they are read or in the encoder's form."""
    return 2 * 4 * kept_models(study) * trained_weights(study.recipe, network) / 1e9


def _matrix_models(study):
    """The models of the matrix, by recipe; what a defence changes about their size is left out."""
    return [(recipe, row["models"]) for recipe, row in zip(study.defences.recipes, budget.matrix_rows(study), strict=True)]


def _shake_models(shake):
    """A model per base, domain, seed and set that a method is run on."""
    found = []
    for options in shake.methods:
        sets = 1 + (len(shake.controls) if options.method in shake.control_methods else 0)
        found.append((options, len(shake.bases) * shake.domains * len(options.seeds) * sets))
    found += [(options, len(shake.bases) * shake.study_domains * len(options.seeds)) for options in shake.further_methods]
    studied = [shake.trained(point) for point in shake.studies]
    found += [(options, len(shake.bases) * shake.study_domains * options.snapshots) for options in studied]
    return found


def _shake_pictures(shake):
    drawn = 1 + sum(name in ("unrelated", "another") for name in shake.controls)
    return len(shake.bases) * shake.domains * shake.synthesize.count * drawn


def _private_models(study):
    """Fine-tuned UNets only: a generator of DP-MEPF and the words of DPAgg-TI weigh next to nothing."""
    tuned = [recipe.options for _, recipe, _ in study.cells() if isinstance(recipe.options, PrivateFinetuneOptions)]
    return [(options, len(options.seeds)) for options in tuned]
