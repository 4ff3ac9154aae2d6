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
            files = _expand(word)
        except OSError as error:
            raise InputError(f"--images {word}: {error}") from error
        for path in files:
            found.setdefault(str(path.absolute()), path)
    return list(found.values())


def _expand(word: str) -> list[Path]:
    path = expanded(word)
    endings = image_extensions() | unreadable_extensions()  # those are named as unread, not passed over
    is_pattern = not path.exists() and set("*?[") & set(word)
    if path.is_dir():
        files, problem = list(_walk(path, endings)), f"no images in {path.absolute()} or the folders in it"
    elif is_pattern:
        problem = f"no images match this pattern in {Path.cwd()}"
        files = []
        for match in map(Path, sorted(glob.glob(str(path), recursive=True))):  # noqa: PTH207  # takes absolute patterns
            if match.is_dir():
                files += _walk(match, endings)
            elif match.suffix.lower() in endings:
                files.append(match)
    else:
        files, problem = [path] if path.exists() else [], f"{path.absolute()} not found"
    refuse(InputError, (not files, f"--images {word}: {problem}"))
    return files


def _walk(folder: Path, endings: frozenset[str], above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link back to a folder that holds it
        return
    with os.scandir(folder) as entries:
        listing = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in listing:
        if name.startswith((".", "__MACOSX")):
            continue
        if is_folder:
            yield from _walk(folder / name, endings, above | {real})
        elif os.path.splitext(name)[1].lower() in endings:  # noqa: PTH122  # a Path for every file is slow
            yield folder / name
