# Look-ups of the ablations and defences of FineXtract. No rules here.
from tuneleak.options import FinetuneOptions

ABLATIONS = study.finextract.ablations
ABLATION_FIGURES = ["ablations", "defences"]


def ablation_parts(split):
    """`<method>/<split><shard>` of every shard."""
    count = getattr(ABLATIONS, f"{split}_concepts")
    return [f"{method}/{split}{shard}" for method in ABLATIONS.methods for shard in range(-(-count // ABLATIONS.shard_concepts))]


def ablation_images(wildcards):
    return f"{RESULTS}/data/{one(study.worlds, name=ABLATIONS.world).images}/manifest.csv"


def ablation_base_folder(wildcards):
    return pipeline_folder(one(study.worlds, name=ABLATIONS.world).base)


def ablation_base(wildcards):
    return f"{ablation_base_folder(wildcards)}/model_index.json"


def first_ablation_concept(wildcards):
    return int(wildcards.shard) * ABLATIONS.shard_concepts


def last_ablation_concept(wildcards):
    return min(first_ablation_concept(wildcards) + ABLATIONS.shard_concepts, getattr(ABLATIONS, f"{wildcards.split}_concepts"))


def variant_options(wildcards):
    return as_json(ABLATIONS.training(wildcards.method, recipe_of(ABLATIONS.world, wildcards.method), wildcards.split))


def sweep_options(wildcards):
    return as_json(ABLATIONS.sweep_of(wildcards.method, frozen_guidance(ABLATIONS.world, wildcards.method, "finextract")))


def ablation_evaluate_options(wildcards):
    return as_json(ABLATIONS.evaluate(study.finextract.evaluate, [recipe_of(ABLATIONS.world, method) for method in ABLATIONS.methods]))


def ablation_factors(wildcards):
    return study.instruments.factors if one(study.worlds, name=ABLATIONS.world).factors else ""


def ablation_factors_of(wildcards):
    return shipped(ablation_factors(wildcards))


def ablation_factors_digest(wildcards):
    return shipped_digest(ablation_factors(wildcards))


def ablation_factors_flag(wildcards):
    return f"--factors {shlex.quote(ablation_factors(wildcards))}" if ablation_factors(wildcards) else ""


def sweeps(split):
    return [f"{RESULTS}/ablations/{part}/sweep/matches.csv" for part in ablation_parts(split)]


def ablation_utilities():
    return [f"{RESULTS}/ablations/{part}/utility.csv" for part in ablation_parts("test")]


def ablation_tables():
    """The metrics of the ablations, if they are run."""
    return [f"{RESULTS}/metrics/finextract/ablations.csv"] if ABLATIONS.methods else []


def ablation_figures():
    """Their figures; a run without them says so in the figures themselves."""
    return [f"{RESULTS}/figures/ablations/{name}.pdf" for name in ABLATION_FIGURES]


def ablation_figure_options():
    return as_json(ABLATIONS.drawn(recipe_of(ABLATIONS.world, ABLATIONS.methods[-1]) if ABLATIONS.methods else FinetuneOptions()))
