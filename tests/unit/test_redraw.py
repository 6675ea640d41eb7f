"""Frozen scores: what is recorded draws the same figures as the run did, and what cannot be drawn is said."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from tuneleak.errors import InputError
from tuneleak.report import figures_finextract, record, redraw

ROOT = Path(__file__).resolve().parents[2]


def test_recorded_scores_draw_the_same_figures(study, tmp_path):
    run, root = tmp_path / "run", tmp_path / "root"
    for path, place in [(study.tuning, run / record.SCORES["tuning"])] + [
        (path, run / f"extraction/{index}/x/test0/y/matches.csv") for index, path in enumerate(study.matches)
    ]:
        place.parent.mkdir(parents=True)
        shutil.copyfile(path, place)
    record._record_scores(run, root / "paper/reference/made")
    assert {path.name for path in (root / "paper/reference/made/scores").iterdir()} == {"tuning.csv.gz", "matches.csv.gz"}
    missing = redraw.draw_all("made", root, study.metrics, ["finextract"], tmp_path / "again")
    assert missing == {} and not (tmp_path / "again/figures/pictures.pdf").exists()
    figures_finextract.figures(study.metrics, study.tuning, study.matches, [], tmp_path / "first")
    for name in ("similarity", "guidance", "theory"):
        assert (tmp_path / "first" / f"{name}.pdf").read_bytes() == (tmp_path / "again/figures" / f"{name}.pdf").read_bytes(), name


def test_scores_too_large_to_keep_are_left_out_and_said(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "LARGEST", 100)
    (tmp_path / "run/metrics/finextract").mkdir(parents=True)
    shutil.copyfile(study.tuning, tmp_path / "run" / record.SCORES["tuning"])
    record._record_scores(tmp_path / "run", tmp_path / "made")
    assert not record.scores_file(tmp_path / "made", "tuning").exists() and "larger than 100" in capsys.readouterr().out
    assert redraw.draw_all("made", tmp_path, study.metrics, ["finextract"], tmp_path / "out") == {
        "similarity, guidance": "scores of single pictures are not recorded"
    }
    assert (tmp_path / "out/figures/theory.pdf").is_file()


def test_figures_that_show_pictures_are_kept_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "run/figures/a").mkdir(parents=True)
    for name in ("pictures", "dp_samples", "similarity"):
        (tmp_path / f"run/figures/a/{name}.pdf").write_text("x" * (9 if name == "dp_samples" else 2))
    monkeypatch.setattr(record, "LARGEST", 5)
    record._record_pictures(tmp_path / "run", tmp_path / "made")
    assert [path.read_text() for path in (tmp_path / "made/figures").iterdir()] == ["xx"] and record.figure_file(tmp_path / "made", "pictures").is_file()


def test_only_what_the_paper_would_show_becomes_a_remark(tmp_path):
    sections, out = tmp_path / "paper/sections", tmp_path / "out"
    sections.mkdir(parents=True)
    (out / "figures").mkdir(parents=True)
    (out / "figures/there.pdf").write_text("")
    (sections / "one.tex").write_text(
        r"""\includegraphics[width=1cm]{pictures} \input{tables/setup} \input{tables/numbers}
        \IfFileExists{figures/absent.pdf}{% \includegraphics{unseen} }{}
        \IfFileExists{figures/there.pdf}{% \includegraphics{there} \includegraphics{seen} }{} \includegraphics{last}"""
    )
    missing = redraw.remark_missing(tmp_path / "paper", out)
    assert missing == {"pictures": "it shows pictures", "table numbers": "not recorded", "seen": "not recorded", "last": "not recorded"}
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"pictures", "seen", "last"} and (out / "tables/numbers.tex").is_file()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
def test_the_recorded_run_is_redrawn_to_its_paper(tmp_path, capsys):
    redraw.redraw("embedded", tmp_path, ROOT)
    said = capsys.readouterr().out
    assert "not drawn: " not in said and all(f"kept from the run, not drawn again: {name} " in said for name in record.PICTURES)
    kept = {path.stem for path in (ROOT / "paper/reference/embedded/figures").glob("*.pdf")}
    assert kept == set(record.PICTURES) and all((tmp_path / f"figures/{name}.pdf").is_file() for name in [*kept, "similarity"])
    past, now = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (ROOT / "paper/reference/embedded/claims.csv", tmp_path / "claims.csv"))
    both = past[past.status != "not-run"].merge(now, on="id", suffixes=("", "_now"))
    assert len(both) > 10 and (both.value == both.value_now).all() and (both.status == both.status_now).all()
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert "identities" in (tmp_path / "tables/finextract.tex").read_text()


def test_a_preset_that_is_not_recorded_is_named(tmp_path):
    with pytest.raises(InputError, match="recorded are embedded"):
        redraw.redraw("nothing", tmp_path, ROOT)
