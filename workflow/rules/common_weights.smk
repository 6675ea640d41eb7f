# Look-ups of the LoRA-weights study. No rules here.
WEIGHTS_FIGURES = ["weights-reconstructions", "weights-attacks", "weights-defences", "weights-scaling"]


def weights_base_folder(wildcards):
    return pipeline_folder(study.lora_weights.base)


def weights_base(wildcards):
    return f"{weights_base_folder(wildcards)}/model_index.json"


def identity_a(wildcards):
    return study.lora_weights.identity_a


def identity_b(wildcards):
    return of_victims(wildcards, "identity_b", study.lora_weights.identity_b)


def weights_shards():
    knobs = study.lora_weights
    return [f"{RESULTS}/weights/train/{shard}/manifest.csv" for shard in range(-(-knobs.train_people // knobs.shard_people))]


def first_weights_person(wildcards):
    return int(wildcards.shard) * study.lora_weights.shard_people


def last_weights_person(wildcards):
    return min(first_weights_person(wildcards) + study.lora_weights.shard_people, study.lora_weights.train_people)


def collected(recipe=study.lora_weights.recipe, **changes):
    return as_json(study.lora_weights.collect, recipe=recipe, **changes)


def collect_options(wildcards):
    return collected(study.lora_weights.attackers_recipe())


def second_collect_options(wildcards):
    """Another set of the victims' people: the pictures after those that the victims trained on, and other random numbers, so that both share the person alone."""
    recipe = study.lora_weights.recipe
    other = recipe.model_copy(update={"seeds": [1000 + seed for seed in recipe.seeds]})
    return collected(other, snapshot_every=0, skip_images=recipe.images_per_concept, coin=False)


def size_images():
    """The pictures whose number is to be told: the attacker's people as they are, or with more photographs of each."""
    folder = "weights/size-photographs" if study.lora_weights.sizes.photographs else f"data/{study.lora_weights.train_images}"
    return f"{RESULTS}/{folder}/manifest.csv"


def size_collect_options(wildcards):
    return collected(snapshot_every=0, image_counts=study.lora_weights.sizes.image_counts, steps=wildcards.steps, coin=False)


def known_transforms():
    """{name: change of finished weights} of this study and of the matrix: what an attacker may know of the weights."""
    every = [*study.lora_weights.transforms, *(item.transform for item in study.defences.defences)]
    return {item.name: item for item in every}


def transform_named(name):
    return known_transforms().get(name)


def transform_options(wildcards):
    return as_json(transform_named(wildcards.defence))


def other_recipes():
    """{name in the tables: OtherRecipe} of the victims that were fine-tuned otherwise."""
    return {f"recipe-{item.name}": item for item in study.lora_weights.other_recipes}


def other_recipe_options(wildcards):
    return as_json(other_recipes()[wildcards.defence].options)


def of_victims(wildcards, field, otherwise):
    """A field of the victims that were fine-tuned otherwise, where they have their own; else the study's."""
    return getattr(other_recipes().get(wildcards.get("defence")), field, "") or otherwise


def victims_images(wildcards):
    return f"{RESULTS}/data/{of_victims(wildcards, 'images', study.lora_weights.test_images)}/manifest.csv"


def victims_distractors(wildcards):
    return f"{RESULTS}/data/{of_victims(wildcards, 'distractors', study.lora_weights.distractors)}/manifest.csv"


def victims_world(wildcards):
    return of_victims(wildcards, "world", study.lora_weights.world)


def victims_split(wildcards):
    return shlex.quote(of_victims(wildcards, "split", study.lora_weights.test_split))


def sizes_flag(wildcards, input):
    return f"--sizes {' '.join(map(shlex.quote, input.sizes))}" if input.sizes else ""


def victims_stop(wildcards):
    """Other victims are attacked all."""
    return "" if of_victims(wildcards, "images", "") else f"--stop {study.lora_weights.test_people}"


def weights_defences():
    return ["none", *(item.name for item in study.lora_weights.transforms), *other_recipes()]


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


def folder_of_weights_figures(wildcards, output):
    return str(Path(output.pdf[0]).parent)


def weights_run_options(wildcards):
    knobs, recipe = study.lora_weights.run, wildcards.defence if wildcards.defence in other_recipes() else ""
    alone = wildcards.defence == "none" or bool(of_victims(wildcards, "images", ""))  # nothing else has controls of the same victims
    return as_json(knobs, controls=knobs.controls and alone, defence=recipe, guesses=of_victims(wildcards, "guesses", knobs.guesses))


def weights_embedders():
    knobs = study.lora_weights
    others = [item.identity_b for item in knobs.other_recipes if item.identity_b]
    return [knobs.identity_a, knobs.identity_b, study.instruments.copy_score, *([study.instruments.factors] if knobs.factors else []), *others]


def weights_factors_flag(wildcards):
    here = study.lora_weights.factors and study.instruments.factors and not of_victims(wildcards, "images", "")
    return f"--factors {shlex.quote(study.instruments.factors)}" if here else ""


def photograph_flags(wildcards):
    knobs = study.lora_weights
    given = {"--clip-image": knobs.clip_image, "--clip-text": knobs.clip_text, "--dino": knobs.dino}
    return " ".join(f"{flag} {shlex.quote(folder)}" for flag, folder in given.items() if folder)


def second_flag(wildcards, input):
    """The second sets of the victims' people, for untouched weights only."""
    return f"--second {shlex.quote(str(Path(input.second).parent))}" if wildcards.defence == "none" else ""


def trunk_flag(wildcards):
    return f"--trunk {shlex.quote(study.lora_weights.trunk)}" if study.lora_weights.trunk else ""
