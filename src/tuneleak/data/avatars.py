"""Draws avatars: DiceBear styles to RGB pixels, with resvg. Byte-identical for given options and pinned package versions."""

import io
import json
import random
from functools import lru_cache
from importlib.resources import files

import numpy as np

from tuneleak.data import population, vocabulary
from tuneleak.errors import InputError

FACE_STYLE = "toon-head"
# The component whose variant is the class label of a differential-privacy style, and the variants used: those that can be told apart at 64 px.
CLASS_COMPONENT = {
    "cutouts": ("hair", ("crest", "curls", "fringe", "long", "sidePart", "swoosh", "tufts")),
    "glyphs": ("shape", tuple(f"variant{number:02d}" for number in range(1, 11))),
    "gaze": ("shape", ("arch", "circle", "column", "diamond", "pentagon", "pill", "square", "triangle")),
}


@lru_cache(maxsize=64)
def style_definition(name):
    """The JSON definition of a DiceBear style; raises `InputError` for an unknown one."""
    path = files("dicebear_styles").joinpath(f"{name}.json")
    if not path.is_file():
        raise InputError(f"dicebear-styles has no style {name!r}")
    return json.loads(path.read_text("utf-8"))


@lru_cache(maxsize=64)
def _style(name):
    from dicebear import Style

    return Style(style_definition(name))


def credit(name):
    """One line of credit for a style: creator, source and licence, as its own file states them."""
    meta = style_definition(name)["meta"]
    licence, creator, source = meta.get("license", {}), meta.get("creator") or {}, meta.get("source") or {}
    return {
        "style": name,
        "creator": creator.get("name", ""),
        "source": source.get("name", ""),
        "url": source.get("url", ""),
        "licence": licence.get("name", ""),
        "licence_url": licence.get("url", ""),
    }


def draw(style, options, size):
    """Pixels, uint8 `(size, size, 3)`, of one avatar."""
    import resvg_py
    from dicebear import Avatar
    from PIL import Image

    svg = Avatar(_style(style), options).to_string()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def face_options(identity, photograph):
    """DiceBear options of one photograph of a person (a dict of `population.photographs`)."""
    hair, skin, clothes = identity.hex_colours
    options = {
        "seed": "0",
        "hairVariant": identity.hair,
        "hairColor": hair,
        "skinColor": skin,
        "clothesColor": clothes,
        "rearHairProbability": 0 if identity.rear_hair == "none" else 100,
        "beardProbability": 0 if identity.beard == "none" else 100,
        "backgroundColor": photograph["background_hex"],
    }
    if identity.rear_hair != "none":
        options["rearHairVariant"] = identity.rear_hair
    if identity.beard != "none":
        options["beardVariant"] = identity.beard
    options |= {f"{name}Variant": photograph[name] for name in population.PHOTOGRAPH_FACTORS}
    return options | {name: photograph[name] for name in ("rotate", "scale", "translateX", "translateY", "flip")}


def art_options(style, seed):
    """DiceBear options of one picture in a style, its class label if the style has one (else ""), and the name of its background colour."""
    rng = random.Random(f"art/{style}/{seed}")
    components = style_definition(style).get("components", {})
    background = rng.choice(list(vocabulary.BACKGROUND_COLOURS))
    options = {
        "seed": f"{style}/{seed}",
        "backgroundColor": population.lab_to_hex(population.near(rng, vocabulary.BACKGROUND_COLOURS[background], population.COLOUR_SPREAD)),
        "rotate": round(rng.uniform(-10, 10), 2),
        "scale": round(rng.uniform(0.85, 1.1), 3),
        "flip": rng.choice(("none", "horizontal")),
    }
    if "animation" in components:
        options["animationVariant"] = "none"
    label = ""
    if style in CLASS_COMPONENT:
        component, classes = CLASS_COMPONENT[style]
        label = rng.choice(classes)
        options |= {f"{component}Variant": label, f"{component}Probability": 100}
    return options, label, background
