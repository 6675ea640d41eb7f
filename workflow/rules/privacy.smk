# DP-LDM: private trainings, pictures drawn from them, what those are good for, and audits.


rule finetune_private:
    input:
        base=dp_base,
        images=dp_images,
    output:
        manifest="<results>/dp/{world}/{recipe}/{epsilon}/manifest.csv",
    log:
        "<logs>/finetune_private/{world}.{recipe}.{epsilon}.log",
    benchmark:
        "<benchmarks>/finetune_private/{world}.{recipe}.{epsilon}.tsv"
    wildcard_constraints:
        recipe=one_of(study.dp_ldm.recipes),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=dp_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        device=DEVICE,
        options=dp_training,
        code=code("tuneleak.finetune.private"),
    shell:
        "exec python -m tuneleak finetune-private --base {params.base:q} --images {params.images:q} --world {wildcards.world}"
        " --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule mean_features:
    input:
        base=dp_base,
        images=dp_images,
        network=shipped(study.dp_ldm.perceptual),
    output:
        manifest="<results>/dp/{world}/{recipe}/{epsilon}/manifest.csv",
    log:
        "<logs>/mean_features/{world}.{recipe}.{epsilon}.log",
    benchmark:
        "<benchmarks>/mean_features/{world}.{recipe}.{epsilon}.tsv"
    wildcard_constraints:
        recipe=one_of(study.dp_ldm.mean_features),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=dp_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        network=dp_perceptual,
        network_digest=shipped_digest(study.dp_ldm.perceptual),
        device=DEVICE,
        options=dp_training,
        code=code("tuneleak.finetune.mean_features"),
    shell:
        "exec python -m tuneleak mean-features --base {params.base:q} --images {params.images:q} --world {wildcards.world}"
        " --network {params.network:q} --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule aggregate_embeddings:
    input:
        base=dp_base,
        images=dp_images,
    output:
        manifest="<results>/dp/{world}/{recipe}/{epsilon}/manifest.csv",
    log:
        "<logs>/aggregate_embeddings/{world}.{recipe}.{epsilon}.log",
    benchmark:
        "<benchmarks>/aggregate_embeddings/{world}.{recipe}.{epsilon}.tsv"
    wildcard_constraints:
        recipe=one_of(study.dp_ldm.aggregates),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=dp_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        device=DEVICE,
        options=dp_training,
        code=code("tuneleak.finetune.aggregate"),
    shell:
        "exec python -m tuneleak aggregate-embeddings --base {params.base:q} --images {params.images:q} --world {wildcards.world}"
        " --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule sample_base:
    input:
        base=dp_base,
    output:
        manifest="<results>/dp-samples/{world}/base/{shard}/manifest.csv",
    log:
        "<logs>/sample_base/{world}.{shard}.log",
    benchmark:
        "<benchmarks>/sample_base/{world}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=dp_base_folder,
        out=subpath(output.manifest, parent=True),
        start=first_sample,
        stop=last_sample,
        device=DEVICE,
        dtype="float32",  # what noisy steps changed is finer than bfloat16
        options=dp_sampling,
        code=code("tuneleak.finetune.sample"),
    shell:
        "exec python -m tuneleak sample-classes --base {params.base:q} --start {params.start} --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule sample_private:
    input:
        base=dp_base,
        models="<results>/dp/{world}/{recipe}/{epsilon}/manifest.csv",
    output:
        manifest="<results>/dp-samples/{world}/{recipe}/{epsilon}/{shard}/manifest.csv",
    log:
        "<logs>/sample_private/{world}.{recipe}.{epsilon}.{shard}.log",
    benchmark:
        "<benchmarks>/sample_private/{world}.{recipe}.{epsilon}.{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=dp_base_folder,
        models=subpath(input.models, parent=True),
        out=subpath(output.manifest, parent=True),
        start=first_sample,
        stop=last_sample,
        device=DEVICE,
        dtype="float32",  # what noisy steps changed is finer than bfloat16
        options=dp_sampling,
        code=code("tuneleak.finetune.sample"),
    shell:
        "exec python -m tuneleak sample-classes --base {params.base:q} --models {params.models:q} --start {params.start} --stop {params.stop}"
        " --out {params.out:q} --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule measure_real:
    input:
        images=dp_images,
        instruments=shipped(study.dp_ldm.embedder),
    output:
        table="<results>/dp/{world}/real.csv",
    log:
        "<logs>/measure_real/{world}.log",
    benchmark:
        "<benchmarks>/measure_real/{world}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(120, scaled=True),
    params:
        base=dp_base_folder,
        images=subpath(input.images, parent=True),
        embedder=dp_embedder,
        instruments=shipped_digest(study.dp_ldm.embedder),
        device=DEVICE,
        options=as_json(study.dp_ldm.utility),
        code=code("tuneleak.metrics.dp_utility"),
    shell:
        "exec python -m tuneleak measure dp-ldm --images {params.images:q} --embedder {params.embedder:q} --world {wildcards.world}"
        " --base {params.base:q} --out {output.table} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule measure_private:
    input:
        images=dp_images,
        base=dp_base,
        models=dp_models,
        samples=dp_samples_of,
        instruments=shipped(study.dp_ldm.embedder),
    output:
        table="<results>/dp/{world}/{recipe}/utility.csv",
    log:
        "<logs>/measure_private/{world}.{recipe}.log",
    benchmark:
        "<benchmarks>/measure_private/{world}.{recipe}.tsv"
    wildcard_constraints:
        recipe=one_of([*dp_recipes(), DP_BASE]),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=dp_base_folder,
        images=subpath(input.images, parent=True),
        samples=folders_of("samples"),
        models=dp_models_flag,
        embedder=dp_embedder,
        instruments=shipped_digest(study.dp_ldm.embedder),
        device=DEVICE,
        options=as_json(study.dp_ldm.utility),
        measured=dp_measured,  # a kept table is judged without the models and pictures it was made from
        code=dp_measured_code,
    shell:
        "exec python -m tuneleak measure dp-ldm --images {params.images:q} --samples {params.samples:q} {params.models}"
        " --embedder {params.embedder:q} --world {wildcards.world} --base {params.base:q} --out {output.table}"
        " --device {params.device} --options {params.options:q} > {log} 2>&1"


rule audit_private:
    input:
        images=dp_audit_images,
        base=dp_audit_base,
    output:
        table="<results>/dp/audits/{audit}.csv",
    log:
        "<logs>/audit_private/{audit}.log",
    benchmark:
        "<benchmarks>/audit_private/{audit}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=dp_audit_base_folder,
        images=subpath(input.images, parent=True),
        world=dp_audit_world_name,
        training=dp_audit_training,
        device=DEVICE,
        options=dp_audit_options,
        code=code("tuneleak.privacy.audit"),
    shell:
        "exec python -m tuneleak audit --base {params.base:q} --images {params.images:q} --world {params.world} --training {params.training:q}"
        " --out {output.table} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule count_trainable:
    output:
        table="<results>/dp/architectures.csv",
    log:
        "<logs>/count_trainable.log",
    benchmark:
        "<benchmarks>/count_trainable.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(10),
    params:
        code=code("tuneleak.privacy.architectures"),
    shell:
        "exec python -m tuneleak count-trainable --out {output.table} > {log} 2>&1"


rule evaluate_dp_ldm:
    input:
        utility=dp_utility(),
        further=[*dp_audits(), "<results>/dp/architectures.csv"],
    output:
        table="<results>/metrics/dp-ldm/main.csv",
        bars=report(
            "<results>/metrics/dp-ldm/bars.csv",
            caption="../report/dp_bars.rst",
            category="DP-LDM",
            labels={"figure": "what the worlds can show", "preset": study.preset},
        ),
    log:
        "<logs>/evaluate_dp_ldm.log",
    benchmark:
        "<benchmarks>/evaluate_dp_ldm.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(30),
    params:
        options=as_json(study.dp_ldm.utility),
        code=code("tuneleak.metrics.dp_ldm"),
    shell:
        "exec python -m tuneleak evaluate dp-ldm --utility {input.utility} --further {input.further}"
        " --out {output.table} --options {params.options:q} > {log} 2>&1"


rule dp:
    input:
        rules.evaluate_dp_ldm.output,
    localrule: True
