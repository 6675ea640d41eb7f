"""Figures: all are drawn, say the same on a second drawing, and refuse what is missing."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tuneleak.errors import InputError
from tuneleak.report import names, pictures, rows, style
from tuneleak.report.figures_finextract import figures

NAMES = ("pictures", "similarity", "guidance", "theory")


@pytest.fixture(scope="module")
def drawn(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    figures(study.metrics, study.tuning, study.matches, study.images, out)
    return out


@pytest.mark.slow
def test_every_figure_is_drawn_twice_alike_with_embedded_fonts(study, drawn, tmp_path):
    figures(study.metrics, study.tuning, study.matches, study.images, tmp_path)
    for name in NAMES:
        pdf = (drawn / f"{name}.pdf").read_bytes()
        assert pdf == (tmp_path / f"{name}.pdf").read_bytes() and (drawn / f"{name}.png").read_bytes() == (tmp_path / f"{name}.png").read_bytes()
        assert b"/FontFile2" in pdf and b"CreationDate" not in pdf, "TrueType fonts are embedded, dates are not"


@pytest.mark.slow
def test_figures_fit_a_page(drawn):
    for name in NAMES:
        with Image.open(drawn / f"{name}.png") as picture:
            assert picture.width / 200 <= style.TEXT_WIDTH + 0.5 and picture.height / 200 <= 9.5, name


def test_the_shown_concept_is_the_median_one():
    table = pd.DataFrame({"attack": "finextract", "concept": ["a", "b", "c", "d"], "extracted": [0.9, 0.1, 0.5, 0.4]})
    assert pictures.typical_concept(table) == "d"  # lower median of .1 .4 .5 .9
    assert pictures.typical_concept(table.assign(attack="cfg")) == "d"


@pytest.mark.slow
def test_a_run_without_tuning_and_with_an_unknown_attack_is_drawn(report_study, tmp_path):
    study = report_study.make(tmp_path, worlds=("identities",), methods=("lora",), attacks=("cfg", "finextract"), concepts=2)
    empty = pd.read_csv(study.tuning).head(0)
    empty.to_csv(study.tuning, index=False)
    for path in (study.metrics, study.matches[0]):
        table = pd.read_csv(path, keep_default_na=False)
        table["attack"] = table.attack.replace("cfg", "brand-new")
        table.to_csv(path, index=False)
    figures(study.metrics, study.tuning, study.matches, study.images, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.pdf")} == {f"{name}.pdf" for name in NAMES}


def test_missing_pictures_are_named(report_study, tmp_path):
    study = report_study.make(tmp_path, worlds=("identities",), methods=("lora",), attacks=("finextract",), concepts=1)
    table = rows.read_matches(study.matches)
    missing = Path(table.folder[0]) / table.match_file[0]
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing.name}: no such picture"):
        pictures.draw(table, study.images, tmp_path / "out")
    with pytest.raises(InputError, match="is in none of the image sets given"):
        pictures.draw(table, [], tmp_path / "out")
    table["match_file"] = "../../outside.png"
    with pytest.raises(InputError, match="outside that folder"):
        pictures.draw(table, study.images, tmp_path / "out")


def test_scores_without_their_pictures_are_drawn_as_such(report_study, tmp_path):
    study = report_study.make(tmp_path, worlds=("identities",), methods=("lora",), attacks=("finextract",), concepts=1)
    table = rows.read_matches(study.matches).assign(folder=str(tmp_path / "taken from a shard"))
    pictures.draw(table, study.images, tmp_path / "out")
    assert (tmp_path / "out" / "pictures.png").is_file()


def test_matches_without_rows_are_refused(report_study, tmp_path):
    study = report_study.make(tmp_path, worlds=("identities",), methods=("lora",), attacks=("finextract",), concepts=1)
    table = pd.read_csv(study.matches[0]).head(0)
    table.to_csv(study.matches[0], index=False)
    with pytest.raises(InputError, match="no attack was run"):
        figures(study.metrics, study.tuning, study.matches, study.images, tmp_path / "out")
    shutil.rmtree(study.matches[0].parent)
    with pytest.raises(InputError, match="no such file"):
        rows.read_matches(study.matches)


def test_looks_are_distinct_and_names_have_an_order():
    attacks = names.attacks_in_order(["zzz", "base", "finextract", "cfg", "direct", "finextract-unconditional"])
    assert attacks == ["direct", "cfg", "finextract", "finextract-unconditional", "base", "zzz"]
    assert len({style.colour(name) for name in attacks}) == len({style.marker(name) for name in attacks}) == len(attacks)
    assert names.attack_name("finextract-minus-cfg") == "FineXtract minus CFG" and names.method_name("lora-minus-dreambooth") == "LoRA minus DreamBooth"
