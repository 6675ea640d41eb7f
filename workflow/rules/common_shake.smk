# Look-ups of the Shake-to-Leak study. No rules here.
SHAKE = study.shake_to_leak
SHAKE_BASES = [base.name for base in SHAKE.bases]
SHAKE_SETS = ["self", *(name for name in SHAKE.controls if name != "lr0")]  # sets of pictures; lr0 fine-tunes on the self-made one
SHAKE_RUNS = [("self", options.method) for options in SHAKE.methods] + [(name, method) for name in SHAKE.controls for method in SHAKE.control_methods]
SHAKE_SHARDS = range(-(-SHAKE.domains // SHAKE.shard_domains))
SHAKE_FIGURES = ["amplification", "roc", "dose", *(["regeneration", "pairs"] if SHAKE.regeneration.methods else [])]
SHAKE_FIGURES += ["studies"] if SHAKE.studies or SHAKE.gaussian.domains else []
SHAKE_POINTS = [point.name for point in SHAKE.studies]
SHAKE_SET_POINTS = [point.name for point in SHAKE.studies if SHAKE.drawn(point)]  # with a set of their own
SHAKE_STUDIES = sorted({point.study for point in SHAKE.studies}) + (["methods"] if SHAKE.further_methods else [])
SHAKE_STUDY_STOP = SHAKE.first_domain + SHAKE.study_domains


def shake_base_folder(wildcards):
    return pipeline_folder(wildcards.base)


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


def shake_fidelity_flag():
    return f"--fidelity {shake_fidelity()[0]}" if shake_fidelity() else ""


# --- studies: recipes with something changed, further methods, and the Gaussian attack


def shake_point(wildcards):
    return one(SHAKE.studies, name=wildcards.point)


def shake_point_folder(base, point):
    return f"{RESULTS}/shake-to-leak/{base}/points/{point}"


def shake_before(wildcards):
    """The models that a point goes on from, if it does."""
    point = shake_point(wildcards)
    if point.after == "self":
        return [f"{RESULTS}/shake-to-leak/{wildcards.base}/models/self/{point.method}/0/manifest.csv"]
    return [f"{shake_point_folder(wildcards.base, f'{point.study}-{point.after}-{point.method}')}/manifest.csv"] if point.after else []


def shake_before_flag(wildcards, input):
    return f"--models {shlex.quote(str(Path(input.before[0]).parent))}" if input.before else ""


def shake_point_set(wildcards):
    name = wildcards.point if wildcards.point in SHAKE_SET_POINTS else "self"
    return f"{RESULTS}/shake-to-leak/{wildcards.base}/sets/{name}/manifest.csv"


def shake_point_drawn(wildcards):
    return as_json(SHAKE.drawn(shake_point(wildcards)))


def shake_point_trained(wildcards):
    return as_json(SHAKE.trained(shake_point(wildcards)))


def shake_point_world(wildcards):
    """What tables call a point; of the study `steps`, whose models are told apart by their steps, the bare name."""
    point = shake_point(wildcards)
    return point.study if point.study == "steps" else f"{point.study}={point.value}"


def shake_point_method(wildcards):
    return shake_point(wildcards).method


def shake_further_options(wildcards):
    return as_json(one(SHAKE.further_methods, method=wildcards.further))


def shake_study_models(wildcards):
    if wildcards.study == "methods":
        return [f"{RESULTS}/shake-to-leak/{wildcards.base}/further/{options.method}/manifest.csv" for options in SHAKE.further_methods]
    return [f"{shake_point_folder(wildcards.base, point.name)}/manifest.csv" for point in SHAKE.studies if point.study == wildcards.study]


def shake_steps_models(wildcards):
    return [f"{shake_point_folder(wildcards.base, point.name)}/manifest.csv" for point in SHAKE.studies if point.study == "steps"]


def shake_scores_tables():
    """All tables of membership scores: the main study, the other studies, the Gaussian attack."""
    folders = [f"{RESULTS}/shake-to-leak/{base}" for base in SHAKE_BASES]
    found = [f"{folder}/scores{shard}.csv" for folder in folders for shard in SHAKE_SHARDS]
    found += [f"{folder}/study-{name}.csv" for folder in folders for name in SHAKE_STUDIES]
    return found + [f"{folder}/gaussian.csv" for folder in folders if SHAKE.gaussian.domains]


def shake_further_models(wildcards):
    folder = f"{RESULTS}/shake-to-leak/{wildcards.base}/models"
    return [f"{folder}/self/{method}/{wildcards.shard}/manifest.csv" for method in SHAKE.further_attacks.methods]


def shake_further_tables():
    """Tables of the attacks that only a few models are judged by."""
    return [f"{RESULTS}/shake-to-leak/{base}/further-attacks{shard}.csv" for base in SHAKE.further_attacks.bases for shard in SHAKE_SHARDS]


def shake_set_losses():
    return [f"{RESULTS}/shake-to-leak/{base}/set-losses.csv" for base in SHAKE_BASES] if "steps" in SHAKE_STUDIES else []


def shake_set_losses_flag():
    return f"--set-losses {' '.join(shake_set_losses())}" if shake_set_losses() else ""


def shake_perturb_options():
    return as_json(SHAKE.gaussian.perturb)


def shake_gaussian_options():
    return as_json(SHAKE.membership, concepts=SHAKE.gaussian.domains, first_concept=SHAKE.first_domain)


def shake_evaluate_options():
    return as_json(SHAKE.evaluate, alone=[base.name for base in SHAKE.bases if not base.pooled])


# --- regeneration: pictures drawn by base and tuned models, held against members and held-outs


def shake_regenerated():
    """(base, shard) folders of drawn and judged pictures; none where no method is named."""
    return [f"{RESULTS}/shake-to-leak/{base}/regeneration{shard}" for base in SHAKE_BASES for shard in SHAKE_SHARDS] if SHAKE.regeneration.methods else []


def shake_regenerated_tables(name):
    return [f"{folder}/{name}.csv" for folder in shake_regenerated()]


def shake_thresholds():
    return [f"{RESULTS}/shake-to-leak/{base}/thresholds.json" for base in SHAKE_BASES] if SHAKE.regeneration.methods and SHAKE.regeneration.tune_domains else []


def shake_thresholds_of(wildcards):
    return f"{RESULTS}/shake-to-leak/{wildcards.base}/thresholds.json" if SHAKE.regeneration.tune_domains else []


def shake_thresholds_flag(wildcards, input):
    return f"--thresholds {shlex.quote(input.thresholds)}" if input.thresholds else ""


def shake_regenerated_models(wildcards):
    folder = f"{RESULTS}/shake-to-leak/{wildcards.base}/models"
    return [f"{folder}/self/{method}/{wildcards.shard}/manifest.csv" for method in SHAKE.regeneration.methods]


def shake_domain(wildcards, offset):
    return SHAKE.first_domain + offset(wildcards)


def shake_clip_flag(wildcards):
    return f"--clip {shlex.quote(SHAKE.clip)}" if SHAKE.clip else ""


def shake_regeneration_flags():
    """Of `evaluate`: the tables and thresholds of regeneration, if it is run."""
    flags = [f"--pictures {' '.join(shake_regenerated_tables('pictures'))} --generations {' '.join(shake_regenerated_tables('generations'))}"]
    return " ".join(flags + ([f"--thresholds {' '.join(shake_thresholds())}"] if shake_thresholds() else [])) if shake_regenerated() else ""


def shake_pairs():
    return [f"{folder}/pairs/manifest.csv" for folder in shake_regenerated()]


def shake_pairs_flag(wildcards, input):
    """Of `figures`: the nearest pairs and the members they are near to, if pictures were drawn."""
    folders = [" ".join(shlex.quote(str(Path(path).parent)) for path in group) for group in (input.pairs, input.images)]
    return f"--pairs {folders[0]} --images {folders[1]}" if input.pairs else ""


def shake_tables():
    """The metrics tables of the study, if this preset runs it."""
    further = [f"{RESULTS}/metrics/shake-to-leak/further-attacks.csv"] if SHAKE.further_attacks.bases else []
    return [f"{RESULTS}/metrics/shake-to-leak/main.csv", *further] if SHAKE.bases else []


def shake_figures():
    return [f"{RESULTS}/figures/shake-to-leak/shake_{name}.pdf" for name in SHAKE_FIGURES] if SHAKE.bases else []


def shake_membership_code(options=SHAKE.membership):
    return code(*(module for name in options.attacks for module in codedigest.attack_modules("membership", name)))
