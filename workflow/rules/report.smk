# Figures, tables, claims and the paper: drawn from metrics, matches and pictures alone.


rule draw_finextract:
    input:
        metrics="<results>/metrics.csv",
        tuning="<results>/metrics/finextract/tuning.csv",
        matches=matches_of("test"),
        images=collect("<results>/data/{images}/manifest.csv", images=private_images()),
    output:
        pdf=collect("<results>/figures/finextract/{figure}.pdf", figure=FIGURES),
        pictures=report(
            "<results>/figures/finextract/pictures.png",
            caption="../report/pictures.rst",
            category="FineXtract",
            labels={"figure": "pictures", "preset": study.preset},
        ),
        similarity=report(
            "<results>/figures/finextract/similarity.png",
            caption="../report/similarity.rst",
            category="FineXtract",
            labels={"figure": "similarity", "preset": study.preset},
        ),
        guidance=report(
            "<results>/figures/finextract/guidance.png",
            caption="../report/guidance.rst",
            category="FineXtract",
            labels={"figure": "guidance", "preset": study.preset},
        ),
        theory=report(
            "<results>/figures/finextract/theory.png",
            caption="../report/theory.rst",
            category="FineXtract",
            labels={"figure": "theory", "preset": study.preset},
        ),
    log:
        "<logs>/draw_finextract.log",
    benchmark:
        "<benchmarks>/draw_finextract.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(20),
    params:
        images=folders_of("images"),
        out=subpath(output.theory, parent=True),
        code=code("tuneleak.report.figures_finextract"),
    shell:
        "exec python -m tuneleak figures finextract --metrics {input.metrics} --tuning {input.tuning} --matches {input.matches}"
        " --images {params.images:q} --out {params.out:q} > {log} 2>&1"


rule draw_lora_weights:
    input:
        metrics="<results>/metrics.csv",
        scores="<results>/weights/scores/none/scores.csv",
        pictures="<results>/weights/scores/none/reconstructions/manifest.csv",
        images=f"<results>/data/{study.lora_weights.test_images}/manifest.csv",
    output:
        pdf=collect("<results>/figures/lora-weights/{figure}.pdf", figure=WEIGHTS_FIGURES),
        png=report(
            collect("<results>/figures/lora-weights/{figure}.png", figure=WEIGHTS_FIGURES),
            caption="../report/weights.rst",
            category="LoRA weights",
            labels={"preset": study.preset},
        ),
    log:
        "<logs>/draw_lora_weights.log",
    benchmark:
        "<benchmarks>/draw_lora_weights.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(20),
    params:
        images=subpath(input.images, parent=True),
        out=folder_of_weights_figures,
        code=code("tuneleak.report.figures_lora_weights"),
    shell:
        "exec python -m tuneleak figures lora-weights --metrics {input.metrics} --scores {input.scores} --images {params.images:q}"
        " --out {params.out:q} > {log} 2>&1"


rule draw_dp_ldm:
    input:
        metrics="<results>/metrics/dp-ldm/main.csv",
        samples=dp_samples_shown(),
        images=dp_image_sets(),
    output:
        pdf=collect("<results>/figures/dp-ldm/{figure}.pdf", figure=DP_FIGURES),
        tables=collect("<results>/tables/{table}.tex", table=DP_TABLES),
        tradeoff=report(
            "<results>/figures/dp-ldm/dp_tradeoff.png",
            caption="../report/dp_tradeoff.rst",
            category="DP-LDM",
            labels={"figure": "utility against epsilon", "preset": study.preset},
        ),
        samples=report(
            "<results>/figures/dp-ldm/dp_samples.png",
            caption="../report/dp_samples.rst",
            category="DP-LDM",
            labels={"figure": "samples", "preset": study.preset},
        ),
    log:
        "<logs>/draw_dp_ldm.log",
    benchmark:
        "<benchmarks>/draw_dp_ldm.tsv"
    conda:
        "../../envs/models.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(2),
        runtime=minutes(20),
    params:
        samples=folders_of("samples"),
        images=folders_of("images"),
        out=subpath(output.tradeoff, parent=True),
        tables=folder_of_tables_written,
        code=code("tuneleak.report.figures_dp_ldm"),
    shell:
        "exec python -m tuneleak figures dp-ldm --metrics {input.metrics} --samples {params.samples:q} --images {params.images:q}"
        " --out {params.out:q} --tables {params.tables:q} > {log} 2>&1"


rule write_tables:
    input:
        metrics="<results>/metrics.csv",
        recorded=recorded("finextract"),
    output:
        collect("<results>/tables/{table}.tex", table=TABLES),
        numbers="<results>/tables/finextract.csv",
    log:
        "<logs>/write_tables.log",
    benchmark:
        "<benchmarks>/write_tables.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(1),
        runtime=minutes(10),
    params:
        out=subpath(output.numbers, parent=True),
        code=code("tuneleak.report.tables"),
    shell:
        "exec python -m tuneleak tables --metrics {input.metrics} --reference paper/reference --out {params.out:q} > {log} 2>&1"


rule check_claims:
    input:
        reference(),
        metrics="<results>/metrics.csv",
        claims="paper/reference/claims.yaml",
    output:
        table=report(
            "<results>/claims.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"table": "claims", "preset": study.preset},
        ),
    log:
        "<logs>/check_claims.log",
    benchmark:
        "<benchmarks>/check_claims.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(1),
        runtime=minutes(10),
    params:
        preset=study.preset,
        code=code("tuneleak.report.claims"),
    shell:
        "exec python -m tuneleak claims --metrics {input.metrics} --claims {input.claims} --preset {params.preset}" " --out {output.table} > {log} 2>&1"


rule typeset_paper:
    input:
        reference(),
        recorded(),
        metrics="<results>/metrics.csv",
        claims="<results>/claims.csv",
        tables=rules.write_tables.output + rules.draw_dp_ldm.output.tables + matrix_tex(),
        figures=rules.draw_finextract.output.pdf
        + rules.draw_lora_weights.output.pdf
        + rules.draw_dp_ldm.output.pdf
        + shake_figures()
        + ablation_figures()
        + attacker_figures()
        + matrix_figures(),
        sources=paper_sources(),
    output:
        pdf="<results>/paper.pdf",
    log:
        "<logs>/typeset_paper.log",
    benchmark:
        "<benchmarks>/typeset_paper.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=gigabytes(1),
        runtime=minutes(10),
    params:
        tables=folder_of_tables,
        figures=folders_of_figures,
        benchmarks=study.pathvars.benchmarks,
        code=code("tuneleak.report.paper"),
    shell:
        "exec python -m tuneleak paper --metrics {input.metrics} --claims {input.claims} --tables {params.tables:q}"
        " --figures {params.figures:q} --benchmarks {params.benchmarks:q} --sources paper --reference paper/reference"
        " --out {output.pdf} > {log} 2>&1"


rule figures:
    input:
        rules.draw_finextract.output,
        ablation_figures(),
        rules.draw_lora_weights.output,
        rules.draw_dp_ldm.output,
        shake_figures(),
        attacker_figures(),
        matrix_figures(),
    localrule: True


rule claims:
    input:
        rules.check_claims.output,
    localrule: True


rule paper:
    input:
        rules.typeset_paper.output,
    localrule: True
