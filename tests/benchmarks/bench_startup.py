"""What starting a stage costs beside importing the classes it uses; reported, never asserted.

    python tests/benchmarks/bench_startup.py [--repeats 3] [--stages NAME ...] [--out FILE]

A stage is started on a tiny pipeline and stopped where its work begins (the first training step, the noise that a budget asks for, the first generation, the
first score): processor seconds of the whole process up to there, loading the pipeline and its pictures included. Beside it a process that only imports the
classes by which that work is done. The least of `--repeats` counts, processes of both kinds in turn. The aim is a ratio of 1.2 at most.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from recording import Results, add_out

ROOT = Path(__file__).resolve().parents[2]
CLASSES = """
import numpy, pandas, torch
from PIL import Image
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
"""
STOP = """
import importlib, sys, time
module, name = sys.argv[1].split(":")
def begun(*_, **__):
    print(time.process_time(), flush=True)
    raise SystemExit(0)
from tuneleak.cli import main
setattr(importlib.import_module(module), name, begun)
main(sys.argv[2:])
"""
# stage: what it is called with, where its work begins, and the classes it uses beside those of the pipeline
STAGES = {
    "finetune (dreambooth)": ("tuneleak.finetune.loop:training_step", "dreambooth", ""),
    "finetune (lora)": ("tuneleak.finetune.loop:training_step", "lora", "from peft import LoraConfig\nimport peft.tuners.lora"),
    "finetune-private": ("tuneleak.finetune.private:_noise", "private", "import opacus, dp_accounting, scipy.stats"),
    "attack extraction": ("tuneleak.attacks.extraction.shard:generate", "extraction", "from peft import LoraConfig\nimport peft.tuners.lora"),
    "attack membership": ("tuneleak.attacks.membership.loss:score", "membership", ""),
}


def arguments(stage, base, images, out, models):
    common = ["--images", images, "--base", base, "--out", out, "--device", "cpu"]
    if stage == "extraction":
        judges = ["--copy-cluster", ROOT / "resources/embedders/copy-a", "--copy-score", ROOT / "resources/embedders/copy-b"]
        return ["attack", "extraction", "--models", models, *common, *judges, "--attack", "finextract", "--guidance", '[{"w": 2}]']
    if stage == "private":
        privacy = {"expected_batch": 2, "public_size": 8, "steps": 1, "delta": 1e-2}
        return ["finetune-private", *common, "--world", "tiny", "--options", json.dumps({"conditioning": "frozen", "gradients": "ghost", "privacy": privacy})]
    if stage == "membership":
        return ["attack", "membership", *common, "--options", json.dumps({"attacks": ["loss"], "captions": ["null"]})]
    options = {"method": stage, "images_per_concept": 4, "steps_per_image": 1, "batch": 1, "rank": 2, "alpha": 2}
    return ["finetune", *common, "--world", "tiny", "--split", "test", "--options", json.dumps(options)]


def seconds(code, words=()):
    """Processor seconds that a process reports of itself."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), metavar="NAME")
    add_out(parser)
    asked = parser.parse_args()
    results = Results("startup", asked)
    specification = importlib.util.spec_from_file_location("tiny", ROOT / "tests/conftest.py")
    tiny = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tiny)
    with tempfile.TemporaryDirectory() as folder:
        base, images = tiny.build_tiny_base(Path(folder, "base")), tiny.build_tiny_images(Path(folder, "images"))
        models = Path(folder, "models")
        lora = [sys.executable, "-m", "tuneleak", *map(str, arguments("lora", base, images, models, None))]
        subprocess.run(lora, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=True, capture_output=True)
        for name in asked.stages:
            begins, stage, more = STAGES[name]
            words = [begins, *arguments(stage, base, images, Path(folder, "out"), models)]
            found = [(seconds(STOP, words), seconds(f"{CLASSES}{more}\nimport time; print(time.process_time())")) for _ in range(asked.repeats)]
            started, imported = (min(column) for column in zip(*found, strict=True))
            print(f"{name:22} {started:5.2f} s until its work begins, {imported:5.2f} s to import its classes, ratio {started / imported:.2f}", flush=True)
            for what, value, repeats in zip(("until its work begins", "import of its classes"), (started, imported), zip(*found, strict=True), strict=True):
                results.add(f"{name}: {what}", value, "s", repeats)
            results.add(f"{name}: start to import", started / imported, "ratio", [a / b for a, b in found])
    results.write()


if __name__ == "__main__":
    main()
