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

from vision_zoo.files import lock_file, release

# Everything that urllib, the archive modules and torchvision's checks raise when a download goes wrong.
DOWNLOAD_ERRORS = (
    *(OSError, RuntimeError, EOFError, http.client.HTTPException),
    *(zlib.error, tarfile.TarError, zipfile.BadZipFile),
)
SILENCE_SECONDS = 30.0  # after which a silent server is given up
TEMPORARY = ".download-"


def fetch(download: Callable[[Path], None], root: Path, missing: Callable[[], Sequence[str]]) -> None:
    """Download into a folder of its own below root, then move what is not there yet; one process at a time.

    torchvision compares every file, or the archive that it comes in, with the published checksum. What is there
    already is never touched.

    Args:
        download: fetches and unpacks the files into a root.
        root: where they belong; made if need be.
        missing: what is still not there; another process may have brought it meanwhile.
    """
    root.mkdir(parents=True, exist_ok=True)
    with alone(root):
        for leftover in root.glob(f"{TEMPORARY}*"):  # of a process that was killed, for no other one has the lock
            shutil.rmtree(leftover, ignore_errors=True)
        if not missing():
            return
        # On the same disk, so that moving a file out of it is a rename.
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=root, ignore_cleanup_errors=True) as own:
            with _careful():
                download(Path(own))
            for path in sorted(Path(own).rglob("*")):
                place = root / path.relative_to(own)
                if path.is_file() and not place.exists():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(place)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the lock of a folder; the processes that come meanwhile wait."""
    lock = lock_file(root / ".lock", wait=True)
    try:
        yield
    finally:
        if lock:
            release(lock)


@contextlib.contextmanager
def _careful() -> Iterator[None]:
    """Give up on silent servers, and refuse archives that would write outside of the folder they are unpacked in."""
    timeout, archives = socket.getdefaulttimeout(), cast(Any, tarfile.TarFile)
    inside: Any = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
    found = vars(archives).get("extraction_filter")
    socket.setdefaulttimeout(SILENCE_SECONDS)
    archives.extraction_filter = staticmethod(inside)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        archives.extraction_filter = found
