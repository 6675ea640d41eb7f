"""How every figure looks: colours that colour-blind readers can tell apart, sizes, and saving without dates."""

import contextlib
import logging

import matplotlib
from matplotlib.figure import Figure

from tuneleak import files

COLUMN_WIDTH, TEXT_WIDTH = 3.35, 6.5  # inches: a column of a two-column page, the text block of ours

# Okabe & Ito (2008); each attack also has a marker of its own, so that grey print suffices.
_LOOKS = {
    "direct": ("#56B4E9", "s"),
    "cfg": ("#E69F00", "^"),
    "finextract": ("#0072B2", "o"),
    "finextract-unconditional": ("#CC79A7", "D"),
    "base": ("#6E6E6E", "X"),
}
_SPARE = (("#D55E00", "v"), ("#009E73", "P"), ("#000000", "*"))
_RC = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "font.family": "DejaVu Sans",
    "pdf.fonttype": 42,  # TrueType, embedded
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.frameon": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
}


def colour(attack):
    """The colour of an attack; attacks this module does not know share the spare ones by name."""
    return _look(attack)[0]


def marker(attack):
    """The marker of an attack."""
    return _look(attack)[1]


def _look(attack):
    return _LOOKS.get(attack) or _SPARE[sum(attack.encode()) % len(_SPARE)]


@contextlib.contextmanager
def figure(width, height):
    """A matplotlib figure (inches) drawn under the project's settings, without pyplot's global state."""
    with matplotlib.rc_context(_RC):
        yield Figure(figsize=(width, height), layout="constrained")


def save(drawing, folder, name):
    """Write `<folder>/<name>.pdf` and `.png`; neither holds a date or a version, so equal data give equal bytes."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on the dates inside matplotlib's own fonts
    with files.atomic(folder / f"{name}.pdf") as path:
        drawing.savefig(path, metadata={"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None})
    with files.atomic(folder / f"{name}.png") as path:
        drawing.savefig(path, dpi=200, metadata={"Software": None})


def note(axes, text):
    """Turn axes into a plain remark, for a figure whose data this run does not have."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#444444")


def legend_above(axes, columns):
    """The legend of axes above them, where it covers no data."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0, columnspacing=1.2)
