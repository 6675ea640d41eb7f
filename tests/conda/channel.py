"""Makes a local conda channel out of what pip installed here: python channel.py CHANNEL NAME...

Each named distribution and everything it needs becomes a real `.conda` package with its files, version and dependencies. The package
`python` is a bridge: links to this machine's interpreter and an empty site-packages, so that an environment sees only what was installed
into it. Nothing is downloaded.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import rattler_build
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rattler.index import index_fs

PLATFORM = "linux-64"
LIBRARY = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def main(channel, names):
    platform = Path(channel) / PLATFORM
    platform.mkdir(parents=True)
    (Path(channel) / "noarch").mkdir()
    bridge(platform)
    done, waiting = set(), [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in done:
            done.add(name)
            waiting += package(platform, name)
    asyncio.run(index_fs(Path(channel), force=True))
    print("local channel:", "python", *sorted(done))


def assemble(platform, name, version, build, folder, depends=()):
    options = {"files_dir": folder, "depends": list(depends), "detect_prefix": False, "compression_level": 1}
    rattler_build.assemble_package(name, version, PLATFORM, build, platform, **options)


def bridge(platform):
    """The package `python`: sys.prefix is the environment, and the host's site-packages are out of sight."""
    version = ".".join(map(str, sys.version_info[:3]))
    interpreter = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "bin").mkdir()
        for name in ("python", "python3", interpreter.name):
            (folder / "bin" / name).symlink_to(interpreter)
        (folder / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\ninclude-system-site-packages = false\nversion = {version}\n")
        (folder / LIBRARY).mkdir(parents=True)
        (folder / LIBRARY / "bridge.txt").write_text("The interpreter of this environment is the host's (tests only).\n")
        assemble(platform, "python", version, "0_bridge", folder)


def package(platform, name):
    """Package one installed distribution; returns the names of what it needs."""
    distribution = metadata.distribution(name)
    needed = [Requirement(line) for line in distribution.requires or []]
    needed = [item for item in needed if item.marker is None or item.marker.evaluate({"extra": ""})]
    with tempfile.TemporaryDirectory() as folder:
        for path in distribution.files:
            if ".." not in path.parts and "__pycache__" not in path.parts:
                target = Path(folder, LIBRARY, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path.locate(), target)
        depends = ["python", *(f"{canonicalize_name(item.name)} {item.specifier}".strip() for item in needed)]
        assemble(platform, name, distribution.version, "pip_0", folder, depends)
    return [canonicalize_name(item.name) for item in needed]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # the indexer's threads now and then crash an interpreter that is being torn down, after all is written
