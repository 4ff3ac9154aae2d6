"""Downloads that are complete and checked, or not there: whatever happens, no half file is taken for data."""

import contextlib
import http.client
import shutil
import socket
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vision_zoo.files import lock_file, release

# Everything that urllib, the archive modules and torchvision's checks raise when a download goes wrong.
DOWNLOAD_ERRORS = (
    OSError,
    RuntimeError,
    EOFError,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    http.client.HTTPException,
)
SILENCE_SECONDS = 30.0  # after which a silent server is given up
TEMPORARY = ".download-"
_EXTRACT_ALL = tarfile.TarFile.extractall


def fetch(download: Callable[[Path], None], root: Path, missing: Callable[[], Sequence[str]]) -> None:
    """Download into a folder of its own below root, then move what is not there yet; one process at a time.

    torchvision compares every file, or the archive that it comes in, with the published checksum. What is there
    already is never touched.

    Args:
        download: fetches and unpacks the files into a root.
        root: where they belong; made if need be, and gone again if the download fails.
        missing: what is still not there; another process may have brought it meanwhile.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        with _alone(root):
            if missing():
                with _temporary(root) as folder, _careful():
                    download(folder)
                    _move(folder, root)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, so not in vain
                folder.rmdir()


def _move(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            place.mkdir(exist_ok=True)
        elif not place.exists():
            path.replace(place)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the lock of a folder; the processes that come meanwhile wait."""
    lock = None
    while lock is None:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a process that failed before us has just removed the folder
            lock = lock_file(root / ".lock", wait=True)
    try:
        yield
    finally:
        release(lock)


@contextlib.contextmanager
def _temporary(root: Path) -> Iterator[Path]:
    """A folder on the same disk, so that moving a file out of it is a rename; the lock of root is held."""
    for leftover in root.glob(f"{TEMPORARY}*"):  # of a process that was killed, for no other one holds the lock
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _careful() -> Iterator[None]:
    """Give up on silent servers, and refuse archives that would write outside of the folder they are unpacked in."""
    timeout = socket.getdefaulttimeout()
    filters = hasattr(tarfile, "data_filter")  # from Python 3.11.4 on
    name = "extraction_filter" if filters else "extractall"
    careful: Any = staticmethod(tarfile.data_filter) if filters else _extract_inside
    before: Any = vars(tarfile.TarFile).get(name, ...)
    socket.setdefaulttimeout(SILENCE_SECONDS)
    setattr(tarfile.TarFile, name, careful)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        if before is ...:
            delattr(tarfile.TarFile, name)
        else:
            setattr(tarfile.TarFile, name, before)


def _extract_inside(archive: tarfile.TarFile, path: Any = ".", *args: Any, **kwargs: Any) -> None:
    """What a Python without `data_filter`, such as Debian 12's, extracts with: files and folders that stay inside."""
    root = Path(path).resolve()
    for member in archive.getmembers():
        if not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name} is a link or a device")
        if not (root / member.name).resolve().is_relative_to(root):
            raise tarfile.TarError(f"{member.name} would be written outside of its folder")
    _EXTRACT_ALL(archive, path, *args, **kwargs)
