"""The paper: no number in its sources, macros for everything, conclusions from statuses, and a PDF that repeats itself."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tuneleak.errors import InputError
from tuneleak.options import AblationFigureOptions
from tuneleak.report import claims, figures_ablations, macros, paper, record, rows, style, tables, typeset
from tuneleak.report.figures_dp_ldm import figures as private
from tuneleak.report.figures_finextract import figures

ROOT = Path(__file__).parents[2]
SOURCES, REFERENCE = ROOT / "paper", ROOT / "paper" / "reference"
MATHS = re.compile(r"\\begin\{(equation\*?)\}.*?\\end\{\1\}|\$.*?\$", re.DOTALL)
COMMANDS = re.compile(r"\\(?:cite[pt]?|label|ref|eqref|input|includegraphics(?:\[[^]]*\])?|setlength\{[^}]*\}|begin)\{[^}]*\}")


@pytest.fixture(scope="module")
def judged(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("claims") / "claims.csv"
    claims.claims(study.metrics, REFERENCE / "claims.yaml", "embedded", out)
    return out


def all_macros(study, judged, reference=REFERENCE):
    return macros.collect(rows.read_metrics(study.metrics), macros.read_claims(judged), record.facts_of(study.metrics), reference, "embedded")


def sections():
    return sorted((SOURCES / "sections").glob("*.tex"))


def test_no_number_is_typed_into_the_text():
    assert len(sections()) >= 4
    abstract = (SOURCES / "main.tex").read_text().split(r"\begin{abstract}")[1].split(r"\end{abstract}")[0]
    for name, text in [(path.name, path.read_text()) for path in sections()] + [("abstract", abstract)]:
        prose = COMMANDS.sub("", MATHS.sub("", re.sub(r"(?<!\\)%.*", "", text)))
        assert not re.findall(r"[^\n]*\d[^\n]*", prose), name


def test_every_macro_of_the_text_is_generated(study, judged):
    made = all_macros(study, judged)
    used = {name for path in [SOURCES / "main.tex", *sections()] for name in re.findall(r"\\([A-Z][A-Za-z]+)", path.read_text())}
    assert len(used) > 20 and not used - set(made) - {"Bigl", "Bigr", "Delta", "IfFileExists"}
    assert all(name.isalpha() for name in made) and all(made.values()), "a macro without text prints a hole"


def outside_guards(text):
    r"""Pieces of `text` without what \IfFileExists prints for a file that is there; what it prints for one that is not stands."""
    start = 0
    for guard in re.finditer(r"\\IfFileExists(?=\{)", text):
        if guard.start() < start:
            continue  # within another guard
        yield text[start : guard.start()]
        start = guard.end()
        for part in ("file", "then", "else"):
            begin, depth = start, 0
            while not (start > begin and depth == 0):
                depth += {"{": 1, "}": -1}.get(text[start], 0) if text[start - 1] != "\\" else 0
                start += 1
            if part == "else":
                yield "".join(outside_guards(text[begin + 1 : start - 1]))
    yield text[start:]


def test_what_stands_outside_guards():
    text = r"a \IfFileExists{f}{b \{ \IfFileExists{g}{c}{d}}{e \IfFileExists{h}{i}{j}} k"
    assert "".join(outside_guards(text)) == "a e j k"


def test_every_reference_leads_to_one_label_and_the_appendix_to_its_own_parts():
    """Floats may move between sections only if what refers to them still finds them; what stands behind a guard is referred to from behind one."""
    texts = {path.stem: re.sub(r"(?<!\\)%.*", "", path.read_text()) for path in sections()}
    labels = [name for text in texts.values() for name in re.findall(r"\\label\{([^}]+)\}", text)]
    assert len(set(labels)) == len(labels)
    for name, text in texts.items():
        assert not set(re.findall(r"\\(?:eq)?ref\{([^}]+)\}", text)) - set(labels), name
    open_text = {name: "".join(outside_guards(text)) for name, text in texts.items()}
    standing = {name for text in open_text.values() for name in re.findall(r"\\label\{([^}]+)\}", text)}
    for name, text in open_text.items():
        assert not set(re.findall(r"\\(?:eq)?ref\{([^}]+)\}", text)) - standing, f"{name} refers to what may be absent"
    said = {name for text in texts.values() for name in re.findall(r"\\ref\{([^}]+)\}", text)}
    assert not {name for name in labels if name.startswith(("fig:", "tab:"))} - said, "a figure or table that no sentence leads to"
    main = (SOURCES / "main.tex").read_text()
    assert main.index(r"\bibliography{") < main.index(r"\appendix") < main.index(r"\input{sections/appendix}")
    secondary = {"tab:controls", "tab:thresholds", "tab:cost", "tab:claims", "tab:dp-sigma", "tab:dp-weights", "fig:planes", "fig:budgets"}
    assert secondary <= set(re.findall(r"\\label\{([^}]+)\}", texts["appendix"]))


def unrecorded(folder):
    """A copy of paper/reference in which no run is recorded."""
    shutil.copytree(REFERENCE, folder, ignore=shutil.ignore_patterns("full", "embedded"))
    return folder


def test_what_is_unknown_prints_not_available(study, judged, tmp_path):
    made = all_macros(study, judged, unrecorded(tmp_path / "reference"))
    assert made["SamplerSteps"] == made["RecordedRunProcessor"] == made["CostHours"] == "n/a"
    assert made["RecordedStatusFinextractBeatsCfg"] == made["RecordedPreset"] == "not recorded yet" and made["RecordedSummaryFinextractBeatsCfg"] == "n/a"
    assert made["ConceptsTested"] == "9 identities and 9 artists"
    assert (made["PublishedExtractedShare"], made["PublishedAsLow"], made["PublishedAsHigh"]) == (r"20\%", ".45", ".55")


@pytest.mark.parametrize(
    ("statuses", "text"),
    [
        (["consistent-direction"] * 4, "consistent in direction in all 4 comparisons"),
        (["reproduced"] * 2, "reproduced in both comparisons"),
        (["inconclusive"], "inconclusive"),
        (["not-run"] * 3, "not run"),
        (
            ["consistent-direction", "inconclusive", "inconclusive", "not-run"],
            "consistent in direction in 1 of 4 comparisons, inconclusive in 2 and not run in 1",
        ),
    ],
)
def test_conclusions_are_picked_from_statuses(statuses, text):
    assert macros.status_fragment(pd.DataFrame({"status": statuses, "unit": "concepts"})) == text
    if statuses[0] not in ("not-run", "not-comparable"):
        assert macros.status_fragment(pd.DataFrame({"status": statuses, "unit": "images"})) == text + " (over pictures)"


def test_claims_table_shows_power_beside_a_null(judged):
    table = macros.read_claims(judged)
    table.loc[0, ["status", "power"]] = ["inconclusive", 0.4321]
    text = typeset.claims_table(table)
    assert "inconclusive (.43)" in text and "(unsourced)" in text and "(ours)" in text and "about 20\\%" in text
    assert len([line for line in text.split(r"\endfoot")[1].splitlines() if " & " in line]) == len(table)
    assert "& -- & --" not in typeset.claims_table(table, table)


def test_published_table_is_one_artist():
    text = typeset.published_table(REFERENCE)
    assert r"LoRA & CFG & w=3 & .4754 & .0 & .1 & 99 & .41 \\" in text and text.count(r"\\") == 5


def test_cost_table_without_benchmarks_says_so():
    assert "n/a" in typeset.cost_table(None)
    line = typeset.cost_table({"finetune": {"jobs": 2, "seconds": 30.5, "peak_memory_mb": 100.2}}).splitlines()[-3]
    assert line == r"finetune & -- & -- & -- & -- & 2 & 30 & 100 & -- \\"
    line = typeset.cost_table({"extract": {"jobs": 1, "seconds": 3.0, "peak_memory_mb": 7.0, "calls": 1234}}).splitlines()[-3]
    assert line.endswith(r"& 1 & 3 & 7 & 1.2 \\")


def test_missing_latex_is_answered_with_the_line_to_type(study, judged, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install --no-install-recommends texlive-latex-recommended texlive-fonts-recommended latexmk"):
        paper.paper(study.metrics, judged, tmp_path, [tmp_path], REFERENCE, SOURCES, tmp_path / "paper.pdf")


needs_latex = pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")


@pytest.fixture(scope="module")
def parts(report_study, study, tmp_path_factory):
    """Folders with tables and figures; the figures of the weights study are blank."""
    folder = tmp_path_factory.mktemp("parts")
    tables.tables(study.metrics, folder / "tables", REFERENCE)
    figures(study.metrics, study.tuning, study.matches, study.images, folder / "figures")
    for name in ("reconstructions", "attacks", "defences", "scaling"):
        with style.figure(3, 2) as figure:
            style.save(figure, folder / "weights-figures", f"weights-{name}")
    figures_ablations.figures(study.metrics, folder / "weights-figures", AblationFigureOptions())  # none was run: figures that say so
    private(*report_study.make_private(folder), folder / "private", folder / "tables")
    return folder


def typeset_paper(study, judged, parts, out, **changes):
    drawn = [parts / name for name in ("figures", "weights-figures", "private")]
    arguments = {"tables": parts / "tables", "figures": drawn, "reference": REFERENCE, "sources": SOURCES} | changes
    paper.paper(study.metrics, judged, out=out, **arguments)


@needs_latex
@pytest.mark.slow
def test_the_paper_is_typeset_and_repeats_itself(study, judged, parts, tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    before = {path: path.read_bytes() for path in SOURCES.rglob("*") if path.is_file()}
    for name in ("one", "two"):
        typeset_paper(study, judged, parts, tmp_path / name / "paper.pdf")
    pdf = (tmp_path / "one" / "paper.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf == (tmp_path / "two" / "paper.pdf").read_bytes()
    log = (tmp_path / "one" / "paper-build" / "output" / "main.log").read_text(errors="replace")
    assert "Overfull \\hbox" not in log
    assert before == {path: path.read_bytes() for path in SOURCES.rglob("*") if path.is_file()}, "sources are never written to"


@needs_latex
@pytest.mark.slow
def test_a_recorded_run_stands_beside_this_one(report_study, study, judged, parts, tmp_path):
    reference = unrecorded(tmp_path / "reference")
    shutil.copyfile(study.metrics, tmp_path / "metrics.csv")
    report_study.meta(tmp_path / "metrics.csv", "a recorded processor")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "finetune.tsv").write_text("s\tmax_rss\n7200\t100\n")
    record.record(tmp_path / "metrics.csv", tmp_path / "benchmarks", reference / "full", claims=judged)
    shutil.copytree(parts / "tables", tmp_path / "tables")
    tables.tables(study.metrics, tmp_path / "tables", reference)
    typeset_paper(study, judged, parts, tmp_path / "paper.pdf", tables=tmp_path / "tables", reference=reference, benchmarks=tmp_path / "benchmarks")
    made = (tmp_path / "paper-build" / "macros.tex").read_text()
    assert r"\newcommand{\RecordedRunProcessor}{a recorded processor\xspace}" in made
    statuses = dict(re.findall(r"\\newcommand\{\\RecordedStatus(\w+)\}\{(.*?)\\xspace", made))
    assert statuses["FinextractBeatsCfg"] != "not recorded yet" == statuses["WeightsRevealIdentity"], "only what was recorded stands there"
    assert r"\newcommand{\RecordedCostHours}{2\xspace}" in made
    assert "Overfull \\hbox" not in (tmp_path / "paper-build" / "output" / "main.log").read_text(errors="replace"), "full tables fit the page"


@needs_latex
@pytest.mark.slow
def test_errors_of_latex_name_file_and_line(study, judged, parts, tmp_path):
    sources = tmp_path / "sources"
    shutil.copytree(SOURCES, sources)
    section = sources / "sections" / "limits.tex"
    section.write_text(section.read_text() + "\n\\ValueOfNothing\n")
    with pytest.raises(InputError, match=r"limits\.tex:\d+: Undefined control sequence"):
        typeset_paper(study, judged, parts, tmp_path / "paper.pdf", sources=sources)
    section.write_text("See \\ref{fig:nowhere}.\n")
    with pytest.raises(InputError, match=r"refers to what does not exist: .*fig:nowhere"):
        typeset_paper(study, judged, parts, tmp_path / "paper.pdf", sources=sources)
    assert not (tmp_path / "paper.pdf").exists()


@pytest.mark.parametrize(("argument", "message"), [("figures", "holds no"), ("tables", "holds no"), ("sources", "lacks main.tex")])
def test_missing_parts_are_named(study, judged, tmp_path, monkeypatch, argument, message):
    for name in ("figures/a.pdf", "tables/a.tex"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    nowhere = [tmp_path / "nowhere"] if argument == "figures" else tmp_path / "nowhere"
    paths = {"figures": [tmp_path / "figures"], "tables": tmp_path / "tables", "sources": SOURCES, argument: nowhere}
    with pytest.raises(InputError, match=message):
        paper.paper(study.metrics, judged, reference=REFERENCE, out=tmp_path / "paper.pdf", **paths)
