"""Where images come from, in memory or in files, and the pump that fetches batches of them ahead of time."""

import io
import math
import os
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from vision_zoo.data.decode import UNREADABLE, File, decode
from vision_zoo.data.discovery import LeftOut
from vision_zoo.errors import ConfigError, DataError, TrainingError, lack, refuse
from vision_zoo.types import ImageShape, Interpolation, LabelledImages, Resize, ValueRange

COPIED = 4096  # images at a time
_OTHERS = 1000  # images that are tried in place of one: where all are gone, nobody should wait for the last
B = TypeVar("B")
T = TypeVar("T")
_thread = threading.local()  # ended: in a thread of a pump, not empty once nobody takes what it fetches


class Fetched(NamedTuple):
    """A batch as it comes from its source."""

    images: Tensor  # uint8 (B, C, H, W) in [0, 255]
    labels: Tensor  # int64 (B,) in [0, K)
    failures: Sequence[tuple[str, str]] = ()  # the files that could not be decoded, each with the reason


class Source:
    """Labelled images, of which any few can be fetched."""

    labels: Tensor  # int64 (N,) in [0, K)
    at_once = 0  # files that are shuffled together, where images are fetched in files of many; 0 for all

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Tensor, among: Tensor | None = None) -> Fetched:
        """Images by their indices, int64 (B,).

        Args:
            indices: which ones.
            among: in place of one that cannot be read, a fixed other one of these, int64, if one is found; else none.
        """
        raise NotImplementedError

    def grouped(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Places in an order, int64 (N,), which bring those together that are in files that are shuffled together."""
        raise NotImplementedError

    def await_each(self, batches: list[Tensor]) -> Iterable[Tensor]:
        """Each batch of indices once its images can be fetched."""
        return batches

    def report(self, failures: Sequence[tuple[str, str]], *, last: bool = False) -> None:
        """Name files that could not be decoded, each once; count them after the last ones."""


@dataclass(eq=False)
class InMemory(Source):
    """Images that are tensors, uint8 (N, C, H, W) in [0, 255]: a batch is one index_select."""

    images: Tensor
    labels: Tensor

    def fetch(self, indices: Tensor, among: Tensor | None = None) -> Fetched:
        """The images of these indices; none can fail."""
        return Fetched(self.images.index_select(0, indices), self.labels.index_select(0, indices))


@dataclass(eq=False)
class OnDevice(Source):
    """Images in memory that a device keeps as well: indices travel there, and a batch is picked there.

    They are copied when the first batch is asked for, if they take no more than half of what a GPU has free: the
    network needs the rest. Otherwise a warning says so, and they are picked in memory.
    """

    source: Source  # in memory; any other is a ConfigError
    device: torch.device

    def __post_init__(self) -> None:
        read = "--data.device true is for images in memory, and these are read from files for each batch: leave it out"
        kept = f"{read}, or keep those of a folder with --data.in_memory true"
        refuse(ConfigError, (not isinstance(self.source, InMemory), kept))
        self.labels = self.source.labels  # in memory: a balanced order is drawn there

    @cached_property
    def _copy(self) -> LabelledImages:
        kept = LabelledImages(cast(InMemory, self.source).images, self.labels)
        needed, free = sum(part.nbytes for part in kept), free_memory(self.device)
        if needed > free / 2:
            sizes = f"{needed / 2**30:.3g} GiB, more than half of the {free / 2**30:.3g} that {self.device} has free"
            told = f"--data.device true: the images take {sizes}, and stay in the memory of the machine"
            warnings.warn(f"{told}: set --data.image_size lower, or leave it out", stacklevel=2)
            return kept
        return LabelledImages(*(part.to(self.device) for part in kept))

    def fetch(self, indices: Tensor, among: Tensor | None = None) -> Fetched:
        """The images of these indices, int64 (B,) in memory, on the device."""
        images, labels = self._copy
        places = indices.to(images.device, non_blocking=True)
        return Fetched(images.index_select(0, places), labels.index_select(0, places))


def free_memory(device: torch.device) -> float:
    """Bytes that tensors may still take on a GPU, with what torch has reserved and not used; else infinite."""
    if device.type != "cuda":
        return math.inf
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved


class Subset(NamedTuple):
    """One split: the source of its images, and which of them belong to it, int64 (N,), in file order."""

    source: Source
    indices: Tensor


@dataclass(eq=False)
class Files(Source):
    """Images in files, decoded when they are fetched."""

    paths: Sequence[str]
    labels: Tensor
    image_shape: ImageShape  # of every decoded image
    resize: Resize = "crop"  # see `decode_image`
    strict: bool = False  # refuse files that cannot be decoded instead of leaving them out
    value_range: ValueRange = None  # see `decode_image`
    interpolation: Interpolation = "bilinear"
    _reported: set[str] = field(default_factory=set, init=False)
    _counted: int = field(default=1, init=False)  # of the reported; one is named

    def file(self, index: int) -> File:
        """What an image is decoded from."""
        return self.paths[index]

    def raw(self, index: int) -> bytes:
        """The bytes of an image's file."""
        return Path(self.paths[index]).read_bytes()

    def stamps(self, indices: Tensor) -> list[object]:
        """What changes with the files of these images: names, sizes and times."""
        return [_stamp(self.paths[index]) for index in indices.tolist()]

    def fetch(self, indices: Tensor, among: Tensor | None = None) -> Fetched:
        """Decode the files of these indices; called by several threads at once."""
        # A NumPy buffer: torch would start threads of its own to copy into one.
        images = np.empty((len(indices), *self.image_shape), dtype=np.uint8)
        options: Any = {"value_range": self.value_range, "interpolation": self.interpolation}
        found: list[int] = []
        failures: list[tuple[str, str]] = []
        for wanted in indices.tolist():
            for index in (wanted,) if among is None else _with_others(wanted, among):
                if ended():  # the process need not wait for the rest
                    break
                try:
                    images[len(found)] = decode(self.file(index), self.image_shape, self.resize, **options)
                except UNREADABLE as error:
                    refuse(TrainingError, (what := lack(error, reading=True), what))
                    failures.append((self.paths[index], str(error).partition(" <_io")[0]))
                else:
                    found.append(index)
                    break
        return Fetched(torch.from_numpy(images[: len(found)]), self.labels[found], failures)

    def report(self, failures: Sequence[tuple[str, str]], *, last: bool = False) -> None:
        """Name the first ten files that could not be decoded; refuse any with a DataError if `strict`."""
        for path, reason in failures:
            advice = "Repair or remove it, or leave such files out with --data.strict false"
            refuse(DataError, (self.strict, f"{path} cannot be decoded ({reason}). {advice}"))
            if path not in self._reported and len(self._reported) < 10:
                # By each process of its own files; no other one meets them.
                warnings.warn(f"{path} cannot be decoded ({reason}) and is left out", stacklevel=2)
            self._reported.add(path)
        if last and len(self._reported) > self._counted:
            self._counted = len(self._reported)
            warnings.warn(f"files that cannot be decoded, {self._counted:,}{LeftOut(self._reported)}", stacklevel=2)


@dataclass(eq=False)
class Members(Files):
    """Images inside of larger files, each encoded as in a file of its own; `paths` are their names."""

    files: Sequence[str] = ()
    spans: Tensor = field(default_factory=lambda: torch.empty((0, 4), dtype=torch.int64))
    # int64 (N, 4): the number of the file; offset and length there, in bytes; CRC-32, or 0 where none is known
    shards: Any = None  # in place of files, `remote.Shards`

    def __post_init__(self) -> None:
        self.at_once = self.shards.at_once if self.shards else 0

    def grouped(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Draws which shards are shuffled together."""
        places = torch.randperm(len(self.shards.parts), generator=generator)[self.spans[order, 0]]
        return (places // self.at_once).argsort(stable=True)

    def await_each(self, batches: list[Tensor]) -> Iterable[Tensor]:
        """Fetches shards ahead."""
        return self.shards.await_each(batches, self.spans[:, 0]) if self.shards else batches

    def file(self, index: int) -> File:
        """The bytes of an image, as a file."""
        return io.BytesIO(self.raw(index))

    def raw(self, index: int) -> bytes:
        """The bytes of an image."""
        number, offset, length, _ = self.spans[index].tolist()
        with self.shards.open(number) if self.shards else Path(self.files[number]).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def damaged(self, indices: Tensor) -> list[int]:
        """Those of these images that have not the checksum that they should have."""
        return [x for x in indices.tolist() if zlib.crc32(self.raw(x)) != int(self.spans[x, 3])]

    def stamps(self, indices: Tensor) -> list[object]:
        """What changes with these images: names, sizes and times of the files that hold them, and the places there."""
        return [*map(_stamp, self.files), zlib.crc32(self.spans[indices].numpy().tobytes())]


def ended() -> bool:
    """Whether this is a thread of a pump from which nobody takes any more."""
    return bool(getattr(_thread, "ended", None))


def join(parts: Sequence[tuple[Source, Tensor]]) -> Source:
    """One source of images of several that differ in nothing else, each with the indices, int64 (N,), of its images."""

    def taken(name: str) -> Any:
        values = [(getattr(source, name), indices) for source, indices in parts]
        if isinstance(values[0][0], Tensor):
            return torch.cat([value[indices] for value, indices in values])
        return [value[index] for value, indices in values for index in indices.tolist()]

    first: Any = parts[0][0]
    fields = [x for x in ("images", "labels", "paths", "spans") if hasattr(first, x)]
    joined: Source = replace(first, **{x: taken(x) for x in fields})
    return joined


def _stamp(path: str) -> tuple[str, int, int]:
    try:
        stat = Path(path).stat()
    except OSError:  # it is told as a file that cannot be read
        stat = os.stat_result([0] * 10)
    return path, stat.st_size, stat.st_mtime_ns


def _with_others(index: int, among: Tensor) -> Iterator[int]:
    """An image, then some others in an order that is mixed: the next file may well be broken too, and of its class."""
    yield index
    mixed = among[torch.randperm(len(among), generator=torch.Generator().manual_seed(0))]
    yield from mixed.roll(-int((mixed == index).nonzero()[0]))[1 : _OTHERS + 1].tolist()


def pump(
    fetch: Callable[[B], T], batches: Iterable[B], threads: int, ahead: int, *, take_turns: bool = False
) -> Iterator[T]:
    """What `fetch` makes of each batch, in order, made ahead of time by threads.

    Args:
        fetch: decodes a batch; PIL and NumPy do so without holding the interpreter.
        batches: what is fetched, such as indices; drawn as far ahead as batches are fetched.
        threads: how many fetch at once; 0 fetches in the calling thread, when a batch is asked for.
        ahead: batches that are begun before their turn, at least 1.
        take_turns: fetch `ahead` batches, hand them out, and only then begin the next ones. For a network on the same
            processors, whose threads and these would wait for each other.
    """
    if not threads:
        yield from map(fetch, batches)
        return
    pending: deque[Future[T]] = deque()
    ended: list[bool] = []
    pool = ThreadPoolExecutor(threads, "decode", setattr, (_thread, "ended", ended))
    try:
        for batch in batches:
            pending.append(pool.submit(fetch, batch))
            if len(pending) >= ahead:
                yield from [pending.popleft().result() for _ in range(len(pending) if take_turns else 1)]
        while pending:
            yield pending.popleft().result()
    finally:
        ended.append(True)
        pool.shutdown(wait=False, cancel_futures=True)


def fingerprint(subset: Subset, root: Path) -> dict[str, int]:
    """How many images, and checksums (CRC-32) of labels and of pixels, or of the names of files below the root.

    What files hold is not read: it would take as long as an epoch.
    """
    source, indices = subset
    found = {"images": len(indices), "labels": zlib.crc32(source.labels[indices].numpy().tobytes())}
    if isinstance(source, Files):
        names = (source.paths[index].removeprefix(str(root)) for index in indices.tolist())
        found["names"] = zlib.crc32("\n".join(names).encode(errors="surrogateescape"))
        if isinstance(source, Members):
            found["pixels"] = zlib.crc32(source.spans[indices, 2:].numpy().tobytes())  # lengths, checksums of a pack
    elif isinstance(source, InMemory):
        found["pixels"] = 0
        for part in torch.split(indices, COPIED):
            found["pixels"] = zlib.crc32(source.images[part].numpy().data, found["pixels"])
    return found
