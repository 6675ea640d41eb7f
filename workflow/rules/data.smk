# Image sets: drawn, imported from a folder, or fetched from the hub and imported.


rule render:
    output:
        manifest="<results>/data/{images}/manifest.csv",
    log:
        "<logs>/render/{images}.log",
    benchmark:
        "<benchmarks>/render/{images}.tsv"
    wildcard_constraints:
        images=of_kind(study.images, "population"),
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(30),
    params:
        out=subpath(output.manifest, parent=True),
        options=as_json(study.population),
        code=code("tuneleak.data.render"),
    shell:
        "exec python -m tuneleak render --name {wildcards.images} --out {params.out:q} --options {params.options:q} > {log} 2>&1"


rule import_folder:
    output:
        manifest="<results>/data/{images}/manifest.csv",
    log:
        "<logs>/import_folder/{images}.log",
    benchmark:
        "<benchmarks>/import_folder/{images}.tsv"
    wildcard_constraints:
        images=of_kind(study.images, "folder"),
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(4),
        runtime=minutes(60, scaled=True),
    params:
        source=image_path,
        out=subpath(output.manifest, parent=True),
        options=import_options,
        code=code("tuneleak.data.importing"),
    shell:
        "exec python -m tuneleak import-images --source {params.source:q} --out {params.out:q} --options {params.options:q} > {log} 2>&1"


rule fetch_images:
    output:
        sidecar="<results>/fetched/{images}/fetch.meta.json",
    log:
        "<logs>/fetch_images/{images}.log",
    benchmark:
        "<benchmarks>/fetch_images/{images}.tsv"
    wildcard_constraints:
        images=of_kind(study.images, "hub"),
    retries: 2
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(4),
        runtime=minutes(240),
    params:
        repository=image_repository,
        revision=image_revision,
        out=subpath(output.sidecar, parent=True),
        code=code("tuneleak.data.hub"),
    shell:
        "exec python -m tuneleak fetch --kind dataset --repository {params.repository:q} --revision {params.revision:q} --out {params.out:q} > {log} 2>&1"


rule fetch_listed:
    input:
        pictures=image_path,
    output:
        sidecar="<results>/fetched/{images}/fetch.meta.json",
        table="<results>/fetched/{images}/metadata.csv",
    log:
        "<logs>/fetch_listed/{images}.log",
    benchmark:
        "<benchmarks>/fetch_listed/{images}.tsv"
    wildcard_constraints:
        images=of_kind(study.images, "list"),
    retries: 2
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(240),
    params:
        out=subpath(output.sidecar, parent=True),
        skip=skip_missing_flag,
        code=code("tuneleak.data.listed"),
    shell:
        "exec python -m tuneleak fetch-list --pictures {input.pictures:q} --out {params.out:q} {params.skip} > {log} 2>&1"


rule import_fetched:
    input:
        sidecar="<results>/fetched/{images}/fetch.meta.json",
    output:
        manifest="<results>/data/{images}/manifest.csv",
    log:
        "<logs>/import_fetched/{images}.log",
    benchmark:
        "<benchmarks>/import_fetched/{images}.tsv"
    wildcard_constraints:
        images=of_kind(study.images, "hub", "list"),
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(4),
        runtime=minutes(60, scaled=True),
    params:
        source=subpath(input.sidecar, parent=True),
        out=subpath(output.manifest, parent=True),
        options=import_options,
        code=code("tuneleak.data.importing"),
    shell:
        "exec python -m tuneleak import-images --source {params.source:q} --out {params.out:q} --options {params.options:q} > {log} 2>&1"
