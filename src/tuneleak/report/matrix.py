"""The matrix of attacks and defences as rows, columns and cells, read off the metrics table: what its heat map, HTML page and TeX table share."""

from dataclasses import dataclass

import pandas as pd

from tuneleak.report import names, rows, shades, tex
from tuneleak.report.claims import MINIMUM_UNITS
from tuneleak.studies.defences import AT

SYSTEM, NONE, MINUS, BASE = "defences", "none", "-minus-none", "base"
# columns in order: attack, the group of attacks that a cell which is not run is told for, own metric, heading
COLUMNS = (
    ("loss", "membership", "AUC", "loss"),
    ("reference-loss", "membership", "AUC", "loss, reference"),
    ("secmi-stat", "membership", "AUC", "SecMI"),
    ("pia", "membership", "AUC", "PIA"),
    ("lira", "shadows", "AUC", "LiRA"),
    ("rmia", "shadows", "AUC", "RMIA"),
    ("people", "people", "AUC", "person"),
    ("finextract", "extraction", "AS", "FineXtract"),
    ("finextract-no-caption", "extraction", "AS", "FineXtract, no caption"),
    ("weights-spectral", "weights", "MRR", "weights, ours"),
    ("weights-autoencoder", "weights", "MRR", "weights, paper's"),
    ("weights-spectral-adaptive", "weights-adaptive", "MRR", "weights, adaptive"),
    ("shaken-reference-loss", "shake", "AUC", "Shake-to-Leak"),
)
UNCONTROLLED = {  # groups of attacks without the base as a control, and why
    "shadows": "a coin let pictures in: whoever has no target is at chance",
    "extraction": "its leaked bits are beyond held-out pictures already",
    "weights": "its leaked bits are beyond another person's reading already",
    "weights-adaptive": "its leaked bits are beyond another person's reading already",
}
BITS = "leaked bits"
USE = ("similarity", "caption accuracy", "KID")
_PREFERRED = ("caption=none", "pictures")  # of several settings of an attack, the one that knows least of the caption, and pictures before names
_WORDS = "dpagg"  # how defences are called that release words of a caption: under no caption their model is the base, and no attack could succeed


@dataclass(frozen=True)
class Cell:
    """Rows of the metrics table (named tuples) of one attack under one defence: own metric, leaked bits, both beyond the base's; or why none is there."""

    own: object = None
    bits: object = None
    reason: str = ""
    beyond: tuple = ()

    @property
    def text(self):
        """What stands in the heat map."""
        shown = self.bits if self.bits is not None else self.own
        return "" if shown is None else f"{shown.value:z.2f}"

    @property
    def told(self):
        """Everything, for whoever points at it."""
        if self.own is None:
            return f"not run: {self.reason}"
        parts = [f"{row.metric} {row.value:z.3f} {_interval(row)}" for row in (self.bits, self.own, *self.beyond) if row is not None]
        note = f"; interval over {self.own.interval}" if self.own.interval else ""
        setting = f"; setting {self.own.guidance}" if self.own.guidance else ""
        return "; ".join(parts) + f"; n = {self.own.n:.0f}{note}{setting}"

    @property
    def clear(self):
        """Whether there are leaked bits whose interval excludes 0; what an interval leaves open, or has none, is not."""
        return self.bits is not None and not no_interval(self.bits) and not self.bits.ci_low <= 0 <= self.bits.ci_high


def no_interval(row):
    """Why a sampled number stands without an interval; "" if it has one, or needs none because it is 1 by definition.

    Tables of before such intervals were left out have ends without a width, which are none either.
    """
    if row.ci_low < row.ci_high or (row.metric == "similarity kept" and row.defence == NONE):
        return ""
    if row.interval and row.metric.startswith(BITS) and row.attack.startswith("weights"):
        return f"no interval: bits about people need at least {MINIMUM_UNITS} of them"
    return "no interval: all that could be resampled is alike"


def _interval(row):
    why = no_interval(row)
    return f"({why})" if why else f"[{row.ci_low:z.3f}, {row.ci_high:z.3f}]" if row.ci_low < row.ci_high else "(by definition)"


def read(path):
    """The plain rows of the matrix on its own base, differences from no defence, and what that base alone tells of the undefended models' candidates (as
    defence `base`). Of further bases, whose worlds have an `@`, the rankings over bases alone."""
    table = rows.read_metrics(path)
    table = table[table.system == SYSTEM]
    over = table.world.str.contains(";")  # rankings over places
    table = table[(table.bound == "") & (table.concept == "") & (over | ~table.world.str.contains(AT))]
    control = table[(table.control == BASE) & (table.defence == NONE)]
    return pd.concat([table[table.control == ""], control.assign(defence=BASE)])


def methods(table):
    """Fine-tuning methods in order."""
    return names.methods_in_order(table.method)


def defences(table, method):
    """Defences in the order of the table, none first, the base's control last."""
    found = [name for name in dict.fromkeys(table[table.method == method].defence) if name and "-minus-" not in name]
    return [NONE, *(name for name in found if name != NONE)]


def columns(table):
    """The columns that any method has a number in."""
    known = set(table.attack[table.metric.isin(["AUC", "AS", "MRR"])])
    return [column for column in COLUMNS if column[0] in known]


def row_of(table, method, defence, attack, metric):
    """The row of one number, or None; of several settings the preferred one, else the first. What releases words is asked under its caption."""
    found = table[(table.method == method) & (table.defence == defence) & (table.attack == attack) & (table.metric == metric)]
    for words in ("caption=known", *_PREFERRED) if defence.startswith(_WORDS) else _PREFERRED:
        best = found[found.guidance.str.endswith(words)]
        found = best if len(best) else found
    return next(found.itertuples(), None)


def cell(table, method, defence, column):
    """The `Cell` of a defence and a column."""
    attack, group, metric, _ = column
    own, bits = (row_of(table, method, defence, attack, name) for name in (metric, BITS))
    if own is not None:
        return Cell(own, bits, beyond=tuple(row_of(table, method, defence, attack, f"{name} minus {BASE}") for name in (BITS, metric)))
    if defence == BASE:
        return Cell(reason=UNCONTROLLED.get(group, "not measured"))
    told = table[(table.metric == "not run") & (table.method == method) & (table.defence == defence) & (table.attack == group)]
    return Cell(reason=told.guidance.iloc[0] if len(told) else "not measured")


def scope(table):
    """What the intervals of leaked bits do not speak of; "" if they are over enough people."""
    few = table[(table.metric == BITS) & (table.interval == "images")]
    return "" if few.empty else f"With fewer than {MINIMUM_UNITS} people, intervals of leaked bits are over their pictures and say nothing of other people."


def tex_table(table):
    """TeX tabular: a block per method, a row per defence; leaked bits with intervals where they are known (own metric in brackets otherwise), and
    likeness kept. Below it stands why cells are empty, or numbers without an interval; and what intervals do not speak of."""
    shown, notes = columns(table), tex.Notes()
    turned = [rf"\rotatebox{{60}}{{{tex.escape(name)}}}" for name in ("likeness kept", *(column[3] for column in shown))]
    head, body = [["defence", r"$\varepsilon$", *turned]], []
    for method in methods(table):
        body.append(tex.heading(tex.escape(names.method_name(method)), len(shown) + 3))
        for defence in defences(table, method):
            epsilon, use = row_of(table, method, defence, "", "epsilon"), row_of(table, method, defence, "", "similarity kept")
            kept = notes.mark(no_likeness(table, method, defence)) if use is None else _stacked(use, notes)
            cells = [_tex_cell(cell(table, method, defence, column), notes) for column in shown]
            body.append([tex.escape(defence), "" if epsilon is None else f"{epsilon.value:.3g}", kept, *cells])
    return tex.tabular("@{}lrl" + "l" * len(shown) + "@{}", head, body or [[tex.MISSING] * (len(shown) + 3)]) + notes.below(scope(table))


def no_likeness(table, method, defence):
    """Why a defence has no likeness kept."""
    if defence == BASE:
        return "likeness kept is counted from the base's"
    mine = table[(table.method == method) & (table.attack == "")]
    if "similarity" not in set(mine.metric):
        return "likeness was not measured"
    if "similarity kept" in set(mine.metric):
        return "likeness was not measured of every model of this defence"
    return "fine-tuning gave no likeness that a defence could keep"


TAUS = ("attacks", "seeds", "places")


def rankings_table(table):
    """TeX tabular, a row per method: attacks by what they learn of undefended models, most leaked bits first, and Kendall's tau of rankings of defences."""
    head = [["method", "attacks, by leaked bits without a defence", *(f"over {name}" for name in TAUS)]]
    body, notes = [], tex.Notes()
    for method in methods(table):
        cells = [(column[3], cell(table, method, NONE, column).bits) for column in columns(table)]
        order = sorted([(name, bits.value) for name, bits in cells if bits is not None], key=lambda pair: -pair[1])
        found = {name: row_of(table, method, "", "all", f"Kendall tau over {name}") for name in TAUS}
        taus = [notes.mark(no_tau(table, method, name)) if row is None else _number(row) for name, row in found.items()]
        body.append([tex.escape(names.method_name(method)), ", ".join(f"{tex.escape(name)} {tex.number(value, 2)}" for name, value in order), *taus])
    return tex.tabular(r"@{}lp{.45\textwidth}lll@{}", head, body or [[tex.MISSING] * (len(TAUS) + 2)]) + notes.below()


def no_tau(table, method, over):
    """Why rankings of defences are not compared over attacks, seeds or places (bases and worlds)."""
    mine = table[(table.method == method) & (table.defence == NONE) & table.metric.isin(["AUC", "AS", "MRR"])]
    if over == "places" and not table.world.str.contains(";").any():
        return "this run has one base and one world (defences.further.bases adds bases)"
    if over == "seeds" and not mine[~mine.attack.isin(["lira", "rmia"])].seeds.str.contains(";").any():
        return "every concept is fine-tuned with one seed"
    if len([name for name in defences(table, method) if name != BASE]) < 3:
        return "fewer than three defences cannot be ranked otherwise"
    return "too few models have been asked by every attack under every defence"


def _tex_cell(found, notes):
    if found.own is None:
        return notes.mark(found.reason)
    return _stacked(found.bits, notes) if found.bits is not None else _stacked(found.own, notes, "(", ")")


def _stacked(row, notes, before="", after=""):
    """A number, and below it its interval in small print; or beside it the letter of why it has none."""
    if why := no_interval(row):
        return notes.mark(why, f"{before}{tex.number(row.value, 2)}{after}")
    value, _, interval = _number(row).partition(" ")
    if interval and len({tex.number(end, 2) for end in (row.value, row.ci_low, row.ci_high)}) == 1:
        return notes.mark("the interval is narrower than the last digit", f"{before}{value}{after}")
    return rf"\shortstack[l]{{{before}{value}{after}\\{interval}}}" if interval else f"{before}{value}{after}"


def _number(row):
    return tex.MISSING if row is None else tex.with_interval(row.value, row.ci_low, row.ci_high, 2, size=r"\tiny")


def html(table):
    """The matrix as one HTML page without scripts: a table per method; whoever points at a cell reads its intervals, or why it was not run."""
    from html import escape

    parts = ["<!doctype html><meta charset='utf-8'><title>Every attack under every defence</title><style>", _STYLE, "</style>"]
    parts.append(
        "<p>Leaked bits (where none are known, the attack's own metric in brackets), coloured by their size: orange above 0, purple below. Pale and grey: the "
        f"interval includes 0, or there is none. {scope(table)}</p>"
    )
    shown = columns(table)
    for method in methods(table):
        parts.append(
            f"<h2>{escape(names.method_name(method))}</h2><table><tr><th>defence<th>likeness kept{''.join(f'<th>{escape(column[3])}' for column in shown)}"
        )
        for defence in defences(table, method):
            use = row_of(table, method, defence, "", "similarity kept")
            told = no_likeness(table, method, defence) if use is None else f"similarity kept {use.value:z.3f} {_interval(use)}"
            line = [f"<tr><th>{escape(defence)}<td title='{escape(told)}'>{'' if use is None else f'{use.value:z.2f}'}"]
            for column in shown:
                found = cell(table, method, defence, column)
                text = found.text if found.own is None or found.bits is not None else f"({found.text})"
                look = "background:repeating-linear-gradient(45deg,#fff,#fff 4px,#ddd 4px,#ddd 6px)" if found.own is None else _colour(found)
                line.append(f"<td title='{escape(found.told, quote=True)}' style='{look}'>{text}")
            parts.append("".join(line))
        parts.append("</table>")
    return "\n".join(parts) + "\n"


_STYLE = (
    "body{font:13px sans-serif;margin:2em}td,th{padding:3px 7px;text-align:right;border:1px solid #fff}th{font-weight:600}tr>th:first-child{text-align:left}"
)


def _colour(found):
    if found.bits is None:
        return "background:#eee"
    return f"background:{shades.colour(found.bits.value, found.clear)};color:{shades.ink(found.bits.value, found.clear)}"
