"""The registered claims: `paper/reference/claims.yaml`, `endpoints.yaml` and `published/<system>.csv`, read and checked against each other.

A claim with `each: [world, method]` stands for one claim per world and method, with ids `<id>-<world>-<method>`; they form one family.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import Field, ValidationError

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.options import Options
from tuneleak.report import rows

Id = Annotated[str, Field(pattern="^[a-z]+(-[a-z]+)*$")]  # letters only: they become names of TeX macros


class Published(Options):
    """What a paper says: `text`, in which {id} stands for the value of a row of published/<system>.csv."""

    text: str = Field(description="as printed in the table of claims")
    target: Literal["sourced", "unsourced"] = Field(description="whether the value could be traced to the authors")
    source: str = Field("", description="where it is from, when no row of published/<system>.csv says so")


class Check(Options):
    """How a row decides a claim."""

    kind: Literal["greater-than-zero", "less-than-zero", "reported"] = Field(description="of a difference; reported: shown, never compared")
    reason: str = Field("", description="why it is not compared (reported)")


class Claim(Options):
    """One claim, or one family of them."""

    id: Id
    system: str
    paper: str = Field("", description="where the claim is made; empty: our own")
    claim: str = Field(description="one sentence")
    published: Published | None = None
    each: tuple[Literal["world", "method"], ...] = ()
    worlds: list[str] | None = Field(None, description="the worlds it is about; none: all")
    select: dict[str, str] = Field(description="column values of exactly one row of metrics.csv")
    check: Check
    needs: dict[str, str] | None = Field(None, description="what differs from `select` in a row that must lie above zero, or this is no question")


class Endpoint(Options):
    """The primary endpoint of a claim, fixed before the full run."""

    claim: Id
    metric: str
    test: str
    unit: Literal["concept", "run"]
    concepts: int | None = Field(None, ge=2, description="concepts it is over, where they are fewer than the world has")
    assumed_sd: float = Field(gt=0, description="assumed standard deviation of the per-concept value")
    minimum_detectable_effect: dict[str, float] = Field(description="world -> effect found with the planned power")


class _Claims(Options):
    confidence: float = Field(gt=0, lt=1)
    worlds: dict[str, list[str]]
    methods: list[str]
    claims: list[Claim]


class _Endpoints(Options):
    power: float = Field(gt=0, lt=1)
    concepts: dict[str, int]
    endpoints: list[Endpoint]


@dataclass(frozen=True)
class Registered:
    """One claim about one row: its family, selector and endpoint."""

    id: str
    family: Claim
    select: dict
    published: str
    endpoint: Endpoint | None


@dataclass(frozen=True)
class Registry:
    """All registered claims of a preset."""

    claims: list[Registered]
    confidence: float
    power: float
    concepts: dict[str, int]  # of each world in the preset that is recorded


def load(path, preset):
    """Read claims.yaml at `path` and what lies beside it; expand families over the worlds of `preset`.

    Raises `InputError` for unknown keys, a claim without endpoint (or an endpoint without claim) and a published row that does not exist.
    """
    path = Path(path)
    claims, endpoints = _read(path, _Claims), _read(path.with_name("endpoints.yaml"), _Endpoints)
    by_claim = {item.claim: item for item in endpoints.endpoints}
    ids = [claim.id for claim in claims.claims]
    tested = {claim.id for claim in claims.claims if claim.check.kind != "reported"}
    if len(set(ids)) < len(ids) or len(by_claim) < len(endpoints.endpoints):
        raise InputError(f"{path}: a claim or the endpoint of a claim occurs twice")
    if tested != set(by_claim):
        odd = sorted(tested ^ set(by_claim))
        raise InputError(f"{path}: claims and endpoints.yaml do not fit together: {', '.join(odd)}; each tested claim needs one primary endpoint")
    worlds = claims.worlds.get(preset, claims.worlds["default"])
    of_system = {claim.system: claims.worlds.get(f"{preset}/{claim.system}", claims.worlds.get(f"default/{claim.system}", worlds)) for claim in claims.claims}
    known_worlds = {world for group in claims.worlds.values() for world in group}
    found = []
    for claim in claims.claims:
        _check(claim, by_claim.get(claim.id), path, known_worlds)
        text = _published(claim, path.parent)
        mine = [world for world in of_system[claim.system] if claim.worlds is None or world in claim.worlds]
        choices = {"world": mine, "method": claims.methods}
        for values in product(*(choices[name] for name in claim.each)):
            select = claim.select | dict(zip(claim.each, values, strict=True))
            found.append(Registered("-".join([claim.id, *values]), claim, select, text, by_claim.get(claim.id)))
    return Registry(found, claims.confidence, endpoints.power, endpoints.concepts)


def planned_concepts(path):
    """{world: concepts of the recorded preset}, from endpoints.yaml beside claims.yaml at `path`."""
    return _read(Path(path).with_name("endpoints.yaml"), _Endpoints).concepts


def published_rows(reference, system):
    """The sourced numbers of a system's paper: published/<system>.csv, indexed by `id`, with `value` as float."""
    path = Path(reference) / "published" / f"{system}.csv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; published numbers of {system!r} belong there")
    table = files.read_table(path, ["id", "value"], "get the checkout's file again").set_index("id")
    try:
        return table.assign(value=pd.to_numeric(table.value))
    except ValueError as error:
        raise InputError(f"{path}: column value holds something that is not a number ({error}); get the checkout's file again") from None


def _published(claim, reference):
    if claim.published is None:
        return ""
    if "{" not in claim.published.text:
        if claim.published.target == "sourced" and not claim.published.source:
            raise InputError(f"claim {claim.id!r}: a sourced target names its source, or a row of published/{claim.system}.csv")
        return claim.published.text
    values = published_rows(reference, claim.system)["value"].to_dict()
    try:
        return claim.published.text.format_map(values)
    except KeyError as error:
        raise InputError(f"claim {claim.id!r}: published/{claim.system}.csv has no row {error}") from None


def _check(claim, endpoint, path, known_worlds):
    wrong = sorted(set(claim.select) - set(rows.KEY))
    if wrong:
        raise InputError(f"{path}: claim {claim.id!r} selects by {', '.join(wrong)}; a row is known by {', '.join(rows.KEY)}")
    if claim.worlds and not set(claim.worlds) <= known_worlds:
        raise InputError(f"{path}: claim {claim.id!r} names a world that `worlds` does not list")
    if endpoint and endpoint.metric != claim.select.get("metric"):
        raise InputError(f"{path}: claim {claim.id!r} selects {claim.select.get('metric')!r}, its endpoint is about {endpoint.metric!r}")


def _read(path, model):
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({error}); get the checkout's file again") from None
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InputError(f"{path} is not valid:\n" + "\n".join(lines)) from None
