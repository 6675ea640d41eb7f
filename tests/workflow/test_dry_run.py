"""The job graph of every preset, and what the configuration refuses, without running a job."""

import csv
import re
import subprocess
import sys

import pytest
import yaml

pytestmark = pytest.mark.workflow
PRESETS = ("embedded", "smoke", "full", "paper", "paper-one", "pilot", "stress")


def overlay_of(preset):
    if preset == "paper-one":
        return ("--configfile", "workflow/presets/paper.yaml", "workflow/overlays/paper-one.yaml")
    return () if preset == "embedded" else ("--configfile", f"workflow/presets/{preset}.yaml")


def jobs(output):
    """{rule: number of jobs} of a dry run's statistics."""
    table = output.split("job ", 1)[1].split("\n\n", 1)[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@pytest.mark.parametrize("preset", PRESETS)
def test_job_graph(clone, preset):
    done = clone.snakemake("--dry-run", "--quiet", "rules", *overlay_of(preset))
    counts = jobs(done.stdout)
    print(f"{preset}: {counts['total']} jobs, {done.seconds:.1f} s of processor time to find them")
    assert counts["finetune"] and counts["extract"] and counts["typeset_paper"] == 1
    assert counts["total"] < 2000
    planned = {rule: number for rule, number in counts.items() if rule != "total"}
    with open(clone.folder / "paper/reference/jobs.csv", newline="") as handle:
        recorded = {row["rule"]: int(row["jobs"]) for row in csv.DictReader(handle) if row["preset"] == preset}
    assert not preset.startswith("paper") or recorded == planned, "ARTIFACT.md tells of other jobs: correct paper/reference/jobs.csv and run artifact --write"
    if not preset.startswith("paper"):  # starting a job costs ten seconds
        assert counts["total"] < (650 if preset == "full" else 200)
    assert done.seconds < 20, "reading the workflow takes too long (see the processor time above)"


def test_networks_that_are_not_there_stop_a_run_before_its_first_job(clone):
    """Where a job needs them: those behind other targets do not matter."""
    overlay = clone.overlay("instruments: {copy_score: data/networks/nowhere}\nlora_weights: {dino: data/networks/unasked}\n")
    target = "results/smoke/extraction/identities/tau.json"
    done = clone.snakemake(*overlay_of("smoke"), overlay, "--", target, fails=True)
    assert "networks that are not there: data/networks/nowhere;" in done.stdout and not (clone.folder / "results/smoke/data").exists()
    clone.snakemake("--dry-run", "--quiet", *overlay_of("smoke"), overlay, "--", target)


def test_attacks_per_shard(clone):
    """Test concepts meet every attack, tune concepts every grid, in as many shards as their number asks for."""
    config = yaml.safe_load((clone.folder / "config.yaml").read_text())
    overlay = clone.overlay(yaml.safe_dump({"finextract": {"shard_concepts": 3}}))
    done = clone.snakemake("--dry-run", "--configfile", overlay)
    outputs = set(re.findall(r"output: (\S+/extraction/\S+)/matches\.csv", done.stdout))
    expected = {
        f"results/embedded/extraction/{recipe['world']}/{recipe['options']['method']}/{split}{shard}/{attack}"
        for recipe in config["finetune"]
        for split, shards, attacks in (("test", 2, config["finextract"]["attacks"]), ("tune", 1, [grid["attack"] for grid in config["finextract"]["grid"]]))
        for shard in range(shards)
        for attack in attacks
    }
    # what the base draws of tune concepts, by one method of each world, teaches the attacker's certainty
    expected |= {f"results/embedded/extraction/{world}/lora/tune0/base" for world in config["finextract"]["attacker"]["worlds"]}
    assert outputs == expected
    conditions = set(re.findall(r"output: (\S+/attacker/conditions/\S+)/matches\.csv", done.stdout))
    assert conditions == {f"results/embedded/attacker/conditions/identities/{method}/{shard}" for method in ("dreambooth", "lora") for shard in range(2)}


def test_shards_cover_the_concepts_once(clone):
    overlay = clone.overlay(yaml.safe_dump({"finextract": {"shard_concepts": 3}}))
    done = clone.snakemake("--dry-run", "--printshellcmds", "--configfile", overlay)
    call = r"tuneleak finetune --base .* --world identities --split test --start (\d+) --stop (\d+) --out \S+/embedded/models/\S+/lora/"
    slices = sorted(re.findall(call, done.stdout))
    assert slices == [("0", "3"), ("3", "4")]


def test_the_matrix_is_run_in_few_jobs_and_where_it_can_be(clone):
    """Two groups of attacks in smoke; in full one job per shard and group, on those defences only that it can be run on; and one more for each way to adapt."""
    smoke = jobs(clone.snakemake("--dry-run", "--quiet", "rules", *overlay_of("smoke"), "--", "defences").stdout)
    mine = {"finetune_defended", "defended_membership", "defended_extraction", "defended_utility", "evaluate_defences", "draw_defences"}
    assert {name: smoke.get(name) for name in mine} == dict.fromkeys(mine, 1) and not set(smoke) & {"attack_shadows", "defended_weights", "shake_defended"}
    done = clone.snakemake("--dry-run", "--printshellcmds", *overlay_of("full"), "--", "defences")
    full = jobs(done.stdout)
    assert full["finetune_defended"] == full["defended_membership"] == 8
    assert full["collect_shadows"] == full["attack_shadows"] == 4 * 6 and full["defended_weights"] == 4 * 6  # five changed recipes; five changes of weights
    (options,) = set(re.findall(r"attack weights run .*defences/lora/0/weights/none .*--options '(.*)' >", done.stdout))
    assert '"dpagg-1"' not in options and '"dp-person-10"' in options and '"controls": false' in options
    (call,) = set(re.findall(r"attack weights run .*defences/lora/0/weights/quantise-8 .*", done.stdout))
    assert "/encoders/quantise-8/spectral-adaptive" in call and "/encoders/none/autoencoder" in call and '"only": ["int8"]' in call
    assert "defences" not in "".join(jobs(clone.snakemake("--dry-run", "--quiet", "rules", *overlay_of("paper-one")).stdout))


def test_a_further_base_has_models_of_its_own_and_the_attacks_asked_for(clone):
    """Eight people in shards of two: the twin's are numbered after those of the world's own base, and stand under a world of their own."""
    overlay = clone.overlay("defences: {further: {bases: [H1-twin], attacks: [people]}}")
    done = clone.snakemake("--dry-run", "--printshellcmds", *overlay_of("full"), overlay, "--", "defences")
    mine = jobs(done.stdout)
    assert (mine["finetune_defended"], mine["defended_people"], mine["defended_membership"], mine["defended_utility"]) == (16, 16, 8, 8)
    told = set(re.findall(r"finetune-defended --base \S+/bases/(\S+) .* --world (\S+) .*--start 6 --stop 8 --out \S+/lora/(\d)/models", done.stdout))
    assert told == {("H1", "identities", "3"), ("H1-twin", "identities@H1-twin", "7")}


def test_further_membership_attacks_are_one_job_and_change_no_other(clone):
    """In full on one base and method; what the study's own jobs are told is what they were told before there were further ones."""
    run = ("--dry-run", "--printshellcmds", *overlay_of("full"))
    without = clone.overlay(yaml.safe_dump({"shake_to_leak": {"further_attacks": {"bases": [], "methods": []}}}))
    calls = [set(re.findall(r"tuneleak (?!paper).*", clone.snakemake(*run, *more, "--", "shake").stdout)) for more in ((), (without,))]
    scored, evaluated = sorted(calls[0] - calls[1])
    assert not calls[1] - calls[0] and "--models results/full/shake-to-leak/H1/models/self/dreambooth+lora/0 --members" in scored
    assert (
        '"attacks": ["secmi-nns", "pian", "pfami", "clid"]' in scored
        and "evaluate shake-to-leak --scores results/full/shake-to-leak/H1/further-attacks0.csv" in evaluated
    )


def test_victims_of_other_recipes_have_their_own_pictures_and_gallery(clone):
    """The same people on one and on ten pictures, and artists, who are another world and have controls of their own."""
    done = clone.snakemake("--dry-run", "--printshellcmds", *overlay_of("full"), "workflow/overlays/weights-others.yaml", "--", "weights").stdout
    calls = {name: re.findall(rf"tuneleak finetune .*weights/victims/{name} .*", done) for name in ("none", "recipe-pictures-10", "recipe-artists")}
    assert all(len(found) == 1 for found in calls.values())
    (none,), (ten,), (artists,) = calls.values()
    assert "--images results/full/data/lora-test --world lora-identities --split '' --stop 100" in none
    assert "--images results/full/data/lora-test --world lora-identities --split '' --stop 100" in ten and '"images_per_concept": 10' in ten
    assert "--images results/full/data/private-artists --world artists --split test  --out" in artists
    call = "attack weights run --models results/full/weights/victims/{} .*"
    none, gentle, artists = (re.findall(call.format(name), done)[0] for name in ("none", "recipe-gentle", "recipe-artists"))
    assert '"controls": true' in none and '"controls": true' in artists and '"controls": false' in gentle
    assert "--images results/full/data/private-artists --distractors results/full/data/public-artists" in artists
    assert "--second" in none and "--second" not in artists


def test_numbers_of_pictures_beyond_what_people_have_get_photographs_of_their_own(clone):
    """The full preset asks for up to 20 pictures of people with 12 photographs; the others take those that are there."""
    for overlay, folder in ((overlay_of("full"), "weights/size-photographs"), ((), "data/lora-train")):
        done = clone.snakemake("--dry-run", "--printshellcmds", *overlay, "--", "weights").stdout
        results = "results/full" if overlay else "results/embedded"
        calls = re.findall(r"tuneleak collect-weights .*weights/sizes/.*", done)
        assert len(calls) == 2 and all(f"--images {results}/{folder} " in call for call in calls)
        (train,) = {call.split("--images ")[1].split()[0] for call in re.findall(r"tuneleak collect-weights .*weights/train/.*", done)}
        assert train == f"{results}/data/lora-train"
        rendered = re.findall(r"tuneleak render --name lora-train .*size-photographs.*", done)
        assert len(rendered) == bool(overlay) and all('"lora_photographs": 20' in call for call in rendered)


@pytest.mark.parametrize(
    ("overlays", "says"),
    [
        (("workflow/presets/weights-artists.yaml",), "--world artists --split test --stop 8"),
        (("workflow/presets/paper.yaml", "workflow/overlays/weights-2-1.yaml"), "--base results/paper-weights-2-1/bases/stable-diffusion-2-1-base"),
        (("workflow/presets/paper.yaml", "workflow/overlays/weights-objects.yaml"), "--images results/paper-weights-objects/data/objects-test"),
    ],
)
def test_the_weights_study_of_other_items_and_bases(clone, overlays, says):
    done = clone.snakemake("--dry-run", "--printshellcmds", "--configfile", *overlays, "--", "weights")
    assert says in done.stdout and "evaluate lora-weights" in done.stdout
    if "weights-artists" in overlays[0]:  # every seed its own half of the pictures, but not for the second sets, which are other pictures of the victims
        (train, second) = (re.findall(rf"collect-weights .*{kind}.*", done.stdout)[0] for kind in ("weights/train/0", "weights/second"))
        assert '"coin": true' in train and '"coin": false' in second and "--sizes" not in done.stdout


def test_guidance_reaches_the_jobs(clone):
    """Grids go to tune concepts only; test concepts get the frozen point, and the base control the scale of classifier-free guidance."""
    grid = [{"w": 7.25, "k": 0.0}]
    frozen = {"cfg": 3.5, "finextract": 2.25, "finextract-unconditional": 1.75}
    worlds = [(world, method) for world in ("identities", "artists") for method in ("dreambooth", "lora")]
    guidance = [{"world": world, "method": method, "attack": attack, "guidance": {"w": w}} for world, method in worlds for attack, w in frozen.items()]
    overlay = clone.overlay(yaml.safe_dump({"finextract": {"guidance": guidance, "grid": [{"attack": attack, "guidance": grid} for attack in frozen]}}))
    done = clone.snakemake("--dry-run", "--printshellcmds", "--configfile", overlay)
    found = {}
    for line in done.stdout.splitlines():
        match = re.search(r"attack extraction .*--out results/embedded/extraction/artists/lora/(test|tune)0/(\S+) ", line)
        if match:
            found[match.groups()] = [float(w) for w in re.findall(r'"w": ([\d.]+)', line)]
    assert found == {
        **{("tune", attack): [7.25] for attack in frozen},
        **{("test", attack): [w] for attack, w in frozen.items()},
        ("test", "direct"): [1.0],
        ("test", "base"): [3.5],
    }


def test_nothing_heavy_is_imported_while_the_workflow_is_read(clone):
    command = [sys.executable, "-X", "importtime", *clone.command("--dry-run", "--quiet", "all")[1:]]
    done = subprocess.run(command, cwd=clone.folder, env=clone.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "snakemake" in imported and "tuneleak" in imported
    assert not imported & {"torch", "diffusers", "transformers", "open_clip", "matplotlib", "sklearn"}


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("finextract: {stepz: 3}", "finextract.stepz: Extra inputs are not permitted"),
        ("finextract: {steps: many}", "finextract.steps: Input should be a valid integer"),
        ("population: {image_size: 0}", "population.image_size: Input should be greater than or equal to 1"),
        ("worlds: [{name: x, base: H9, images: named-p, tune_concepts: 1, test_concepts: 1}]", "base 'H9'"),
        ("training: {public_sets: [nobody]}", "training.public_sets: 'nobody'"),
        ("device: cuda", "gpus is 0"),
        ("finextract: {guidance: []}", "finextract.guidance has no entry for world 'identities'"),
        ("finextract: {grid: [{attack: cfg, guidance: [{w: 1}]}, {attack: finextract, guidance: [{w: 1}, {w: 2}]}]}", "unequal budgets"),
        ("lora_weights: {adaptive: [gauge-3]}", "'gauge-3' is none of the transforms"),
        ("lora_weights: {recipe: {method: dreambooth}}", "method is 'dreambooth', not 'lora'"),
        ("lora_weights: {distractors: nobody}", "lora_weights.distractors: 'nobody'"),
        ("bases: [{name: ../H1, kind: folder, path: x}, {name: H1, kind: folder, path: x}]", "'../H1' becomes a folder"),
    ],
)
def test_a_wrong_configuration_stops_before_any_job_and_names_the_key(clone, overlay, message):
    done = clone.snakemake("--dry-run", "--configfile", clone.overlay(overlay), fails=True)
    assert message in done.stdout
    assert "Traceback" not in done.stdout


def test_a_local_pipeline_folder_is_used_where_it_is(clone):
    overlay = clone.overlay("bases: [{name: H1, kind: folder, path: my/model}]")
    (clone.folder / "my/model").mkdir(parents=True, exist_ok=True)
    (clone.folder / "my/model/model_index.json").write_text("{}")
    done = clone.snakemake("--dry-run", "--printshellcmds", "--configfile", overlay)
    assert "--base my/model " in done.stdout and "assemble" not in jobs(done.stdout)


def test_a_hub_data_set_is_fetched_then_imported(clone):
    source = {"name": "private-artists", "kind": "hub", "repository": "someone/art", "revision": "0" * 40}
    config = yaml.safe_load((clone.folder / "config.yaml").read_text())
    images = [source if item["name"] == source["name"] else item for item in config["images"]]
    done = clone.snakemake("--dry-run", "--configfile", clone.overlay(yaml.safe_dump({"images": images})))
    counts = jobs(done.stdout)
    assert counts["fetch_images"] == counts["import_fetched"] == 1
    assert "render/private-identities.log" in done.stdout and "render/private-artists.log" not in done.stdout


def test_resources_are_built_outside_of_the_shipped_folder(clone):
    done = clone.snakemake("--dry-run", "resources")
    config = yaml.safe_load((clone.folder / "config.yaml").read_text())
    counts = jobs(done.stdout)
    assert counts["train_autoencoder"] == counts["train_text_encoder"] == 1
    assert counts["train_embedder"] == len(config["training"]["embedders"]) - 1 and counts["train_base"] == len(config["training"]["bases"])
    outputs = [path for line in re.findall(r"output: (.+)", done.stdout) for path in line.split(", ")]
    assert outputs and all(path.startswith("results/embedded/") for path in outputs)
