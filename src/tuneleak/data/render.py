"""The verb `render`: draws one set of the embedded world into an ImageSet."""

import random

from tuneleak import files, runtime
from tuneleak.data import avatars, captions, imageset, population, vocabulary
from tuneleak.errors import InputError
from tuneleak.options import PopulationOptions


def render(name, out, options: PopulationOptions):
    """Draw the set `name` (see `population.set_names`) into the folder `out`.

    Faces carry their true factors as `factor_*` columns. All photographs of a person, over all folds, have distinct factor tuples; folds are
    assigned by a coin after drawing.
    """
    if name not in population.set_names():
        raise InputError(f"no set {name!r}; choose one of {', '.join(population.set_names())}")
    rows, pictures = [], []
    plan = _faces(name, options) if name in population.FACE_SETS else _art(name, options)
    for row, style, drawing in runtime.progress(plan, f"render {name}"):
        rows.append(row)
        pictures.append(avatars.draw(style, drawing, options.image_size))
    made = imageset.write(out, rows, pictures)
    styles = sorted({style for _, style, _ in plan})
    files.write_meta(
        made.folder / "manifest.csv",
        options,
        set=name,
        pictures=len(made),
        credits=[avatars.credit(style) for style in styles],
        identity_bits=population.identity_bits(),
    )


def _faces(name, options):
    """(row, style, DiceBear options) for every photograph of a set of people."""
    named = {"named-p": "P", "named-q": "Q", "instrument": "instrument"}
    group = "named" if name in named else "public-faces" if name == "public-twins" else name
    people = population.identities(options)[group]
    plan = []
    for number, person in enumerate(people):
        for index, (fold, photograph) in enumerate(_folded(name, options, person)):
            if name in named and fold != named[name]:
                continue
            split = ""
            if name == "private-identities":
                split = "tune" if number < options.tune_identities else "test"
            image_id = f"{person.concept}-{index:03d}"
            factors = {key: getattr(person, key) for key in ("hair", "rear_hair", "beard", "hair_colour", "skin_colour", "clothes_colour")}
            factors |= {key: photograph[key] for key in (*population.PHOTOGRAPH_FACTORS, "background")}
            caption = captions.by_name(person.name) if person.name else captions.by_attributes(random.Random(image_id), factors)
            row = {"image_id": image_id, "concept": person.concept, "split": split, "fold": fold, "caption": caption}
            if name in ("named-p", "named-q"):
                row["dose"] = str(population.dose(options, person, index))
            row |= {f"factor_{key}": value for key, value in factors.items()}
            plan.append((row, avatars.FACE_STYLE, avatars.face_options(person, photograph)))
    return plan


def _folded(name, options, person):
    """The photographs of a person with their folds: drawn together, then shuffled into folds."""
    if name in ("named-p", "named-q", "instrument"):
        folds = ["P"] * options.named_photographs + ["Q"] * options.named_photographs + ["instrument"] * options.instrument_photographs
    elif name == "private-identities":
        folds = ["train"] * options.private_pool + ["heldout"] * options.private_heldout
    elif name == "public-twins":
        return [("", population.other_expression(options, person, population.photographs(options, person, options.public_photographs, "photographs")[0]))]
    else:
        folds = [""] * (options.public_photographs if name == "public-faces" else 1 if name == "distractors" else options.lora_photographs)
    drawn = population.photographs(options, person, len(folds), "photographs")
    random.Random(f"{options.seed}/folds/{person.concept}").shuffle(folds)
    return list(zip(folds, drawn, strict=True))


def _art(name, options):
    """(row, style, DiceBear options) for every picture of a set of artists, or of a differential-privacy style."""
    names = vocabulary.artist_names(len(population.PUBLIC_STYLES) + len(population.PRIVATE_STYLES) + len(population.DP_STYLES))
    if name == "public-artists":
        styles, counts = population.PUBLIC_STYLES[: options.public_artists], {"": options.public_pictures}
    elif name == "private-artists":
        styles, counts = population.PRIVATE_STYLES[: options.private_artists], {"train": options.private_pool, "heldout": options.private_heldout}
    else:
        styles, counts = [population.DP_STYLES[name]], {"train": options.dp_train, "test": options.dp_test}
    every = [*population.PUBLIC_STYLES, *population.PRIVATE_STYLES, *population.DP_STYLES.values()]
    plan = []
    for number, style in enumerate(styles):
        artist = names[every.index(style)]
        folds = [fold for fold, count in counts.items() for _ in range(count)]
        random.Random(f"{options.seed}/folds/{style}").shuffle(folds)
        drawings, seen = [], set()
        while len(drawings) < len(folds):
            drawings.append(avatars.art_options(style, f"{options.seed}/{len(seen)}"))
            seen.add(len(seen))
        for index, (fold, (drawing, label, background)) in enumerate(zip(folds, drawings, strict=True)):
            split = ("tune" if number < options.tune_artists else "test") if name == "private-artists" else ""
            concept = artist if name in ("public-artists", "private-artists") else name
            row = {"image_id": f"{artist}-{index:05d}", "concept": concept, "split": split, "fold": fold, "label": label, "style": style}
            row["caption"] = captions.by_artist(artist) if not label else captions.by_class(artist, label)
            if label:
                row["text"] = captions.by_class(artist, label, background)
            plan.append((row, style, drawing))
    return plan
