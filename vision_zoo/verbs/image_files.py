"""The image files that paths, folders and patterns of a command line name."""

import glob
from collections.abc import Sequence
from pathlib import Path

from vision_zoo.data.discovery import LeftOut, is_image, walk
from vision_zoo.errors import InputError, refuse
from vision_zoo.files import expanded


def find_images(given: Sequence[str], option: str = "--images") -> list[Path]:
    """Every image that is named, once, in the order given; folders are searched to the bottom and sorted.

    A file that is named itself is taken whatever it is called; folders and patterns give what is an image by its
    ending, or without one by its content, and is not hidden. One line counts what they leave out.

    Raises:
        InputError: naming what is missing or has no images.
    """
    found: dict[str, Path] = {}
    left = LeftOut()
    for word in given:
        try:
            files, problem = _expand(expanded(word), left)
        except OSError as error:
            files, problem = [], str(error)
        refuse(InputError, (not files, f"{option} {word}: {problem}{left}"))
        for path in files:
            found.setdefault(str(path.absolute()), path)
    left.warn(option)
    return list(found.values())


def _expand(path: Path, left: LeftOut) -> tuple[list[Path], str]:
    """The files that a word stands for, and what is wrong where there are none."""
    if path.is_dir():
        return list(walk(path, left)), f"no images in {path.absolute()} or the folders in it"
    if path.exists() or not set("*?[") & set(str(path)):
        return [path] if path.exists() else [], f"{path.absolute()} not found"
    # A folder that is there is meant as it is written, and brackets may be those of a name.
    folder = next(parent for parent in path.parents if parent.exists())
    pattern = str(path.relative_to(folder))
    names = {x for p in (pattern, pattern.replace("[", "[[]")) for x in glob.glob(p, root_dir=folder, recursive=True)}  # noqa: PTH207
    matches = map(Path, sorted(str(folder / name) for name in names))
    files = [x for match in matches for x in (walk(match, left) if match.is_dir() else [match] * is_image(match, left))]
    return files, f"no images match this pattern below {folder.absolute()}"
