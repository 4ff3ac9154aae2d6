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
from typing import Any, cast

from vision_zoo.errors import refuse
from vision_zoo.files import lock_file, release

# Everything that urllib, the archive modules and torchvision's checks raise when a download goes wrong.
DOWNLOAD_ERRORS = (
    *(OSError, RuntimeError, EOFError, http.client.HTTPException),
    *(zlib.error, tarfile.TarError, zipfile.BadZipFile),
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
            for leftover in root.glob(f"{TEMPORARY}*"):  # of a process that was killed, for no other one has the lock
                shutil.rmtree(leftover, ignore_errors=True)
            if missing():
                # On the same disk, so that moving a file out of it is a rename.
                with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=root, ignore_cleanup_errors=True) as own:
                    with _careful():
                        download(Path(own))
                    for path in sorted(Path(own).rglob("*")):
                        place = root / path.relative_to(own)
                        if path.is_file() and not place.exists():
                            place.parent.mkdir(parents=True, exist_ok=True)
                            path.replace(place)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, so not in vain
                folder.rmdir()


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
def _careful() -> Iterator[None]:
    """Give up on silent servers, and refuse archives that would write outside of the folder they are unpacked in."""
    timeout, archives = socket.getdefaulttimeout(), cast(Any, tarfile.TarFile)
    socket.setdefaulttimeout(SILENCE_SECONDS)
    archives.extractall = _extract_inside
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        archives.extractall = _EXTRACT_ALL


def _extract_inside(archive: tarfile.TarFile, path: Any = ".", *args: Any, **kwargs: Any) -> None:
    """Extract files that stay inside; a Python without filters, such as Debian 12's, extracts no links besides."""
    root = Path(path).resolve()
    if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
        kwargs["filter"] = "data"
    else:
        for member in archive.getmembers():
            inside = (root / member.name).resolve().is_relative_to(root)
            foreign = f"{member.name} is a link or a device, or would be written outside of its folder"
            refuse(tarfile.TarError, (not inside or not (member.isfile() or member.isdir()), foreign))
    _EXTRACT_ALL(archive, path, *args, **kwargs)
