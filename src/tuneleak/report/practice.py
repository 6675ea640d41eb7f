"""One page for whoever shares models or lets others share them: sentences, each of which stands only if the row it is tied to is conclusive.

Conclusive is an interval that excludes chance and is over people: with fewer than eight of them it would speak of these people only, and no advice
comes of that.
"""

from dataclasses import dataclass

from tuneleak.report import matrix, names, rows, tex

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


@dataclass(frozen=True)
class Sentence:
    """Text without a full stop, and the row of the metrics table that it stands on."""

    text: str
    row: object

    @property
    def tie(self):
        """The row in words."""
        return rows.describe({name: getattr(self.row, name) for name in rows.KEY})


def settled(row, below=None, above=None):
    """Whether a row's interval is over people and lies on the given side."""
    if row is None or row.interval:
        return False
    return row.ci_high < below if below is not None else row.ci_low > above


def _value(row, decimals=2):
    return f"{row.value:.{decimals}f} [{row.ci_low:.{decimals}f}, {row.ci_high:.{decimals}f}]"


def sentences(table):
    """[(heading, [Sentence])] for a table of `matrix.read`; a part without a conclusive row is empty."""
    found = []
    for method in matrix.methods(table):
        name = names.method_name(method)
        found.append((f"A {name} shared as it is", _undefended(table, method)))
        found.append((f"What helps a {name}", _helps(table, method)))
        found.append((f"What it costs a {name}", _costs(table, method)))
    return [*found, ("What a promise of epsilon allows at most", _promised(table))]


def _undefended(table, method):
    made = []
    for attack, (metric, text, level) in LEAKS.items():
        row = matrix.row_of(table, method, matrix.NONE, attack, metric)
        if settled(row, above=level):
            made.append(Sentence(text.format(value=_value(row)), row))
    return made


def _helps(table, method):
    """Defences that lower an attack conclusively, and the best at kept utility."""
    made = []
    for attack, _, metric, title in matrix.columns(table):
        best = matrix.row_of(table, method, f"best-at-kept-utility{matrix.MINUS}", attack, metric)
        if settled(best, below=0):
            made.append(Sentence(f"Against {title}, a defence chosen on other people helps at little cost in likeness: {metric} {_value(best, 3)}", best))
        for defence in matrix.defences(table, method)[1:]:
            row = matrix.row_of(table, method, f"{defence}{matrix.MINUS}", attack, metric)
            if settled(row, below=0):
                made.append(Sentence(f"{defence} lowers {title} by {metric} {_value(row, 3)}", row))
            elif settled(row, above=0):
                made.append(Sentence(f"{defence} makes {title} worse, by {metric} {_value(row, 3)}", row))
    return made


def _costs(table, method):
    made = []
    for defence in matrix.defences(table, method)[1:]:
        row = matrix.row_of(table, method, f"{defence}{matrix.MINUS}", "", "similarity")
        kept = matrix.row_of(table, method, defence, "", "similarity kept")
        if settled(row, below=0) and kept is not None:
            made.append(Sentence(f"{defence} costs likeness; it keeps {_value(kept)} of what fine-tuning gave", row))
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
        "Only what a row of the metrics table settles is said, with its interval (over at least eight people) in brackets.",
        "",
    ]
    for heading, said in found:
        lines += [f"## {heading}", ""]
        lines += [f"- {item.text}. `{item.tie}`" for item in said] or ["Nothing that this run could settle."]
        lines.append("")
    return "\n".join(lines)


def typeset(found):
    """The page as TeX paragraphs; rows are named in the Markdown only."""
    parts = []
    for heading, said in found:
        text = " ".join(f"{tex.escape(item.text)}." for item in said) or "Nothing that this run could settle."
        parts.append(rf"\paragraph{{{tex.escape(heading)}.}} {text}")
    return "\n\n".join(parts) + "\n"
