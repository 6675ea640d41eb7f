"""The verb `budget`: what a preset will compute, in UNet calls on one sample, before anything runs."""

import importlib

from tuneleak import config
from tuneleak.attacks.captions import adam, grow, relax
from tuneleak.finetune import methods
from tuneleak.options import AggregateOptions, PrivateFinetuneOptions

OWN_WORDS = 5  # of the captions of private people and artists
TRAINING_CALLS = 3  # a training step costs about three forward calls per sample


def budget(configuration="config.yaml", overlay=None):
    """Print, per world and method, the models to fine-tune, their training calls and the sampling calls of every attack, and the totals."""
    study = config.read(configuration, overlay)
    total = 0
    print(f"preset {study.preset}: UNet calls on one sample (a training step counts as {TRAINING_CALLS} calls per sample)")
    for row in [*rows(study), *ablation_rows(study), *attacker_rows(study), *shake_rows(study), *weights_rows(study), *matrix_rows(study)]:
        total += row["training"] + row["sampling"]
        print(f"  {row['world']:12s} {row['method']:28s} {row['models']:4d} models  training {row['training']:12,d}  sampling {row['sampling']:12,d}")
    print(f"  total {total:,d}")


def rows(study):
    """One dict per recipe: world, method, models, training and sampling calls."""
    for recipe in study.finetune:
        options, world = recipe.options, config.one(study.worlds, name=recipe.world)
        models = {split: getattr(world, f"{split}_concepts") * len(options.seeds) for split in ("test", "tune")}
        step = options.batch * (2 if options.method == "dreambooth-prior" else 1)
        training = TRAINING_CALLS * sum(models.values()) * options.steps_per_image * options.images_per_concept * step
        knobs = study.finextract
        tested = sum(_calls(knobs.generations_per_image, knobs.steps, attack) for attack in knobs.attacks)
        tuned = sum(_calls(knobs.generations_per_image, knobs.steps, grid.attack) * len(grid.guidance) for grid in knobs.grid)
        sampling = options.images_per_concept * (models["test"] * tested + models["tune"] * tuned)
        yield {"world": recipe.world, "method": options.method, "models": sum(models.values()), "training": training, "sampling": sampling}
    yield from private_rows(study.dp_ldm)


def ablation_rows(study):
    """One dict per method of the ablations and defences: training of all variants, and the calls of sweeps and of their utility."""
    ablations, knobs = study.finextract.ablations, study.finextract
    for method in ablations.methods:
        recipe = next(item.options for item in study.finetune if (item.world, item.options.method) == (ablations.world, method))
        frozen = config.one(knobs.guidance, world=ablations.world, method=method, attack=ablations.sweep.attack).guidance
        sweep, use, total = ablations.sweep_of(method, frozen), ablations.utility, {"models": 0, "training": 0, "sampling": 0}
        for split in ("tune", "test"):
            concepts, trained = getattr(ablations, f"{split}_concepts"), set()
            plan = ablations.training(method, recipe, split)
            for variant in plan.variants:
                options = plan.recipe.model_copy(update=variant.change)
                models, key = concepts * len(options.seeds), options.model_dump_json()
                step = options.batch * (2 if options.method == "dreambooth-prior" else 1) * (1.7 if options.adversarial_radius else 1)
                total["models"] += models
                total["training"] += 0 if key in trained else int(TRAINING_CALLS * models * options.steps_per_image * options.images_per_concept * step)
                trained.add(key)
                settings = 1 if variant.name in sweep.only_first else len(sweep.guidance)
                steps = sweep.steps * settings + (sum(sweep.other_steps) if variant.name == "reference" else 0)
                total["sampling"] += models * options.images_per_concept * _calls(sweep.generations_per_image, steps, sweep.attack)
                if split == "test":
                    pictures = study.population.private_heldout + options.images_per_concept
                    total["sampling"] += models * (2 * use.steps * (use.generations + use.obedience) + use.noise_levels * pictures)
        yield {"world": ablations.world, "method": f"{method}, variants", **total}


def attacker_rows(study):
    """One dict per fine-tune under drawn captions, and per recipe of the main study that is looked at again (caption conditions, people, the base on tune
    concepts). Reading captions from whole weights that Adam trained asks the UNet for gradients."""
    knobs, plan = study.finextract, study.finextract.attacker
    for recipe in plan.recipes:
        options, models = recipe.options, plan.concepts * len(recipe.options.seeds) * len(recipe.options.caption_words)
        training = TRAINING_CALLS * models * options.steps_per_image * options.images_per_concept * options.batch
        reading = sum(models // len(options.caption_words) * _reading_calls(options, plan.recover, words) for words in options.caption_words)
        yield {"world": recipe.world, "method": f"{options.method}, drawn captions", "models": models, "training": training, "sampling": reading}
    seen = set()
    for recipe in study.finetune:
        if recipe.world not in plan.worlds:
            continue
        options, world = recipe.options, config.one(study.worlds, name=recipe.world)
        models, size = world.test_concepts * len(options.seeds), options.images_per_concept
        sampling = models * size * len(plan.conditions) * _calls(plan.generations_per_image, knobs.steps, "finextract")
        if recipe.world not in seen:  # the base on tune concepts, once a world
            seen.add(recipe.world)
            sampling += world.tune_concepts * len(options.seeds) * size * _calls(knobs.generations_per_image, knobs.steps, "base")
        judged = size + plan.people.photographs * (1 + plan.people.strangers)  # at most
        sampling += 2 * models * judged * len(plan.people.captions) * len(plan.people.timesteps) * plan.people.draws
        sampling += models * _reading_calls(options, plan.recover, OWN_WORDS) * ("recovered" in plan.conditions)
        yield {"world": recipe.world, "method": f"{options.method}, looked at again", "models": models, "training": 0, "sampling": sampling}


def _reading_calls(options, recover, words):
    """Calls of reading one caption of so many words from the weights of a model with the fine-tuning `options`."""
    if not (recover.draws and options.optimizer == "adamw" and methods.trains_whole_weights(options.method)):
        return 0
    if recover.relaxed and options.train_text_encoder:  # its words are known, their order is not
        recover = recover.model_copy(update={"relaxed": min(recover.relaxed, relax.REPEATED * words)})
    return TRAINING_CALLS * (relax if recover.relaxed else grow).gradients(recover, words) + adam.PICTURES * adam.STEPS


def private_rows(study):
    """One dict per world and method of the DP-LDM study: all budgets together; `base` is the public base, which is drawn from and not trained."""
    drawn = study.sample.samples * study.sample.steps * (1 if study.sample.guidance_scale == 1 else 2)
    for world in study.worlds:
        yield {"world": world.name, "method": "dp base", "models": 0, "training": 0, "sampling": drawn}
        for name in {recipe.name: None for place, recipe, _ in study.cells() if place is world}:
            cells = [(recipe, epsilon) for place, recipe, epsilon in study.cells() if place is world and recipe.name == name]
            options = cells[0][0].options
            models, privacy = len(cells) * len(options.seeds), options.privacy
            training, sampling = 0, 0  # a generator calls no UNet
            if isinstance(options, PrivateFinetuneOptions):
                training, sampling = TRAINING_CALLS * privacy.expected_batch * privacy.multiplicity * privacy.steps, drawn
            elif isinstance(options, AggregateOptions):
                training, sampling = TRAINING_CALLS * options.expected_pictures * options.steps * options.draws, drawn
            yield {"world": world.name, "method": f"dp {name}", "models": models, "training": models * training, "sampling": models * sampling}


def weights_rows(study):
    """One dict of the weights study: models (all LoRAs), training calls (of LoRAs and encoders) and sampling calls (attacks and update matching)."""
    knobs, recipe = study.lora_weights, study.lora_weights.recipe
    victims, seeds = knobs.test_people, len(recipe.seeds)
    steps = recipe.steps_per_image * recipe.images_per_concept
    sizes = [knobs.sizes.image_counts[number % len(knobs.sizes.image_counts)] for number in range(knobs.sizes.people * seeds)]
    size_steps = sum(steps * len(sizes) if kind == "total" else recipe.steps_per_image * sum(sizes) for kind in knobs.sizes.steps)
    models = knobs.train_people * len(knobs.attackers_recipe().seeds) + 2 * victims * seeds
    own = [item.options for item in knobs.other_recipes if not item.images]  # of other victims it is unknown here how many there are
    others = [options.steps_per_image * options.images_per_concept * options.batch * victims * seeds for options in own]
    plans = {plan.name: plan.options for plan in knobs.encoders}
    adapted = [plans[name] for name in ("spectral", "autoencoder") if name in plans] * len(knobs.adaptive)
    encoders = sum(
        options.steps * options.batch * (1 + recipe.batch * bool({"gradient-leak", "online"} & set(options.compat)))  # fine-tunes that run along
        for options in [*plans.values(), *adapted]
        if options.attack != "linear"
    )
    per_draw = victims * seeds * knobs.run.pictures * knobs.run.steps * 2
    draws = sum(_draws(options, knobs.run.controls) for options in plans.values()) + 4.5 * knobs.run.controls + 1  # unconditional: one branch of two
    named = sum(name in plans for name in ("spectral", "autoencoder", "constant"))
    changes = len(knobs.transforms) + len(others)
    draws += (named + 1) * changes + len(adapted) + knobs.factors * (1 + changes)  # captions, where factors are read
    matching = victims * seeds * knobs.run.matching_steps * knobs.run.matching_batch * TRAINING_CALLS if knobs.run.controls else 0
    refined = sum(
        bool(knobs.run.refine_steps) and knobs.run.controls and options.examples == "all" and options.attack != "linear" for options in plans.values()
    )
    draws += refined  # and two networks at every picture's steps
    matching += refined * victims * seeds * knobs.run.pictures * knobs.run.refine_steps * 2 * TRAINING_CALLS
    yield {
        "world": knobs.world, "method": recipe.method, "models": models + len(sizes) * len(knobs.sizes.steps) + len(others) * victims * seeds,
        "training": TRAINING_CALLS * (recipe.batch * (models * steps + size_steps) + encoders + sum(others)), "sampling": int(per_draw * draws) + matching,
    }  # fmt: skip


def matrix_rows(study):
    """One dict per method of the matrix of attacks and defences: all trainings (shadows and the shaking among them) and all attacks."""
    matrix = study.defences
    for recipe in matrix.recipes:
        method, seeds, size = recipe.method, len(recipe.seeds), recipe.images_per_concept
        models, trained, changes = matrix.concepts * seeds, set(), {"models": 0, "training": 0, "sampling": 0}
        for item in matrix.of_method(method):
            changes["models"] += models
            if item.private:
                privacy = item.private.options(recipe).privacy
                changes["training"] += TRAINING_CALLS * models * privacy.expected_batch * privacy.multiplicity * privacy.steps
            elif item.aggregate:
                changes["training"] += TRAINING_CALLS * models * size * item.aggregate.steps * item.aggregate.draws
            else:
                options = recipe.model_copy(update=item.change)
                key = options.model_dump_json()
                changes["training"] += 0 if key in trained else models * _trained_once(options) * options.steps_per_image
                trained.add(key)
        released = changes["training"]
        changes["sampling"] = models * sum(_of_attack(study, matrix, method, size, attack) * len(matrix.run(method, attack)) for attack in matrix.attacks)
        use, pictures = matrix.utility, study.population.private_heldout + size
        changes["sampling"] += (changes["models"] + matrix.concepts) * (2 * use.steps * (use.generations + use.obedience) + use.noise_levels * pictures)
        there = [(attack, _of_attack(study, matrix, method, size, attack)) for attack in matrix.further.attacks]
        for _ in matrix.further.bases:  # the same models once more, without shadows and use
            for name, again in (("models", len(matrix.of_method(method)) * models), ("training", released)):
                changes[name] += again
            changes["sampling"] += models * sum(calls * len(matrix.run(method, attack)) for attack, calls in there)
            changes["sampling"] += matrix.concepts * _scored(study, matrix.membership) * ("membership" in matrix.further.attacks)
        if "membership" in matrix.attacks:  # the base, once
            changes["sampling"] += matrix.concepts * _scored(study, matrix.membership)
        if matrix.run(method, "shadows"):
            shadows, plan = matrix.shadows.models * matrix.concepts, matrix.shadows.attack
            for trained in matrix.shadow_sets(method):
                options = matrix.shadow_recipe(method, trained)
                changes["models"] += shadows
                changes["training"] += shadows * _trained_once(options) * options.steps_per_image
            asked = (study.population.private_pool + plan.population) * len(plan.timesteps) * plan.draws
            changes["sampling"] += shadows * asked * len(matrix.run(method, "shadows"))
        if matrix.run(method, "weights-adaptive"):
            changes["training"] += sum(TRAINING_CALLS * _encoder_calls(study, name) for name in _trained_anew(study, method))
        if matrix.run(method, "shake"):
            options = matrix.shake_options(method)
            shaken = models * len(options.defences)
            changes["models"] += shaken
            changes["training"] += shaken * _trained_once(options.recipe) * options.recipe.steps_per_image
            changes["sampling"] += shaken * options.synthesize.count * options.synthesize.steps * 2
        yield {"world": matrix.world, "method": f"{method}, matrix", **changes}


def _trained_anew(study, method):
    """Encoders that the matrix trains beside those of the weights study, one entry per change of weights they expect."""
    known = [change for change in study.defences.known_changes(method) if change not in ("none", *study.lora_weights.adaptive)]
    return study.defences.weights_adaptive * len(known)


def _encoder_calls(study, name):
    (options,) = [plan.options for plan in study.lora_weights.encoders if plan.name == name]
    return 0 if options.attack == "linear" else options.steps * options.batch


def _of_attack(study, matrix, method, size, attack):
    """Calls of a group of attacks on one model under one defence (shadows: none, they are models of their own)."""
    knobs, run = study.finextract, study.lora_weights.run
    if attack == "extraction":
        return size * len(matrix.conditions) * _calls(matrix.generations_per_image, knobs.steps, "finextract")
    if attack in ("membership", "shake"):
        return _scored(study, matrix.membership)
    if attack == "people":
        judged = size + matrix.people.photographs * (1 + matrix.people.strangers)  # at most
        return 2 * judged * len(matrix.people.captions) * len(matrix.people.timesteps) * matrix.people.draws
    if attack == "weights":
        return run.pictures * run.steps * 2 * (len(matrix.weights) + 2)  # each encoder, the true prompt, captions of others
    if attack == "weights-adaptive":
        return run.pictures * run.steps * 2 * len(matrix.weights_adaptive)
    return 0


def _scored(study, membership):
    """Calls of all membership attacks on the pictures of one private concept under one model."""
    attacks = [importlib.import_module(f"tuneleak.attacks.membership.{name.replace('-', '_')}") for name in membership.attacks]
    pictures = study.population.private_pool + study.population.private_heldout
    return pictures * sum(attack.calls(membership) for attack in attacks) * len(membership.captions)


def _draws(options, controls):
    """Settings in which pictures are drawn for an encoder: itself, the second sets, FineXtract's guidance, and four controls."""
    if options.attack == "linear":
        return 0
    every = controls and options.examples == "all"
    return 2 + every + 4 * (every and options.attack != "constant")


def shake_rows(study):
    """One dict per base and set drawn, and per base and model, of Shake-to-Leak; pictures of folders, whose number is unknown here, are not counted."""
    shake = study.shake_to_leak
    kinds = {source.name: source.kind for source in study.images}
    pictures = study.population.named_photographs * sum(kinds[name] == "population" for name in shake.images)
    scoring = shake.domains * pictures * _membership_calls(shake.membership)
    for base in shake.bases:
        told = {"world": shake.world, "models": shake.domains}
        for kind in ["self", *(name for name in shake.controls if name in ("unrelated", "another"))]:
            drawn = shake.domains * (shake.synthesize.count - shake.synthesize.mixed) * shake.synthesize.steps * 2
            yield told | {"method": f"{base.name}, draw {kind}", "models": 0, "training": 0, "sampling": drawn}
        yield told | {"method": f"{base.name}, base", "models": 0, "training": 0, "sampling": scoring}
        yield from _shake_studies(shake, told["world"], base.name, scoring // shake.domains)
        further = shake.further_attacks
        if base.name in further.bases:
            asked = shake.domains * pictures * _membership_calls(further.membership) * (1 + len(further.methods))
            yield told | {"method": f"{base.name}, further attacks", "models": 0, "training": 0, "sampling": asked}
        drawn = shake.regeneration.options.count * shake.regeneration.options.steps * 2 if shake.regeneration.methods else 0
        judged = shake.regeneration.tune_domains + shake.domains * (1 + len(shake.regeneration.methods))
        yield told | {"method": f"{base.name}, regenerate", "models": 0, "training": 0, "sampling": drawn * judged}
        for options in shake.methods:
            once = _trained_once(options) * shake.domains
            for source in ["self", *(shake.controls if options.method in shake.control_methods else [])]:
                name = options.method if source == "self" else f"{options.method} ({source})"
                steps = 1 if source == "lr0" else options.steps_per_image
                yield told | {"method": f"{base.name}, {name}", "training": once * steps, "sampling": scoring}


def _membership_calls(options):
    """Model calls per picture and model."""
    modules = [importlib.import_module(f"tuneleak.attacks.membership.{name.replace('-', '_')}") for name in options.attacks]
    return sum(module.calls(options) for module in modules) * len(options.captions)


def _trained_once(options):
    """Calls of one step per picture of one model."""
    return TRAINING_CALLS * options.images_per_concept * options.batch * (2 if options.method == "dreambooth-prior" else 1)


def _shake_studies(shake, world, base, per_domain):
    """Rows of the studies, further methods and the Gaussian attack of one base; per_domain: scoring calls per model."""
    count = shake.study_domains
    for options in shake.further_methods:
        told = {"world": world, "method": f"{base}, {options.method}", "models": count}
        yield told | {"training": _trained_once(options) * options.steps_per_image * count, "sampling": per_domain * count}
    for point in shake.studies:
        options, drawn = shake.trained(point), shake.drawn(point)
        pictures = (drawn.count - drawn.mixed) * (1 + (drawn.blend_share if drawn.blend else 0)) if drawn and drawn.kind not in ("instrument", "noise") else 0
        losses = shake.set_losses.loss_draws * len(shake.set_losses.loss_timesteps) * shake.synthesize.count if point.study == "steps" else 0
        sampling = count * (int(pictures * drawn.steps * 2 if drawn else 0) + (per_domain + losses) * options.snapshots)
        told = {"world": world, "method": f"{base}, {point.method} {point.study}={point.value}", "models": count * options.snapshots}
        yield told | {"training": _trained_once(options) * options.steps_per_image * count, "sampling": sampling}
    studied = len({point.study for point in shake.studies}) + bool(shake.further_methods)  # each scores the base once more
    models = len(shake.gaussian.perturb.sigmas) * len(shake.gaussian.perturb.seeds) + 1 if shake.gaussian.domains else 0
    again = per_domain * (studied * count + models * shake.gaussian.domains)
    yield {"world": world, "method": f"{base}, Gaussian, base again", "models": max(models - 1, 0), "training": 0, "sampling": again}


def _calls(generations_per_image, steps, attack):
    module = importlib.import_module(f"tuneleak.attacks.extraction.{attack.replace('-', '_')}")
    return generations_per_image * steps * module.CALLS_PER_STEP
