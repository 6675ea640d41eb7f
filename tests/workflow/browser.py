"""A Chromium without windows: the system's, or Debian's package unpacked into a folder and run from there. Nothing is installed."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
PACKAGE, PROGRAM = "chromium-headless-shell", "usr/lib/chromium/chromium-headless-shell"


def installed():
    """The path of an installed one, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def why_not():
    """Why there can be no browser here; an empty string if there can be one."""
    if installed():
        return ""
    if os.environ.get("TUNELEAK_TEST_CHROMIUM") != "1":
        return "no Chromium or Chrome on PATH, and one is fetched only where TUNELEAK_TEST_CHROMIUM is 1"
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))) or platform.machine() != "x86_64" or os.geteuid():
        return "Chromium comes from Debian packages for x86-64, and apt-get is not here or not ours to use"
    return ""


def open_page(page, folder):
    """The document of the HTML file `page` after its scripts have run; `folder`: for a profile, and for a browser that has to be unpacked."""
    program, environment = installed(), dict(os.environ)
    if program is None:
        program, libraries = _unpacked(folder / "browser")
        environment["LD_LIBRARY_PATH"] = libraries
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([program, *flags, page.as_uri()], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _unpacked(folder):
    """(program, folders of libraries) of the package and of what it needs that is not installed."""
    (folder / "packages" / "partial").mkdir(parents=True)
    call = ["apt-get", "install", "--download-only", "--no-install-recommends", "-y", "-qq", "-o", f"Dir::Cache::archives={folder / 'packages'}", PACKAGE]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:  # perhaps only the lists are missing
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
        done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, f"apt-get cannot deliver {PACKAGE}: {done.stderr.strip()[-300:]}"
    for package in (folder / "packages").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
    folders = sorted({str(path.parent) for path in Path(folder / "root/usr/lib").rglob("*.so*")})
    return folder / "root" / PROGRAM, ":".join(folders)
