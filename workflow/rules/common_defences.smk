# Look-ups of the matrix of all attacks under all defences. No rules here.
MATRIX = study.defences
MATRIX_FIGURES = ["matrix", "planes", "budgets"]
MATRIX_TABLES = ["defences_matrix", "defences_rankings", "defences_accounting", "defences_summary"]
MATRIX_CELLS = [(recipe.method, shard) for recipe in MATRIX.recipes for shard in range(MATRIX.shards)]
FURTHER_CELLS = [(recipe.method, MATRIX.shards + shard) for recipe in MATRIX.recipes for shard in range(MATRIX.shards * len(MATRIX.further.bases))]


def matrix_world():
    return one(study.worlds, name=MATRIX.world)


def matrix_images(wildcards):
    return f"{RESULTS}/data/{matrix_world().images}/manifest.csv"


def matrix_place(wildcards):
    """The world in the tables: of a further base, with its name."""
    return MATRIX.place(int(wildcards.shard))[0]


def matrix_base_folder(wildcards):
    return pipeline_folder(MATRIX.place(int(wildcards.shard))[1] or matrix_world().base)


def matrix_base(wildcards):
    return f"{matrix_base_folder(wildcards)}/model_index.json"


def first_matrix_concept(wildcards):
    return MATRIX.place(int(wildcards.shard))[2]


def last_matrix_concept(wildcards):
    return MATRIX.place(int(wildcards.shard))[3]


def matrix_training(wildcards):
    return as_json(MATRIX.training(wildcards.method))


def matrix_extraction(wildcards):
    """The guidance frozen in finextract.guidance for the method: chosen without a defence, and for LoRAs on another recipe (that of `finetune`)."""
    knobs = study.finextract
    return as_json(
        ExtractionOptions(
            attack="finextract",
            guidance=[frozen_guidance(MATRIX.world, wildcards.method, "finextract")],
            conditions=MATRIX.conditions,
            generations_per_image=MATRIX.generations_per_image,
            steps=knobs.steps,
            sampler=knobs.sampler,
            batch=knobs.batch,
            cluster=knobs.cluster,
            control_draws=knobs.control_draws,
        )
    )


def matrix_reads():
    return study.instruments.factors if MATRIX.recipes and matrix_world().factors else ""


def matrix_factors_flag(wildcards):
    return f"--factors {shlex.quote(matrix_reads())}" if matrix_reads() else ""


def matrix_encoders(wildcards):
    """The encoders of one table of scores: all on what nobody adapts to; and those trained anew by who knows how the weights were changed."""
    names = [f"none/{name}" for name in MATRIX.weights]
    if wildcards.knows != "none":
        names += [f"{wildcards.knows}/{name}-adaptive" for name in MATRIX.weights_adaptive]
    return [f"{RESULTS}/weights/encoders/{name}/config.json" for name in names]


def matrix_encoder_modules():
    return [encoder_module(encoder_plan(name).options.attack) for name in MATRIX.weights] if "weights" in MATRIX.attacks else []


def matrix_weights_options(wildcards):
    return as_json(study.lora_weights.run, controls=False, only=MATRIX.known_changes(wildcards.method)[wildcards.knows])


def matrix_shadow_training(wildcards):
    recipe = MATRIX.shadow_recipe(wildcards.method, wildcards.trained)
    return as_json(study.lora_weights.collect, recipe=recipe, snapshot_every=0, trigger="", coin=True, models_at_once=MATRIX.shadows.models_at_once)


def matrix_shadow_options(wildcards):
    return as_json(MATRIX.shadow_options(wildcards.method, wildcards.trained))


def matrix_shake_options(wildcards):
    return as_json(MATRIX.shake_options(wildcards.method))


def matrix_parts(attack, name, parts=None):
    """The files `name` of a group of attacks, of every method and shard in which it is run on any defence; parts: from a method to what may stand for {} in it."""
    further = FURTHER_CELLS if attack in MATRIX.further.attacks else []
    cells = [(method, shard) for method, shard in MATRIX_CELLS + further if MATRIX.run(method, attack)]
    return [f"{RESULTS}/defences/{method}/{shard}/{name.format(part)}" for method, shard in cells for part in (parts(method) if parts else [""])]


def matrix_scores():
    """{argument of `evaluate defences`: its files}."""
    return {
        "membership": matrix_parts("membership", "membership.csv"),
        "people": matrix_parts("people", "people.csv"),
        "shadows": matrix_parts("shadows", "shadows/{}/losses.csv", MATRIX.shadow_sets),
        "shaken": matrix_parts("shake", "shaken.csv"),
        "matches": matrix_parts("extraction", "extraction/matches.csv"),
        "weights": matrix_parts("weights", "weights/{}/scores.csv", MATRIX.known_changes),
        "utility": [f"{RESULTS}/defences/{method}/{shard}/utility.csv" for method, shard in MATRIX_CELLS],
        "privacy": [f"{RESULTS}/defences/{method}/{shard}/models/privacy.csv" for method, shard in MATRIX_CELLS],
    }


def matrix_flags(wildcards):
    given = matrix_scores() | {"world": [MATRIX.world], "base": [matrix_world().base]}
    return " ".join(word for name, paths in given.items() if paths for word in (f"--{name}", *map(shlex.quote, paths)))


def matrix_tables():
    """The metrics table of the matrix, if this preset runs it."""
    return [f"{RESULTS}/metrics/defences/main.csv"] if MATRIX.recipes else []


def matrix_figures():
    return [f"{RESULTS}/figures/defences/{name}.pdf" for name in MATRIX_FIGURES] if MATRIX.recipes else []


def matrix_tex():
    return [f"{RESULTS}/tables/{name}.tex" for name in MATRIX_TABLES] if MATRIX.recipes else []


def folder_of_matrix_figures(wildcards, output):
    return str(Path(output.pdf[0]).parent)
