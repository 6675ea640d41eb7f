"""The verb `crate`: describes a finished run, for people and machines.

Two files in the results' folder: `run-manifest.json` (configuration, code, versions, machines, seconds and memory per rule) and
`ro-crate-metadata.json`, a Workflow Run RO-Crate 0.5 (https://w3id.org/ro/wfrun/workflow/0.5): the workflow, one action for the whole run and one per
job, with what each read and wrote. Beside them a copy of the workflow's files, so that the folder can be archived as it is.
"""

import mimetypes
import shutil
from datetime import UTC, datetime
from importlib import metadata as packages
from pathlib import Path
from urllib.parse import quote

from tuneleak import config, files
from tuneleak.errors import InputError
from tuneleak.report import jobs as notes
from tuneleak.report import record

MANIFEST, CRATE, COPY = "run-manifest.json", "ro-crate-metadata.json", "workflow"
LICENSE = "https://spdx.org/licenses/Apache-2.0"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
RESULTS = ("metrics.csv", "claims.csv", "paper.pdf")  # of the run as a whole
_TYPES = {".tex": "application/x-tex", ".safetensors": "application/octet-stream", ".tsv": "text/tab-separated-values"}


def crate(results, configuration="config.yaml", overlay=None, metadata=notes.METADATA):
    """Write the manifest and the crate of a finished run, and copy the workflow's files, below `results`.

    results: results/<preset>, as the workflow writes it; configuration, overlay: what the run was configured with; metadata: Snakemake's notes. Raises
    `InputError` for a run without metrics.csv, or one that Snakemake knows nothing of.
    """
    results, root = Path(results), Path(configuration).resolve().parent
    study = config.read(configuration, overlay)
    if study.pathvars.results != results.as_posix():
        raise InputError(f"this configuration writes to {study.pathvars.results}, not to {results}; give the overlays that the run had, or that folder")
    if not (results / "metrics.csv").is_file():
        raise InputError(f"{results} holds no metrics.csv; finish the run first")
    jobs = notes.read(results, metadata)
    if not jobs:
        raise InputError(f"{metadata} knows no job that wrote to {results}; call this where Snakemake ran")
    _copy_workflow(root, results / COPY)
    files.write_json(results / COPY / "configuration.json", study.model_dump(mode="json"))
    manifest = describe(study, jobs)
    files.write_json(results / MANIFEST, manifest)
    files.write_json(results / CRATE, build(results, jobs, manifest).metadata.generate())
    print(f"{results / CRATE}: {len(jobs)} jobs of {len(manifest['rules'])} rules")


def describe(study, jobs):
    """What run-manifest.json holds, as a dict; times in UTC, seconds of wall time, MB, samples through a UNet."""
    made = [facts for job in jobs for facts in notes.sidecars(job)]
    return {
        "preset": study.preset,
        "configuration": study.model_dump(mode="json"),
        "started": _time(min(job.started for job in jobs)),
        "finished": _time(max(job.ended for job in jobs)),
        "tuneleak": _version("tuneleak"),
        "snakemake": _version("snakemake"),
        "jobs": len(jobs),
        "rules": record.seconds_per_rule(study.pathvars.benchmarks, notes.calls_per_rule(jobs)),
        **{name: _distinct(made, name) for name in ("git", "machine", "versions")},
    }


def build(results, jobs, manifest):
    """The crate as a `rocrate.ROCrate`; nothing is written."""
    from rocrate.model import ContextEntity, SoftwareApplication
    from rocrate.rocrate import ROCrate

    made = ROCrate(version="1.1")
    made.name = f"tuneleak, preset {manifest['preset']}"
    made.description = "What a shared, fine-tuned diffusion model gives away about its training pictures: a run of the workflow, with all its jobs."
    made.license = made.add(ContextEntity(made, LICENSE, {"@type": "CreativeWork", "name": "Apache License 2.0", "identifier": LICENSE}))
    made.datePublished = datetime.fromisoformat(manifest["finished"])
    for identifier, (name, version) in PROFILES.items():
        profile = made.add(ContextEntity(made, identifier, {"@type": "CreativeWork", "name": name, "version": version}))
        made.root_dataset.append_to("conformsTo", profile)
    known = {}

    def entity(path):
        """A file below `results` as a data entity, any other as a contextual one, each once."""
        if path not in known:
            inside, facts = Path(path).is_relative_to(results), _facts(path)
            if inside:
                known[path] = made.add_file(dest_path=Path(path).relative_to(results), properties=facts)
            else:
                known[path] = made.add(ContextEntity(made, f"#{quote(path)}", {"@type": "CreativeWork", **facts, "name": path}))
        return known[path]

    workflow = _workflow(made, results, entity, manifest)
    version = {"softwareVersion": manifest["tuneleak"]}
    tools = {rule: made.add(SoftwareApplication(made, f"#rule-{rule}", {"name": rule, **version})) for rule in sorted({job.rule for job in jobs})}
    for number, job in enumerate(jobs):
        action = made.add_action(
            tools[job.rule],
            f"#job-{number}",
            object=_one_or_many([entity(path) for path in job.inputs if Path(path).is_file()]),
            result=_one_or_many([entity(path) for path in job.outputs]),
            properties={"name": f"{job.rule}: {Path(job.log).stem}", "description": f"A job of the rule {job.rule}.", **_span(job.started, job.ended)},
        )
        made.root_dataset.append_to("mentions", action)
    outside = sorted({path for job in jobs for path in job.inputs if not Path(path).is_relative_to(results) and Path(path).is_file()})
    whole = made.add_action(
        workflow,
        "#run",
        object=[entity(str(results / COPY / "configuration.json")), *(entity(path) for path in outside)],
        result=_one_or_many([entity(str(results / name)) for name in RESULTS if (results / name).is_file()]),
        properties={"name": f"run of the preset {manifest['preset']}", "description": "The whole workflow."}
        | {"startTime": manifest["started"], "endTime": manifest["finished"], "actionStatus": "http://schema.org/CompletedActionStatus"},
    )
    made.root_dataset.append_to("mentions", whole)
    entity(str(results / MANIFEST))
    return made


def _workflow(made, results, entity, manifest):
    """The workflow with its files, its configuration as a parameter, and its results as parameters."""
    properties = {"name": "tuneleak", "version": manifest["tuneleak"], "license": {"@id": LICENSE}, "encodingFormat": "text/plain"}
    main = made.add_workflow(dest_path=Path(COPY, "Snakefile"), main=True, lang="snakemake", lang_version=manifest["snakemake"], properties=properties)
    for path in sorted((results / COPY).rglob("*")):
        if path.is_file() and path.relative_to(results) != Path(COPY, "Snakefile"):
            main.append_to("hasPart", entity(str(path)))
    for side, names in (("input", [f"{COPY}/configuration.json"]), ("output", [name for name in RESULTS if (results / name).is_file()])):
        for name in names:
            example = entity(str(results / name))
            word = Path(name).stem
            parameter = made.add_formal_parameter(word, "File", identifier=f"#{word}", properties={"workExample": {"@id": example.id}})
            example["exampleOfWork"] = parameter
            main.append_to(side, parameter, compact=True)
    return main


def _copy_workflow(root, folder):
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("Snakefile", "config.yaml", "workflow", "envs"):
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        else:
            raise InputError(f"{root} holds no {name}; --configuration is the config.yaml of the checkout that ran")


def _facts(path):
    kind = _TYPES.get(Path(path).suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
    return {"name": Path(path).name, "encodingFormat": kind, "contentSize": str(Path(path).stat().st_size), "sha256": files.sha256(path)}


def _one_or_many(found):
    return found[0] if len(found) == 1 else found


def _span(started, ended):
    return {"startTime": _time(started), "endTime": _time(ended)}


def _time(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _version(package):
    try:
        return packages.version(package)
    except packages.PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


def _distinct(made, name):
    """The different values of one entry of the sidecars, in the order they came."""
    found = []
    for facts in made:
        if name in facts and facts[name] not in found:
            found.append(facts[name])
    return found
