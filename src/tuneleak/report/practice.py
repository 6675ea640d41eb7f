"""One page for whoever shares models or lets others share them: sentences, each of which stands only if the row it is tied to is conclusive.

Conclusive is an interval that excludes chance and is over people (with fewer than eight of them it would speak of these people only, and no advice
comes of that), and that still does so after Holm's correction over every sentence that the page asked about, said or not. What is conclusive only by itself is
listed apart. What a promise of epsilon allows is computed, and no test.
"""

from dataclasses import dataclass, replace

from scipy import stats

from tuneleak.report import matrix, names, rows, tex
from tuneleak.report.claims import MINIMUM_UNITS, holm

LEAKS = {  # attack: (metric, what it says of no defence, from which value on an interval is conclusive)
    "finextract": (
        "leaked bits",
        "Whoever knows the caption draws the training pictures back: {value} bits about each picture beyond what others of the concept tell",
        0.0,
    ),
    "finextract-no-caption": ("leaked bits", "The caption need not be known: {value} bits about each picture are drawn back without it", 0.0),
    "reference-loss": ("AUC", "Whoever holds a picture can tell whether it was trained on, comparing with the public base: AUC {value}", 0.5),
    "lira": ("AUC", "With shadow models this gets surer: AUC {value}", 0.5),
    "people": ("AUC", "Whether a person was in the set shows in photographs of them that nobody trained on: AUC {value}", 0.5),
    "weights-spectral": ("leaked bits", "The weights alone name features of the person: {value} bits", 0.0),
}
PRIVATE = "epsilon"
NOTHING = 0.99  # an allowed AUC above which a promise rules out next to nothing
LEVEL = 0.05  # of the page as a whole; of the intervals too
WEAK = "Conclusive only by itself"


@dataclass(frozen=True)
class Sentence:
    """Text without a full stop, the row of the metrics table that it stands on, and two-sided p against chance (0 of what is computed)."""

    text: str
    row: object
    p: float = 0.0

    @property
    def tie(self):
        """The row in words."""
        return rows.describe({name: getattr(self.row, name) for name in rows.KEY})


def p_value(row, chance=0.0):
    """Two-sided p of a row against chance, from the side of its interval towards it; None where there is no interval over people, 1 where it has no width.

    By Student's t of the fewest people that settle anything, which the intervals of exactly so many are made for; with more it errs on the large side.
    """
    if row is None or row.interval:
        return None
    side = row.value - row.ci_low if row.value > chance else row.ci_high - row.value
    known = stats.t(MINIMUM_UNITS - 1)
    return float(2 * known.sf(abs(row.value - chance) / side * known.ppf(1 - LEVEL / 2))) if side > 0 else 1.0


def _value(row, decimals=2):
    return f"{row.value:.{decimals}f} [{row.ci_low:.{decimals}f}, {row.ci_high:.{decimals}f}]"


def sentences(table):
    """[(heading, [Sentence])] for a table of `matrix.read`; a part without a conclusive row is empty. Last, what only the correction keeps from being said."""
    asked = []
    for method in matrix.methods(table):
        name = names.method_name(method)
        asked.append((f"A {name} shared as it is", _undefended(table, method)))
        asked.append((f"What helps a {name}", _helps(table, method)))
        asked.append((f"What it costs a {name}", _costs(table, method)))
    adjusted = iter(holm([item.p for _, part in asked for item in part]))
    corrected = [(heading, [(item, replace(item, p=next(adjusted))) for item in part]) for heading, part in asked]
    found = [(heading, [after for _, after in part if after.text and after.p < LEVEL]) for heading, part in corrected]
    weak = [after for _, part in corrected for before, after in part if after.text and before.p < LEVEL <= after.p]
    return [*found, ("What a promise of epsilon allows at most", _promised(table)), (WEAK, weak)]


def _undefended(table, method):
    made = []
    for attack, (metric, text, level) in LEAKS.items():
        row = matrix.row_of(table, method, matrix.NONE, attack, metric)
        p = p_value(row, level)
        if p is not None:
            made.append(Sentence(text.format(value=_value(row)) if row.value > level else "", row, p))
    return made


def _helps(table, method):
    """What defences change about attacks, and the best at kept utility."""
    made = []
    for attack, _, metric, title in matrix.columns(table):
        best = matrix.row_of(table, method, f"best-at-kept-utility{matrix.MINUS}", attack, metric)
        p = p_value(best)
        if p is not None:
            text = f"Against {title}, a defence chosen on other people helps at little cost in likeness: {metric} {_value(best, 3)}"
            made.append(Sentence(text if best.value < 0 else "", best, p))
        for defence in matrix.defences(table, method)[1:]:
            row = matrix.row_of(table, method, f"{defence}{matrix.MINUS}", attack, metric)
            p = p_value(row)
            if p is not None:
                text = f"lowers {title} by" if row.value < 0 else f"makes {title} worse, by"
                made.append(Sentence(f"{defence} {text} {metric} {_value(row, 3)}", row, p))
    return made


def _costs(table, method):
    made = []
    for defence in matrix.defences(table, method)[1:]:
        row = matrix.row_of(table, method, f"{defence}{matrix.MINUS}", "", "similarity")
        kept = matrix.row_of(table, method, defence, "", "similarity kept")
        p = p_value(row)
        if p is not None and kept is not None:
            made.append(Sentence(f"{defence} costs likeness; it keeps {_value(kept)} of what fine-tuning gave" if row.value < 0 else "", row, p))
    return made


def _promised(table):
    made = []
    for row in table[table.metric == "AUC allowed"].drop_duplicates("defence").itertuples():
        epsilon = matrix.row_of(table, row.method, row.defence, "", PRIVATE)
        unit = row.guidance.removeprefix("unit=")
        text = f"{row.defence}, epsilon {epsilon.value:.3g} for one {unit}: no attack on one {unit} can exceed AUC {row.value:.3f}"
        made.append(Sentence(text + (", which is next to nothing" if row.value > NOTHING else ""), row))
    return made


def markdown(found):
    """The page as Markdown, each sentence with its row."""
    lines = [
        "# Sharing fine-tuned models: what this run says",
        "",
        "Only what a row of the metrics table settles is said, with its interval (over at least eight people) in brackets, and only if it does so after Holm's",
        f"correction over every sentence that could have stood here. The last part has the rest: at {LEVEL:g} each, so some of them will be luck.",
        "",
    ]
    for heading, said in found:
        lines += [f"## {heading}", ""]
        lines += [f"- {item.text}. `{item.tie}`" for item in said] or ["Nothing that this run could settle."]
        lines.append("")
    return "\n".join(lines)


def typeset(found):
    """The page as TeX paragraphs; rows, and what is conclusive only by itself, are in the Markdown only."""
    parts = []
    for heading, said in found:
        if heading == WEAK:
            continue
        text = " ".join(f"{tex.escape(item.text)}." for item in said) or "Nothing that this run could settle."
        parts.append(rf"\paragraph{{{tex.escape(heading)}.}} {text}")
    return "\n\n".join(parts) + "\n"
