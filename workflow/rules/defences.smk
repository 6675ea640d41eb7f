# Every attack under every defence, on the same models: one model set per method and shard of concepts holds all defences.


include: "common_defences.smk"


wildcard_constraints:
    trained=one_of(MATRIX.defences),


rule finetune_defended:
    input:
        base=matrix_base,
        images=matrix_images,
    output:
        manifest="<results>/defences/{method}/{shard}/models/manifest.csv",
        privacy="<results>/defences/{method}/{shard}/models/privacy.csv",
    log:
        "<logs>/finetune_defended/{method}.{shard}.log",
    benchmark:
        "<benchmarks>/finetune_defended/{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=matrix_place,
        start=first_matrix_concept,
        stop=last_matrix_concept,
        device=DEVICE,
        dtype=study.dtype,
        options=matrix_training,
        code=code("tuneleak.finetune.defended"),
    shell:
        "exec python -m tuneleak finetune-defended --base {params.base:q} --images {params.images:q} --world {params.world}"
        " --split test --start {params.start} --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule defended_membership:
    input:
        models="<results>/defences/{method}/{shard}/models/manifest.csv",
        base=matrix_base,
        images=matrix_images,
    output:
        table="<results>/defences/{method}/{shard}/membership.csv",
    log:
        "<logs>/defended_membership/{method}.{shard}.log",
    benchmark:
        "<benchmarks>/defended_membership/{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(MATRIX.membership),
        code=code("tuneleak.attacks.membership.run", *(codedigest.attack_modules("membership", name)[1] for name in MATRIX.membership.attacks)),
    shell:
        "exec python -m tuneleak attack membership --images {params.images:q} --base {params.base:q} --models {params.models:q} --out {output.table}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule defended_extraction:
    input:
        models="<results>/defences/{method}/{shard}/models/manifest.csv",
        base=matrix_base,
        images=matrix_images,
        instruments=shipped(study.instruments.copy_cluster, study.instruments.copy_score, matrix_reads()),
    output:
        matches="<results>/defences/{method}/{shard}/extraction/matches.csv",
    log:
        "<logs>/defended_extraction/{method}.{shard}.log",
    benchmark:
        "<benchmarks>/defended_extraction/{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.matches, parent=True),
        copy_cluster=copy_cluster,
        copy_score=copy_score,
        factors=matrix_factors_flag,
        instruments=shipped_digest(study.instruments.copy_cluster, study.instruments.copy_score, matrix_reads()),
        device=DEVICE,
        dtype=study.dtype,
        options=matrix_extraction,
        code=code(*codedigest.attack_modules("extraction", "finextract")),
    shell:
        "exec python -m tuneleak attack extraction --models {params.models:q} --images {params.images:q} --base {params.base:q}"
        " --copy-cluster {params.copy_cluster:q} --copy-score {params.copy_score:q} {params.factors} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule defended_people:
    input:
        models="<results>/defences/{method}/{shard}/models/manifest.csv",
        base=matrix_base,
        images=matrix_images,
    output:
        table="<results>/defences/{method}/{shard}/people.csv",
    log:
        "<logs>/defended_people/{method}.{shard}.log",
    benchmark:
        "<benchmarks>/defended_people/{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(MATRIX.people),
        code=code("tuneleak.attacks.membership.people"),
    shell:
        "exec python -m tuneleak attack people --models {params.models:q} --images {params.images:q} --base {params.base:q} --out {output.table}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule defended_utility:
    input:
        models="<results>/defences/{method}/{shard}/models/manifest.csv",
        base=matrix_base,
        images=matrix_images,
        instruments=shipped(study.instruments.copy_score, matrix_reads()),
    output:
        table="<results>/defences/{method}/{shard}/utility.csv",
    log:
        "<logs>/defended_utility/{method}.{shard}.log",
    benchmark:
        "<benchmarks>/defended_utility/{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        copy_score=copy_score,
        factors=matrix_factors_flag,
        instruments=shipped_digest(study.instruments.copy_score, matrix_reads()),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(MATRIX.utility),
        code=code("tuneleak.finetune.utility"),
    shell:
        "exec python -m tuneleak utility --models {params.models:q} --images {params.images:q} --base {params.base:q}"
        " --embedder {params.copy_score:q} {params.factors} --out {output.table:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule defended_weights:
    input:
        models="<results>/defences/{method}/{shard}/models/manifest.csv",
        base=matrix_base,
        images=matrix_images,
        distractors=f"<results>/data/{study.lora_weights.distractors}/manifest.csv",
        encoders=matrix_encoders,
        embedders=shipped(*weights_embedders()),
    output:
        scores="<results>/defences/{method}/{shard}/weights/{knows}/scores.csv",
    log:
        "<logs>/defended_weights/{method}.{shard}.{knows}.log",
    benchmark:
        "<benchmarks>/defended_weights/{method}.{shard}.{knows}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(8, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        distractors=subpath(input.distractors, parent=True),
        encoders=folders_of("encoders"),
        identity_a=identity_a,
        identity_b=identity_b,
        copy_score=copy_score,
        factors=weights_factors_flag,
        shipped=shipped_digest(*weights_embedders()),
        out=subpath(output.scores, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=matrix_weights_options,
        code=code("tuneleak.attacks.weights.run", *matrix_encoder_modules()),
    shell:
        "exec python -m tuneleak attack weights run --models {params.models:q} --images {params.images:q} --distractors {params.distractors:q}"
        " --base {params.base:q} --encoders {params.encoders:q} --identity-a {params.identity_a:q} --identity-b {params.identity_b:q}"
        " --copy-score {params.copy_score:q} {params.factors} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule collect_shadows:
    input:
        base=matrix_base,
        images=matrix_images,
    output:
        manifest="<results>/defences/{method}/{shard}/shadows/{trained}/manifest.csv",
        stack="<results>/defences/{method}/{shard}/shadows/{trained}/weights.safetensors",
    log:
        "<logs>/collect_shadows/{method}.{shard}.{trained}.log",
    benchmark:
        "<benchmarks>/collect_shadows/{method}.{shard}.{trained}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=MATRIX.world,
        start=first_matrix_concept,
        stop=last_matrix_concept,
        device=DEVICE,
        dtype=study.dtype,
        options=matrix_shadow_training,
        code=code("tuneleak.finetune.many"),
    shell:
        "exec python -m tuneleak collect-weights --base {params.base:q} --images {params.images:q} --world {params.world} --split test"
        " --start {params.start} --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule attack_shadows:
    input:
        models="<results>/defences/{method}/{shard}/shadows/{trained}/manifest.csv",
        base=matrix_base,
        images=matrix_images,
    output:
        table="<results>/defences/{method}/{shard}/shadows/{trained}/losses.csv",
    log:
        "<logs>/attack_shadows/{method}.{shard}.{trained}.log",
    benchmark:
        "<benchmarks>/attack_shadows/{method}.{shard}.{trained}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=matrix_shadow_options,
        code=code("tuneleak.attacks.membership.shadows"),
    shell:
        "exec python -m tuneleak attack shadows --models {params.models:q} --images {params.images:q} --base {params.base:q} --out {output.table}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shake_defended:
    input:
        models="<results>/defences/{method}/{shard}/models/manifest.csv",
        base=matrix_base,
        images=matrix_images,
    output:
        manifest="<results>/defences/{method}/{shard}/shaken/manifest.csv",
    log:
        "<logs>/shake_defended/{method}.{shard}.log",
    benchmark:
        "<benchmarks>/shake_defended/{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=MATRIX.world,
        start=first_matrix_concept,
        stop=last_matrix_concept,
        device=DEVICE,
        dtype=study.dtype,
        options=matrix_shake_options,
        code=code("tuneleak.finetune.shaken"),
    shell:
        "exec python -m tuneleak shake-defended --models {params.models:q} --images {params.images:q} --base {params.base:q} --world {params.world}"
        " --split test --start {params.start} --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule shaken_membership:
    input:
        models="<results>/defences/{method}/{shard}/shaken/manifest.csv",
        base=matrix_base,
        images=matrix_images,
    output:
        table="<results>/defences/{method}/{shard}/shaken.csv",
    log:
        "<logs>/shaken_membership/{method}.{shard}.log",
    benchmark:
        "<benchmarks>/shaken_membership/{method}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        base=matrix_base_folder,
        images=subpath(input.images, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(MATRIX.membership),
        code=code("tuneleak.attacks.membership.run", *(codedigest.attack_modules("membership", name)[1] for name in MATRIX.membership.attacks)),
    shell:
        "exec python -m tuneleak attack membership --images {params.images:q} --base {params.base:q} --models {params.models:q} --out {output.table}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule evaluate_defences:
    input:
        **matrix_scores(),
    output:
        table="<results>/metrics/defences/main.csv",
    log:
        "<logs>/evaluate_defences.log",
    benchmark:
        "<benchmarks>/evaluate_defences.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(60),
    params:
        flags=matrix_flags,
        options=as_json(MATRIX.evaluate(study.finextract.evaluate)),
        code=code("tuneleak.metrics.defences"),
    shell:
        "exec python -m tuneleak evaluate defences {params.flags} --out {output.table} --options {params.options:q} > {log} 2>&1"


rule draw_defences:
    input:
        metrics="<results>/metrics/defences/main.csv",
    output:
        tables=collect("<results>/tables/{table}.tex", table=MATRIX_TABLES),
        pdf=collect("<results>/figures/defences/{figure}.pdf", figure=MATRIX_FIGURES),
        png=report(
            collect("<results>/figures/defences/{figure}.png", figure=MATRIX_FIGURES),
            caption="../report/defences.rst",
            category="Defences",
            labels={"preset": study.preset},
        ),
        html=report(
            "<results>/figures/defences/matrix.html",
            caption="../report/defences.rst",
            category="Defences",
            labels={"figure": "matrix with intervals", "preset": study.preset},
        ),
        summary="<results>/figures/defences/summary.md",
    log:
        "<logs>/draw_defences.log",
    benchmark:
        "<benchmarks>/draw_defences.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(20),
    params:
        out=folder_of_matrix_figures,
        tables=folder_of_tables_written,
        code=code("tuneleak.report.figures_defences"),
    shell:
        "exec python -m tuneleak figures defences --metrics {input.metrics} --out {params.out:q} --tables {params.tables:q} > {log} 2>&1"


rule defences:
    input:
        matrix_tables(),
        matrix_figures(),
    localrule: True
