"""An ImageSet: a folder of PNG files and a `manifest.csv` that says what each is.

Columns of the manifest: `image_id` (unique), `file` (path inside the folder), `concept` (identity, artist or class), `split`
(`tune`, `test` or empty), `fold` (`train`, `heldout`, `P`, `Q`, ... or empty), `caption`, `sha256` (of the RGB bytes), then any further
columns (`dose`, `factor_<name>`: the true factors of a rendered picture).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.errors import InputError

COLUMNS = ("image_id", "file", "concept", "split", "fold", "caption", "sha256")


@dataclass(frozen=True)
class ImageSet:
    """A folder and its manifest table (string columns; empty cells are empty strings)."""

    folder: Path
    table: pd.DataFrame

    @classmethod
    def load(cls, folder):
        """Read an ImageSet from its folder (or the path of its manifest); raises `InputError` if it is not one."""
        folder = Path(folder)
        folder = folder.parent if folder.name == "manifest.csv" else folder
        manifest = folder / "manifest.csv"
        if not manifest.is_file():
            raise InputError(f"{folder} is not an image set: it has no manifest.csv (make one with `tuneleak render` or `tuneleak import-images`)")
        table = files.read_table(manifest, COLUMNS, "make the image set again with `tuneleak render` or `tuneleak import-images`")
        if table.image_id.duplicated().any():
            raise InputError(f"{manifest}: image_id {table.image_id[table.image_id.duplicated()].iloc[0]!r} occurs twice; make the image set again")
        return cls(folder, table)

    def __len__(self):
        return len(self.table)

    def where(self, **values):
        """The subset whose columns equal the given values (a list means any of them)."""
        table = self.table
        for column, value in values.items():
            table = table[table[column].isin([value] if isinstance(value, str) else list(value))]
        return ImageSet(self.folder, table.reset_index(drop=True))

    @property
    def labels(self):
        """The class of each picture: its `label` if the set has labels, else its concept (a Series of str)."""
        return self.table.label if "label" in self.table and (self.table.label != "").any() else self.table.concept

    def concepts(self, split="", start=0, stop=None):
        """Names of the concepts `start:stop` of a split (empty: of all), in the manifest's order; `InputError` if the slice is empty or leaves them."""
        names = list(dict.fromkeys((self.where(split=split) if split else self).table.concept))
        chosen = names[start:stop]
        if start < 0 or not chosen or (stop is not None and stop > len(names)):
            asked, where = f"{start}:{'' if stop is None else stop}", f" in split {split!r}" if split else ""
            raise InputError(f"{self.folder} has {len(names)} concepts{where}; the slice {asked} is empty or leaves them, choose another")
        return chosen

    def pixels(self):
        """All pictures as uint8 `(n, height, width, 3)`; they must have one size."""
        from PIL import Image

        if not len(self):
            raise InputError(f"no picture of {self.folder} was selected")
        pictures = []
        for name in self.table.file:
            path = files.inside(self.folder, name)
            try:
                with Image.open(path, formats=("PNG",)) as picture:
                    if pictures and picture.size != pictures[0].shape[1::-1]:
                        raise InputError(f"{self.folder} holds pictures of several sizes ({name} is {picture.size}); import it with --size")
                    pictures.append(np.asarray(picture.convert("RGB")))
            except InputError:
                raise
            except Exception as error:  # decoders of broken files raise OSError, SyntaxError, struct.error, zlib.error and more
                raise InputError(f"{path} is not a readable PNG file ({error}); make the image set again") from None
        return np.stack(pictures)


def pixel_digest(pixels):
    """Hex SHA-256 of the raw RGB bytes of one uint8 `(height, width, 3)` picture."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def write(folder, rows, pictures):
    """Write an ImageSet: `rows` (dicts with at least image_id, concept, caption) and `pictures` (uint8 arrays), the manifest last."""
    return write_pairs(folder, zip(rows, pictures, strict=True))


def place(folder, row):
    """Where the picture of a row is written."""
    return files.inside(Path(folder), f"{row['concept']}/{row['image_id']}.png")


def write_pairs(folder, pairs):
    """As `write`, from an iterable of (row, picture), of which one is in memory at a time."""
    from PIL import Image

    folder = Path(folder)
    (folder / "manifest.csv").unlink(missing_ok=True)  # a run that is cut short must not leave a manifest of other pictures
    table = []
    for row, pixels in pairs:
        row = {"split": "", "fold": "", **row}
        row["file"] = f"{row['concept']}/{row['image_id']}.png"
        row["sha256"] = pixel_digest(pixels)
        path = place(folder, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(path) as temporary:
            Image.fromarray(pixels).save(temporary, "PNG", compress_level=1)
        table.append(row)
    frame = pd.DataFrame(table)
    frame = frame[[*COLUMNS, *(name for name in frame if name not in COLUMNS)]]
    files.write_csv(folder / "manifest.csv", frame)
    return ImageSet(folder, frame)


def as_tensor(pixels):
    """uint8 `(n, h, w, 3)` -> float32 torch tensor `(n, 3, h, w)` in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def from_tensor(images):
    """float `(n, 3, h, w)` in [-1, 1] -> uint8 numpy `(n, h, w, 3)`."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
