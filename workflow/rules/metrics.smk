# From matches to metrics.


rule calibrate:
    input:
        images=images_of,
        instruments=shipped(study.instruments.copy_score),
    output:
        tau="<results>/extraction/{world}/tau.json",
    log:
        "<logs>/calibrate/{world}.log",
    benchmark:
        "<benchmarks>/calibrate/{world}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=gigabytes(4, scaled=True),
        runtime=minutes(30, scaled=True),
    params:
        images=subpath(input.images, parent=True),
        copy_score=copy_score,
        instruments=shipped_digest(study.instruments.copy_score),
        n_images=n_images,
        stop=tune_concepts,
        device=DEVICE,
        options=as_json(study.finextract.evaluate),
        code=code("tuneleak.metrics.finextract"),
    shell:
        "exec python -m tuneleak calibrate --images {params.images:q} --copy-score {params.copy_score:q} --n-images {params.n_images}"
        " --world {wildcards.world} --split tune --start 0 --stop {params.stop} --device {params.device} --out {output.tau} --options {params.options:q} > {log} 2>&1"


rule evaluate_finextract:
    input:
        matches=matches_of_table,
        tau=collect("<results>/extraction/{world}/tau.json", world=world_names()),
    output:
        table="<results>/metrics/finextract/{table}.csv",
    log:
        "<logs>/evaluate_finextract/{table}.log",
    benchmark:
        "<benchmarks>/evaluate_finextract/{table}.tsv"
    wildcard_constraints:
        table="main|tuning",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(30),
    params:
        options=as_json(study.finextract.evaluate),
        code=code("tuneleak.metrics.finextract"),
    shell:
        "exec python -m tuneleak evaluate finextract --matches {input.matches} --tau {input.tau}"
        " --out {output.table} --options {params.options:q} > {log} 2>&1"


rule join_metrics:
    input:
        tables=[
            "<results>/metrics/finextract/main.csv",
            *ablation_tables(),
            *attacker_tables(),
            *shake_tables(),
            *matrix_tables(),
            "<results>/metrics/lora-weights/main.csv",
            "<results>/metrics/dp-ldm/main.csv",
        ],
    output:
        table="<results>/metrics.csv",
    log:
        "<logs>/join_metrics.log",
    benchmark:
        "<benchmarks>/join_metrics.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(1),
        runtime=minutes(10),
    params:
        code=code("tuneleak.metrics.join"),
    shell:
        "exec python -m tuneleak join-metrics --metrics {input.tables} --out {output.table} > {log} 2>&1"


rule finextract:
    input:
        collect("<results>/metrics/finextract/{table}.csv", table=["main", "tuning"]),
        attacker_tables(),
    localrule: True
