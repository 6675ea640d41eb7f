# Shake-to-Leak: self-made sets, fine-tunes on them, membership scores of base and tuned models in one job per shard of domains.


wildcard_constraints:
    source=one_of([*SHAKE_SETS, "lr0"]),
    tuning=one_of(options.method for options in SHAKE.methods),


rule shake_synthesize:
    input:
        base=shake_base,
        images=shake_domains,
        reference=shake_reference(),
    output:
        manifest="<results>/shake-to-leak/{base}/sets/{source}/manifest.csv",
    log:
        "<logs>/shake_synthesize/{base}.{source}.log",
    benchmark:
        "<benchmarks>/shake_synthesize/{base}.{source}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=subpath(input.images, parent=True),
        reference=shake_reference_flag,
        out=subpath(output.manifest, parent=True),
        start=SHAKE.first_domain,
        stop=SHAKE.first_domain + SHAKE.domains,
        device=DEVICE,
        dtype=study.dtype,
        options=shake_synthesize_options,
        code=code("tuneleak.finetune.synthesize"),
    shell:
        "exec python -m tuneleak synthesize --images {params.images:q} --base {params.base:q} {params.reference} --start {params.start} --stop {params.stop}"
        " --out {params.out:q} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_finetune:
    input:
        base=shake_base,
        images=shake_set,
    output:
        manifest="<results>/shake-to-leak/{base}/models/{source}/{tuning}/{shard}/manifest.csv",
    log:
        "<logs>/shake_finetune/{base}.{source}.{tuning}.{shard}.log",
    benchmark:
        "<benchmarks>/shake_finetune/{base}.{source}.{tuning}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(1440),
    params:
        base=shake_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        start=shake_first,
        stop=shake_last,
        device=DEVICE,
        dtype=study.dtype,
        options=shake_finetune_options,
        code=code("tuneleak.finetune.loop"),
    shell:
        "exec python -m tuneleak finetune --base {params.base:q} --images {params.images:q} --world {wildcards.source} --split test"
        " --start {params.start} --stop {params.stop} --out {params.out:q} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_scores:
    input:
        base=shake_base,
        images=shake_images(),
        models=shake_models,
        members=shake_members,
        blind=shipped(SHAKE.blind),
    output:
        scores="<results>/shake-to-leak/{base}/scores{shard}.csv",
    log:
        "<logs>/shake_scores/{base}.{shard}.log",
    benchmark:
        "<benchmarks>/shake_scores/{base}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=folders_of("images"),
        models=folders_of("models"),
        blind=shake_blind_flag,
        blind_digest=shipped_digest(SHAKE.blind),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(SHAKE.membership),
        code=shake_membership_code(),
    shell:
        "exec python -m tuneleak attack membership --images {params.images:q} --base {params.base:q} --models {params.models:q}"
        " --members {input.members} {params.blind} --out {output.scores} --device {params.device} --dtype {params.dtype}"
        " --options {params.options:q} > {log} 2>&1"


rule shake_draw_point:
    input:
        base=shake_base,
        images=shake_domains,
        reference=shake_reference(),
        before=shake_before,
    output:
        manifest="<results>/shake-to-leak/{base}/sets/{point}/manifest.csv",
    log:
        "<logs>/shake_draw_point/{base}.{point}.log",
    benchmark:
        "<benchmarks>/shake_draw_point/{base}.{point}.tsv"
    wildcard_constraints:
        point=one_of(SHAKE_SET_POINTS),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=subpath(input.images, parent=True),
        reference=shake_reference_flag,
        before=shake_before_flag,
        out=subpath(output.manifest, parent=True),
        start=SHAKE.first_domain,
        stop=SHAKE_STUDY_STOP,
        device=DEVICE,
        dtype=study.dtype,
        options=shake_point_drawn,
        code=code("tuneleak.finetune.synthesize"),
    shell:
        "exec python -m tuneleak synthesize --images {params.images:q} --base {params.base:q} {params.reference} {params.before} --start {params.start}"
        " --stop {params.stop} --out {params.out:q} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_finetune_point:
    input:
        base=shake_base,
        images=shake_point_set,
        before=shake_before,
    output:
        manifest="<results>/shake-to-leak/{base}/points/{point}/manifest.csv",
    log:
        "<logs>/shake_finetune_point/{base}.{point}.log",
    benchmark:
        "<benchmarks>/shake_finetune_point/{base}.{point}.tsv"
    wildcard_constraints:
        point=one_of(SHAKE_POINTS),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(1440),
    params:
        base=shake_base_folder,
        images=subpath(input.images, parent=True),
        before=shake_before_flag,
        world=shake_point_world,
        out=subpath(output.manifest, parent=True),
        stop=SHAKE.study_domains,
        device=DEVICE,
        dtype=study.dtype,
        options=shake_point_trained,
        code=code("tuneleak.finetune.loop"),
    shell:
        "exec python -m tuneleak finetune --base {params.base:q} --images {params.images:q} {params.before} --world {params.world} --split test"
        " --start 0 --stop {params.stop} --out {params.out:q} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_finetune_further:
    input:
        base=shake_base,
        images="<results>/shake-to-leak/{base}/sets/self/manifest.csv",
    output:
        manifest="<results>/shake-to-leak/{base}/further/{further}/manifest.csv",
    log:
        "<logs>/shake_finetune_further/{base}.{further}.log",
    benchmark:
        "<benchmarks>/shake_finetune_further/{base}.{further}.tsv"
    wildcard_constraints:
        further=one_of(options.method for options in SHAKE.further_methods),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(1440),
    params:
        base=shake_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        stop=SHAKE.study_domains,
        device=DEVICE,
        dtype=study.dtype,
        options=shake_further_options,
        code=code("tuneleak.finetune.loop"),
    shell:
        "exec python -m tuneleak finetune --base {params.base:q} --images {params.images:q} --world self --split test --start 0 --stop {params.stop}"
        " --out {params.out:q} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_study_scores:
    input:
        base=shake_base,
        images=shake_images(),
        models=shake_study_models,
        members=shake_members,
    output:
        scores="<results>/shake-to-leak/{base}/study-{study}.csv",
    log:
        "<logs>/shake_study_scores/{base}.{study}.log",
    benchmark:
        "<benchmarks>/shake_study_scores/{base}.{study}.tsv"
    wildcard_constraints:
        study=one_of(SHAKE_STUDIES),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=folders_of("images"),
        models=folders_of("models"),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(SHAKE.membership),
        code=shake_membership_code(),
    shell:
        "exec python -m tuneleak attack membership --images {params.images:q} --base {params.base:q} --models {params.models:q}"
        " --members {input.members} --out {output.scores} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_further_attacks:
    input:
        base=shake_base,
        images=shake_images(),
        models=shake_further_models,
        members=shake_members,
    output:
        scores="<results>/shake-to-leak/{base}/further-attacks{shard}.csv",
    log:
        "<logs>/shake_further_attacks/{base}.{shard}.log",
    benchmark:
        "<benchmarks>/shake_further_attacks/{base}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=folders_of("images"),
        models=folders_of("models"),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(SHAKE.further_attacks.membership),
        code=shake_membership_code(SHAKE.further_attacks.membership),
    shell:
        "exec python -m tuneleak attack membership --images {params.images:q} --base {params.base:q} --models {params.models:q}"
        " --members {input.members} --out {output.scores} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_set_losses:
    input:
        base=shake_base,
        images="<results>/shake-to-leak/{base}/sets/self/manifest.csv",
        models=shake_steps_models,
    output:
        scores="<results>/shake-to-leak/{base}/set-losses.csv",
    log:
        "<logs>/shake_set_losses/{base}.log",
    benchmark:
        "<benchmarks>/shake_set_losses/{base}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=subpath(input.images, parent=True),
        models=folders_of("models"),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(SHAKE.set_losses),
        code=shake_membership_code(),
    shell:
        "exec python -m tuneleak attack membership --images {params.images:q} --base {params.base:q} --models {params.models:q}"
        " --out {output.scores} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_perturb:
    input:
        base=shake_base,
    output:
        manifest="<results>/shake-to-leak/{base}/gaussian/manifest.csv",
    log:
        "<logs>/shake_perturb/{base}.log",
    benchmark:
        "<benchmarks>/shake_perturb/{base}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(60, scaled=True),
    params:
        base=shake_base_folder,
        out=subpath(output.manifest, parent=True),
        device=DEVICE,
        options=shake_perturb_options(),
        code=code("tuneleak.defences.gaussian_attack"),
    shell:
        "exec python -m tuneleak perturb --base {params.base:q} --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule shake_gaussian_scores:
    input:
        base=shake_base,
        images=shake_images(),
        models="<results>/shake-to-leak/{base}/gaussian/manifest.csv",
        members=shake_members,
    output:
        scores="<results>/shake-to-leak/{base}/gaussian.csv",
    log:
        "<logs>/shake_gaussian_scores/{base}.log",
    benchmark:
        "<benchmarks>/shake_gaussian_scores/{base}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=folders_of("images"),
        models=subpath(input.models, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=shake_gaussian_options(),
        code=shake_membership_code(),
    shell:
        "exec python -m tuneleak attack membership --images {params.images:q} --base {params.base:q} --models {params.models:q}"
        " --members {input.members} --out {output.scores} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_fidelity:
    input:
        sets=collect("<results>/shake-to-leak/{base}/sets/{source}/manifest.csv", base=SHAKE_BASES, source=[*SHAKE_SETS, *SHAKE_SET_POINTS]),
        reference=shake_reference(),
        instruments=shipped(study.instruments.copy_score, SHAKE.identity, SHAKE.clip),
    output:
        table="<results>/metrics/shake-to-leak/fidelity.csv",
    log:
        "<logs>/shake_fidelity.log",
    benchmark:
        "<benchmarks>/shake_fidelity.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(60, scaled=True),
    params:
        sets=folders_of("sets"),
        reference=shake_reference_flag,
        copy_score=copy_score,
        identity=shake_identity,
        clip=shake_clip,
        instruments=shipped_digest(study.instruments.copy_score, SHAKE.identity, SHAKE.clip),
        world=SHAKE.world,
        device=DEVICE,
        code=code("tuneleak.metrics.fidelity"),
    shell:
        "exec python -m tuneleak fidelity --synthetic {params.sets:q} {params.reference} --copy-score {params.copy_score:q} --identity {params.identity:q}"
        " --clip {params.clip:q} --world {params.world} --device {params.device} --out {output.table} > {log} 2>&1"


rule shake_calibrate:
    input:
        base=shake_base,
        images=shake_images(),
        members=shake_members,
        clip=shipped(SHAKE.clip),
    output:
        thresholds="<results>/shake-to-leak/{base}/thresholds.json",
    log:
        "<logs>/shake_calibrate/{base}.log",
    benchmark:
        "<benchmarks>/shake_calibrate/{base}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(120, scaled=True),
    params:
        base=shake_base_folder,
        images=folders_of("images"),
        clip=shake_clip_flag,
        clip_digest=shipped_digest(SHAKE.clip),
        stop=SHAKE.regeneration.tune_domains,
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(SHAKE.regeneration.options),
        code=code("tuneleak.attacks.regeneration.calibrate"),
    shell:
        "exec python -m tuneleak calibrate-regeneration --images {params.images:q} --base {params.base:q} --members {input.members} {params.clip}"
        " --start 0 --stop {params.stop} --out {output.thresholds} --device {params.device} --dtype {params.dtype}"
        " --options {params.options:q} > {log} 2>&1"


rule shake_regenerate:
    input:
        base=shake_base,
        images=shake_images(),
        models=shake_regenerated_models,
        members=shake_members,
        thresholds=shake_thresholds_of,
        clip=shipped(SHAKE.clip),
    output:
        pictures="<results>/shake-to-leak/{base}/regeneration{shard}/pictures.csv",
        generations="<results>/shake-to-leak/{base}/regeneration{shard}/generations.csv",
        pairs="<results>/shake-to-leak/{base}/regeneration{shard}/pairs/manifest.csv",
    log:
        "<logs>/shake_regenerate/{base}.{shard}.log",
    benchmark:
        "<benchmarks>/shake_regenerate/{base}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=shake_base_folder,
        images=folders_of("images"),
        models=folders_of("models"),
        thresholds=shake_thresholds_flag,
        clip=shake_clip_flag,
        clip_digest=shipped_digest(SHAKE.clip),
        start=functools.partial(shake_domain, offset=shake_first),
        stop=functools.partial(shake_domain, offset=shake_last),
        out=subpath(output.pictures, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(SHAKE.regeneration.options),
        code=code("tuneleak.attacks.regeneration.run"),
    shell:
        "exec python -m tuneleak attack regeneration --images {params.images:q} --base {params.base:q} --models {params.models:q}"
        " --members {input.members} {params.clip} {params.thresholds} --start {params.start} --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule evaluate_shake:
    input:
        scores=shake_scores_tables(),
        losses=shake_set_losses(),
        regeneration=[*shake_regenerated_tables("pictures"), *shake_regenerated_tables("generations"), *shake_thresholds()],
        fidelity=shake_fidelity(),
    output:
        table="<results>/metrics/shake-to-leak/main.csv",
    log:
        "<logs>/evaluate_shake.log",
    benchmark:
        "<benchmarks>/evaluate_shake.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(60),
    params:
        fidelity=shake_fidelity_flag(),
        regeneration=shake_regeneration_flags(),
        losses=shake_set_losses_flag(),
        world=SHAKE.world,
        options=shake_evaluate_options(),
        code=code("tuneleak.metrics.shake_to_leak"),
    shell:
        "exec python -m tuneleak evaluate shake-to-leak --scores {input.scores} {params.losses} {params.regeneration} {params.fidelity} --world {params.world}"
        " --out {output.table} --options {params.options:q} > {log} 2>&1"


rule evaluate_shake_further:
    input:
        scores=shake_further_tables(),
    output:
        table="<results>/metrics/shake-to-leak/further-attacks.csv",
    log:
        "<logs>/evaluate_shake_further.log",
    benchmark:
        "<benchmarks>/evaluate_shake_further.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(60),
    params:
        world=SHAKE.world,
        options=as_json(SHAKE.evaluate, alone=SHAKE.further_attacks.bases),
        code=code("tuneleak.metrics.shake_to_leak"),
    shell:
        "exec python -m tuneleak evaluate shake-to-leak --scores {input.scores} --world {params.world}"
        " --out {output.table} --options {params.options:q} > {log} 2>&1"


rule draw_shake:
    input:
        metrics="<results>/metrics/shake-to-leak/main.csv",
        scores=collect("<results>/shake-to-leak/{base}/scores{shard}.csv", base=SHAKE_BASES, shard=SHAKE_SHARDS),
        pairs=shake_pairs(),
        images=shake_images(),
    output:
        pdf=collect("<results>/figures/shake-to-leak/shake_{figure}.pdf", figure=SHAKE_FIGURES),
        amplification=report(
            "<results>/figures/shake-to-leak/shake_amplification.png",
            caption="../report/shake_amplification.rst",
            category="Shake-to-Leak",
            labels={"figure": "amplification", "preset": study.preset},
        ),
    log:
        "<logs>/draw_shake.log",
    benchmark:
        "<benchmarks>/draw_shake.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(20),
    params:
        out=subpath(output.amplification, parent=True),
        pairs=shake_pairs_flag,
        code=code("tuneleak.report.figures_shake"),
    shell:
        "exec python -m tuneleak figures shake-to-leak --metrics {input.metrics} --scores {input.scores} {params.pairs} --out {params.out:q} > {log} 2>&1"


rule shake:
    input:
        shake_tables(),
        shake_figures(),
    localrule: True
