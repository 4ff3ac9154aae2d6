"""What every case of bad input is made of: the words, the message, and what is prepared in the working directory."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests import tiny
from vision_zoo.__main__ import main

FIT = ("fit", "--model.backbone", "LeNet5", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3")
FOLDER = (*FIT, "--data", "ImageFolder", "--data.root", "pictures", "--data.image_size", "32")
ARRAYS = (*FIT, "--data", "ArrayFile", "--data.path", "a.npz")

Prepare = Callable[[Path], object]


class Case(NamedTuple):
    """What is prepared in the working directory, the words, and a pattern of the message."""

    name: str
    words: tuple[str, ...]
    message: str
    prepare: Prepare = lambda here: None


def tree(folder: Path) -> dict[str, object]:
    """Every path below a folder with its content, but for the cache."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.partition("/")[0] != "cache":
            found[name] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


def refuse(capsys, words: tuple[str, ...], message: str, code: int = 2) -> str:
    """Run a command that must fail with one message."""
    assert main(list(words)) == code
    error = capsys.readouterr().err
    assert re.search(message, error), error
    lines = [line for line in error.splitlines() if not line.startswith("changed against the checkpoint")]
    assert [line.startswith("vision_zoo: ") for line in lines].count(True) == 1, error
    assert lines[0].startswith("vision_zoo: "), error
    assert "Traceback" not in error
    assert "internal error" not in error
    return error


def npz(**arrays: np.ndarray) -> Prepare:
    return lambda here: np.savez(here / "a.npz", **arrays)


def file(name: str, content: bytes | str = b"") -> Prepare:
    return lambda here: (here / name).write_bytes(content.encode() if isinstance(content, str) else content)


def pictures(here: Path) -> Path:
    return tiny.write_image_folder(here / "pictures")
