"""Kills jobs at random moments, of every kind that the workflow has, starts it again, and compares what it made bit for bit.

As a program, in the root of the checkout, it records so many kills, one row each, as they happen:

    python tests/workflow/survival.py --kills 74 --out paper/reference/survival.csv [--kinds finetune extract ...] [--folder FOLDER]

Columns: `kill` (number), `kind` (rule), `victim` (who got SIGKILL: the job, or Snakemake above it), `after` (seconds from the job's start, drawn evenly
over the time that an undisturbed job took), `left` (files that the killed job left in its folder), `orphans` (processes that outlived Snakemake),
`recovered` (the restarted workflow ended well), `equal` (files of numbers and pictures with the same bits), `different` (names of the others). A kill
that came after the job's end says `too late` in `victim` and is drawn again.
"""

import argparse
import csv
import hashlib
import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image
from safetensors import safe_open

PRESET = ("--configfile", "workflow/presets/smoke.yaml")
# Kinds of jobs by how they write, each with what it makes below results/smoke: its sole output folder, unless it is a file.
SMOKE = {  # made by the smoke preset
    # a folder of models, each with checkpoints or moved into place when it is whole
    "finetune": "models/identities/lora/tune0/manifest.csv",
    "finetune_victims": "weights/victims/none/manifest.csv",
    "finetune_variants": "ablations/lora/test0/models/manifest.csv",
    "finetune_defended": "defences/lora/0/models/manifest.csv",
    "finetune_private": "dp/near/attention/1/manifest.csv",
    "mean_features": "dp/near/dp-mepf/1/manifest.csv",
    "aggregate_embeddings": "dp/near/dpagg-ti/1/manifest.csv",
    "collect_weights": "weights/train/0/manifest.csv",
    "transform_victims": "weights/victims/gauge-10/manifest.csv",
    # one network with checkpoints
    "train_encoder": "weights/encoders/none/spectral/config.json",
    # a folder or a set of pictures
    "assemble": "bases/H1/model_index.json",
    "render": "data/lora-test/manifest.csv",
    "sample_private": "dp-samples/near/dpagg-ti/1/0/manifest.csv",
    "shake_synthesize": "shake-to-leak/H1/sets/self/manifest.csv",
    "shake_regenerate": "shake-to-leak/H1/regeneration0/pictures.csv",
    # a table whose parts are kept until it is whole
    "extract": "extraction/identities/lora/tune0/cfg/matches.csv",
    "sweep": "ablations/lora/test0/sweep/matches.csv",
    "attack_weights": "weights/scores/none/scores.csv",
    "recover_captions": "attacker/captions/identities/lora/adamw.csv",
    "shake_scores": "shake-to-leak/H1/scores0.csv",
    # a table that is made at once
    "judge_people": "attacker/people/identities.csv",
    "collect_clusters": "attacker/clusters.csv",
    "variant_utility": "ablations/lora/test0/utility.csv",
    "measure_private": "dp/near/attention/utility.csv",
    "audit_private": "dp/audits/dirac.csv",
    "dataset_size": "weights/sizes/total.csv",
    "calibrate": "extraction/identities/tau.json",
    "evaluate_finextract": "metrics/finextract/tuning.csv",
}
RESOURCES = {  # made by its target `resources`; networks with checkpoints
    "train_autoencoder": "resources/autoencoder/config.json",
    "train_embedder": "resources/embedders/copy-a/config.json",
    "train_base": "resources/bases/H1/config.json",
}
BEYOND = {  # made by it with `beyond` laid over
    "train_first_stage": "first-stages/shapes/config.json",
    "train_latent_diffusion": "bases/shapes/model_index.json",
    "import_folder": "data/shapes/manifest.csv",
    "shake_perturb": "shake-to-leak/H1/gaussian/manifest.csv",
    "shake_defended": "defences/lora/0/shaken/manifest.csv",
    "attack_shadows": "defences/lora/0/shadows/none/losses.csv",
}
KINDS = SMOKE | RESOURCES | BEYOND
LIKE = {  # what runs a kind's verb
    "finetune": ["finetune_drawn_captions", "finetune_others", "shake_finetune", "shake_finetune_further", "shake_finetune_point"],
    "collect_weights": ["collect_second", "collect_shadows", "collect_sizes"],
    "train_embedder": ["train_text_encoder"],
    "assemble": ["assemble_built"],
    "render": ["render_sizes"],
    "import_folder": ["import_fetched"],
    "sample_private": ["sample_base"],
    "shake_synthesize": ["shake_draw_point"],
    "extract": ["defended_extraction", "extract_under_conditions"],
    "attack_weights": ["defended_weights"],
    "shake_scores": [
        *("defended_membership", "shaken_membership"),
        *("shake_further_attacks", "shake_gaussian_scores", "shake_set_losses", "shake_study_scores"),
    ],
    "judge_people": ["defended_people"],
    "variant_utility": ["defended_utility"],
    "measure_private": ["measure_real"],
}
AT_ONCE = [  # of other verbs, which write a table, figures or documents when all is computed, and keep nothing until then: as `evaluate_finextract` does
    *("check_claims", "count_trainable", "join_metrics", "measure_world", "shake_calibrate", "shake_fidelity", "trace_base", "typeset_paper", "write_tables"),
    *("evaluate_ablations", "evaluate_attacker", "evaluate_defences", "evaluate_dp_ldm", "evaluate_lora_weights", "evaluate_shake", "evaluate_shake_further"),
    *("draw_ablations", "draw_attacker", "draw_defences", "draw_dp_ldm", "draw_finextract", "draw_lora_weights", "draw_shake"),
]
NETWORK = ["fetch_base", "fetch_images", "fetch_listed"]  # not killed here: they ask servers
SINGLE = {  # their folder holds others' files too
    *("recover_captions", "shake_scores", "judge_people", "collect_clusters", "variant_utility", "measure_private", "audit_private", "dataset_size"),
    *("calibrate", "evaluate_finextract", "attack_shadows"),
}
CODE = {".py", ".smk"}
SAME = {".csv", ".json", ".png", ".safetensors"}  # of these every bit counts (see `content`), of sidecars none
COLUMNS = ["kill", "kind", "victim", "after", "left", "orphans", "recovered", "equal", "different"]


def made_by(clone, kind):
    """Files that a kind of job made, sidecars, hidden ones and checkpoints excepted: {name: sha256}."""
    target = clone.folder / "results/smoke" / KINDS[kind]
    paths = [target] if kind in SINGLE else sorted(target.parent.rglob("*"))
    shown = [
        path
        for path in paths
        if path.is_file() and path.suffix in SAME and ".meta." not in path.name and "/." not in str(path.relative_to(target.parent.parent))
    ]
    return {str(path.relative_to(target.parent)): hashlib.sha256(content(path)).hexdigest() for path in shown}


def content(path):
    """The bytes of a file that have to come back: of weights the tensors (their header is a table in random order), of a log all but the seconds."""
    if path.suffix == ".safetensors":
        with safe_open(str(path), "np") as handle:
            parts = [str(sorted((handle.metadata() or {}).items())).encode()]
            for name in sorted(handle.keys()):
                tensor = handle.get_tensor(name)
                parts.append(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
        return b"".join(parts)
    if path.name == "train.csv":
        with open(path, newline="") as handle:
            return json.dumps([{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(handle)]).encode()
    return path.read_bytes()


def remove(clone, kind):
    target = clone.folder / "results/smoke" / KINDS[kind]
    if kind in SINGLE:
        target.unlink()
    else:
        shutil.rmtree(target.parent)


def beyond(clone):
    """Write, and return the path of, what is laid over the smoke preset for the kinds that it leaves out: a public model of sixteen pixels is trained on two
    dozen pictures of a folder, weights are perturbed, a release is shaken, and shadows are attacked."""
    values = yaml.safe_load((clone.folder / "config.yaml").read_text())
    pictures = clone.folder / "shapes"
    for number in range(24):
        label = ("dark", "light")[number % 2]
        shade = np.random.default_rng(number).integers(0, 120, (16, 16, 3)) + 120 * (number % 2)
        (pictures / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(shade.astype(np.uint8)).save(pictures / label / f"{number}.png")
    network = {"layers_per_block": 1, "norm_num_groups": 4, "batch": 4, "steps": 1200}  # of the diffusion model two checkpoints, after every 500 steps
    first = network | {"steps": 200, "checkpoint_every": 20, "kind": "vq", "codes": 16, "block_out_channels": [8, 16]}
    first |= {"discriminator_start": 1, "discriminator_layers": 1}
    diffusion = network | {"block_out_channels": [16, 32], "attention_levels": [1], "heads": 2, "context_width": 4}
    shaken = {"images_per_concept": 3, "steps_per_image": 2, "batch": 2}
    changes = {
        "images": [*values["images"], {"name": "shapes", "kind": "folder", "path": "shapes", "options": {"size": 16}}],
        "bases": [*values["bases"], {"name": "shapes", "kind": "trained", "images": "shapes", "first_stage": first, "diffusion": diffusion}],
        "shake_to_leak": {"gaussian": {"domains": 2, "perturb": {"sigmas": [0.01], "seeds": [0, 1]}}},
        "defences": {
            "attacks": ["membership", "extraction", "shadows", "shake"],
            "shadows": {"models": 4, "models_at_once": 2},
            "shake": {"defences": ["none"], "synthesize": {"count": 3, "steps": 4}, "recipe": shaken},
        },
    }
    return clone.overlay(yaml.safe_dump(changes))


def settings(clone, kind):
    return (*PRESET, beyond(clone)) if kind in BEYOND else PRESET


def arguments(clone, kind):
    """The job of one kind and nothing else; what it needs must be there, of whatever age."""
    return ("--rerun-incomplete", "--rerun-triggers", "input", *settings(clone, kind), "--allowed-rules", kind, "--", f"results/smoke/{KINDS[kind]}")


def drawn(kinds, count, root):
    """So many of the kinds, who is killed and after what share of its time, by a digest of the code below root: other code kills others, one version always
    the same."""
    text = hashlib.sha256(b"".join(path.read_bytes() for name in ("src", "workflow") for path in sorted((root / name).rglob("*")) if path.suffix in CODE))
    draw = random.Random(text.digest())
    return [(kind, draw.choice(["job", "snakemake"]), draw.random()) for kind in draw.sample(sorted(kinds), count)]


def job_below(snakemake):
    """The process of the running job, or None."""
    for child in snakemake.children(recursive=True):
        try:
            if "tuneleak" in child.cmdline():
                return child
        except psutil.Error:
            continue
    return None


def start(clone, kind, log):
    """Remove what a kind of job made and start it; returns (process of the workflow, that of its job or None if there was none)."""
    remove(clone, kind)
    with open(clone.folder / log, "w") as output:
        snakemake = psutil.Popen(
            clone.command(*arguments(clone, kind), cores=1), cwd=clone.folder, env=clone.environment(), stdout=output, stderr=subprocess.STDOUT
        )
    job = None
    while job is None and snakemake.poll() is None:
        job = job_below(snakemake)
        time.sleep(0.02)
    return snakemake, job


def kill(clone, kind, victim, after):
    """Remove what a kind of job made, start it, and send SIGKILL `after` seconds to the `job` or to `snakemake`; returns (in time, left, orphans).

    A Snakemake whose job was killed ends by itself; what lives on ten seconds after a killed Snakemake is an orphan.
    """
    snakemake, job = start(clone, kind, "killed.log")
    deadline = time.monotonic() + after
    while job is not None and snakemake.poll() is None and job.is_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    below = snakemake.children(recursive=True) if snakemake.poll() is None else []
    in_time = job is not None and job in below
    if in_time:
        (job if victim == "job" else snakemake).send_signal(signal.SIGKILL)
    snakemake.wait()
    _, alive = psutil.wait_procs(below, timeout=10)
    folder = (clone.folder / "results/smoke" / KINDS[kind]).parent
    left = len([path for path in folder.rglob("*") if path.is_file()]) if folder.is_dir() else 0
    return in_time, left, len(alive)


def restart(clone, kind):
    """Start the workflow again as its user would; returns whether it ended well."""
    clone.tuneleak("unlock")
    command = clone.command(*arguments(clone, kind), cores=1)
    return subprocess.run(command, cwd=clone.folder, env=clone.environment(), capture_output=True).returncode == 0


def survive(clone, kind, victim, after, reference):
    """One kill and one restart; the row that describes them. reference: `made_by` of an undisturbed job."""
    in_time, left, orphans = kill(clone, kind, victim, after)
    recovered = restart(clone, kind)
    now = made_by(clone, kind)
    different = sorted(name for name in reference.keys() | now.keys() if reference.get(name) != now.get(name))
    row = {"kind": kind, "victim": victim if in_time else "too late", "after": round(after, 2), "left": left, "orphans": orphans}
    return row | {"recovered": recovered, "equal": len(reference.keys() & now.keys()) - len(set(different) & set(now)), "different": " ".join(different)}


def undisturbed(clone, kind):
    """(what an undisturbed job of a kind makes, the seconds it takes from its start)."""
    snakemake, job = start(clone, kind, "undisturbed.log")
    started = time.monotonic()
    if job is not None:
        psutil.wait_procs([job])
    seconds = time.monotonic() - started
    if snakemake.wait():
        raise SystemExit((clone.folder / "undisturbed.log").read_text()[-4000:])
    return made_by(clone, kind), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="where to run; a folder of an earlier call goes on faster (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    specification = importlib.util.spec_from_file_location("clones", Path(__file__).with_name("conftest.py"))
    clones = importlib.util.module_from_spec(specification)
    sys.modules["clones"] = clones  # dataclasses look their module up
    specification.loader.exec_module(clones)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="survival-"))
    clone = clones.Clone(folder) if (folder / "Snakefile").exists() else clones.make_clone(folder)
    for kind in options.kinds:
        clone.snakemake(*settings(clone, kind), "--rerun-incomplete", "--rerun-triggers", "input", "--", f"results/smoke/{KINDS[kind]}")
    known = {kind: undisturbed(clone, kind) for kind in options.kinds}
    draw, number, survived = random.Random(options.seed), 0, True
    with open(options.out, "w", newline="") as handle:
        table = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        table.writeheader()
        while number < options.kills:
            kind = options.kinds[number % len(options.kinds)]
            reference, seconds = known[kind]
            row = survive(clone, kind, draw.choice(["job", "snakemake"]), draw.uniform(0, seconds), reference)
            if row["victim"] != "too late":
                number += 1
                table.writerow({"kill": number, **row})
                handle.flush()
                survived &= row["recovered"] and not row["different"] and not row["orphans"]
            print(row, flush=True)
    raise SystemExit(0 if survived else 1)


if __name__ == "__main__":
    main()
