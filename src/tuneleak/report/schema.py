"""The verb `schema`: the JSON schema of config.yaml and the README's table of knobs, both made from `tuneleak.config.Config`."""

import json
import types
import typing
from pathlib import Path

from pydantic import BaseModel

from tuneleak import files
from tuneleak.config import Config, load
from tuneleak.errors import InputError

SCHEMA = Path("workflow/schemas/config.schema.json")
README = Path("README.md")
BEGIN, END = "<!-- knobs:begin -->", "<!-- knobs:end -->"


def schema(root=".", write=False):
    """Check that the schema and the README's table below the folder `root` are what the models say, or write them with `write`.

    Raises `InputError` naming the file that is out of date, or if README.md lacks the two markers.
    """
    root = Path(root)
    text = json.dumps(json_schema(), indent=2) + "\n"
    readme = with_table(_read(root / README), knob_table(_defaults(root)))
    if write:
        files.write_text(root / SCHEMA, text)
        files.write_text(root / README, readme)
        return
    for path, expected in ((SCHEMA, text), (README, readme)):
        if _read(root / path) != expected:
            raise InputError(f"{path} is not what config.py, studies/ and options.py in src/tuneleak say; run `python -m tuneleak schema --write`")


def json_schema():
    """The JSON schema of config.yaml (draft 2020-12), for editors and for reading; the workflow itself validates with the models.

    An overlay holds only what it changes, so nothing is required here.
    """
    described = Config.model_json_schema()

    def relax(node):
        if isinstance(node, dict):
            if node.get("additionalProperties") is False:
                node.pop("required", None)
            return {key: relax(value) for key, value in node.items()}
        return [relax(value) for value in node] if isinstance(node, list) else node

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **relax(described)}


def knob_table(values):
    """The Markdown table of all knobs; `values`: config.yaml as a dict, whose scalars are shown as the defaults."""
    lines = ["| knob | type | default | meaning |", "|---|---|---|---|"]
    for path, kind, default, meaning in _knobs(Config, values, "", {}):
        lines.append(f"| `{path}` | {kind} | {default} | {meaning} |")
    return "\n".join(line.replace("\n", " ") for line in lines)


def with_table(readme, table):
    """`readme` with what is between the two markers replaced by `table`."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise InputError(f"{README} needs the line {BEGIN} and, below it, {END}, once each: the table of knobs goes between them")
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def _knobs(model, values, prefix, seen):
    """(path, type, default, meaning) of every field; a list of models contributes its fields once, under `name[]`.

    A model that was listed before (`seen`: {model: where}) is referred to, and only what config.yaml sets of it is listed again.
    """
    for name, info in model.model_fields.items():
        inner, many = _model_in(info.annotation)
        path = f"{prefix}{name}{'[]' if many else ''}"
        value = values[name] if name in values else None if info.is_required() else info.get_default(call_default_factory=True)
        if inner is None:
            yield path, _type(info.annotation, info.metadata), _shown(value), _cell(info.description or "")
            continue
        kind, given = "list of sections" if many else "section", value if isinstance(value, dict) else {}
        known = seen.setdefault(inner, path)
        yield path, kind if known == path else f"{kind}, as `{known}`", "", _cell(info.description or inner.__doc__ or "")
        yield from (row for row in _knobs(inner, given, f"{path}.", seen) if known == path or _is_given(row[0].removeprefix(f"{path}."), given))


def _is_given(path, values):
    """Whether the knob at a dotted path is set in nested `values`."""
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return not isinstance(values, dict)


def _model_in(annotation):
    """(the options model an annotation holds, alone or beside None, or None; whether it is a list of them)."""
    many = typing.get_origin(annotation) is list
    inner = typing.get_args(annotation)[0] if many else annotation
    if typing.get_origin(inner) in (typing.Union, types.UnionType):
        inner = next((item for item in typing.get_args(inner) if _is_model(item)), inner)
    return (inner, many) if _is_model(inner) else (None, many)


def _is_model(annotation):
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(annotation, metadata=()):
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{item}`" for item in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(item) for item in arguments)
    if origin is dict:
        return f"{_type(arguments[0])} → {_type(arguments[1])}"
    name = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "nothing"}.get(annotation, str(annotation))
    limits = [limit for item in metadata for limit in _limits(item)]
    return f"{name} {' and '.join(limits)}" if limits else name


def _limits(item):
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}  # Field(...) nested in an Annotated keeps its limits in .metadata
    found = [f"{sign} {getattr(item, name):g}" for name, sign in signs.items() if getattr(item, name, None) is not None]
    return found or [limit for nested in getattr(item, "metadata", ()) for limit in _limits(nested)]


def _shown(value):
    return "" if value is None or value == "" else f"`{json.dumps(value)}`"


def _cell(text):
    return " ".join(text.split()).replace("|", "\\|")


def _defaults(root):
    import yaml

    values = yaml.safe_load(_read(root / "config.yaml"))
    load(values)
    return values


def _read(path):
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run this in the project's folder") from None
