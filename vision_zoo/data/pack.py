"""Pack: any data set in one file that is read as memory is, as `vision_zoo pack` writes it.

The file begins with a line of JSON, filled up to 4096 bytes with blanks, that says where the arrays are. NumPy reads:

    head = json.loads(open(path, "rb").readline())
    read = lambda kind, offset, shape: np.memmap(path, kind, "r", offset, tuple(shape))
    images = read(*head["images"])  # uint8 (N, C, H, W) in [0, 255]
    labels, parts = read(*head["labels"]), read(*head["parts"])  # int64 (N,); uint8 (N,), 0 train, 1 val, 2 test
    facts = json.loads(read(*head["facts"]).tobytes())

The head also has `format`, `version`, `bytes`, the size of the file, and `index`, the offset from which on the file has
all arrays but the images, with the CRC-32 of that. The other arrays are `spans`, int64 (N, 4): the file that an image
stands in, its offset and length there and its CRC-32; and `names`, JSON: a list of the images' names, and one of what
decides where they are dealt to, which is empty where the order does.

The facts are class_names; image_shape (C, H, W), or null where images are encoded; mean and std, or null where they are
computed from the images of training; resize, interpolation and value_range, by which the images became what they are;
and shards, a list of the name and the size in bytes of each file beside this one, in which the images stand one behind
the other; if it is empty, they stand in this one. Of shards and of encoded images the head has no `images`.
"""

import functools
import io
import json
import math
import mmap
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from vision_zoo.data.decode import UNREADABLE, File
from vision_zoo.data.folder import Listing
from vision_zoo.data.members import InFiles
from vision_zoo.data.remote import Shards
from vision_zoo.data.sources import Fetched, Members
from vision_zoo.errors import DataError, DatasetNotFoundError, InputError, refuse
from vision_zoo.files import is_address
from vision_zoo.types import ImageShape, Split

FORMAT, VERSION, HEAD = "vision_zoo pack", 1, 4096
_AGAIN = "Copy it again, or pack the images again: vision_zoo pack"


def read_head(content: bytes, place: object) -> dict[str, Any]:
    """The head of a pack in its first bytes; a DataError with its place if it is of another version or kind."""
    head = dict[str, Any]()
    with suppress(*UNREADABLE):
        head = dict(json.loads(content))
    version = head.get("version")
    of_another = f"{place} is of version {version} of packs, and this is vision_zoo for version {VERSION}. {_AGAIN}"
    foreign = f"{place} is none of the files that vision_zoo pack writes. {_AGAIN}"
    refuse(DataError, (head.get("format") != FORMAT, foreign), (version != VERSION, of_another))
    return head


class PackFile:
    """The index of a pack, whose checksum is right, and whose files have their sizes.

    Raises:
        DatasetNotFoundError: if it is not there.
        DataError: if it is not whole, damaged, or of another version or kind.
    """

    def __init__(self, path: Path, shards: Shards | None = None) -> None:
        refuse(DatasetNotFoundError, (not path.is_file(), f"there is no file {path}. Set --data.path to another pack"))
        self.path, self.facts, index, again = path, dict[str, Any](), b"", _AGAIN
        with suppress(*UNREADABLE), path.open("rb") as file:
            index = file.read(HEAD)
        self.head = read_head(index, path)
        self._refuse_part(path, self.head.get("bytes"), again)
        with suppress(*UNREADABLE), path.open("rb") as file:
            file.seek(self.head["index"][0])
            index = file.read()
            self.facts = json.loads(self.array("facts").tobytes())
        damaged = not self.facts or zlib.crc32(index) != self.head["index"][1]
        refuse(DataError, (damaged, f"{path} is damaged: its index has not the checksum that it should have. {again}"))
        for name, size in () if shards else self.facts["shards"]:
            self._refuse_part(path.with_name(name), size, again)
        if shards:
            shards.fill(self.facts["shards"], self.array("spans"), path)
        self.files = [str(path.with_name(name)) for name, _ in self.facts["shards"]] or [str(path)]

    def array(self, name: str) -> Any:
        """An array, mapped."""
        kind, offset, shape = self.head[name]
        return np.memmap(self.path, kind, "r", offset, tuple(shape))

    def _refuse_part(self, path: Path, size: Any, again: str) -> None:
        found = path.stat().st_size if path.is_file() else 0
        refuse(DataError, (found != size, f"{path} is not whole: it has {found} of {size} bytes. {again}"))


@dataclass(eq=False)
class Mapped(Members):
    """Images of one shape as they are in memory, in mapped files: of these a batch alone is copied."""

    pixels: ImageShape = (3, 1, 1)  # of each image in the files; `image_shape` may be another

    def fetch(self, indices: Tensor, among: Tensor | None = None) -> Fetched:
        """The images of these indices; of another shape, they are resized as files are."""
        if self.pixels != self.image_shape:
            return super().fetch(indices, among)
        if self.shards:  # which come and go
            raw = [torch.frombuffer(bytearray(self.raw(index)), dtype=torch.uint8) for index in indices.tolist()]
            return Fetched(torch.stack(raw).view(-1, *self.pixels), self.labels[indices])
        maps, spans = self._maps, self.spans[indices].tolist()
        for number, offset, length, _ in spans if hasattr(mmap, "MADV_WILLNEED") else ():  # the disk reads all at once
            start = offset - offset % mmap.PAGESIZE
            maps[number][0].madvise(mmap.MADV_WILLNEED, start, offset + length - start)
        images = np.empty((len(spans), math.prod(self.pixels)), np.uint8)
        for image, (number, offset, length, _) in zip(images, spans, strict=True):
            image[:] = maps[number][1][offset : offset + length]
        return Fetched(torch.from_numpy(images.reshape(-1, *self.pixels)), self.labels[indices])

    def file(self, index: int) -> File:
        """An image as a file of PPM or PGM."""
        channels, height, width = self.pixels
        pixels = np.frombuffer(self.raw(index), np.uint8).reshape(self.pixels).transpose(1, 2, 0)
        return io.BytesIO(b"P%d %d %d 255\n" % (5 if channels == 1 else 6, width, height) + pixels.tobytes())

    @functools.cached_property
    def _maps(self) -> list[tuple[Any, Any]]:
        maps: list[Any] = [np.memmap(name, np.uint8, "r") for name in self.files]
        for mapped in maps if hasattr(mmap, "MADV_RANDOM") else ():  # an image's neighbours are not wanted
            mapped.base.madvise(mmap.MADV_RANDOM)
        return [(mapped.base, np.asarray(mapped)) for mapped in maps]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_maps"}  # each process maps anew


class Pack(InFiles):
    """Your own or other images in a file of `vision_zoo pack`, which is read as memory is.

    The images have the size that they were packed with, unless image_size is given; channels, resize and strict are for
    encoded ones.

    Args:
        path: the file, NAME.vz; its shards, if any, must lie beside it. Or its address, such as s3://bucket/photos.vz,
            gs:// or https://, from which the shards are fetched ahead, into the user's cache.
        cache_gb: the most that the cache may take, in GiB. Where the shards do not all fit, half as many as fit are
            shuffled together, and the groups of shards in each epoch anew.
    """

    def __init__(self, path: str, *, cache_gb: float = 20.0, **options: Any) -> None:
        super().__init__(path, **options)
        self._pack = self._shards = None
        with suppress(InputError):  # what is missing or damaged is told when it is needed
            self._pack = PackFile(self.path)
        if is_address(path):
            self._shards = Shards(path, cache_gb)
            head = read_head(self._shards.head(HEAD), path)
            self._pack = PackFile(self._shards.index(head, head["index"][0] <= HEAD), self._shards)
            self._more["shards"] = self._shards
        facts = self._pack.facts if self._pack else {}
        self.given = {name: facts.get(name) if value is None else value for name, value in self.given.items()}
        if shape := facts.get("image_shape"):
            size = self.image_size if options.get("image_size") else shape[1:]
            self.image_shape, self.in_memory = (shape[0], *size), bool(self.in_memory)
            self.resize, self.interpolation = facts["resize"], facts["interpolation"]
            self.hparams.update(resize=self.resize, interpolation=self.interpolation)  # known without the file, too
            self.value_range, self._kind = facts["value_range"], Mapped
            self._more["pixels"] = tuple(shape)

    @functools.cached_property
    def _scan(self) -> tuple[tuple[str, ...], dict[Split, Listing]]:
        pack, found = self._pack or PackFile(self.path), dict[Split, Listing]()
        names, self._keys = json.loads(pack.array("names").tobytes())
        self._holders, self._paths = [] if self._shards else pack.files, [f"{self.path}/{name}" for name in names]
        self._spans, labels = (torch.from_numpy(pack.array(name).copy()) for name in ("spans", "labels"))
        for number, split in enumerate(get_args(Split)):
            rows = (pack.array("parts") == number).nonzero()[0]
            if len(rows):
                found[split] = (rows.tolist(), labels[rows])
        return tuple(pack.facts["class_names"]), found
