"""The figure of training pictures beside what each attack extracted for them."""

from pathlib import Path

import numpy as np
from PIL import Image

from tuneleak import files
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.report import names, style

_COLUMNS = 5  # pictures of one panel
_CELL, _TEXT, _GAP, _HEAD, _LABELS = 0.55, 0.125, 0.03, 0.34, 0.8  # inches: picture, similarity line, gaps, panel title, row labels
_PIXELS = 160  # longest side of an embedded thumbnail


def training_pictures(folders):
    """image_id -> (ImageSet folder, file) over all given image sets."""
    found = {}
    for folder in folders:
        images = ImageSet.load(folder)
        found.update({image_id: (images.folder, name) for image_id, name in zip(images.table.image_id, images.table.file, strict=True)})
    return found


def typical_concept(matches):
    """The concept whose AS under FineXtract (else under the first attack there is) is the lower median of its world: nobody's best case."""
    attacks = set(matches.attack)
    attack = "finextract" if "finextract" in attacks else names.attacks_in_order(attacks)[0]
    scores = matches[matches.attack == attack].groupby("concept").extracted.mean().dropna()
    if scores.empty:
        return sorted(matches.concept)[0]
    scores = scores.sort_index().sort_values(kind="stable")
    return scores.index[(len(scores) - 1) // 2]


def draw(matches, images, folder):
    """Write pictures.pdf and .png: a panel per world x method, its first row the training pictures, then one row per attack.

    Under each extracted picture stands its similarity to the training picture above; the highest of a column is bold.
    """
    attacks = names.attacks_in_order(matches.attack)
    where = training_pictures(images)
    worlds, methods = names.worlds_in_order(matches.world), names.methods_in_order(matches.method)
    panel_width = _COLUMNS * (_CELL + _GAP) + _GAP
    panel_height = _HEAD + _CELL + _GAP + len(attacks) * (_CELL + _TEXT + _GAP)
    width, height = _LABELS + len(methods) * (panel_width + 0.12), len(worlds) * (panel_height + 0.1)
    with style.figure(width, height) as figure:
        figure.set_layout_engine("none")
        for row, world in enumerate(worlds):
            concept = typical_concept(matches[matches.world == world])
            for column, method in enumerate(methods):
                panel = matches[(matches.world == world) & (matches.method == method) & (matches.concept == concept)]
                if len(panel):
                    corner = _LABELS + column * (panel_width + 0.12), height - row * (panel_height + 0.1)
                    title = f"{names.world_name(world)}, {names.method_name(method)}"
                    _panel(figure, panel, attacks, where, corner, (width, height), title, labels=column == 0)
        style.save(figure, folder, "pictures")


def _panel(figure, panel, attacks, where, corner, size, title, labels):
    left, top = corner
    concept = panel.concept.iloc[0]
    panel = panel[panel.seed == panel.seed.min()]
    image_ids = sorted(set(panel.image_id))[:_COLUMNS]
    middle = left + _COLUMNS * (_CELL + _GAP) / 2
    _write(figure, size, middle, top - 0.07, title, weight="bold", fontsize=8)
    _write(figure, size, middle, top - 0.21, concept, fontsize=6.5, color="#555555")
    scores = panel.pivot_table(index="image_id", columns="attack", values="extracted", aggfunc="first")
    y = top - _HEAD
    for index in range(-1, len(attacks)):
        attack = None if index < 0 else attacks[index]
        if labels:
            name = "training" if attack is None else names.attack_name(attack).replace(", ", ",\n").replace(" (", "\n(")
            _write(figure, size, left - 0.06, y - _CELL / 2 + 0.04, name, ha="right", fontsize=7, va="center")
        for position, image_id in enumerate(image_ids):
            x = left + _GAP + position * (_CELL + _GAP)
            if attack is None:
                if image_id not in where:
                    raise InputError(f"training picture {image_id!r} of {concept!r} is in none of the image sets given")
                _picture(figure, size, x, y, *where[image_id])
                continue
            rows = panel[(panel.attack == attack) & (panel.image_id == image_id)]
            if rows.empty or not rows.match_file.iloc[0]:
                _write(figure, size, x + _CELL / 2, y - _CELL / 2, "none", fontsize=6, color="#888888", va="center")
                continue
            if Path(rows.folder.iloc[0]).is_dir():
                _picture(figure, size, x, y, rows.folder.iloc[0], rows.match_file.iloc[0])
            else:  # scores taken from a shard, which holds no pictures
                _write(figure, size, x + _CELL / 2, y - _CELL / 2, "not kept", fontsize=6, color="#888888", va="center")
            best = rows.extracted.iloc[0] >= scores.loc[image_id].max()
            text = f"{rows.extracted.iloc[0]:.2f}"
            _write(figure, size, x + _CELL / 2, y - _CELL - 0.02, text, fontsize=6.5, weight="bold" if best else "normal", va="top")
        y -= _CELL + _GAP + (0 if attack is None else _TEXT)


def _write(figure, size, x, y, text, ha="center", va="top", **looks):
    figure.text(x / size[0], y / size[1], text, ha=ha, va=va, **looks)


def _picture(figure, size, x, y, folder, name):
    path = files.inside(folder, name)
    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((_PIXELS, _PIXELS))
            pixels = np.asarray(picture)
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture, though a table of matches names it") from None
    axes = figure.add_axes((x / size[0], (y - _CELL) / size[1], _CELL / size[0], _CELL / size[1]))
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()
