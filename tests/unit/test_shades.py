"""Colours of leaked bits: by size alone, on one scale, neutral at nothing, and told apart without red or green receptors."""

import numpy as np
import pytest

from tuneleak.report import shades

# Viénot, Brettel & Mollon (1999): linear RGB as protanopes and deuteranopes see it
PROTAN = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
DEUTAN = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])


def parts(colour):
    return np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255


def from_white(colour):
    return np.linalg.norm(1 - parts(colour))


def test_the_scale_is_odd_and_nothing_is_its_middle():
    assert shades.position(0) == 0 and shades.position(shades.MOST) == 1 == -shades.position(-50)
    sizes = np.array([0.01, 0.1, 0.4, 1, 2, 8])
    places = [shades.position(size) for size in sizes]
    assert np.all(np.diff(places) > 0) and places == [-shades.position(-size) for size in sizes]
    assert places[1] == pytest.approx(np.log(2) / np.log(81))  # log1p(1) / log1p(80)
    assert shades.colour(0, True) == shades.ANCHORS[2] and shades.colour(99, True) == shades.ANCHORS[4] and shades.colour(-99, True) == shades.ANCHORS[0]


def test_more_is_darker_on_both_sides_and_tiny_leaks_are_nearly_white():
    for sign in (1, -1):
        darkness = [from_white(shades.colour(sign * size, True)) for size in (0.01, 0.1, 0.4, 1, 2, 8)]
        assert np.all(np.diff(darkness) > 0) and darkness[0] < 0.15 * darkness[-1]


def test_what_is_unclear_is_pale():
    for bits in (-8, -1, 0.4, 3):
        assert from_white(shades.colour(bits, False)) == pytest.approx(shades.PALE * from_white(shades.colour(bits, True)), abs=0.01)
        assert shades.ink(bits, False) == shades.FAINT != shades.ink(bits, True)
    assert from_white(shades.colour(3, False)) < from_white(shades.colour(0.4, True)), "even a large unclear leak is paler than a clear one"


def test_numbers_can_be_read():
    """A contrast of at least 4.5 (WCAG 2.1, AA) everywhere."""

    def luminance(colour):
        linear = np.where(parts(colour) <= 0.04045, parts(colour) / 12.92, ((parts(colour) + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for bits in np.linspace(-8, 8, 81):
        for clear in (True, False):
            light, dark = sorted([luminance(shades.colour(bits, clear)), luminance(shades.ink(bits, clear))], reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 4.5, (bits, clear)


@pytest.mark.parametrize("seen", [PROTAN, DEUTAN], ids=["protanopia", "deuteranopia"])
def test_leaks_of_either_sign_look_different_to_colour_blind_readers(seen):
    for bits in (0.4, 1, 3, 8):
        above, below = (seen @ parts(shades.colour(sign * bits, True)) ** 2.2 for sign in (1, -1))
        assert np.linalg.norm(above - below) > 0.15 and (above - below)[0] > 0 > (above - below)[2]  # yellowish against bluish
