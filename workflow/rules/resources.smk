# What is shipped under resources/, built anew into <results>/resources; `make promote` copies it. No rule writes to resources/.


rule train_autoencoder:
    input:
        images=collect("<results>/data/{images}/manifest.csv", images=study.training.autoencoder_sets),
    output:
        config="<results>/resources/autoencoder/config.json",
        weights="<results>/resources/autoencoder/diffusion_pytorch_model.safetensors",
    log:
        "<logs>/train_autoencoder.log",
    benchmark:
        "<benchmarks>/train_autoencoder.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        images=folders_of("images"),
        out=subpath(output.config, parent=True),
        device=DEVICE,
        options=as_json(study.training.autoencoder),
        code=code("tuneleak.models.autoencoder"),
    shell:
        "exec python -m tuneleak train-autoencoder --images {params.images:q} --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule train_text_encoder:
    input:
        images=images_of_embedder,
    output:
        config="<results>/resources/text-encoder/config.json",
        weights="<results>/resources/text-encoder/text_encoder/model.safetensors",
    log:
        "<logs>/train_text_encoder.log",
    benchmark:
        "<benchmarks>/train_text_encoder.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        images=folders_of("images"),
        out=subpath(output.config, parent=True),
        device=DEVICE,
        options=text_encoder_options,
        code=code("tuneleak.models.train_embedder"),
    shell:
        "exec python -m tuneleak train-embedder --images {params.images:q} --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule train_embedder:
    input:
        images=images_of_embedder,
    output:
        config="<results>/resources/embedders/{embedder}/config.json",
        weights="<results>/resources/embedders/{embedder}/model.safetensors",
    log:
        "<logs>/train_embedder/{embedder}.log",
    benchmark:
        "<benchmarks>/train_embedder/{embedder}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        images=folders_of("images"),
        out=subpath(output.config, parent=True),
        device=DEVICE,
        options=embedder_options,
        code=code("tuneleak.models.train_embedder"),
    shell:
        "exec python -m tuneleak train-embedder --images {params.images:q} --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule train_base:
    input:
        images=collect(
            "<results>/data/{images}/manifest.csv",
            images=study.training.public_sets + study.training.named_sets,
        ),
        parts=latent_parts,
    output:
        config="<results>/resources/bases/{unet}/config.json",
        weights="<results>/resources/bases/{unet}/diffusion_pytorch_model.safetensors",
    log:
        "<logs>/train_base/{unet}.log",
    benchmark:
        "<benchmarks>/train_base/{unet}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(8, scaled=True),
        runtime=minutes(720, scaled=True),
    params:
        images=folders_of("images"),
        parts=latent_parts_flags,
        out=subpath(output.config, parent=True),
        device=DEVICE,
        options=unet_options,
        code=code("tuneleak.models.train_base"),
    shell:
        "exec python -m tuneleak train-base --images {params.images:q} {params.parts} --out {params.out:q} --device {params.device} --options {params.options:q} > {log} 2>&1"


rule resources:
    input:
        built_resources(),
    localrule: True


rule assemble_built:
    input:
        parts=latent_parts,
        unet="<results>/resources/bases/{unet}/config.json",
    output:
        index="<results>/built/{unet}/model_index.json",
    log:
        "<logs>/assemble_built/{unet}.log",
    benchmark:
        "<benchmarks>/assemble_built/{unet}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(10),
    params:
        parts=latent_parts_flags,
        unet=subpath(input.unet, parent=True),
        out=subpath(output.index, parent=True),
        code=code("tuneleak.models.assemble"),
    shell:
        "exec python -m tuneleak assemble {params.parts} --unet {params.unet:q} --out {params.out:q} > {log} 2>&1"


rule trace_base:
    input:
        base="<results>/built/{unet}/model_index.json",
        unet="<results>/resources/bases/{unet}/config.json",
        images=collect("<results>/data/{images}/manifest.csv", images=WORLD_SETS),
        embedders=collect("<results>/resources/embedders/{embedder}/config.json", embedder=CURVE_EMBEDDERS),
    output:
        table="<results>/resources/bases/{unet}/curve.csv",
    log:
        "<logs>/trace_base/{unet}.log",
    benchmark:
        "<benchmarks>/trace_base/{unet}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        mem_mb=gigabytes(6),
        runtime=minutes(120),
    params:
        base=subpath(input.base, parent=True),
        unet=subpath(input.unet, parent=True),
        data=folder_of_sets,
        built=folder_of_built,
        captions=study.training.curve_captions,
        code=code("tuneleak.metrics.curve"),
    shell:
        "exec python -m tuneleak trace-base --base {params.base:q} --unet {params.unet:q} --resources {params.built:q} --data {params.data:q}"
        " --captions {params.captions} --out {output.table} > {log} 2>&1"


rule measure_world:
    input:
        base=assembled_bases,
        images=collect("<results>/data/{images}/manifest.csv", images=WORLD_SETS),
        embedders=shipped("resources/embedders"),
    output:
        table="<results>/metrics/world/preconditions.csv",
    log:
        "<logs>/measure_world.log",
    benchmark:
        "<benchmarks>/measure_world.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        mem_mb=gigabytes(6),
        runtime=minutes(60),
    params:
        base=lambda wildcards, input: [str(Path(index).parent) for index in input.base],
        data=folder_of_sets,
        shipped=shipped_digest("resources/embedders"),
        code=code("tuneleak.metrics.world"),
    shell:
        "exec python -m tuneleak preconditions --base {params.base:q} --resources resources --data {params.data:q} --out {output.table} > {log} 2>&1"


rule preconditions:
    input:
        rules.measure_world.output,
    localrule: True
