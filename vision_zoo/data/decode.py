"""Pictures of any size, mode and format to uint8 tensors of one shape."""

import functools
import mimetypes
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from vision_zoo.errors import DataError
from vision_zoo.types import ImageShape

Resize = Literal["crop", "squash", "pad"]

# What PIL raises for files that are damaged, truncated, too large or not pictures at all.
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
    RuntimeError,  # of the AVIF decoder
    MemoryError,
    ZeroDivisionError,  # of broken metadata
    AssertionError,  # of a PNG that lacks its palette
)


_ONE = 1.05  # full brightness of pictures of fractions, which may overshoot where they were sharpened or resized

# What brings a picture upright, by the value of Exif's orientation (Exif 2.32, section 4.6.4, tag 0x0112).
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@functools.cache
def picture_extensions() -> frozenset[str]:
    """Endings of the files that PIL can read, in lower case, with their dot."""
    endings = Image.registered_extensions()  # loads PIL's formats
    # For some formats, such as .h5 and .mpg, PIL knows what they are and no more.
    stub = ImageFile.StubImageFile
    stubs = {name for name, (kind, _) in Image.OPEN.items() if isinstance(kind, type) and issubclass(kind, stub)}
    readable = Image.OPEN.keys() - stubs - {"MPEG"}
    return frozenset(ending for ending, name in endings.items() if name in readable)


@functools.cache
def unreadable_extensions() -> frozenset[str]:
    """Endings of pictures of kinds that PIL cannot read, such as .heic, in lower case, with their dot."""
    known = {**mimetypes.types_map, **mimetypes.common_types}
    return frozenset(ending for ending, kind in known.items() if kind.startswith("image/")) - picture_extensions()


def decode_image(path: str | Path, image_shape: ImageShape, resize: Resize = "crop", invert: bool = False) -> Tensor:
    """Read one picture as uint8 (C, H, W).

    Args:
        path: a file in any format that PIL reads.
        image_shape: (channels, height, width) of the result; 1 channel is gray, 3 are RGB.
        resize: crop keeps the proportions and cuts the centre, pad keeps them and adds black, squash changes them.
        invert: turn dark into light; what pad adds stays black.

    Raises:
        DataError: if the file is missing or cannot be decoded.
    """
    try:
        return _decode(path, image_shape, resize, invert)
    except UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as a picture ({error}). Give a file in a common format such as PNG or JPEG"
        ) from error


def decoding_threads() -> int:
    """How many threads decode at once: PIL decodes and resizes without holding the interpreter."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)


class ImageFiles(Dataset[tuple[Tensor, Tensor, list[tuple[str, str]]]]):
    """Labelled image files; an item is a whole batch, given by its indices, and the files that could not be decoded.

    Args:
        paths: the files.
        labels: int64 (N,).
        image_shape: (channels, height, width) of every decoded image.
        resize: see `decode_image`.
        strict: refuse files that cannot be decoded instead of leaving them out.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        image_shape: ImageShape,
        resize: Resize = "crop",
        strict: bool = False,
    ) -> None:
        # As arrays: lists of strings are copied, page by page, into every worker that touches their counters.
        self.paths = np.asarray(paths, dtype=np.str_)
        self.labels = labels
        self.image_shape = image_shape
        self.resize: Resize = resize
        self.strict = strict
        self.reported: set[str] = set()
        self._successor: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def replacing(self, order: Sequence[int]) -> "ImageFiles":
        """Like these files, but an unreadable one is replaced by a fixed other one of `order`.

        It is any other one: the next ones in a folder may well be broken too, and are of the same class.
        """
        twin = ImageFiles(self.paths, self.labels, self.image_shape, self.resize, self.strict)  # type: ignore[arg-type]
        places = torch.randperm(len(order), generator=torch.Generator().manual_seed(0)).tolist()
        mixed = [order[place] for place in places]
        twin._successor = dict(zip(mixed, [*mixed[1:], *mixed[:1]], strict=True))
        return twin

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
        images: list[Tensor] = []
        labels: list[int] = []
        failures: list[tuple[str, str]] = []
        for first in indices:
            index: int | None = first
            while index is not None:
                path = str(self.paths[index])
                try:
                    images.append(_decode(path, self.image_shape, self.resize))
                except UNREADABLE as error:
                    failures.append((path, str(error)))
                    following = self._successor.get(index)
                    index = None if following == first else following
                else:
                    labels.append(int(self.labels[index]))
                    index = None
        stacked = torch.stack(images) if images else torch.empty((0, *self.image_shape), dtype=torch.uint8)
        return stacked, torch.tensor(labels, dtype=torch.int64), failures


def _decode(path: str | Path, image_shape: ImageShape, resize: Resize, invert: bool = False) -> Tensor:
    channels, height, width = image_shape
    with Image.open(path) as opened:
        longer = 2 * max(width, height)
        opened.draft("RGB", (longer, longer))  # JPEG only: skips detail that the resize throws away
        wide = opened.format in ("PNG", "PPM") and opened.mode != "F"  # there PIL's 32-bit mode means 16 bit
        opened.load()
        picture = _to_mode(_upright(opened), "L" if channels == 1 else "RGB", wide)
    picture = ImageOps.invert(picture) if invert else picture
    size, bilinear = (width, height), Image.Resampling.BILINEAR  # PIL's bilinear is antialiased when it shrinks
    if resize == "squash":
        picture = picture.resize(size, bilinear)
    elif resize == "pad":
        picture = _padded(picture, size)
    else:
        picture = ImageOps.fit(picture, size, bilinear)
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))  # (H, W) or (H, W, 3)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _padded(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As ImageOps.pad, but of a side that would be less than a pixel, one pixel stays."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    inner = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BILINEAR
    )
    padded = Image.new(picture.mode, size)
    padded.paste(inner, (round((size[0] - inner.width) / 2), round((size[1] - inner.height) / 2)))
    return padded


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its camera says; unlike ImageOps.exif_transpose, whatever else the metadata hold."""
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except UNREADABLE:  # broken metadata, for the pixels are decoded
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _to_mode(picture: Image.Image, mode: str, wide: bool) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(_to_8_bit(picture, wide))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert(mode)


def _to_8_bit(picture: Image.Image, wide: bool) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Gray of more than 8 bit to 8 bit, scaled; PIL's own conversion would clip at 255."""
    values = np.asarray(picture).astype(np.float64)
    largest = values.max(initial=0)
    if np.isnan(largest):
        raise ValueError("some of its pixels are not numbers")
    if picture.mode == "F" and largest <= _ONE:
        values = values * 255
    elif wide or picture.mode.startswith("I;16") or largest > 255:
        values = values / 257  # 65535 -> 255
    return values.round().clip(0, 255).astype(np.uint8)
