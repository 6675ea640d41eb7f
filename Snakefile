# tuneleak: what a shared, fine-tuned diffusion model gives away about its training pictures.
#     snakemake --cores all [--configfile workflow/presets/smoke.yaml]         the default preset, config.yaml, or another
from snakemake.utils import min_version

min_version("9.12")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/common_weights.smk"
include: "workflow/rules/common_privacy.smk"
include: "workflow/rules/common_shake.smk"


wildcard_constraints:
    images=one_of(study.images),
    base=one_of(study.bases),
    world=one_of(study.worlds + study.dp_ldm.worlds),
    method=one_of(recipe.options.method for recipe in study.finetune),
    attack=one_of(study.finextract.attacks + [grid.attack for grid in study.finextract.grid]),
    embedder=one_of(study.training.embedders),
    unet=one_of(study.training.bases),
    split="tune|test",
    encoder="[a-z0-9-]+",
    knows=one_of([*weights_defences(), *known_transforms()]),
    defence=one_of(weights_defences()),
    steps="total|per-image",
    shard="[0-9]+",
    recipe=one_of(study.dp_ldm.recipes + study.dp_ldm.mean_features + study.dp_ldm.aggregates),
    epsilon="[0-9.]+|inf",
    audit=one_of(study.dp_ldm.audits),


include: "workflow/rules/data.smk"
include: "workflow/rules/bases.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/extraction.smk"
include: "workflow/rules/ablations.smk"
include: "workflow/rules/attacker.smk"
include: "workflow/rules/weights.smk"
include: "workflow/rules/privacy.smk"
include: "workflow/rules/shake.smk"
include: "workflow/rules/defences.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/resources.smk"


rule all:
    default_target: True
    input:
        rules.figures.input,
        rules.claims.input,
        rules.paper.input,
    localrule: True
