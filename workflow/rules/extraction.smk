# Extraction attacks: on tune concepts the grid of guidance values, on test concepts the frozen ones.


rule extract:
    input:
        models="<results>/models/{world}/{method}/{split}{shard}/manifest.csv",
        images=images_of,
        base=base_of,
        instruments=shipped(study.instruments.copy_cluster, study.instruments.copy_score),
        factors=factors_of,
    output:
        matches="<results>/extraction/{world}/{method}/{split}{shard}/{attack}/matches.csv",
    log:
        "<logs>/extract/{world}.{method}.{split}{shard}.{attack}.log",
    benchmark:
        "<benchmarks>/extract/{world}.{method}.{split}{shard}.{attack}.tsv"
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
        factors=factors_flag,
        instruments=shipped_digest(study.instruments.copy_cluster, study.instruments.copy_score),
        factors_digest=factors_digest,
        device=DEVICE,
        dtype=study.dtype,
        options=extraction_options,
        code=attack_code,
    shell:
        "exec python -m tuneleak attack extraction --models {params.models:q} --images {params.images:q} --base {params.base:q}"
        " --copy-cluster {params.copy_cluster:q} --copy-score {params.copy_score:q} {params.factors} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"
