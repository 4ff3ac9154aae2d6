"""Shards of a pack at an address, such as s3://bucket/photos.vz, fetched ahead into a cache that is bounded.

A cached file is named by what it holds, so that addresses, runs and processes share it and it is never out of date. It
has its name once its checksums are right. What was used longest ago makes room.
"""

import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from vision_zoo.data.fetch import SILENCE_SECONDS, alone
from vision_zoo.data.sources import ended, pump
from vision_zoo.data.values import Numbers
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError, TrainingError, lack, one_line, refuse
from vision_zoo.files import flush, lock_file, release, user_cache

SCHEMES = ("s3", "gs", "https", "http", "file", "memory")
WAITS = (1, 2, 4, 8, 16, 32, 64)  # seconds, before what was lost is tried again
_READERS = 4  # that fetch at once
T = TypeVar("T")


class Part(NamedTuple):
    """A shard of a pack at an address."""

    address: str
    file: Path  # where the cache has it: DIGEST.SIZE.shard
    size: int  # bytes
    spans: Callable[[Path], Numbers]  # of what it holds, int64 (N, 4), as a pack has them


class Shards:
    """The files that have the images of the pack at an address; `cache_gb`, in GiB, bounds the cache.

    The order of a training follows from their sizes and that bound, never from what the cache has.
    """

    at_once = 0  # shards that are shuffled together; 0 for all

    def __init__(self, address: str, cache_gb: float) -> None:
        self.address, self.cache_gb, self.folder = address, cache_gb, user_cache("packs")
        known = f"--data.path {address} must be a file, or begin with {'://, '.join(SCHEMES)}://"
        bound = f"--data.cache_gb must be positive, got {cache_gb}"
        foreign = address.partition("://")[0] not in SCHEMES
        refuse(ConfigError, (foreign, known), (not 0 < cache_gb < math.inf, bound))
        self.limit, self.parts, self._told = int(cache_gb * 2**30), list[Part](), False
        self._sweep()

    def _sweep(self) -> None:
        """Remove what killed processes have begun."""
        for left in self.folder.glob("*.part"):
            if lock := lock_file(left.with_suffix(".lock"), wait=False):
                left.unlink(missing_ok=True)
                release(lock)

    def head(self, count: int) -> bytes:
        """The first bytes of the pack."""
        return _persistently(
            lambda files, x: bytes(files.cat_file(x, start=0, end=count)[:count]), self.address, WAITS[:3]
        )

    def index(self, head: Mapping[str, Any], bare: bool) -> Path:
        """The pack's own file, fetched; if it is bare of images, it stays in the cache."""
        size, (start, checksum), (kind, offset, shape) = (head[name] for name in ("bytes", "index", "spans"))
        what, shards = ("has an index", "") if bare else ("is one file", ", or pack it with --shard_mb 256")
        large = f"{self.address} {what} of {size / 2**30:.3g} GiB, more than --data.cache_gb {self.cache_gb}"
        refuse(ConfigError, (size > self.limit, f"{large}. Give more{shards}"))

        def spans(file: Path) -> Numbers:
            own = np.fromfile(file, kind, 0 if bare else math.prod(shape), offset=offset)
            return np.concatenate([[[0, start, size - start, checksum]], own.reshape(-1, 4)])

        name = f"{sha256(json.dumps(head).encode()).hexdigest()[:32]}.{size}.{'index' if bare else 'shard'}"
        return self._fetched(Part(self.address, self.folder / name, size, spans))

    def fill(self, listed: Sequence[tuple[str, int]], spans: Numbers, index: Path) -> None:
        """Take names and sizes of the shards, which the pack lists; if it lists none, it has the images itself."""
        bounds = np.searchsorted(spans[:, 0], np.arange(len(listed) + 1))
        place, mark, query = self.address.partition("?") if self.address.startswith("http") else (self.address, "", "")
        for (name, size), start, stop in zip(listed, bounds, bounds[1:], strict=False):
            own = spans[start:stop]
            file = self.folder / f"{sha256(own[:, 1:].tobytes()).hexdigest()[:32]}.{size}.shard"
            self.parts.append(Part(f"{place.rpartition('/')[0]}/{name}{mark}{query}", file, size, partial(_same, own)))
        self.parts = self.parts or [Part(self.address, index, index.stat().st_size, partial(_same, spans))]
        largest, total = (f(part.size for part in self.parts) for f in (max, sum))
        few = f"--data.cache_gb {self.cache_gb} holds less than two shards of {self.address}: give at least"
        self.at_once = self.limit // largest // 2 if total > self.limit else 0  # the other half is for those fetched
        refuse(ConfigError, (total > self.limit < 2 * largest, f"{few} {math.ceil(largest / 2**19) / 1024:.4f}"))
        self._ahead = self.limit // largest - self.at_once + 1 if self.at_once else len(self.parts)

    def open(self, number: int) -> BinaryIO:
        """A shard, fetched if need be."""
        while True:
            with suppress(FileNotFoundError):  # it has just made room for another
                return self._fetched(self.parts[number]).open("rb")

    def await_each(self, batches: Sequence[Tensor], numbers: Tensor) -> Iterator[Tensor]:
        """Each batch of indices once its shards are there, while the next ones are fetched; `numbers` are of images."""
        wanted, there = dict.fromkeys(x for batch in batches for x in numbers[batch].tolist()), set[int]()
        sizes = [self.parts[number].size for number in wanted if not _is_whole(self.parts[number])]
        if sizes and not self._told:
            what = f"{len(sizes):,} shards, {sum(sizes) / 2**30:.3g} GiB, of {self.address} into {self.folder}"
            rank_zero_only(sys.stderr.write)(f"vision_zoo: fetching {what}\n")
        self._told = True
        arrived = pump(lambda x: (x, self._fetched(self.parts[x])), wanted, _READERS, self._ahead)
        for batch in batches:
            while not there.issuperset(numbers[batch].tolist()):
                there.add(next(arrived)[0])
            yield batch

    def _fetched(self, part: Part) -> Path:
        """Where a file is, once it is there; one process fetches it."""
        while not _is_whole(part):
            refuse(TrainingError, (ended(), f"{part.address} is not needed any more"))
            self.folder.mkdir(parents=True, exist_ok=True)
            if lock := lock_file(part.file.with_suffix(".lock"), wait=False):
                try:
                    None if _is_whole(part) else self._fetch(part)
                finally:
                    release(lock)
        return part.file

    def _fetch(self, part: Part) -> None:
        temporary = part.file.with_suffix(".part")
        self._make_room(temporary)

        def get(files: Any, path: str) -> None:
            hooks = {"ended": lambda *_, **__: refuse(ConnectionError, (ended(), "nobody waits for it any more"))}
            files.get_file(path, str(temporary), callback=Callback(hooks=hooks))
            size = temporary.stat().st_size
            refuse(ConnectionError, (size != part.size, f"{size:,} of {part.size:,} bytes came"))

        _persistently(get, part.address, WAITS)
        damaged, way_out = _damaged(temporary, part.spans(temporary)), "Copy it there again, or pack the images again"
        told = f"{part.address} is damaged: {damaged} of its images have not the checksum that they should have"
        refuse(DataError, (damaged, f"{told}. {way_out}"))
        flush(temporary)
        with alone(self.folder):
            temporary.replace(part.file)

    def _make_room(self, temporary: Path) -> None:
        """Remove what was used longest ago; the sizes in the names count, so that files have room before they come."""
        while not temporary.exists():
            refuse(TrainingError, (ended(), "nobody waits for it any more"))
            with alone(self.folder):
                files = [file for file in self.folder.iterdir() if file.suffix in (".shard", ".part")]
                room = self.limit - sum(int(file.name.split(".")[1]) for file in (*files, temporary))
                for file in sorted((x for x in files if x.suffix == ".shard"), key=lambda x: x.stat().st_mtime_ns):
                    with suppress(OSError):  # Windows removes no open file
                        file.unlink() if room < 0 else None
                        room += int(file.name.split(".")[1]) if room < 0 else 0
                if room >= 0:
                    temporary.touch()
            if room < 0:
                self._sweep()
                time.sleep(0.1)


def _is_whole(part: Part) -> bool:
    """Whether the cache has a file, which counts as used now."""
    whole = False
    with suppress(OSError):  # it is not there, or of another user
        whole = part.file.stat().st_size == part.size
        os.utime(part.file)
    return whole


def _damaged(file: Path, spans: Numbers) -> int:
    content: Any = np.memmap(file, np.uint8, "r")
    return sum(zlib.crc32(content[start : start + size]) != checksum for _, start, size, checksum in spans.tolist())


def _same(spans: Numbers, _: Path) -> Numbers:
    return spans


def _persistently(action: Callable[[Any, str], T], address: str, waits: Sequence[float]) -> T:
    """What an action makes of a file system and a path; after a lost connection it is tried again, and waits before."""
    scheme, options = address.partition("://")[0], dict[str, Any]()
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout  # noqa: PLC0415  # 0.1 s

        silence = ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        options["client_kwargs"] = {"timeout": silence, "trust_env": True}  # which tells proxies
    try:
        return action(*url_to_fs(address, **options))
    except ImportError as error:
        refuse(ConfigError, (True, f"{address} needs pip install 'vision_zoo[{scheme}]' ({one_line(error)})"))
    except Exception as error:  # each library has its own
        closed = getattr(error, "status", 0) in (401, 403) or type(error).__name__ == "NoCredentialsError"
        closed |= isinstance(error, FileNotFoundError | PermissionError)
        advice = "Check --data.path, and who may read it"
        refuse(DatasetNotFoundError, (closed, f"{address} cannot be read ({one_line(error)}). {advice}"))
        way_out = "Check the connection, and that the file is whole there; a run goes on with --ckpt_path last"
        lost = f"{address} cannot be fetched ({one_line(error)}). {way_out}"
        refuse(TrainingError, (what := lack(error), what), (not waits or ended(), lost))
        sys.stderr.write(f"vision_zoo: {address}: {one_line(error)}: again in {waits[0]} s\n")
    for _ in range(100):
        time.sleep(0 if ended() else waits[0] / 100)
    return _persistently(action, address, waits[1:])
