"""TeX pieces: escaping, numbers with intervals, booktabs tables. No number is chosen here."""

import math
import re

MISSING = "n/a"
NOT_RECORDED = "--"
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def escape(text):
    """Plain text -> TeX."""
    return "".join(_SPECIAL.get(letter, letter) for letter in str(text))


def number(value, decimals=3):
    """A number as printed: fixed decimals, no leading zero, a true minus; `n/a` for NaN."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{abs(value):.{decimals}f}"
    text = text.removeprefix("0") if decimals and text.startswith("0.") else text
    return f"$-${text}" if value < 0 and float(f"{value:.{decimals}f}") != 0 else text


def with_interval(value, low, high, decimals=3, interval_decimals=None, size=""):
    """`.523 [.481, .570]`, the interval in TeX's `size`; the value alone where nothing was sampled (low = high = value)."""
    text = number(value, decimals)
    if text == MISSING or not (math.isfinite(low) and math.isfinite(high)) or low == value == high:
        return text
    decimals = decimals if interval_decimals is None else interval_decimals
    interval = f"[{number(low, decimals)}, {number(high, decimals)}]"
    return f"{text} {{{size} {interval}}}" if size else f"{text} {interval}"


def tabular(alignment, head, body):
    """A booktabs `tabular`. head and body: lists of rows; a row is a list of TeX cells, or a string that is put in as it is."""
    lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", *map(_line, head), r"\midrule", *map(_line, body), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def longtable(alignment, head, body, caption):
    """A booktabs `longtable`, which may break over pages and repeats its head; caption: the macro that holds `\\caption{...}`. Otherwise as `tabular`."""
    top = [r"\toprule", *map(_line, head), r"\midrule"]
    lines = [rf"\begin{{longtable}}{{{alignment}}}", rf"{caption}\\", *top, r"\endfirsthead", *top, r"\endhead", r"\bottomrule", r"\endfoot"]
    return "\n".join([*lines, *map(_line, body), r"\end{longtable}"]) + "\n"


class Notes:
    """Why cells of a table are empty, or numbers without an interval: each reason gets a letter, in the order in which it is met."""

    def __init__(self):
        self.letters = {}

    def mark(self, reason, shown=NOT_RECORDED):
        """An empty cell, or the number `shown`, with the letter of its reason (plain text)."""
        letter = self.letters.setdefault(reason, chr(ord("a") + len(self.letters)))
        return rf"{shown}\textsuperscript{{{letter}}}"

    def below(self, remark=""):
        """What stands under the tabular: letters and reasons, then a remark (plain sentences); empty if there is neither."""
        told = "; ".join(rf"\textsuperscript{{{letter}}}\,{escape(reason)}" for reason, letter in self.letters.items())
        text = " ".join(part for part in (told and f"{told}.", escape(remark)) if part)
        return f"\n\\par\\smallskip\n\\parbox{{\\textwidth}}{{\\scriptsize {text}}}\n" if text else ""


def heading(text, columns):
    """A row that spans a table, above the rows it is about."""
    return rf"\addlinespace[2pt]\multicolumn{{{columns}}}{{@{{}}l}}{{\textit{{{text}}}}} \\"


def camel(*words):
    """Words and ids -> a macro name: letters only, each part capitalised; digits are refused, as TeX refuses them."""
    name = "".join(part.capitalize() for word in words for part in re.split(r"[^A-Za-z0-9]+", word))
    if not name.isalpha():
        raise ValueError(f"{words} make no TeX macro name: letters only")
    return name


def _line(row):
    return row if isinstance(row, str) else " & ".join(row) + r" \\"
