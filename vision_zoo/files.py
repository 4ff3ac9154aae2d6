"""Files that are complete or not there: a reader, a crash and a full disk never meet half of one."""

import contextlib
import errno
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vision_zoo.errors import TrainingError

if TYPE_CHECKING:
    from filelock import BaseFileLock

PATIENCE = 3.0  # seconds to wait for another process before that is told


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write the file in; it gets its name when the block ends well, else it goes.

    Raises:
        OSError: if it was not written, or cannot be flushed or renamed. What ``path`` was before is kept.
    """
    temporary = path.parent / f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.tmp"  # never too long
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # a folder that cannot be read, or a file system that flushes none
            flush(path.parent)  # the rename itself
    except BaseException:
        with contextlib.suppress(OSError):  # it was never made
            temporary.unlink()
        raise


def expanded(path: str | Path) -> Path:
    """The path with a leading ~ or ~user as that home; where there is no such user, it is the name of a file."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises for it


def is_address(path: str) -> bool:
    """Whether it is s3://bucket/name or the like, and no file of this machine."""
    return "://" in path


def user_cache(name: str) -> Path:
    """The folder for what can be had again, for all runs of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision_zoo" / name


def write_file(path: Path, content: bytes) -> None:
    """Write a file or replace it; a full disk or a read-only folder is a TrainingError."""
    try:
        with new_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise TrainingError(f"{path} could not be written: {error.strerror}") from error


def flush(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes what can be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path, *, wait: bool) -> "BaseFileLock | None":
    """Take the lock that a file, made if need be, stands for; None if another process has it and we do not wait."""
    from filelock import FileLock, Timeout  # noqa: PLC0415  # 20 ms, for which `list` need not wait

    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=PATIENCE if wait else 0.1)  # time to try again where its owner has just removed the file
    except Timeout:
        if not wait:
            return None
        sys.stderr.write(f"vision_zoo: waiting for another process, which has taken {path}\n")
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # of a file system without locks
            raise
    return lock


def release(lock: "BaseFileLock") -> None:
    """Give a lock back and remove its file."""
    with contextlib.suppress(OSError):  # Windows removes no open file
        Path(lock.lock_file).unlink()  # while it is ours
    lock.release()
