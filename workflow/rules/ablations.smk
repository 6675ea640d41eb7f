# Ablations and defences of FineXtract: one recipe in many variants, one attack with many settings.


include: "common_ablations.smk"


rule finetune_variants:
    input:
        base=ablation_base,
        images=ablation_images,
    output:
        manifest="<results>/ablations/{method}/{split}{shard}/models/manifest.csv",
    log:
        "<logs>/finetune_variants/{method}.{split}{shard}.log",
    benchmark:
        "<benchmarks>/finetune_variants/{method}.{split}{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=ablation_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=ABLATIONS.world,
        start=first_ablation_concept,
        stop=last_ablation_concept,
        device=DEVICE,
        dtype=study.dtype,
        options=variant_options,
        code=code("tuneleak.finetune.variants"),
    shell:
        "exec python -m tuneleak finetune-variants --base {params.base:q} --images {params.images:q} --world {params.world}"
        " --split {wildcards.split} --start {params.start} --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule sweep:
    input:
        models="<results>/ablations/{method}/{split}{shard}/models/manifest.csv",
        images=ablation_images,
        base=ablation_base,
        instruments=shipped(study.instruments.copy_cluster, study.instruments.copy_score),
    output:
        matches="<results>/ablations/{method}/{split}{shard}/sweep/matches.csv",
    log:
        "<logs>/sweep/{method}.{split}{shard}.log",
    benchmark:
        "<benchmarks>/sweep/{method}.{split}{shard}.tsv"
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
        base=ablation_base_folder,
        out=subpath(output.matches, parent=True),
        copy_cluster=copy_cluster,
        copy_score=copy_score,
        instruments=shipped_digest(study.instruments.copy_cluster, study.instruments.copy_score),
        device=DEVICE,
        dtype=study.dtype,
        options=sweep_options,
        code=code("tuneleak.attacks.extraction.sweep", "tuneleak.attacks.extraction.finextract"),
    shell:
        "exec python -m tuneleak attack sweep --models {params.models:q} --images {params.images:q} --base {params.base:q}"
        " --copy-cluster {params.copy_cluster:q} --copy-score {params.copy_score:q} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule variant_utility:
    input:
        models="<results>/ablations/{method}/{split}{shard}/models/manifest.csv",
        images=ablation_images,
        base=ablation_base,
        instruments=shipped(study.instruments.copy_score),
        factors=ablation_factors_of,
    output:
        table="<results>/ablations/{method}/{split}{shard}/utility.csv",
    log:
        "<logs>/variant_utility/{method}.{split}{shard}.log",
    benchmark:
        "<benchmarks>/variant_utility/{method}.{split}{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(120, scaled=True),
    params:
        models=subpath(input.models, parent=True),
        images=subpath(input.images, parent=True),
        base=ablation_base_folder,
        copy_score=copy_score,
        instruments=shipped_digest(study.instruments.copy_score),
        factors=ablation_factors_flag,
        factors_digest=ablation_factors_digest,
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(ABLATIONS.utility),
        code=code("tuneleak.finetune.utility"),
    shell:
        "exec python -m tuneleak utility --models {params.models:q} --images {params.images:q} --base {params.base:q}"
        " --embedder {params.copy_score:q} {params.factors} --out {output.table:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule evaluate_ablations:
    input:
        matches=sweeps("test"),
        tuning=sweeps("tune"),
        utility=ablation_utilities(),
    output:
        table="<results>/metrics/finextract/ablations.csv",
    log:
        "<logs>/evaluate_ablations.log",
    benchmark:
        "<benchmarks>/evaluate_ablations.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(30),
    params:
        options=ablation_evaluate_options,
        code=code("tuneleak.metrics.ablations"),
    shell:
        "exec python -m tuneleak evaluate ablations --matches {input.matches} --tuning {input.tuning} --utility {input.utility}"
        " --out {output.table} --options {params.options:q} > {log} 2>&1"


rule draw_ablations:
    input:
        metrics="<results>/metrics.csv",
    output:
        pdf=collect("<results>/figures/ablations/{figure}.pdf", figure=ABLATION_FIGURES),
        png=report(
            collect("<results>/figures/ablations/{figure}.png", figure=ABLATION_FIGURES),
            caption="../report/ablations.rst",
            category="FineXtract",
            labels={"figure": "ablations and defences", "preset": study.preset},
        ),
    log:
        "<logs>/draw_ablations.log",
    benchmark:
        "<benchmarks>/draw_ablations.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(10),
    params:
        out=lambda wildcards, output: str(Path(output.pdf[0]).parent),
        options=ablation_figure_options(),
        code=code("tuneleak.report.figures_ablations"),
    shell:
        "exec python -m tuneleak figures ablations --metrics {input.metrics} --out {params.out:q} --options {params.options:q} > {log} 2>&1"


rule ablations:
    input:
        ablation_tables(),
    localrule: True
