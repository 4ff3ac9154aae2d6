"""The image files that paths, folders and patterns of a command line name."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vision_zoo.data.decode import image_extensions, unreadable_extensions
from vision_zoo.errors import InputError, refuse
from vision_zoo.files import expanded


def find_images(given: Sequence[str]) -> list[Path]:
    """Every image that is named, once, in the order given; folders are searched to the bottom and sorted.

    A file that is named itself is taken whatever it is called; folders and patterns give what has an image's ending
    and is not hidden.

    Raises:
        InputError: naming what is missing or has no images.
    """
    found: dict[str, Path] = {}
    for word in given:
        try:
            files, problem = _expand(expanded(word))
        except OSError as error:
            files, problem = [], str(error)
        refuse(InputError, (not files, f"--images {word}: {problem}"))
        for path in files:
            found.setdefault(str(path.absolute()), path)
    return list(found.values())


def _expand(path: Path) -> tuple[list[Path], str]:
    """The files that a word stands for, and what is wrong where there are none."""
    if path.is_dir():
        return list(_walk(path)), f"no images in {path.absolute()} or the folders in it"
    if path.exists() or not set("*?[") & set(str(path)):
        return [path] if path.exists() else [], f"{path.absolute()} not found"
    matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207  # takes absolute patterns
    files = [file for match in matches for file in (_walk(match) if match.is_dir() else [match])]
    return [file for file in files if _is_image(file.name)], f"no images match this pattern in {Path.cwd()}"


def _is_image(name: str) -> bool:
    """Whether a file has an image's ending, also one that cannot be read: those are named, not passed over."""
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122  # a Path for every file is slow
    return ending in image_extensions() or ending in unreadable_extensions()


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link back to a folder that holds it
        return
    with os.scandir(folder) as entries:
        listing = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in listing:
        if name.startswith((".", "__MACOSX")):
            continue
        if is_folder:
            yield from _walk(folder / name, above | {real})
        elif _is_image(name):
            yield folder / name
