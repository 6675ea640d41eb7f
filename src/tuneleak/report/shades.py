"""Leaked bits as colours, on one scale for all attacks: what tells more is darker, nothing is neutral, and what an interval leaves open is pale.

Orange and purple about near white (the PuOr scheme of Brewer and Harrower's ColorBrewer), which colour-blind readers can tell apart. The scale is linear up to
about `KNEE` bits and logarithmic beyond, because a membership attack learns one bit at most where others learn several. It does not depend on what is shown, so
that equal colours are equal leaks in every figure.
"""

import math

KNEE, MOST = 0.1, 8.0  # bits; leaks of more than the latter have the last colour
ANCHORS = ("#542788", "#998EC3", "#F7F7F7", "#F1A340", "#B35806")  # from -MOST over 0 to MOST, at equal distances
PALE = 0.25  # share of its colour that an unclear cell keeps; the rest is white
INK, FAINT = "#000000", "#555555"  # of the numbers: clear ones, and others


def position(bits):
    """Where leaked bits lie on the scale, from -1 to 1."""
    return math.copysign(min(1.0, math.log1p(abs(bits) / KNEE) / math.log1p(MOST / KNEE)), bits)


def colour(bits, clear):
    """The colour (`#RRGGBB`) of leaked bits; clear: whether their interval excludes 0."""
    place = (position(bits) + 1) / 2 * (len(ANCHORS) - 1)
    below = min(int(place), len(ANCHORS) - 2)
    made = _mixed(ANCHORS[below], ANCHORS[below + 1], place - below)
    return made if clear else _mixed("#FFFFFF", made, PALE)


def ink(bits, clear):
    """The colour of a number on `colour(bits, clear)`."""
    if not clear:
        return FAINT
    linear = [(part / 255) ** 2.2 for part in _parts(colour(bits, clear))]
    return INK if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 else "#FFFFFF"  # whichever has the greater contrast (WCAG 2.1)


def scale(figure, axes):
    """Draw the scale beside `axes`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    ticks = (-4, -1, -0.1, 0, 0.1, 1, 4)
    shown = ScalarMappable(Normalize(-1, 1), LinearSegmentedColormap.from_list("bits", ANCHORS))
    bar = figure.colorbar(shown, ax=axes, ticks=[position(bits) for bits in ticks], extend="both", fraction=0.02, pad=0.01, aspect=30)
    bar.ax.set_yticklabels([f"{bits:g}".replace("-", "\N{MINUS SIGN}") for bits in ticks], fontsize=6)
    bar.set_label("leaked bits", fontsize=6)
    bar.outline.set_linewidth(0.4)


def _parts(colour_):
    return tuple(int(colour_[start : start + 2], 16) for start in (1, 3, 5))


def _mixed(first, second, share):
    """`second` by its share, the rest `first`."""
    return "#" + "".join(f"{round(a + (b - a) * share):02X}" for a, b in zip(_parts(first), _parts(second), strict=True))
