"""A digest of the code a rule runs, as a param of the rule: Snakemake itself does not see edits of imported modules.

The digest covers the module a verb calls and everything of this package it imports, directly or not, also inside functions. Left out are
`tuneleak.options` and `tuneleak.errors`: every option reaches a rule as a value among its params, so a new knob of one stage
does not run the others again.
"""

import ast
import functools
import hashlib
from pathlib import Path

from tuneleak.errors import InputError

PACKAGE = "tuneleak"
LEFT_OUT = frozenset({"tuneleak.options", "tuneleak.errors"})
SOURCES = Path(__file__).resolve().parent.parent


def code_digest(*modules, sources=SOURCES):
    """First 16 hex digits of the SHA-256 of the sources of `modules` and of all package modules they import.

    `modules` are dotted names (`tuneleak.finetune.loop`); `sources` is the folder that holds the package. Raises `InputError` for a
    module that does not exist and for a relative import, which the digest does not follow.
    """
    found = set()
    for module in modules:
        _file(module, sources)  # raises if it does not exist
        found |= reachable(module, sources=sources)
    text = hashlib.sha256()
    for module in sorted(found):
        text.update(f"{module}\0".encode() + _file(module, sources).read_bytes() + b"\0")
    return text.hexdigest()[:16]


def attack_modules(family, name):
    """The modules an attack runs: the family's runner, and the attack's own file (`finextract-unconditional` is finextract_unconditional.py)."""
    return f"{PACKAGE}.attacks.{family}.run", f"{PACKAGE}.attacks.{family}.{name.replace('-', '_')}"


def reachable(module, sources=SOURCES):
    """The package modules that importing and running `module` can load, itself and its parent packages included."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in LEFT_OUT or not _exists(name, sources):
            continue
        found.add(name)
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        path = _file(name, sources)
        waiting += _imports(path, path.read_text(encoding="utf-8"))
    return found


@functools.cache
def _imports(path, text):
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise InputError(f"{path}:{node.lineno}: relative import; write `from {PACKAGE}... import` so that the code digest can follow it")
            names += [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
    return tuple(name for name in names if name.split(".")[0] == PACKAGE)


def _candidates(module, sources):
    path = Path(sources, *module.split("."))
    return path.with_suffix(".py"), path / "__init__.py"


def _exists(module, sources):
    return any(path.is_file() for path in _candidates(module, sources))


def _file(module, sources):
    for path in _candidates(module, sources):
        if path.is_file():
            return path
    raise InputError(f"no module {module} under {sources}; an attack named a-b needs a file a_b.py in its family's folder")
