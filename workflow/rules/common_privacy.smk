# Look-ups of the DP-LDM study. No rules here.
DP_FIGURES = ["dp_tradeoff", "dp_samples", "dp_weights", "dp_audit"]
DP_TABLES = ["dp_utility", "dp_bars", "dp_audit", "dp_sigma", "dp_weights"]


def dp_world(wildcards):
    return one(study.dp_ldm.worlds, name=wildcards.world)


def dp_images(wildcards):
    return f"{RESULTS}/data/{dp_world(wildcards).images}/manifest.csv"


def dp_base_folder(wildcards):
    return pipeline_folder(dp_world(wildcards).base)


def dp_base(wildcards):
    return f"{dp_base_folder(wildcards)}/model_index.json"


def dp_training(wildcards):
    knobs = study.dp_ldm
    recipe = one([*knobs.recipes, *knobs.mean_features, *knobs.aggregates], name=wildcards.recipe)
    return as_json(study.dp_ldm.training(dp_world(wildcards), recipe, wildcards.epsilon))


def dp_sampling(wildcards):
    world = dp_world(wildcards)
    return as_json(study.dp_ldm.sample, prompts=world.prompts, endings=world.endings)


def dp_models(world=None):
    """The manifests of all trainings, or of one world's."""
    cells = [cell for cell in study.dp_ldm.cells() if world in (None, cell[0].name)]
    return [f"{RESULTS}/dp/{place.name}/{recipe.name}/{epsilon}/manifest.csv" for place, recipe, epsilon in cells]


def dp_perceptual(wildcards):
    return study.dp_ldm.perceptual


def dp_embedder(wildcards):
    return study.dp_ldm.embedder


def dp_models_of_world(wildcards):
    return dp_models(wildcards.world)


def dp_samples(worlds=study.dp_ldm.worlds, slices=1):
    """The first slices of what is drawn: of the bases of these worlds, then of every training there."""
    places = [f"{world.name}/base" for world in worlds]
    places += [f"{world.name}/{recipe.name}/{epsilon}" for world, recipe, epsilon in study.dp_ldm.cells() if world in worlds]
    return [f"{RESULTS}/dp-samples/{place}/{number}/manifest.csv" for place in places for number in range(slices)]


def dp_samples_of_world(wildcards):
    return dp_samples([dp_world(wildcards)], slices=len(study.dp_ldm.shards()))


def first_sample(wildcards):
    return study.dp_ldm.shards()[int(wildcards.shard)][0]


def last_sample(wildcards):
    return study.dp_ldm.shards()[int(wildcards.shard)][1]


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
