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


rule train_first_stage:
    input:
        images=public_images,
    output:
        config="<results>/first-stages/{base}/config.json",
        weights="<results>/first-stages/{base}/diffusion_pytorch_model.safetensors",
    log:
        "<logs>/train_first_stage/{base}.log",
    benchmark:
        "<benchmarks>/train_first_stage/{base}.tsv"
    wildcard_constraints:
        base=of_kind(study.bases, "trained"),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(16),
        runtime=minutes(2880),
    params:
        images=subpath(input.images, parent=True),
        perceptual=perceptual_flag,
        out=subpath(output.config, parent=True),
        device=DEVICE,
        options=first_stage_options,
        code=code("tuneleak.models.train_first_stage"),
    shell:
        "exec python -m tuneleak train-first-stage --images {params.images:q} {params.perceptual} --out {params.out:q}"
        " --device {params.device} --options {params.options:q} > {log} 2>&1"


rule train_latent_diffusion:
    input:
        images=public_images,
        first_stage="<results>/first-stages/{base}/config.json",
    output:
        index="<results>/bases/{base}/model_index.json",
    log:
        "<logs>/train_latent_diffusion/{base}.log",
    benchmark:
        "<benchmarks>/train_latent_diffusion/{base}.tsv"
    wildcard_constraints:
        base=of_kind(study.bases, "trained"),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(16),
        runtime=minutes(2880),
    params:
        images=subpath(input.images, parent=True),
        first_stage=subpath(input.first_stage, parent=True),
        out=subpath(output.index, parent=True),
        device=DEVICE,
        options=diffusion_options,
        code=code("tuneleak.models.train_latent_diffusion"),
    shell:
        "exec python -m tuneleak train-latent-diffusion --images {params.images:q} --first-stage {params.first_stage:q} --out {params.out:q}"
        " --device {params.device} --options {params.options:q} > {log} 2>&1"
