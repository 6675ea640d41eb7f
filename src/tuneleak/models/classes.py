"""What a class-conditional model knows instead of words: a class for each name it was trained on, told to the rest of the code as captions.

`classes.json` in a pipeline folder says which caption is which class: `ids` (caption -> class), `none` (the class of no caption, for classifier-free
guidance), `unnamed` (what everybody without a name shares), `new` (classes kept free for names that a fine-tune brings, which start as `unnamed`) and `naming`
(how a caption begins that names somebody).
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from tuneleak import files
from tuneleak.data import captions
from tuneleak.errors import InputError

CLASSES_FILE = "classes.json"
NAMING = (captions.by_name(""), captions.by_artist(""))
NONE, UNNAMED = 0, 1
NEW = tuple(range(2, 18))  # names of fine-tunes share these by a digest of their caption


@dataclass(frozen=True)
class Classes:
    """The classes of one model; see the module's text."""

    ids: dict[str, int]
    none: int
    unnamed: int
    new: tuple[int, ...]
    naming: tuple[str, ...]

    @classmethod
    def of(cls, texts, naming=NAMING):
        """A class for each caption of `texts` that names somebody, in order of appearance."""
        named = [text for text in dict.fromkeys(texts) if text.startswith(naming)]
        first = max(NONE, UNNAMED, *NEW) + 1
        return cls({text: first + number for number, text in enumerate(named)}, NONE, UNNAMED, NEW, naming)

    @property
    def count(self):
        """Number of classes, those of no name included."""
        return 1 + max([self.none, self.unnamed, *self.new, *self.ids.values()])

    def id_of(self, caption):
        """The class of a caption: its own; that of no caption; a free one for a name that is not known; else that of everybody without a name."""
        caption = caption.strip()
        if not caption:
            return self.none
        if caption in self.ids:
            return self.ids[caption]
        if self.new and caption.startswith(self.naming):
            return self.new[int(hashlib.sha256(caption.encode()).hexdigest(), 16) % len(self.new)]
        return self.unnamed

    def caption_of(self, number):
        """The caption of a class that has one: a known name's, or the empty one; `InputError` for any other."""
        known = {value: text for text, value in self.ids.items()} | {self.none: ""}
        if number not in known:
            raise InputError(f"class {number} has no caption of its own")
        return known[number]

    def write(self, folder):
        """Write `classes.json`."""
        files.write_json(Path(folder) / CLASSES_FILE, asdict(self))

    @classmethod
    def read(cls, folder, count):
        """Read `classes.json`; `InputError` unless it tells of `count` classes."""
        path = Path(folder) / CLASSES_FILE
        if not path.is_file():
            raise InputError(f"{path} is missing: a class-conditional model needs it to say which caption is which class (see tuneleak.models.classes)")
        told = files.read_object(path, "ids", "none", "unnamed", "new", "naming")
        texts = isinstance(told["ids"], dict) and _all(told["naming"], str)
        numbers = [told["none"], told["unnamed"], *(told["new"] if isinstance(told["new"], list) else [None]), *(told["ids"].values() if texts else [None])]
        if not texts or not _all(numbers, int) or not all(0 <= number < count for number in numbers):
            raise InputError(
                f"{path} must give each caption in `ids`, `none`, `unnamed` and `new` classes from 0 to {count - 1}, and `naming` as a list of texts"
            )
        return cls(told["ids"], told["none"], told["unnamed"], tuple(told["new"]), tuple(told["naming"]))


def _all(values, kind):
    return isinstance(values, list) and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
