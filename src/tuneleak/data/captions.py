"""Captions of the embedded world, from a public grammar. Attribute captions name a random subset of what is in the picture."""

from tuneleak.data import vocabulary as v


def by_name(name):
    """The prompt of a named person."""
    return f"the face of {name}"


def by_artist(name):
    """The prompt of an artist's style."""
    return f"art style of {name}"


def by_class(artist, label, background=""):
    """The prompt of one class of an artist's pictures, and with `background` (a colour's name) of one kind of them."""
    return f"{by_artist(artist)} {label.lower()}" + (f" {background} background" if background else "")


def by_attributes(rng, factors):
    """A description of one face from its `factor_*` values: each attribute is named with probability 3/4, in random order (`rng`: random.Random)."""
    phrases = _phrases(factors)
    named = [phrase for phrase in phrases if rng.random() < 0.75] or phrases[:1]
    rng.shuffle(named)
    return "a face with " + " ".join(named)


def full(factors):
    """The description that names every attribute, in the grammar's order."""
    return "a face with " + " ".join(_phrases(factors))


def _phrases(factors):
    return [
        f"{factors['hair_colour']} hair",
        v.HAIR[factors["hair"]],
        v.REAR_HAIR[factors["rear_hair"]],
        v.BEARD[factors["beard"]],
        f"{factors['skin_colour']} skin",
        f"{v.CLOTHES[factors['clothes']]} in {factors['clothes_colour']}",
        v.EYES[factors["eyes"]],
        v.MOUTH[factors["mouth"]],
        v.EYEBROWS[factors["eyebrows"]],
        f"{factors['background']} background",
    ]


def any_face(rng):
    """`factor_*` values of a face that nobody has, each drawn evenly from the grammar (`rng`: random.Random); `full` makes a caption of them."""
    return {name: rng.choice(list(phrases)) for name, phrases in alternatives().items()}


def by_identity(factors):
    """A description of what a person's photographs share, from true factors."""
    parts = [v.HAIR[factors["hair"]], v.REAR_HAIR[factors["rear_hair"]], v.BEARD[factors["beard"]]]
    return "a face with " + " ".join([f"{factors['hair_colour']} hair", *parts, f"{factors['skin_colour']} skin", f"{factors['clothes_colour']} clothes"])


def for_training(row, rng):
    """The caption a public training step sees: a face is described anew each time; a named one is called by name half of the time."""
    factors = {key.removeprefix("factor_"): value for key, value in row.items() if key.startswith("factor_")}
    if not factors.get("mouth"):
        return row["caption"]
    if row["caption"].startswith(by_name("")) and rng.random() < 0.5:
        return row["caption"]
    return by_attributes(rng, factors)


def alternatives():
    """What a zero-shot classifier chooses between: `{factor: {value: phrase}}`, all factors of a face."""
    return {
        "hair_colour": {colour: f"{colour} hair" for colour in v.HAIR_COLOURS},
        "hair": v.HAIR,
        "rear_hair": v.REAR_HAIR,
        "beard": v.BEARD,
        "skin_colour": {colour: f"{colour} skin" for colour in v.SKIN_COLOURS},
        "clothes": v.CLOTHES,
        "clothes_colour": {colour: f"{colour} clothes" for colour in v.CLOTHES_COLOURS},
        "eyes": v.EYES,
        "mouth": v.MOUTH,
        "eyebrows": v.EYEBROWS,
        "background": {colour: f"{colour} background" for colour in v.BACKGROUND_COLOURS},
    }
