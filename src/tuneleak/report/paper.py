"""The verb `paper`: typesets the paper from its sources, with every number, conclusion and table generated from a run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.report import dp_costs, jobs, macros, record, recorded, rows, typeset

APT = "apt-get install --no-install-recommends texlive-latex-recommended texlive-fonts-recommended latexmk"
_LATEXMK = ("latexmk", "-norc", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", "-outdir=output", "main.tex")
_TIMEOUT = 600  # seconds
_SOURCES = ("main.tex", "refs.bib", "sections")


def paper(metrics, claims, tables, figures, reference, sources, out, benchmarks=None, costs=None, methods=None):
    """Write the paper (PDF), and beside it the folder `<name of out>-build` with all that went into it and the log.

    metrics, claims: tables of a run; tables: folder of `tuneleak tables`; figures: folders of `tuneleak figures ...`; reference:
    paper/reference; sources: paper/; benchmarks: folder of Snakemake's benchmark TSVs, for the tables of cost, or `costs` and `methods`
    (`record.seconds_per_rule`, `dp_costs.per_method`) read from them.
    The sources are copied, never written to. Equal inputs give equal bytes: dates come from SOURCE_DATE_EPOCH (0 if unset).
    Raises `InputError` if LaTeX is missing or stops.
    """
    if shutil.which("latexmk") is None or shutil.which("pdflatex") is None:
        raise InputError(f"the paper needs LaTeX, and latexmk was not found; install it with\n  {APT}")
    out = Path(out)
    build = out.with_name(f"{out.stem}-build")
    shutil.rmtree(build, ignore_errors=True)
    _copy(Path(sources), Path(tables), [Path(folder) for folder in figures], build)
    if benchmarks:
        costs = record.seconds_per_rule(benchmarks, jobs.calls_per_rule(jobs.read(Path(metrics).parent)))
        methods = dp_costs.per_method(Path(metrics).parent, benchmarks)
    generate(metrics, claims, reference, build, costs, methods)
    pdf = _run_latex(build)
    with files.atomic(out) as temporary:
        shutil.copyfile(pdf, temporary)
    files.write_meta(out, None, metrics=str(metrics), claims=str(claims), figures=[str(folder) for folder in figures], tables=str(tables))


def generate(metrics, claims, reference, build, costs=None, methods=None):
    """Write macros.tex and the generated tables into the folder `build`."""
    measured, registered = rows.read_metrics(metrics), macros.read_claims(claims)
    facts = record.facts_of(metrics)
    preset = (files.read_json(sidecar).get("preset") if (sidecar := Path(f"{claims}.meta.json")).is_file() else None) or "n/a"
    files.write_text(build / "macros.tex", macros.write(macros.collect(measured, registered, facts, reference, preset, costs)))
    past_claims, past_costs = macros.recorded_claims(reference), recorded.costs(reference)
    files.write_text(build / "tables" / "setup.tex", typeset.setup_table(measured))
    files.write_text(build / "tables" / "claims.tex", typeset.claims_table(registered, past_claims))
    files.write_text(build / "tables" / "published.tex", typeset.published_table(reference))
    files.write_text(build / "tables" / "cost.tex", typeset.cost_table(costs, past_costs))
    files.write_text(build / "tables" / "dp_cost.tex", dp_costs.table(methods, recorded.methods(reference)))


def _copy(sources, tables, figures, build):
    for name in _SOURCES:
        if not (sources / name).exists():
            raise InputError(f"{sources} lacks {name}; it is not the folder of the paper's sources")
    build.mkdir(parents=True)
    for name in _SOURCES:
        source = sources / name
        shutil.copytree(source, build / name) if source.is_dir() else shutil.copyfile(source, build / name)
    for folder, pattern, name in ((tables, "*.tex", "tables"), *((folder, "*.pdf", "figures") for folder in figures)):
        found = sorted(folder.glob(pattern))
        if not found:
            raise InputError(f"{folder} holds no {pattern}; make it with `tuneleak {name}`")
        (build / name).mkdir(exist_ok=True)
        for path in found:
            shutil.copyfile(path, build / name / path.name)


def _run_latex(build):
    environment = os.environ | {"SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", "0"), "FORCE_SOURCE_DATE": "1"}
    try:
        done = subprocess.run(
            _LATEXMK, cwd=build, env=environment, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"LaTeX did not finish within {_TIMEOUT} seconds; its files are in {build}") from None
    log = build / "output" / "main.log"
    text = log.read_text(errors="replace") if log.is_file() else done.stdout + done.stderr
    if done.returncode:
        lines = re.findall(r"^\S+:\d+: .*(?:\n.+)?", text, re.MULTILINE) or (done.stdout + done.stderr).splitlines()[-5:]
        raise InputError(f"LaTeX stopped; its log is {log}\n" + "\n".join(f"  {line}" for line in lines[:5]))
    undefined = sorted(set(re.findall(r"(?:Reference|Citation) `([^']+)'[^\n]*\n?[^\n]*undefined", text)))
    if undefined:
        raise InputError(f"the paper refers to what does not exist: {', '.join(undefined)}; see {log}")
    return build / "output" / "main.pdf"
