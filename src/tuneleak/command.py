"""Turns a function and its options model into a sub-command: flags, `--options JSON`, and errors for people."""

import argparse
import importlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tuneleak import runtime
from tuneleak.errors import InputError
from tuneleak.options import Options


@dataclass(frozen=True)
class Argument:
    """One `--flag` of a verb that is a file, folder or name rather than an option of the method; of kind `bool` it is a switch without a value."""

    flag: str
    help: str
    many: bool = False
    required: bool = True
    kind: Any = Path

    @property
    def name(self):
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Verb:
    """A sub-command: `target` ("module:function") is called with the arguments, and with `options=` if there is a model."""

    name: str
    help: str
    target: str
    arguments: list[Argument] = field(default_factory=list)
    options: type[Options] | None = None


def build_parser(program, description, verbs):
    """An argparse parser for all `verbs`; a verb of several words becomes a sub-command of sub-commands."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    groups = {(): parser.add_subparsers(title="verbs", metavar="VERB", required=True)}
    for verb in verbs:
        *prefix, last = verb.name.split()
        prefix = tuple(prefix)
        for length in range(1, len(prefix) + 1):
            shorter, words = prefix[: length - 1], " ".join(prefix[:length])
            if prefix[:length] not in groups:
                group = groups[shorter].add_parser(prefix[length - 1], help=f"{words} ...: see `{program} {words} --help`")
                groups[prefix[:length]] = group.add_subparsers(title="verbs", metavar="VERB", required=True)
        sub = groups[prefix].add_parser(last, help=verb.help, description=verb.help, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for argument in verb.arguments:
            shape = {"action": "store_true"} if argument.kind is bool else {"type": argument.kind, "nargs": "+" if argument.many else None}
            sub.add_argument(argument.flag, dest=argument.name, help=argument.help, required=argument.required, default=argparse.SUPPRESS, **shape)
        if verb.options:
            _add_option_flags(sub, verb.options)
        sub.set_defaults(verb=verb)
    return parser


def _add_option_flags(parser, model):
    group = parser.add_argument_group("options of the method")
    text = "many options at once, as the workflow passes them; single flags win over it"
    group.add_argument("--options", metavar="JSON", help=text, default=argparse.SUPPRESS)
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        nested = isinstance(default, (BaseModel, list, dict))
        shown = json.dumps(default, default=lambda value: value.model_dump()) if nested else default
        choices = f"; one of {', '.join(words)}" if (words := _choices(info.annotation)) else ""
        text = f"{info.description}{choices} (default: {shown!s})" + (" [JSON]" if nested else "")
        group.add_argument(f"--{name.replace('_', '-')}", dest=f"option_{name}", metavar="VALUE", help=text.replace("%", "%%"), default=argparse.SUPPRESS)


def _choices(annotation):
    """The words that an option, or an entry of its list, must be one of; none for any other option."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((words for inner in get_args(annotation) if (words := _choices(inner))), ())


def _read_options(model, namespace):
    try:
        values = json.loads(getattr(namespace, "options", "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f'--options is not valid JSON ({error}); it must be an object such as {{"seed": 1}}') from None
    if not isinstance(values, dict):
        raise InputError(f'--options must be a JSON object such as {{"seed": 1}}, not {type(values).__name__}')
    for name, info in model.model_fields.items():
        text = getattr(namespace, f"option_{name}", None)
        if text is not None and info.annotation is str:
            values[name] = text  # a caption "2026" or "true" is text
        elif text is not None:
            try:
                values[name] = json.loads(text)
            except (ValueError, RecursionError):
                values[name] = text
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"  --{'.'.join(map(str, item['loc'])).replace('_', '-')}: {item['msg']}" for item in error.errors()]
        raise InputError("these options are not valid; mend them:\n" + "\n".join(lines)) from None


def run(parser, argv=None):
    """Parse, call the verb's function, and turn an `InputError` into exit code 2 without a traceback."""
    namespace = parser.parse_args(argv)
    runtime.die_with_parent()
    runtime.keep_freed_memory()
    verb = namespace.verb
    try:
        arguments = {argument.name: getattr(namespace, argument.name) for argument in verb.arguments if hasattr(namespace, argument.name)}
        if verb.options:
            arguments["options"] = _read_options(verb.options, namespace)
        module, function = verb.target.split(":")
        getattr(importlib.import_module(module), function)(**arguments)
    except InputError as error:
        if namespace.debug:
            raise
        print(f"tuneleak: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError) as error:
        if namespace.debug:
            raise
        print(f"tuneleak: error: {error}; check that path and who may read or write it (--debug shows where it was needed)", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        full = type(error).__name__ == "SafetensorError"  # a full disk, under weights; reports are made where that package is not
        if namespace.debug or not (full or isinstance(error, OSError | MemoryError)):
            raise
        told = error if str(error) else "there is not enough memory; give less at once"
        print(f"tuneleak: error: {told} (--debug shows where)", file=sys.stderr)
        raise SystemExit(1) from None
