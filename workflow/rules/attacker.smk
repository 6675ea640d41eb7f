# What an attacker of FineXtract needs to know, and knows afterwards: captions, the attacker's own certainty, people.


include: "common_attacker.smk"


wildcard_constraints:
    label=one_of([OWN, *(recipe.name for recipe in ATTACKER.recipes)]),


rule finetune_drawn_captions:
    input:
        base=base_of,
        images=images_of,
    output:
        manifest="<results>/attacker/models/{world}/{method}/{label}/manifest.csv",
    log:
        "<logs>/finetune_drawn_captions/{world}.{method}.{label}.log",
    benchmark:
        "<benchmarks>/finetune_drawn_captions/{world}.{method}.{label}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        stop=ATTACKER.concepts,
        device=DEVICE,
        dtype=study.dtype,
        options=attacker_recipe,
        code=code("tuneleak.finetune.loop"),
    shell:
        "exec python -m tuneleak finetune --base {params.base:q} --images {params.images:q} --world {wildcards.world} --split test --start 0"
        " --stop {params.stop} --out {params.out:q} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule recover_captions:
    input:
        base=base_of,
        models=caption_models,
    output:
        table="<results>/attacker/captions/{world}/{method}/{label}.csv",
    log:
        "<logs>/recover_captions/{world}.{method}.{label}.log",
    benchmark:
        "<benchmarks>/recover_captions/{world}.{method}.{label}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=base_folder,
        models=folders_of("models"),
        trainings=caption_labels,
        device=DEVICE,
        options=as_json(ATTACKER.recover),
        code=code("tuneleak.attacks.captions.run"),
    shell:
        "exec python -m tuneleak recover-caption --models {params.models:q} --base {params.base:q} --trainings {params.trainings} --out {output.table}"
        " --device {params.device} --options {params.options:q} > {log} 2>&1"


rule extract_under_conditions:
    input:
        models="<results>/models/{world}/{method}/test{shard}/manifest.csv",
        images=images_of,
        base=base_of,
        captions=condition_captions,
        instruments=shipped(study.instruments.copy_cluster, study.instruments.copy_score),
    output:
        matches="<results>/attacker/conditions/{world}/{method}/{shard}/matches.csv",
    log:
        "<logs>/extract_under_conditions/{world}.{method}.{shard}.log",
    benchmark:
        "<benchmarks>/extract_under_conditions/{world}.{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        images=subpath(input.images, parent=True),
        base=base_folder,
        out=subpath(output.matches, parent=True),
        copy_cluster=copy_cluster,
        copy_score=copy_score,
        captions=condition_captions_flag,
        instruments=shipped_digest(study.instruments.copy_cluster, study.instruments.copy_score),
        device=DEVICE,
        dtype=study.dtype,
        options=condition_options,
        code=code(*codedigest.attack_modules("extraction", "finextract")),
    shell:
        "exec python -m tuneleak attack extraction --models {params.models:q} --images {params.images:q} --base {params.base:q}"
        " --copy-cluster {params.copy_cluster:q} --copy-score {params.copy_score:q} {params.captions} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule judge_people:
    input:
        models=people_models,
        images=images_of,
        base=base_of,
    output:
        table="<results>/attacker/people/{world}.csv",
    log:
        "<logs>/judge_people/{world}.log",
    benchmark:
        "<benchmarks>/judge_people/{world}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        models=folders_of("models"),
        images=subpath(input.images, parent=True),
        base=base_folder,
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(ATTACKER.people),
        code=code("tuneleak.attacks.membership.people"),
    shell:
        "exec python -m tuneleak attack people --models {params.models:q} --images {params.images:q} --base {params.base:q} --out {output.table}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule collect_clusters:
    input:
        matches=cluster_matches(),
        controls=cluster_controls(),
        images=cluster_images(),
        tau=collect("<results>/extraction/{world}/tau.json", world=ATTACKER.worlds),
        instruments=shipped(study.instruments.copy_cluster, study.instruments.copy_score),
    output:
        table="<results>/attacker/clusters.csv",
    log:
        "<logs>/collect_clusters.log",
    benchmark:
        "<benchmarks>/collect_clusters.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(60, scaled=True),
    params:
        images=folders_of("images"),
        copy_cluster=copy_cluster,
        copy_score=copy_score,
        instruments=shipped_digest(study.instruments.copy_cluster, study.instruments.copy_score),
        device=DEVICE,
        code=code("tuneleak.attacks.extraction.clusters"),
    shell:
        "exec python -m tuneleak certainty --matches {input.matches} --controls {input.controls} --images {params.images:q} --copy-cluster {params.copy_cluster:q}"
        " --copy-score {params.copy_score:q} --tau {input.tau} --device {params.device} --out {output.table} > {log} 2>&1"


rule evaluate_attacker:
    input:
        captions=caption_tables(),
        matches=condition_tables(),
        clusters=cluster_tables(),
        people=people_tables(),
    output:
        table="<results>/metrics/finextract/attacker.csv",
    log:
        "<logs>/evaluate_attacker.log",
    benchmark:
        "<benchmarks>/evaluate_attacker.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(30),
    params:
        flags=attacker_flags,
        options=as_json(study.finextract.evaluate),
        code=code("tuneleak.metrics.attacker"),
    shell:
        "exec python -m tuneleak evaluate attacker {params.flags} --out {output.table} --options {params.options:q} > {log} 2>&1"


rule draw_attacker:
    input:
        metrics="<results>/metrics/finextract/attacker.csv",
        clusters=cluster_tables(),
    output:
        pdf=collect("<results>/figures/attacker/{figure}.pdf", figure=ATTACKER_FIGURES),
        png=report(
            collect("<results>/figures/attacker/{figure}.png", figure=ATTACKER_FIGURES),
            caption="../report/attacker.rst",
            category="FineXtract",
            labels={"preset": study.preset},
        ),
    log:
        "<logs>/draw_attacker.log",
    benchmark:
        "<benchmarks>/draw_attacker.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(20),
    params:
        clusters=clusters_flag,
        out=folder_of_attacker_figures,
        code=code("tuneleak.report.figures_attacker"),
    shell:
        "exec python -m tuneleak figures attacker --metrics {input.metrics} {params.clusters} --out {params.out:q} > {log} 2>&1"


rule attacker:
    input:
        attacker_tables(),
        attacker_figures(),
    localrule: True
