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

# Without a limit Snakemake ignores `gpu` on one machine and starts as many GPU jobs as there are cores; --resources gpu=2 still wins.
workflow.global_resources.setdefault("gpu", study.gpus)
GPUS_AT_ONCE = workflow.global_resources["gpu"].value

# Jobs `exec` Python, so that it is Snakemake's own child: runtime.die_with_parent reads TUNELEAK_PARENT, runtime.claim_gpu TUNELEAK_GPUS.
shell.prefix(f"set -euo pipefail; export PYTHONPATH={shlex.quote(str(ROOT / 'src'))} TUNELEAK_PARENT=$PPID TUNELEAK_GPUS={GPUS_AT_ONCE}; ")


# Snakemake's limit on how many jobs start in a second wakes its scheduler every second, once more for each job that has ended: a sixth of a core after 120
# jobs. On one machine the cores are limit enough.
onstart:
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None
    if absent := absent_networks([str(value) for job in workflow.dag.needrun_jobs() for value in job.params]):
        raise WorkflowError(f"the configuration names networks that are not there: {', '.join(absent)}; the preset's comments say what they are")


RESULTS = study.pathvars.results  # functions get no <results>
WORLD_SETS = ["private-identities", "named-p", "named-q", "lora-test", "distractors"]  # behind the preconditions of the embedded world
CURVE_EMBEDDERS = ["copy-b", "identity-b", "factors"]  # behind a base's training curve
FIGURES = ["pictures", "similarity", "guidance", "theory"]
TABLES = ["finextract", "finextract_thresholds", "finextract_controls"]
GPU = min(study.gpus, 1)  # GPUs of a job that can use one
DEVICE = "cpu" if study.device == "auto" and not GPU else study.device


def one_of(items):
    """A regular expression of the names of `items`, or one that nothing matches."""
    names = {getattr(item, "name", item) for item in items}
    return "|".join(re.escape(name) for name in sorted(names)) or "(?!)"


def of_kind(sources, *kinds):
    return one_of(source for source in sources if source.kind in kinds)


def gigabytes(count, scaled=False):
    """Memory of a job in MB, growing with its failed attempts; scaled: by the preset's limits, for jobs that use networks."""
    factor = study.limits.memory if scaled else 1

    def mem_mb(wildcards, attempt):
        return 1000 * count * factor * attempt

    return mem_mb


def minutes(count, scaled=False):
    """Time limit of a job on a cluster, growing with its failed attempts; scaled: by the preset's limits, for jobs that use networks."""
    factor = study.limits.time if scaled else 1

    def time_limit(wildcards, attempt):
        return count * factor * attempt

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


NETWORKS = "copy_cluster copy_score factors perceptual embedder identity identity_a identity_b clip clip_image clip_text dino".split()  # options that name one


def named_networks(values):
    """Paths of networks below `values` of the configuration."""
    if isinstance(values, list):
        return {path for value in values for path in named_networks(value)}
    if not isinstance(values, dict):
        return set()
    own = {path for key, path in values.items() if key in NETWORKS and isinstance(path, str) and path}
    return own.union(*map(named_networks, values.values()))


def absent_networks(params):
    """Named networks that do not exist and that one of the params asks for: a job would find that out when hours of others lie behind it."""
    absent = {path for path in named_networks(study.model_dump(mode="json")) if not Path(path).exists()}
    return sorted(path for path in absent if any(path in value for value in params))


# --- look-ups --------------------------------------------------------------------------------------------------------------------------


def images_of(wildcards):
    return f"{RESULTS}/data/{one(study.worlds, name=wildcards.world).images}/manifest.csv"


def image_source(wildcards):
    return one(study.images, name=wildcards.images)


def pipeline_folder(base):
    """The pipeline folder of a base: assembled or fetched below the results, or the user's own."""
    source = one(study.bases, name=base)
    return source.path if source.kind == "folder" else f"{RESULTS}/bases/{source.name}"


def base_folder(wildcards):
    """The pipeline folder a world starts from."""
    return pipeline_folder(one(study.worlds, name=wildcards.world).base)


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
    """The grid on tune concepts; on test concepts, and for the base control, the one frozen point (of cfg for that control, none for direct)."""
    if wildcards.split == "tune" and wildcards.attack != "base":
        return one(study.finextract.grid, attack=wildcards.attack).guidance
    if wildcards.attack == "direct":
        return [Guidance()]
    return [frozen_guidance(wildcards.world, wildcards.method, "cfg" if wildcards.attack == "base" else wildcards.attack)]


def extraction_options(wildcards):
    knobs = study.finextract
    return as_json(
        ExtractionOptions(
            attack=wildcards.attack,
            guidance=guidance(wildcards),
            generations_per_image=knobs.generations_per_image,
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


def skip_missing_flag(wildcards):
    return "--skip-missing" if image_source(wildcards).options.skip_broken else ""


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


def public_images(wildcards):
    """The pictures a base of kind trained learns from."""
    return f"{RESULTS}/data/{one(study.bases, name=wildcards.base).images}/manifest.csv"


def perceptual_flag(wildcards):
    network = one(study.bases, name=wildcards.base).perceptual
    return f"--perceptual {shlex.quote(network)}" if network else ""


def first_stage_options(wildcards):
    return as_json(one(study.bases, name=wildcards.base).first_stage)


def diffusion_options(wildcards):
    return as_json(one(study.bases, name=wildcards.base).diffusion)


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


def folders_of(group):
    """A param: the folders of the files in one named group of a rule's inputs."""

    def folders(wildcards, input):
        return [str(Path(path).parent) for path in input[group]]

    return folders


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


def latent_parts(wildcards):
    """What a base of latents is trained and assembled with; nothing for one of pixels."""
    kind = one(study.training.bases, name=wildcards.unet).kind
    return [f"{RESULTS}/resources/{part}/config.json" for part in ("autoencoder", "text-encoder")] if kind == "latent" else []


def latent_parts_flags(wildcards):
    folders = [str(Path(path).parent) for path in latent_parts(wildcards)]
    return " ".join(f"{flag} {shlex.quote(folder)}" for flag, folder in zip(("--autoencoder", "--text-encoder"), folders))


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


# --- the report's sources --------------------------------------------------------------------------------------------------------------


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


def recorded(system="*"):
    """The recorded runs of a system, the largest of which tables and the paper show beside a run's own."""
    return files_below("paper/reference", f"*/{system}/metrics.csv", f"*/{system}/run.meta.json", "*/claims.csv")
