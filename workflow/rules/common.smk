# Shared by all files of this folder: the validated configuration, digests, look-ups, and the shell that jobs start in. No rules here.
import functools
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "src"))  # the code beside this workflow, whatever else is installed

from tuneleak import codedigest, runtime
from tuneleak.config import as_json, load, one
from tuneleak.errors import InputError
from tuneleak.options import ExtractionOptions, Guidance

try:
    study = load(config)
except InputError as error:
    raise WorkflowError(str(error))

runtime.put_this_python_first()

# Jobs `exec` Python, so that it is Snakemake's own child: runtime.die_with_parent reads TUNELEAK_PARENT, runtime.claim_gpu TUNELEAK_GPUS.
shell.prefix(f"set -euo pipefail; export PYTHONPATH={shlex.quote(str(ROOT / 'src'))} TUNELEAK_PARENT=$PPID TUNELEAK_GPUS={study.gpus}; ")

# Without a limit Snakemake ignores `gpu` on one machine and starts as many GPU jobs as there are cores; --resources gpu=2 still wins.
workflow.global_resources.setdefault("gpu", study.gpus)

RESULTS = study.pathvars.results  # functions get no <results>
WORLD_SETS = ["private-identities", "named-p", "named-q", "lora-test", "distractors"]  # behind the preconditions of the embedded world
CURVE_EMBEDDERS = ["copy-b", "identity-b", "factors"]  # behind a base's training curve
FIGURES = ["pictures", "similarity", "guidance", "theory"]
WEIGHTS_FIGURES = ["weights-reconstructions", "weights-attacks", "weights-defences", "weights-scaling"]
TABLES = ["finextract", "finextract_thresholds", "finextract_controls"]
DP_FIGURES = ["dp_tradeoff", "dp_samples", "dp_weights", "dp_audit"]
DP_TABLES = ["dp_utility", "dp_audit", "dp_sigma", "dp_weights"]
GPU = min(study.gpus, 1)  # GPUs of a job that can use one
DEVICE = "cpu" if study.device == "auto" and not GPU else study.device


def one_of(items):
    """A regular expression of the names of `items`, or one that nothing matches."""
    names = {getattr(item, "name", item) for item in items}
    return "|".join(re.escape(name) for name in sorted(names)) or "(?!)"


def of_kind(sources, kind):
    return one_of(source for source in sources if source.kind == kind)


def gigabytes(count):
    """Memory of a job in MB, growing with its failed attempts."""

    def mem_mb(wildcards, attempt):
        return 1000 * count * attempt

    return mem_mb


def minutes(count):
    """Time limit of a job on a cluster, growing with its failed attempts."""

    def time_limit(wildcards, attempt):
        return count * attempt

    return time_limit


# --- digests ---------------------------------------------------------------------------------------------------------------------------


@functools.cache
def code(*modules):
    return codedigest.code_digest(*modules, sources=ROOT / "src")


def attack_code(wildcards):
    return code(*codedigest.attack_modules("extraction", wildcards.attack))


@functools.cache
def shipped_sums():
    """{path: sha256} of the shipped files, from resources/SHA256SUMS; empty before the first `make promote`."""
    sums = ROOT / "resources" / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.is_file() else []
    return {f"resources/{path.strip().removeprefix('*')}": digest for digest, path in (line.split(maxsplit=1) for line in lines)}


def shipped_below(*folders):
    return {path: digest for path, digest in sorted(shipped_sums().items()) if path.startswith(tuple(f"{folder}/" for folder in folders if folder))}


def shipped(*folders):
    """Shipped files as inputs whose age does not matter: their sha256 is a param. A folder from elsewhere has none."""
    return [ancient(path) for path in shipped_below(*folders)]


def shipped_digest(*folders):
    return "".join(digest[:16] for digest in shipped_below(*folders).values())


# --- look-ups --------------------------------------------------------------------------------------------------------------------------


def images_of(wildcards):
    return f"{RESULTS}/data/{one(study.worlds, name=wildcards.world).images}/manifest.csv"


def image_source(wildcards):
    return one(study.images, name=wildcards.images)


def base_folder(wildcards):
    """The pipeline folder a world starts from: assembled or fetched below the results, or the user's own."""
    source = one(study.bases, name=one(study.worlds, name=wildcards.world).base)
    return source.path if source.kind == "folder" else f"{RESULTS}/bases/{source.name}"


def base_of(wildcards):
    return f"{base_folder(wildcards)}/model_index.json"


def recipe_of(world, method):
    return next(recipe.options for recipe in study.finetune if (recipe.world, recipe.options.method) == (world, method))


def finetune_options(wildcards):
    return as_json(recipe_of(wildcards.world, wildcards.method))


def concepts(world, split):
    return getattr(one(study.worlds, name=world), f"{split}_concepts")


def first_concept(wildcards):
    return int(wildcards.shard) * study.finextract.shard_concepts


def last_concept(wildcards):
    return min(first_concept(wildcards) + study.finextract.shard_concepts, concepts(wildcards.world, wildcards.split))


def frozen_guidance(world, method, attack):
    return one(study.finextract.guidance, world=world, method=method, attack=attack).guidance


def guidance(wildcards):
    """The grid on tune concepts; on test concepts the one frozen point (of cfg for the base control, none for direct)."""
    if wildcards.split == "tune":
        return one(study.finextract.grid, attack=wildcards.attack).guidance
    if wildcards.attack == "direct":
        return [Guidance()]
    return [frozen_guidance(wildcards.world, wildcards.method, "cfg" if wildcards.attack == "base" else wildcards.attack)]


def extraction_options(wildcards):
    knobs = study.finextract
    generations = knobs.tune_generations_per_image if wildcards.split == "tune" else knobs.generations_per_image
    return as_json(
        ExtractionOptions(
            attack=wildcards.attack,
            guidance=guidance(wildcards),
            generations_per_image=generations,
            steps=knobs.steps,
            sampler=knobs.sampler,
            batch=knobs.batch,
            cluster=knobs.cluster,
            control_draws=knobs.control_draws,
        )
    )


def reads_factors(wildcards):
    return study.instruments.factors if one(study.worlds, name=wildcards.world).factors else ""


def factors_of(wildcards):
    return shipped(reads_factors(wildcards))


def factors_digest(wildcards):
    return shipped_digest(reads_factors(wildcards))


def factors_flag(wildcards):
    return f"--factors {shlex.quote(reads_factors(wildcards))}" if reads_factors(wildcards) else ""


def matches_of(split):
    """The matches.csv of every world, method, shard and attack of one split."""
    attacks = study.finextract.attacks if split == "test" else [grid.attack for grid in study.finextract.grid]
    return [
        f"{RESULTS}/extraction/{recipe.world}/{recipe.options.method}/{split}{shard}/{attack}/matches.csv"
        for recipe in study.finetune
        for shard in range(-(-concepts(recipe.world, split) // study.finextract.shard_concepts))
        for attack in attacks
    ]


def matches_of_table(wildcards):
    return matches_of({"main": "test", "tuning": "tune"}[wildcards.table])


def world_names():
    return [world.name for world in study.worlds]


def n_images(wildcards):
    return next(recipe.options.images_per_concept for recipe in study.finetune if recipe.world == wildcards.world)


def image_path(wildcards):
    return image_source(wildcards).path


def image_repository(wildcards):
    return image_source(wildcards).repository


def image_revision(wildcards):
    return image_source(wildcards).revision


def import_options(wildcards):
    return as_json(image_source(wildcards).options)


def base_path(wildcards):
    return one(study.bases, name=wildcards.base).path


def base_repository(wildcards):
    return one(study.bases, name=wildcards.base).repository


def base_revision(wildcards):
    return one(study.bases, name=wildcards.base).revision


def base_parts(wildcards):
    return shipped(study.shipped.autoencoder, study.shipped.text_encoder, base_path(wildcards))


def base_parts_digest(wildcards):
    return shipped_digest(study.shipped.autoencoder, study.shipped.text_encoder, base_path(wildcards))


def shipped_autoencoder(wildcards):
    return study.shipped.autoencoder


def shipped_text_encoder(wildcards):
    return study.shipped.text_encoder


def copy_cluster(wildcards):
    return study.instruments.copy_cluster


def copy_score(wildcards):
    return study.instruments.copy_score


def tune_concepts(wildcards):
    return concepts(wildcards.world, "tune")


def private_images():
    """The image sets of all worlds."""
    return sorted({world.images for world in study.worlds})


def folders_of_images(wildcards, input):
    return [str(Path(path).parent) for path in input.images]


def folder_of_tables(wildcards, input):
    return str(Path(input.tables[0]).parent)


def folders_of_figures(wildcards, input):
    return sorted({str(Path(path).parent) for path in input.figures})


def folder_of_sets(wildcards, input):
    """The folder that holds the rendered sets."""
    return str(Path(input.images[0]).parent.parent)


def folder_of_built(wildcards, input):
    """The folder of rebuilt models, from one of their embedders."""
    return str(Path(input.embedders[0]).parent.parent.parent)


def text_encoder_options(wildcards):
    return as_json(one(study.training.embedders, name="text-encoder").options())


def images_of_embedder(wildcards):
    """Manifests of what an embedder is trained on (without the wildcard: the text encoder)."""
    plan = one(study.training.embedders, name=getattr(wildcards, "embedder", "text-encoder"))
    return [f"{RESULTS}/data/{name}/manifest.csv" for name in plan.images]


def embedder_options(wildcards):
    return as_json(one(study.training.embedders, name=wildcards.embedder).options())


def unet_options(wildcards):
    return as_json(one(study.training.bases, name=wildcards.unet))


def built_resources():
    """What the target `resources` makes: nothing for a preset that trains nothing."""
    training = study.training
    folders = [f"embedders/{item.name}" for item in training.embedders if item.name != "text-encoder"]
    folders += [f"bases/{item.name}" for item in training.bases]
    folders += ["text-encoder"] if any(item.name == "text-encoder" for item in training.embedders) else []
    folders += ["autoencoder"] if folders else []
    curves = [f"{RESULTS}/resources/bases/{item.name}/curve.csv" for item in training.bases if item.snapshots]
    return [f"{RESULTS}/resources/{folder}/config.json" for folder in folders] + curves


def assembled_bases(wildcards):
    """The embedded world's own bases, whose members are known."""
    return [f"{RESULTS}/bases/{source.name}/model_index.json" for source in study.bases if source.kind == "assembled"]


# --- LoRA weights ----------------------------------------------------------------------------------------------------------------------


def weights_base_folder(wildcards):
    source = one(study.bases, name=study.lora_weights.base)
    return source.path if source.kind == "folder" else f"{RESULTS}/bases/{source.name}"


def weights_base(wildcards):
    return f"{weights_base_folder(wildcards)}/model_index.json"


def identity_a(wildcards):
    return study.lora_weights.identity_a


def identity_b(wildcards):
    return study.lora_weights.identity_b


def weights_shards():
    knobs = study.lora_weights
    return [f"{RESULTS}/weights/train/{shard}/manifest.csv" for shard in range(-(-knobs.train_people // knobs.shard_people))]


def first_weights_person(wildcards):
    return int(wildcards.shard) * study.lora_weights.shard_people


def last_weights_person(wildcards):
    return min(first_weights_person(wildcards) + study.lora_weights.shard_people, study.lora_weights.train_people)


def collected(**changes):
    return as_json(study.lora_weights.collect, recipe=study.lora_weights.recipe, **changes)


def collect_options(wildcards):
    return collected()


def second_collect_options(wildcards):
    """Another set of the victims' people: the pictures after those that the victims trained on."""
    return collected(snapshot_every=0, skip_images=study.lora_weights.recipe.images_per_concept)


def size_collect_options(wildcards):
    return collected(snapshot_every=0, image_counts=study.lora_weights.sizes.image_counts, steps=wildcards.steps)


def transform_named(name):
    return next((item for item in study.lora_weights.transforms if item.name == name), None)


def transform_options(wildcards):
    return as_json(transform_named(wildcards.defence))


def weights_defences():
    return ["none", *(item.name for item in study.lora_weights.transforms)]


ADAPTS = ("spectral", "autoencoder")  # encoders an attacker who knows the transform trains anew


def encoder_plan(name):
    return one(study.lora_weights.encoders, name=name)


def encoder_options(wildcards):
    plan = encoder_plan(wildcards.encoder.removesuffix("-adaptive") if wildcards.knows != "none" else wildcards.encoder)
    return as_json(plan.options) if wildcards.knows == "none" else as_json(plan.options, transform=transform_named(wildcards.knows))


def encoder_module(attack):
    return f"tuneleak.attacks.weights.{attack}"


def encoder_code(wildcards):
    name = wildcards.encoder.removesuffix("-adaptive") if wildcards.knows != "none" else wildcards.encoder
    return code("tuneleak.attacks.weights.train", encoder_module(encoder_plan(name).options.attack))


def encoders_against(wildcards):
    """The encoders behind one table of scores: all on untouched weights; on transformed ones the two attacks, the control, and who adapted."""
    plans = [plan.name for plan in study.lora_weights.encoders]
    if wildcards.defence == "none":
        chosen = [f"none/{name}" for name in plans]
    else:
        chosen = [f"none/{name}" for name in plans if name in (*ADAPTS, "constant")]
        chosen += [f"{wildcards.defence}/{name}-adaptive" for name in plans if name in ADAPTS and wildcards.defence in study.lora_weights.adaptive]
    return [f"{RESULTS}/weights/encoders/{name}/config.json" for name in chosen]


def folders_of_encoders(wildcards, input):
    return [str(Path(path).parent) for path in input.encoders]


def folders_of_models(wildcards, input):
    return [str(Path(path).parent) for path in input.models]


def folder_of_weights_figures(wildcards, output):
    return str(Path(output.pdf[0]).parent)


def weights_run_options(wildcards):
    return as_json(study.lora_weights.run, controls=study.lora_weights.run.controls and wildcards.defence == "none")


def weights_embedders():
    knobs = study.lora_weights
    return [knobs.identity_a, knobs.identity_b, study.instruments.copy_score, *([study.instruments.factors] if knobs.factors else [])]


def weights_factors_flag(wildcards):
    return f"--factors {shlex.quote(study.instruments.factors)}" if study.lora_weights.factors and study.instruments.factors else ""


def second_flag(wildcards, input):
    """The second sets of the victims' people, for untouched weights only."""
    return f"--second {shlex.quote(str(Path(input.second).parent))}" if wildcards.defence == "none" else ""


def trunk_flag(wildcards):
    return f"--trunk {shlex.quote(study.lora_weights.trunk)}" if study.lora_weights.trunk else ""


# --- DP-LDM ----------------------------------------------------------------------------------------------------------------------------


def dp_world(wildcards):
    return one(study.dp_ldm.worlds, name=wildcards.world)


def dp_images(wildcards):
    return f"{RESULTS}/data/{dp_world(wildcards).images}/manifest.csv"


def dp_base_folder(wildcards):
    source = one(study.bases, name=dp_world(wildcards).base)
    return source.path if source.kind == "folder" else f"{RESULTS}/bases/{source.name}"


def dp_base(wildcards):
    return f"{dp_base_folder(wildcards)}/model_index.json"


def dp_training(wildcards):
    recipe = one(study.dp_ldm.recipes, name=wildcards.recipe)
    return as_json(study.dp_ldm.training(dp_world(wildcards), recipe, wildcards.epsilon))


def dp_sampling(wildcards):
    world = dp_world(wildcards)
    return as_json(study.dp_ldm.sample, prompts=world.prompts, endings=world.endings)


def dp_models(world=None):
    """The manifests of all trainings, or of one world's."""
    cells = [cell for cell in study.dp_ldm.cells() if world in (None, cell[0].name)]
    return [f"{RESULTS}/dp/{place.name}/{recipe.name}/{epsilon}/manifest.csv" for place, recipe, epsilon in cells]


def dp_embedder(wildcards):
    return study.dp_ldm.embedder


def dp_models_of_world(wildcards):
    return dp_models(wildcards.world)


def dp_samples_of(trained):
    """Manifest of the samples of a training, from that of its models."""
    return f"{RESULTS}/dp-samples/{Path(trained).relative_to(f'{RESULTS}/dp')}"


def dp_samples_of_world(wildcards):
    trained = [dp_samples_of(path) for path in dp_models(wildcards.world)]
    return [f"{RESULTS}/dp-samples/{wildcards.world}/base/manifest.csv", *trained]


def dp_samples():
    """Everything drawn: of the base and of every training, world by world."""
    drawn = [f"{RESULTS}/dp-samples/{world.name}/base/manifest.csv" for world in study.dp_ldm.worlds]
    return drawn + [dp_samples_of(path) for path in dp_models()]


def dp_image_sets():
    return sorted({f"{RESULTS}/data/{world.images}/manifest.csv" for world in study.dp_ldm.worlds})


def dp_utility():
    """Per world: what its models are good for, and the real pictures in their place."""
    return [f"{RESULTS}/dp/{world.name}/{part}.csv" for world in study.dp_ldm.worlds for part in ("real", "utility")]


def dp_audits():
    return [f"{RESULTS}/dp/audits/{item.name}.csv" for item in study.dp_ldm.audits]


def dp_audit(wildcards):
    return one(study.dp_ldm.audits, name=wildcards.audit)


def dp_audit_world(wildcards):
    return one(study.dp_ldm.worlds, name=dp_audit(wildcards).world)


def dp_audit_images(wildcards):
    return f"{RESULTS}/data/{dp_audit_world(wildcards).images}/manifest.csv"


def dp_audit_base_folder(wildcards):
    source = one(study.bases, name=dp_audit_world(wildcards).base)
    return source.path if source.kind == "folder" else f"{RESULTS}/bases/{source.name}"


def dp_audit_base(wildcards):
    return f"{dp_audit_base_folder(wildcards)}/model_index.json"


def dp_audit_training(wildcards):
    audit, world = dp_audit(wildcards), dp_audit_world(wildcards)
    privacy = audit.training.privacy.model_copy(update={"epsilon": audit.epsilon})
    return as_json(audit.training, privacy=privacy, prompts=world.prompts)


def dp_audit_options(wildcards):
    return as_json(dp_audit(wildcards).options)


def dp_audit_world_name(wildcards):
    return dp_audit(wildcards).world


def folders_of_samples(wildcards, input):
    return [str(Path(path).parent) for path in input.samples]


def folder_of_tables_written(wildcards, output):
    return str(Path(output.tables[0]).parent)


def files_below(folder, *patterns):
    """Files of the project below `folder` that match one of the patterns, as paths from the project's root."""
    found = {path for pattern in patterns for path in (ROOT / folder).glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in found)


def paper_sources():
    """Everything the paper is typeset from that is not computed."""
    return files_below("paper", "*.tex", "*.bib", "sections/*.tex")


def reference():
    """The registered claims and endpoints, and the published numbers."""
    return files_below("paper/reference", "*.yaml", "published/*.csv")


def recorded(system, pattern="metrics.csv"):
    """The recorded run of a system that tables and the paper show beside a run's own."""
    return files_below(f"paper/reference/full/{system}", pattern)


# --- Shake-to-Leak ---------------------------------------------------------------------------------------------------------------------

SHAKE = study.shake_to_leak
SHAKE_BASES = [base.name for base in SHAKE.bases]
SHAKE_SETS = ["self", *(name for name in SHAKE.controls if name != "lr0")]  # sets of pictures; lr0 fine-tunes on the self-made one
SHAKE_RUNS = [("self", options.method) for options in SHAKE.methods] + [(name, method) for name in SHAKE.controls for method in SHAKE.control_methods]
SHAKE_SHARDS = range(-(-SHAKE.domains // SHAKE.shard_domains))
SHAKE_FIGURES = ["amplification", "roc", "dose"]


def shake_base_folder(wildcards):
    source = one(study.bases, name=wildcards.base)
    return source.path if source.kind == "folder" else f"{RESULTS}/bases/{source.name}"


def shake_base(wildcards):
    return f"{shake_base_folder(wildcards)}/model_index.json"


def shake_domains(wildcards):
    """The image set that names the domains."""
    return f"{RESULTS}/data/{SHAKE.images[0]}/manifest.csv"


def shake_images():
    return [f"{RESULTS}/data/{name}/manifest.csv" for name in SHAKE.images]


def shake_reference():
    return [f"{RESULTS}/data/{SHAKE.reference}/manifest.csv"] if SHAKE.reference else []


def shake_reference_flag(wildcards):
    return f"--reference {RESULTS}/data/{SHAKE.reference}" if SHAKE.reference else ""


def shake_synthesize_options(wildcards):
    return as_json(SHAKE.synthesize, kind=wildcards.source)


def shake_set(wildcards):
    return f"{RESULTS}/shake-to-leak/{wildcards.base}/sets/{'self' if wildcards.source == 'lr0' else wildcards.source}/manifest.csv"


def shake_finetune_options(wildcards):
    options = one(SHAKE.methods, method=wildcards.tuning)
    return as_json(options, lr=0.0, steps_per_image=1) if wildcards.source == "lr0" else as_json(options)


def shake_first(wildcards):
    return int(wildcards.shard) * SHAKE.shard_domains


def shake_last(wildcards):
    return min(shake_first(wildcards) + SHAKE.shard_domains, SHAKE.domains)


def shake_models(wildcards):
    folder = f"{RESULTS}/shake-to-leak/{wildcards.base}/models"
    return [f"{folder}/{source}/{method}/{wildcards.shard}/manifest.csv" for source, method in SHAKE_RUNS]


def shake_members(wildcards):
    base = one(SHAKE.bases, name=wildcards.base)
    return ancient(base.members) if base.members else f"{RESULTS}/data/{base.member_images}/manifest.csv"


def shake_blind_flag(wildcards):
    return f"--embedder {shlex.quote(SHAKE.blind)}" if SHAKE.blind else ""


def shake_identity(wildcards):
    return SHAKE.identity


def shake_clip(wildcards):
    return SHAKE.clip


def shake_fidelity():
    return [f"{RESULTS}/metrics/shake-to-leak/fidelity.csv"] if SHAKE.identity and SHAKE.bases else []


def shake_fidelity_flag(wildcards):
    return f"--fidelity {shake_fidelity()[0]}" if shake_fidelity() else ""


def shake_tables():
    """The metrics table of the study, if this preset runs it."""
    return [f"{RESULTS}/metrics/shake-to-leak/main.csv"] if SHAKE.bases else []


def shake_figures():
    return [f"{RESULTS}/figures/shake-to-leak/shake_{name}.pdf" for name in SHAKE_FIGURES] if SHAKE.bases else []


def shake_membership_code():
    return code(*(module for name in SHAKE.membership.attacks for module in codedigest.attack_modules("membership", name)))


def folders_of_models(wildcards, input):
    return [str(Path(path).parent) for path in input.models]


def folders_of_sets(wildcards, input):
    return [str(Path(path).parent) for path in input.sets]
