# LoRA weights: the attacker's data set of weights, the victims, the encoders, the attacks, and weight transforms.


rule collect_weights:
    input:
        base=weights_base,
        images=f"<results>/data/{study.lora_weights.train_images}/manifest.csv",
    output:
        manifest="<results>/weights/train/{shard}/manifest.csv",
        stack="<results>/weights/train/{shard}/weights.safetensors",
    log:
        "<logs>/collect_weights/{shard}.log",
    benchmark:
        "<benchmarks>/collect_weights/{shard}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=weights_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=study.lora_weights.world,
        start=first_weights_person,
        stop=last_weights_person,
        device=DEVICE,
        dtype=study.dtype,
        options=collect_options,
        code=code("tuneleak.finetune.many"),
    shell:
        "exec python -m tuneleak collect-weights --base {params.base:q} --images {params.images:q} --world {params.world} --start {params.start}"
        " --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule finetune_victims:
    input:
        base=weights_base,
        images=f"<results>/data/{study.lora_weights.test_images}/manifest.csv",
    output:
        manifest="<results>/weights/victims/none/manifest.csv",
    log:
        "<logs>/finetune_victims.log",
    benchmark:
        "<benchmarks>/finetune_victims.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=weights_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=study.lora_weights.world,
        split=shlex.quote(study.lora_weights.test_split),
        stop=study.lora_weights.test_people,
        device=DEVICE,
        dtype=study.dtype,
        options=as_json(study.lora_weights.recipe),
        code=code("tuneleak.finetune.loop"),
    shell:
        "exec python -m tuneleak finetune --base {params.base:q} --images {params.images:q} --world {params.world} --split {params.split}"
        " --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule finetune_others:
    input:
        base=weights_base,
        images=victims_images,
    output:
        manifest="<results>/weights/victims/{defence}/manifest.csv",
    log:
        "<logs>/finetune_others/{defence}.log",
    benchmark:
        "<benchmarks>/finetune_others/{defence}.tsv"
    wildcard_constraints:
        defence=one_of(other_recipes()),
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=weights_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=victims_world,
        split=victims_split,
        stop=victims_stop,
        device=DEVICE,
        dtype=study.dtype,
        options=other_recipe_options,
        code=code("tuneleak.finetune.loop"),
    shell:
        "exec python -m tuneleak finetune --base {params.base:q} --images {params.images:q} --world {params.world} --split {params.split}"
        " {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule collect_second:
    input:
        base=weights_base,
        images=f"<results>/data/{study.lora_weights.test_images}/manifest.csv",
    output:
        manifest="<results>/weights/second/manifest.csv",
        stack="<results>/weights/second/weights.safetensors",
    log:
        "<logs>/collect_second.log",
    benchmark:
        "<benchmarks>/collect_second.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=weights_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=study.lora_weights.world,
        split=shlex.quote(study.lora_weights.test_split),
        stop=study.lora_weights.test_people,
        device=DEVICE,
        dtype=study.dtype,
        options=second_collect_options,
        code=code("tuneleak.finetune.many"),
    shell:
        "exec python -m tuneleak collect-weights --base {params.base:q} --images {params.images:q} --world {params.world} --split {params.split}"
        " --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule transform_victims:
    input:
        base=weights_base,
        models="<results>/weights/victims/none/manifest.csv",
    output:
        manifest="<results>/weights/victims/{defence}/manifest.csv",
    log:
        "<logs>/transform_victims/{defence}.log",
    benchmark:
        "<benchmarks>/transform_victims/{defence}.tsv"
    wildcard_constraints:
        defence=one_of(study.lora_weights.transforms),
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(4),
        runtime=minutes(60),
    params:
        base=weights_base_folder,
        models=subpath(input.models, parent=True),
        out=subpath(output.manifest, parent=True),
        options=transform_options,
        code=code("tuneleak.defences.transforms"),
    shell:
        "exec python -m tuneleak transform --models {params.models:q} --base {params.base:q} --out {params.out:q} --options {params.options:q} > {log} 2>&1"


rule train_encoder:
    input:
        base=weights_base,
        images=f"<results>/data/{study.lora_weights.train_images}/manifest.csv",
        models=weights_shards(),
        embedder=shipped(study.lora_weights.identity_a),
        trunk=shipped(study.lora_weights.trunk),
    output:
        config="<results>/weights/encoders/{knows}/{encoder}/config.json",
        weights="<results>/weights/encoders/{knows}/{encoder}/model.safetensors",
        log="<results>/weights/encoders/{knows}/{encoder}/train.csv",
    log:
        "<logs>/train_encoder/{knows}.{encoder}.log",
    benchmark:
        "<benchmarks>/train_encoder/{knows}.{encoder}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(study.lora_weights.memory_gb),
        runtime=minutes(480, scaled=True),
    params:
        base=weights_base_folder,
        images=subpath(input.images, parent=True),
        models=folders_of("models"),
        out=subpath(output.config, parent=True),
        embedder=identity_a,
        trunk=trunk_flag,
        shipped=shipped_digest(study.lora_weights.identity_a, study.lora_weights.trunk),
        device=DEVICE,
        dtype=study.dtype,
        options=encoder_options,
        code=encoder_code,
    shell:
        "exec python -m tuneleak attack weights train --models {params.models:q} --images {params.images:q} --base {params.base:q}"
        " --embedder {params.embedder:q} {params.trunk} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule attack_weights:
    input:
        base=weights_base,
        images=victims_images,
        distractors=victims_distractors,
        models="<results>/weights/victims/{defence}/manifest.csv",
        second="<results>/weights/second/manifest.csv",
        encoders=encoders_against,
        embedders=shipped(*weights_embedders()),
    output:
        scores="<results>/weights/scores/{defence}/scores.csv",
        pictures="<results>/weights/scores/{defence}/reconstructions/manifest.csv",
    log:
        "<logs>/attack_weights/{defence}.log",
    benchmark:
        "<benchmarks>/attack_weights/{defence}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(8, scaled=True),
        runtime=minutes(480, scaled=True),
    params:
        base=weights_base_folder,
        images=subpath(input.images, parent=True),
        distractors=subpath(input.distractors, parent=True),
        models=subpath(input.models, parent=True),
        second=second_flag,
        encoders=folders_of("encoders"),
        identity_a=identity_a,
        identity_b=identity_b,
        copy_score=copy_score,
        factors=weights_factors_flag,
        photographs=photograph_flags,
        shipped=shipped_digest(*weights_embedders()),
        out=subpath(output.scores, parent=True),
        device=DEVICE,
        dtype=study.dtype,
        options=weights_run_options,
        code=code("tuneleak.attacks.weights.run", *(encoder_module(plan.options.attack) for plan in study.lora_weights.encoders)),
    shell:
        "exec python -m tuneleak attack weights run --models {params.models:q} --images {params.images:q} --distractors {params.distractors:q}"
        " --base {params.base:q} --encoders {params.encoders:q} --identity-a {params.identity_a:q} --identity-b {params.identity_b:q}"
        " --copy-score {params.copy_score:q} {params.second} {params.factors} {params.photographs} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule render_sizes:
    output:
        manifest="<results>/weights/size-photographs/manifest.csv",
    log:
        "<logs>/render_sizes.log",
    benchmark:
        "<benchmarks>/render_sizes.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(30),
    params:
        name=study.lora_weights.train_images,
        out=subpath(output.manifest, parent=True),
        options=as_json(study.population, lora_photographs=study.lora_weights.sizes.photographs),
        code=code("tuneleak.data.render"),
    shell:
        "exec python -m tuneleak render --name {params.name} --out {params.out:q} --options {params.options:q} > {log} 2>&1"


rule collect_sizes:
    input:
        base=weights_base,
        images=size_images(),
    output:
        manifest="<results>/weights/sizes/{steps}/manifest.csv",
        stack="<results>/weights/sizes/{steps}/weights.safetensors",
    log:
        "<logs>/collect_sizes/{steps}.log",
    benchmark:
        "<benchmarks>/collect_sizes/{steps}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: study.threads
    resources:
        gpu=GPU,
        mem_mb=gigabytes(6, scaled=True),
        runtime=minutes(240, scaled=True),
    params:
        base=weights_base_folder,
        images=subpath(input.images, parent=True),
        out=subpath(output.manifest, parent=True),
        world=study.lora_weights.world,
        stop=study.lora_weights.sizes.people,
        device=DEVICE,
        dtype=study.dtype,
        options=size_collect_options,
        code=code("tuneleak.finetune.many"),
    shell:
        "exec python -m tuneleak collect-weights --base {params.base:q} --images {params.images:q} --world {params.world} --start 0"
        " --stop {params.stop} --out {params.out:q}"
        " --device {params.device} --dtype {params.dtype} --options {params.options:q} > {log} 2>&1"


rule dataset_size:
    input:
        base=weights_base,
        models="<results>/weights/sizes/{steps}/manifest.csv",
    output:
        table="<results>/weights/sizes/{steps}.csv",
    log:
        "<logs>/dataset_size/{steps}.log",
    benchmark:
        "<benchmarks>/dataset_size/{steps}.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(4),
        runtime=minutes(60),
    params:
        base=weights_base_folder,
        models=subpath(input.models, parent=True),
        options=as_json(study.lora_weights.sizes.options),
        code=code("tuneleak.attacks.weights.dataset_size"),
    shell:
        "exec python -m tuneleak dataset-size --models {params.models:q} --base {params.base:q} --steps {wildcards.steps} --out {output.table}"
        " --options {params.options:q} > {log} 2>&1"


rule evaluate_lora_weights:
    input:
        scores=collect("<results>/weights/scores/{defence}/scores.csv", defence=weights_defences()),
        sizes=collect("<results>/weights/sizes/{steps}.csv", steps=study.lora_weights.sizes.steps),
    output:
        table="<results>/metrics/lora-weights/main.csv",
    log:
        "<logs>/evaluate_lora_weights.log",
    benchmark:
        "<benchmarks>/evaluate_lora_weights.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(30),
    params:
        sizes=sizes_flag,
        options=as_json(study.lora_weights.evaluate),
        code=code("tuneleak.metrics.lora_weights"),
    shell:
        "exec python -m tuneleak evaluate lora-weights --scores {input.scores} {params.sizes} --out {output.table}" " --options {params.options:q} > {log} 2>&1"


rule weights:
    input:
        "<results>/metrics/lora-weights/main.csv",
    localrule: True
