"""A double of the `conda` command: what Snakemake calls of it, solved and installed by rattler from the channels below $CONDA_DOUBLE_CHANNELS."""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

import rattler
import yaml

VERSION = "24.11.0"
PREFIX = Path(os.environ["CONDA_DOUBLE_PREFIX"])
PLATFORMS = ["linux-64", "noarch"]


def channel(name):
    return f"file://{os.environ['CONDA_DOUBLE_CHANNELS']}/{name}"


async def solved(file):
    """Records that satisfy an environment's yaml file."""
    described = yaml.safe_load(file.read_text())
    specs = described["dependencies"]
    if not all(isinstance(spec, str) for spec in specs):
        sys.exit(f"conda double: {file} has a pip section, which needs the network")
    channels = [channel(name) for name in described["channels"] if name != "nodefaults"]
    return await rattler.solve(channels, specs, platforms=PLATFORMS, virtual_packages=rattler.VirtualPackage.detect())


async def pinned(file):
    """Records of an explicit list (`url#md5` a line); every package and digest must be the channel's."""
    records = []
    for line in file.read_text().splitlines():
        if "://" not in line:
            continue
        url, _, digest = line.strip().partition("#")
        source, _, name = url.rsplit("/", 2)
        spec = rattler.MatchSpec(name.rsplit("-", 2)[0])
        found = await rattler.Gateway().query([rattler.Channel(source)], PLATFORMS, specs=[spec], recursive=False)
        record = next((item for group in found for item in group if str(item.url).endswith(f"/{name}")), None)
        if record is None:
            sys.exit(f"conda double: {url} is not in the channel")
        if digest and record.md5.hex() != digest:
            sys.exit(f"conda double: {url} has another md5 than {digest}")
        records.append(record)
    return records


async def create(file, prefix):
    records = await (pinned(file) if file.name.endswith("pin.txt") else solved(file))
    await rattler.install(records, prefix, show_progress=False, cache_dir=PREFIX / "pkgs")


def explicit(prefix):
    print("@EXPLICIT")
    for path in sorted(Path(prefix, "conda-meta").glob("*.json")):
        record = json.loads(path.read_text())
        print(f"{record['url']}#{record['md5']}")


def main(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path)
    parser.add_argument("--prefix", type=Path)
    known, _ = parser.parse_known_args(words)
    with open(PREFIX / "calls.txt", "a") as log:
        log.write(" ".join(words) + "\n")
    if words[:1] == ["--version"]:
        print(f"conda {VERSION}")
    elif words[:1] == ["info"]:
        print(json.dumps({"conda_prefix": str(PREFIX), "platform": PLATFORMS[0], "conda_version": VERSION}))
    elif words[:1] == ["config"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif words[:2] == ["list", "--explicit"]:
        explicit(known.prefix)
    elif words[:1] == ["create"] or words[:2] == ["env", "create"]:
        asyncio.run(create(known.file, known.prefix))
        sys.stdout.flush()
        os._exit(0)  # on a busy machine a thread of rattler's still runs while Python ends, which aborts ("PyGILState_Release: ... finalizing")
    elif words[:1] != ["clean"]:
        sys.exit(f"conda double: cannot do {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
