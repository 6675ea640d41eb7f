# Base models as pipeline folders: assembled from the shipped parts, or fetched from the hub. A local folder is used where it is.


rule assemble:
    input:
        parts=base_parts,
    output:
        index="<results>/bases/{base}/model_index.json",
    log:
        "<logs>/assemble/{base}.log",
    benchmark:
        "<benchmarks>/assemble/{base}.tsv"
    wildcard_constraints:
        base=of_kind(study.bases, "assembled"),
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(10),
    params:
        autoencoder=shipped_autoencoder,
        text_encoder=shipped_text_encoder,
        unet=base_path,
        out=subpath(output.index, parent=True),
        parts=base_parts_digest,
        code=code("tuneleak.models.assemble"),
    shell:
        "exec python -m tuneleak assemble --autoencoder {params.autoencoder:q} --text-encoder {params.text_encoder:q}"
        " --unet {params.unet:q} --out {params.out:q} > {log} 2>&1"


rule fetch_base:
    output:
        index="<results>/bases/{base}/model_index.json",
    log:
        "<logs>/fetch_base/{base}.log",
    benchmark:
        "<benchmarks>/fetch_base/{base}.tsv"
    wildcard_constraints:
        base=of_kind(study.bases, "hub"),
    retries: 2
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(4),
        runtime=minutes(240),
    params:
        repository=base_repository,
        revision=base_revision,
        out=subpath(output.index, parent=True),
        code=code("tuneleak.data.hub"),
    shell:
        "exec python -m tuneleak fetch --kind model --repository {params.repository:q} --revision {params.revision:q} --out {params.out:q} > {log} 2>&1"
