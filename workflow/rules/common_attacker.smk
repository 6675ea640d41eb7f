# Look-ups of the study of what an attacker of FineXtract knows. No rules here.
ATTACKER = study.finextract.attacker
ATTACKER_FIGURES = ["captions", "certainty", "people"]
OWN = "own"  # label of the models of the main study, which carry the captions of their pictures


def attacker_recipes():
    """(world, method, label) of the fine-tunes under drawn captions."""
    return [(recipe.world, recipe.options.method, recipe.name) for recipe in ATTACKER.recipes]


def attacker_cells():
    """(world, method) of the models of the main study that are looked at again."""
    return [(recipe.world, recipe.options.method) for recipe in study.finetune if recipe.world in ATTACKER.worlds]


def attacker_recipe(wildcards):
    found = [item for item in ATTACKER.recipes if (item.world, item.options.method, item.name) == (wildcards.world, wildcards.method, wildcards.label)]
    return as_json(found[0].options)


def caption_models(wildcards):
    """The model sets whose captions one job reads."""
    if wildcards.label != OWN:
        return [f"{RESULTS}/attacker/models/{wildcards.world}/{wildcards.method}/{wildcards.label}/manifest.csv"]
    return test_models(wildcards.world, wildcards.method)


def test_models(world, method):
    return [f"{RESULTS}/models/{world}/{method}/test{shard}/manifest.csv" for shard in test_shards(world)]


def test_shards(world, split="test"):
    return range(-(-concepts(world, split) // study.finextract.shard_concepts))


def caption_labels(wildcards, input):
    return [wildcards.label] * len(input.models)


def caption_tables():
    cells = [*attacker_recipes(), *((world, method, OWN) for world, method in attacker_cells() if "recovered" in ATTACKER.conditions)]
    return [f"{RESULTS}/attacker/captions/{world}/{method}/{label}.csv" for world, method, label in cells]


def condition_captions(wildcards):
    return [f"{RESULTS}/attacker/captions/{wildcards.world}/{wildcards.method}/{OWN}.csv"] if "recovered" in ATTACKER.conditions else []


def condition_captions_flag(wildcards):
    return " ".join(f"--captions {path}" for path in condition_captions(wildcards))


def condition_options(wildcards):
    knobs = study.finextract
    return as_json(
        ExtractionOptions(
            attack="finextract",
            guidance=[frozen_guidance(wildcards.world, wildcards.method, "finextract")],
            conditions=ATTACKER.conditions,
            generations_per_image=ATTACKER.generations_per_image,
            steps=knobs.steps,
            sampler=knobs.sampler,
            batch=knobs.batch,
            cluster=knobs.cluster,
            control_draws=knobs.control_draws,
        )
    )


def condition_tables():
    return [f"{RESULTS}/attacker/conditions/{world}/{method}/{shard}/matches.csv" for world, method in attacker_cells() for shard in test_shards(world)]


def people_models(wildcards):
    """All test models of a world."""
    return [path for world, method in attacker_cells() if world == wildcards.world for path in test_models(world, method)]


def people_tables():
    return [f"{RESULTS}/attacker/people/{world}.csv" for world in ATTACKER.worlds]


def _extractions(attack, split, cells):
    folder = f"{RESULTS}/extraction"
    return [f"{folder}/{world}/{method}/{split}{shard}/{attack}/matches.csv" for world, method in cells for shard in test_shards(world, split)]


def cluster_matches():
    """FineXtract on tune concepts (in all settings of its grid) and on test concepts."""
    return [path for split in ("tune", "test") for path in _extractions("finextract", split, attacker_cells())]


def cluster_controls():
    """What the base draws by itself, which is the same whatever a model was tuned by: one method of each world tells it."""
    one_each = list(dict(attacker_cells()).items())
    return [path for split in ("tune", "test") for path in _extractions("base", split, one_each)]


def cluster_images():
    return sorted({f"{RESULTS}/data/{one(study.worlds, name=world).images}/manifest.csv" for world in ATTACKER.worlds})


def cluster_tables():
    return [f"{RESULTS}/attacker/clusters.csv"] if ATTACKER.worlds else []


def attacker_tables():
    """The metrics table of the study, if this preset runs it."""
    return [f"{RESULTS}/metrics/finextract/attacker.csv"] if ATTACKER.worlds or ATTACKER.recipes else []


def attacker_figures():
    return [f"{RESULTS}/figures/attacker/{name}.pdf" for name in ATTACKER_FIGURES] if attacker_tables() else []


def clusters_flag(wildcards):
    return " ".join(["--clusters", *cluster_tables()]) if cluster_tables() else ""


def attacker_flags(wildcards):
    parts = {"captions": caption_tables(), "matches": condition_tables(), "clusters": cluster_tables(), "people": people_tables()}
    return " ".join(word for name, paths in parts.items() if paths for word in (f"--{name}", *paths))


def folder_of_attacker_figures(wildcards, output):
    return str(Path(output.pdf[0]).parent)
