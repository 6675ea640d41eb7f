"""Names beside points: inside their axes, and clear of each other and of the other points."""

from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

_GAPS = (2.5, 6.0, 10.0)  # points between a label and its point, the nearest first
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))  # to the right or left, above or below
_ALIGNED = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}
_SAME, _MARK, _EDGE = 1.0, 3.0, 1.5  # points: how near two points share a label, how far a marker reaches, what the frame keeps free


def label(figure, named, size=5):
    """Write names beside points; named: {axes: [(x, y, name)]}, all of `figure`, in data coordinates. Points at one place share a label.

    Call it when everything else is drawn: places depend on the layout, which labels no longer change.
    """
    figure.draw_without_rendering()  # the layout is made when drawing
    for axes, points in named.items():
        _label(axes, _together(axes, points), size)


def _unit(axes):
    """Pixels of a point."""
    return axes.figure.dpi / 72


def _together(axes, points):
    """[((x, y), the same in pixels, names)], the points at one place as one."""
    found = []
    for x, y, name in points:
        place = axes.transData.transform((x, y))
        same = next((item for item in found if max(abs(item[1] - place)) < _SAME * _unit(axes)), None)
        if same:
            same[2].append(name)
        else:
            found.append(((x, y), place, [name]))
    return found


def _label(axes, found, size):
    reach = _MARK * _unit(axes)
    marks = [Bbox([place - reach, place + reach]) for _, place, _ in found]
    taken = []
    for number, (point, _, names) in enumerate(found):
        text = axes.annotate(", ".join(names), point, xytext=(0, 0), textcoords="offset points", fontsize=size)
        text.set_in_layout(False)
        text.set_path_effects([withStroke(linewidth=1.2, foreground="white")])
        blocked = taken + marks[:number] + marks[number + 1 :]
        best = min(_candidates(), key=lambda side: _badness(axes, text, side, blocked))  # the first of equals
        _put(text, best)
        taken.append(text.get_window_extent())


def _candidates():
    return [(right * gap, up * gap, right, up) for gap in _GAPS for right, up in _SIDES]


def _put(text, side):
    x, y, right, up = side
    text.set_position((x, y))
    text.set_horizontalalignment(_ALIGNED[right][0])
    text.set_verticalalignment(_ALIGNED[up][1])


def _badness(axes, text, side, blocked):
    """How much of a label would lie outside its axes or on something else; 0 is none."""
    _put(text, side)
    box = text.get_window_extent()
    inside = Bbox.intersection(box, axes.bbox.padded(-_EDGE * _unit(axes)))
    outside = box.width * box.height - (inside.width * inside.height if inside else 0.0)
    covered = [Bbox.intersection(box, other) for other in blocked]
    return 10 * outside + sum(part.width * part.height for part in covered if part)
