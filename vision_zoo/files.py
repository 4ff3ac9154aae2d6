"""Files that are complete or not there: a reader, a crash and a full disk never meet half of one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vision_zoo.errors import TrainingError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write the file in; it gets its name when the block ends well, else it goes.

    Raises:
        OSError: if it was not written, or cannot be flushed or renamed. What ``path`` was before is kept.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)  # the rename itself
    except BaseException:
        with contextlib.suppress(OSError):  # it was never made
            temporary.unlink()
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write a file or replace it.

    Raises:
        TrainingError: if the disk is full or the folder cannot be written.
    """
    try:
        with new_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise TrainingError(f"{path} could not be written: {error.strerror}") from error


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
