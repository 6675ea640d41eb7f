"""Real photographs and paintings through `import-images`; they are not part of the project."""

from pathlib import Path

import pytest

from tuneleak.data.imageset import ImageSet
from tuneleak.data.importing import import_images
from tuneleak.options import ImportOptions

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent: the real test pictures are not shipped with the project")


def test_dreambooth_photographs(tmp_path):
    import_images(DATA / "dreambooth", tmp_path / "out", ImportOptions(size=64, caption="a photo of sks {concept}", train_per_concept=4, tune_concepts=10))
    images = ImageSet.load(tmp_path / "out")
    counts = images.table.concept.value_counts()
    assert (len(images), len(counts), counts.min(), counts.max()) == (158, 30, 4, 6)
    assert counts["dog6"] == 5 and images.table.caption[0] == "a photo of sks backpack"
    assert images.table.fold.value_counts().to_dict() == {"train": 120, "heldout": 38}
    assert images.table.groupby("split").concept.nunique().to_dict() == {"test": 20, "tune": 10}
    pixels = images.pixels()
    assert pixels.shape == (158, 64, 64, 3) and pixels.std(axis=(1, 2, 3)).min() > 10
    assert images.table.sha256.is_unique


def test_paintings_of_one_artist(tmp_path):
    for number, source in enumerate((DATA / "wikiart", DATA / "wikiart" / "claude-monet")):
        import_images(source, tmp_path / str(number), ImportOptions(size=64))
        table = ImageSet.load(tmp_path / str(number)).table
        assert len(table) == 10 and set(table.concept) == {"claude-monet"} and set(table.fold) == {"train"}
