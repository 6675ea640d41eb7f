# Fine-tuning: one job per world, method, split and shard of concepts makes one ModelSet.


rule finetune:
    input:
        base=base_of,
        images=images_of,
    output:
        manifest="<results>/models/{world}/{method}/{split}{shard}/manifest.csv",
    log:
        "<logs>/finetune/{world}.{method}.{split}{shard}.log",
    benchmark:
        "<benchmarks>/finetune/{world}.{method}.{split}{shard}.tsv"
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
        start=first_concept,
        stop=last_concept,
        device=DEVICE,
        dtype=study.dtype,
        options=finetune_options,
        code=code("tuneleak.finetune.loop"),
    shell:
        "exec python -m tuneleak finetune --base {params.base:q} --images {params.images:q} --world {wildcards.world}"
        " --split {wildcards.split} --start {params.start} --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"
