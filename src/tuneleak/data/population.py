"""Who lives in the embedded world: identities, artists and their sets, drawn deterministically from the configuration.

An identity is a hair cut, rear hair and beard (discrete) and three colours (continuous, each around a colour a caption can name). The combination
of the six names is used by one identity only, so every set has attribute combinations of its own and nobody has a twin; people
with the same cut and beard also differ by a minimum distance in at least one colour. A photograph adds mouth, eyes, eyebrows, clothes, background and pose.
"""

import dataclasses
import math
import random
from functools import lru_cache

from tuneleak.data import vocabulary as v
from tuneleak.errors import InputError
from tuneleak.options import PopulationOptions

MINIMUM_COLOUR_DISTANCE = 8.0  # CIELAB units: clearly visible between two flat patches
COLOUR_SPREAD = 5.0  # standard deviation of an identity's colour around its named centre, per CIELAB axis
PHOTOGRAPH_FACTORS = {"mouth": tuple(v.MOUTH), "eyes": tuple(v.EYES), "eyebrows": tuple(v.EYEBROWS), "clothes": tuple(v.CLOTHES)}

# One style is one artist. toon-head is kept for faces; styles with non-standard licences are not used at all.
PUBLIC_STYLES = ["open-peeps", "critters", "personas", "micah", "big-ears", "croodles", "pixel-art", "thumbs", "landscape", "marbles", "moods", "slice"]
PRIVATE_STYLES = ["adventurer", "clay", "notionists", "fun-emoji", "big-smile", "sprouts", "lorelei", "voxel-bot", "dylan", "cameo", "miniavs", "stack"]
DP_STYLES = {"dp-near": "cutouts", "dp-far": "glyphs", "dp-tuning": "gaze"}


@dataclasses.dataclass(frozen=True)
class Identity:
    """A person: discrete attributes, colours as hex strings and as the words a caption uses."""

    concept: str
    name: str
    hair: str
    rear_hair: str
    beard: str
    hair_colour: str
    skin_colour: str
    clothes_colour: str
    hex_colours: tuple[str, str, str]

    @property
    def combination(self):
        return (self.hair, self.rear_hair, self.beard, self.hair_colour, self.skin_colour, self.clothes_colour)


SET_ORDER = ("named", "private-identities", "lora-train", "lora-test", "distractors", "public-faces")


FACE_SETS = ("public-faces", "public-twins", "named-p", "named-q", "instrument", "private-identities", "lora-train", "lora-test", "distractors")


def set_names():
    """Names of every set `render` can draw. `public-twins` repeats each public person's first photograph with another expression (hard negatives)."""
    return [*FACE_SETS, "public-artists", "private-artists", *DP_STYLES]


@lru_cache(maxsize=4)
def identities(options: PopulationOptions):
    """All people of the world by set: `{set: [Identity, ...]}`. The small sets come first, so that changing the size of a large one leaves them as they are."""
    sizes = {
        "named": options.named_identities,
        "private-identities": options.private_identities,
        "lora-train": options.lora_train_identities,
        "lora-test": options.lora_test_identities,
        "distractors": options.distractor_identities,
        "public-faces": options.public_identities,
    }
    world = random.Random(f"{options.seed}/identities")
    names = [f"{first} {last}" for first, last in zip(v.FIRST_NAMES, v.LAST_NAMES, strict=False)]
    every_name = [f"{first} {last}" for first in v.FIRST_NAMES for last in v.LAST_NAMES]
    random.Random(f"{options.seed}/names").shuffle(names)
    random.Random(f"{options.seed}/all-names").shuffle(every_name)
    if options.named_identities + options.private_identities > len(names):
        raise InputError(f"population: only {len(names)} people can have a first and last name of their own")
    used_names = set(names[: options.named_identities + options.private_identities])
    spare = (name for name in every_name if name not in used_names)
    taken, neighbours, result = set(), {}, {}
    for set_name in SET_ORDER:
        people = []
        for number in range(sizes[set_name]):
            person = _draw_identity(world, taken, neighbours)
            name = "" if set_name == "public-faces" else names.pop(0) if set_name in ("named", "private-identities") else next(spare)
            people.append(Identity(f"{set_name}-{number:04d}", name, *person))
        result[set_name] = people
    return result


def _draw_identity(rng, taken, neighbours):
    for _ in range(10_000):
        hair, rear = rng.choice(list(v.HAIR)), rng.choice(list(v.REAR_HAIR))
        beard = rng.choice(list(v.BEARD))
        colours = [rng.choice(list(table)) for table in (v.HAIR_COLOURS, v.SKIN_COLOURS, v.CLOTHES_COLOURS)]
        combination = (hair, rear, beard, *colours)
        lab = [near(rng, table[name], COLOUR_SPREAD) for name, table in zip(colours, (v.HAIR_COLOURS, v.SKIN_COLOURS, v.CLOTHES_COLOURS), strict=True)]
        others = neighbours.setdefault((hair, rear, beard), [])
        if combination in taken or any(max(map(math.dist, lab, other)) < MINIMUM_COLOUR_DISTANCE for other in others):
            continue
        taken.add(combination)
        others.append(lab)
        return (*combination, tuple(map(lab_to_hex, lab)))
    raise InputError("population: no further distinct identity could be drawn; ask for fewer people")


def near(rng, centre, spread):
    """A CIELAB colour drawn around `centre`."""
    return tuple(rng.gauss(value, spread) for value in centre)


def lab_to_hex(lab):
    """CIELAB (D65) -> `rrggbb`, clipped to the sRGB gamut."""
    y = (lab[0] + 16) / 116
    xyz = [
        scale * (t**3 if t > 6 / 29 else 3 * (6 / 29) ** 2 * (t - 4 / 29))
        for scale, t in zip((0.95047, 1.0, 1.08883), (y + lab[1] / 500, y, y - lab[2] / 200), strict=True)
    ]
    linear = [sum(m * c for m, c in zip(row, xyz, strict=True)) for row in ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))]
    gamma = [12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in (min(max(c, 0.0), 1.0) for c in linear)]
    return "".join(f"{round(255 * c):02x}" for c in gamma)


def photographs(options, identity, count, stream):
    """`count` photographs of one person with pairwise distinct factor tuples: a list of dicts (mouth, eyes, eyebrows, clothes, background, pose).

    `stream` names the draw (all folds of a person are drawn together, then assigned by a coin, so folds cannot differ in distribution).
    """
    rng = random.Random(f"{options.seed}/{stream}/{identity.concept}")
    seen, drawn = set(), []
    if count > 5**4 * len(v.BACKGROUND_COLOURS):
        raise InputError(f"population: {count} distinct photographs of one person are not possible")
    while len(drawn) < count:
        factors = {name: rng.choice(values) for name, values in PHOTOGRAPH_FACTORS.items()}
        factors["background"] = rng.choice(list(v.BACKGROUND_COLOURS))
        if tuple(factors.values()) in seen:
            continue
        seen.add(tuple(factors.values()))
        pose = {
            "background_hex": lab_to_hex(near(rng, v.BACKGROUND_COLOURS[factors["background"]], COLOUR_SPREAD)),
            "rotate": round(rng.uniform(-14, 14), 2),
            "scale": round(rng.uniform(0.85, 1.15), 3),
            "translateX": round(rng.uniform(-7, 7), 2),
            "translateY": round(rng.uniform(-6, 6), 2),
            "flip": rng.choice(("none", "horizontal")),
        }
        drawn.append({**factors, **pose})
    return drawn


def other_expression(options, identity, photograph):
    """The same photograph with other mouth, eyes and eyebrows: what a copy embedder must tell apart from a copy."""
    rng = random.Random(f"{options.seed}/other-expression/{identity.concept}")
    return photograph | {name: rng.choice([value for value in PHOTOGRAPH_FACTORS[name] if value != photograph[name]]) for name in ("mouth", "eyes", "eyebrows")}


def identity_bits():
    """Bits of information in an identity that a caption can name: log2 of the equally likely attribute combinations."""
    tables = (v.HAIR, v.REAR_HAIR, v.BEARD, v.HAIR_COLOURS, v.SKIN_COLOURS, v.CLOTHES_COLOURS)
    return sum(math.log2(len(table)) for table in tables)


def dose(options, identity, row):
    """How often a base repeats a named photograph (1, 4 or 16 times), by lot; the same in fold P as in fold Q."""
    return random.Random(f"{options.seed}/dose/{identity.concept}/{row}").choice((1, 4, 16))
