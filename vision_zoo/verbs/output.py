"""The file that a command writes, or standard output; and the templates of pages."""

import contextlib
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from vision_zoo.errors import ConfigError, TrainingError, refuse
from vision_zoo.files import expanded, new_file


@contextlib.contextmanager
def output_file(output: str | Path, option: str = "--output") -> Iterator[Path]:
    """A file to write in place of ``output``; it takes that name when it is complete, so that the old one is kept.

    Raises:
        ConfigError: before any work, if there can be no such file.
        TrainingError: if it could not be written.
    """
    path, begun = expanded(output), False
    cannot, way_out = f"{option} {output} cannot be written", "Choose another place"
    # A file that takes its name when it is complete would replace a device or a pipe.
    special = path.parts[:2] == ("/", "dev") or (path.exists() and not path.is_file())
    what = "a folder" if path.is_dir() else "not a regular file"
    refuse(ConfigError, (special, f"{cannot}: it is {what}. {way_out}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path.resolve()) as place:  # a link stays one
            place.touch()
            begun = True
            yield place
    except OSError as error:
        reason = error.strerror or str(error)
        if begun:
            raise TrainingError(f"{path} could not be written: {reason}") from error
        raise ConfigError(f"{cannot}: {reason}. {way_out}") from error


def numbered(path: Path) -> Iterator[Path]:
    """The path, then with a number in its name, without end."""
    yield path
    yield from (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(2))


def output_folder(output: str | Path, option: str = "--output") -> Path:
    """A folder to write into, which need not be there yet; a ConfigError if it cannot be."""
    folder = expanded(output)
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    closed = not existing.is_dir() or not os.access(existing, os.W_OK)
    refuse(ConfigError, (closed, f"{option} {output}: {existing} is not a folder that can be written to"))
    return folder


@contextlib.contextmanager
def text_output(output: str) -> Iterator[TextIO]:
    """Such a file, open for text, or standard output for a dash; raises as `output_file` does."""
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}  # names may be any bytes
    if output == "-":
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(**how)
        yield sys.stdout
    else:
        with output_file(output) as path, path.open("w", newline="", **how) as file:
            yield file


def templates(folder: Path) -> Environment:
    """The templates of a folder, beside the look that all pages share: HTML escapes every value, and none may lack."""
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    loader = FileSystemLoader((folder, Path(__file__).parent / "report"))
    return Environment(loader=loader, autoescape=select_autoescape(["html"]), **blocks)
