# Look-ups of the Shake-to-Leak study. No rules here.
SHAKE = study.shake_to_leak
SHAKE_BASES = [base.name for base in SHAKE.bases]
SHAKE_SETS = ["self", *(name for name in SHAKE.controls if name != "lr0")]  # sets of pictures; lr0 fine-tunes on the self-made one
SHAKE_RUNS = [("self", options.method) for options in SHAKE.methods] + [(name, method) for name in SHAKE.controls for method in SHAKE.control_methods]
SHAKE_SHARDS = range(-(-SHAKE.domains // SHAKE.shard_domains))
SHAKE_FIGURES = ["amplification", "roc", "dose"]


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


def shake_tables():
    """The metrics table of the study, if this preset runs it."""
    return [f"{RESULTS}/metrics/shake-to-leak/main.csv"] if SHAKE.bases else []


def shake_figures():
    return [f"{RESULTS}/figures/shake-to-leak/shake_{name}.pdf" for name in SHAKE_FIGURES] if SHAKE.bases else []


def shake_membership_code():
    return code(*(module for name in SHAKE.membership.attacks for module in codedigest.attack_modules("membership", name)))
