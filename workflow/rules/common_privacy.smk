# Look-ups of the DP-LDM study. No rules here.
DP_FIGURES = ["dp_tradeoff", "dp_samples", "dp_weights", "dp_audit"]
DP_TABLES = ["dp_utility", "dp_bars", "dp_audit", "dp_sigma", "dp_weights"]
DP_BASE = "base"  # in the place of a recipe: the public base of a world, whose pictures are measured like any model's


def dp_world(wildcards):
    return one(study.dp_ldm.worlds, name=wildcards.world)


def dp_images(wildcards):
    return f"{RESULTS}/data/{dp_world(wildcards).images}/manifest.csv"


def dp_base_folder(wildcards):
    return pipeline_folder(dp_world(wildcards).base)


def dp_base(wildcards):
    return f"{dp_base_folder(wildcards)}/model_index.json"


def dp_recipes():
    return [*study.dp_ldm.recipes, *study.dp_ldm.mean_features, *study.dp_ldm.aggregates]


def dp_training(wildcards):
    return as_json(study.dp_ldm.training(dp_world(wildcards), one(dp_recipes(), name=wildcards.recipe), wildcards.epsilon))


def dp_sampling(wildcards):
    world = dp_world(wildcards)
    return as_json(study.dp_ldm.sample, prompts=world.prompts, endings=world.endings)


def dp_cells(wildcards):
    """(world, recipe, epsilon name) of the trainings of one recipe in one world; none for the public base."""
    found = [cell for cell in study.dp_ldm.cells() if (cell[0].name, cell[1].name) == (wildcards.world, wildcards.recipe)]
    if not found and wildcards.recipe != DP_BASE:
        raise WorkflowError(f"dp_ldm: {wildcards.recipe!r} is not trained in the world {wildcards.world!r}; see `worlds` and `budgets` of that recipe")
    return found


def dp_models(wildcards):
    return [f"{RESULTS}/dp/{world.name}/{recipe.name}/{epsilon}/manifest.csv" for world, recipe, epsilon in dp_cells(wildcards)]


def dp_models_flag(wildcards, input):
    return " ".join(["--models", *map(shlex.quote, folders_of("models")(wildcards, input))]) if input.models else ""


def dp_perceptual(wildcards):
    return study.dp_ldm.perceptual


def dp_embedder(wildcards):
    return study.dp_ldm.embedder


def dp_places(cells, bases=()):
    """Where the pictures of the bases of these worlds lie, then those of these trainings."""
    return [f"{world.name}/{DP_BASE}" for world in bases] + [f"{world.name}/{recipe.name}/{epsilon}" for world, recipe, epsilon in cells]


def dp_samples(places, slices):
    return [f"{RESULTS}/dp-samples/{place}/{number}/manifest.csv" for place in places for number in range(slices)]


def dp_samples_shown():
    """The first slice of what is drawn from every base and model."""
    return dp_samples(dp_places(study.dp_ldm.cells(), study.dp_ldm.worlds), 1)


def dp_samples_of(wildcards):
    """All slices of one recipe's budgets in one world, or of its public base."""
    bases = [dp_world(wildcards)] if wildcards.recipe == DP_BASE else []
    return dp_samples(dp_places(dp_cells(wildcards), bases), len(study.dp_ldm.shards()))


def dp_measured(wildcards):
    """How the measured models were trained and drawn from, which reaches the tables made of them only by their files."""
    return [dp_sampling(wildcards), *(as_json(study.dp_ldm.training(*cell)) for cell in dp_cells(wildcards))]


def dp_measured_code(wildcards):
    """The code of the measurement, and that of the sampling and training before it."""
    kinds = {"private": study.dp_ldm.recipes, "mean_features": study.dp_ldm.mean_features, "aggregate": study.dp_ldm.aggregates}
    verbs = ["sample", *(verb for verb, recipes in kinds.items() if any(recipe.name == wildcards.recipe for recipe in recipes))]
    return code("tuneleak.metrics.dp_utility", *(f"tuneleak.finetune.{verb}" for verb in verbs))


def first_sample(wildcards):
    return study.dp_ldm.shards()[int(wildcards.shard)][0]


def last_sample(wildcards):
    return study.dp_ldm.shards()[int(wildcards.shard)][1]


def dp_image_sets():
    return sorted({f"{RESULTS}/data/{world.images}/manifest.csv" for world in study.dp_ldm.worlds})


def dp_utility():
    """Per world: the real pictures, and what its base and each recipe's models are good for in their place."""
    placed = dict.fromkeys((world.name, recipe.name) for world, recipe, _ in study.dp_ldm.cells())
    tables = [f"{world.name}/{part}" for world in study.dp_ldm.worlds for part in ("real.csv", f"{DP_BASE}/utility.csv")]
    return [f"{RESULTS}/dp/{table}" for table in [*tables, *(f"{world}/{recipe}/utility.csv" for world, recipe in placed)]]


def dp_audits():
    return [f"{RESULTS}/dp/audits/{item.name}.csv" for item in study.dp_ldm.audits]


def dp_audit(wildcards):
    return one(study.dp_ldm.audits, name=wildcards.audit)


def dp_audit_world(wildcards):
    return one(study.dp_ldm.worlds, name=dp_audit(wildcards).world)


def dp_audit_images(wildcards):
    return f"{RESULTS}/data/{dp_audit_world(wildcards).images}/manifest.csv"


def dp_audit_base_folder(wildcards):
    return pipeline_folder(dp_audit_world(wildcards).base)


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


def folder_of_tables_written(wildcards, output):
    return str(Path(output.tables[0]).parent)
