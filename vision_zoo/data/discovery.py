"""Which files below a folder are images, and what is left out, counted by kind."""

import contextlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from vision_zoo.data.decode import UNREADABLE, image_extensions

REMOVED = "_removed"  # where audit moves what is not to be used
TABLES = (".csv", ".tsv", ".parquet")  # endings of files that ImageTable reads


def nfc(name: str) -> str:
    """A name with its letters composed: a Mac stores the é of café as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def as_word(value: object) -> str:
    """A label as a word; a whole number without its .0, which it has beside empty values."""
    text = "" if value is None else re.sub(r"^([+-]?\d+)\.0$", r"\1", nfc(str(value).strip()))
    return "" if text == "nan" else text


INSIDE = "inside of class folders"  # folders that are left out


class LeftOut(defaultdict[str, list[str]]):
    """Names of what is left out, by kind: the ending of a file, or what it is called where it is found."""

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        super().__init__(list)
        for path in paths:
            self[_ending(path) or "without ending"].append(os.path.basename(path))  # noqa: PTH119  # a text or a Path

    def __str__(self) -> str:
        kinds = [f"{len(x):,} {kind} ({x[0]}{', ...' * (len(x) > 1)})" for kind, x in self.items() if x]
        return f"; left out: {', '.join(kinds)}" if kinds else ""

    def warn(self, where: str) -> None:
        """Count it in one line, if there is any."""
        if text := str(self):
            advice = ". Convert images of other kinds to PNG or JPEG" * any(kind[0] == "." for kind in self)
            advice += ". Images must lie directly in the folder of their class" * bool(self.get(INSIDE))
            rank_zero_warn(f"{where}{text}{advice}")


def _ending(path: str | Path) -> str:
    """The ending of a file in lower case, with its dot; none where it has no letter, as in scan.1."""
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122  # a Path for every file is slow
    return ending if any(map(str.isalpha, ending)) else ""


def look_into(folder: Path, left: LeftOut) -> tuple[list[Path], list[Path]]:
    """The images and the folders directly inside of a folder, sorted; hidden ones, _removed and others are left out."""
    images, folders = list[Path](), list[Path]()
    with os.scandir(folder) as entries:
        # Of a link to itself is_dir() raises. A text will do: a Path for every file is slow.
        kinds = [(x.name, os.path.isdir(x.path) if x.is_symlink() else x.is_dir()) for x in entries]  # noqa: PTH112
    for name, is_folder in sorted(kinds):
        if name.startswith((".", "__MACOSX")):
            left["hidden"].append(name)
        elif is_folder and name == REMOVED:
            left["folder of what audit removed"].append(name)
        elif is_folder:
            folders.append(folder / name)
        elif is_image(folder / name, left):
            images.append(folder / name)
    return images, folders


def is_image(path: Path, left: LeftOut) -> bool:
    """Whether a file has an image's ending, or none and holds an image; others are left out."""
    kind = _ending(path)
    if kind in image_extensions():
        return True
    if not kind and path.is_file():  # a pipe would be waited for
        with contextlib.suppress(*UNREADABLE), Image.open(path):
            return True
    left[kind or "without ending"].append(path.name)
    return False


def walk(folder: Path, left: LeftOut, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Every image below a folder, sorted; see `look_into`."""
    real = folder.resolve()
    if real in above:  # a link back to a folder that holds it
        return
    images, folders = look_into(folder, left)
    walks = {inside: walk(inside, left, above | {real}) for inside in folders}
    for path in sorted([*images, *folders]):
        yield from walks.get(path, (path,))
