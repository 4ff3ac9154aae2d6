"""Images of any size, mode and format to uint8 pixels of one shape."""

import contextlib
import functools
import math
import mimetypes
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png
from torchvision.transforms.v2 import functional as TF

from vision_zoo.data.values import Numbers, Pixels, to_8_bits
from vision_zoo.errors import DataError
from vision_zoo.types import ImageShape, ValueRange

Resize = Literal["crop", "squash", "pad"]

# What PIL raises for files that are damaged, truncated, too large or not images at all.
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, MemoryError),
    *(RuntimeError, ZeroDivisionError, AssertionError),  # of AVIF, broken metadata, and a PNG that lacks its palette
)

_LARGEST = 2**29  # pixels, after JPEG was reduced; 2 GiB in colour
_LARGE = 2**27  # pixels of an image that is decoded while no other large one is
_large_image = threading.Lock()

PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 2**26)  # bytes; printers' colour profiles have 2**21
for _order, _mode in (
    (b"II", "F;64F"),
    (b"MM", "F;64BF"),
):  # as NumPy saves; PIL reads it, but not of TIFF
    TiffImagePlugin.OPEN_INFO.setdefault((_order, 1, (3,), 1, (64,), ()), ("F", _mode))


@functools.cache
def image_extensions() -> frozenset[str]:
    """Endings of the files that PIL can read, in lower case, with their dot."""
    endings = Image.registered_extensions()  # loads PIL's formats
    # For some formats, such as .h5 and .mpg, PIL knows what they are and no more.
    stub = ImageFile.StubImageFile
    stubs = {name for name, (kind, _) in Image.OPEN.items() if isinstance(kind, type) and issubclass(kind, stub)}
    readable = Image.OPEN.keys() - stubs - {"MPEG"}
    return frozenset(ending for ending, name in endings.items() if name in readable)


@functools.cache
def unreadable_extensions() -> frozenset[str]:
    """Endings of image formats that PIL cannot read, such as .heic, in lower case, with their dot."""
    known = {**mimetypes.types_map, **mimetypes.common_types}
    return frozenset(ending for ending, kind in known.items() if kind.startswith("image/")) - image_extensions()


def decode_image(
    path: str | Path,
    image_shape: ImageShape,
    resize: Resize = "crop",
    invert: bool = False,
    value_range: ValueRange | None = None,
) -> Tensor:
    """Read one image as uint8 (C, H, W) in [0, 255].

    Args:
        path: a file in any format that PIL reads.
        image_shape: (channels, height, width) of the result; 1 channel is gray, 3 are RGB.
        resize: crop keeps the proportions and cuts the centre, pad keeps them and adds black, squash changes them.
        invert: turn dark into light; what pad adds stays black.
        value_range: (low, high), the values that become 0 and 255 in an image that is not 8 bits; a classifier knows
            that of its training images. By default the whole range of its type, 0 to 1 for floats.

    Raises:
        DataError: if the file is missing or cannot be decoded.
    """
    try:
        return torch.from_numpy(decode(path, image_shape, resize, invert, value_range).copy())
    except UNREADABLE as error:
        message = f"{path} cannot be read as an image ({error}). Give a file in a common format such as PNG or JPEG"
        raise DataError(message) from error


def decoding_threads(processes: int = 1) -> int:
    """How many threads decode at once in each of several processes: one for each processor, 1 to 16."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors // processes, 16))


def decode(
    path: str | Path,
    image_shape: ImageShape,
    resize: Resize,
    invert: bool = False,
    value_range: ValueRange | None = None,
) -> Pixels:
    """As `decode_image`, to NumPy; raises what PIL raises, see `UNREADABLE`."""
    channels, height, width = image_shape
    with _open(path) as opened:
        longer = 2 * max(width, height)
        opened.draft("RGB", (longer, longer))  # JPEG only: skips detail that the resize throws away
        with _large_image if math.prod(opened.size) > _LARGE else contextlib.nullcontext():
            _check_size(opened)
            values = _values(opened)
            if values is None:
                opened.load()
            image = opened if values is None else _to_8_bit_image(values, opened, value_range)
            with contextlib.suppress(*UNREADABLE):  # broken metadata, which are written anew after the image is turned
                ImageOps.exif_transpose(image, in_place=True)
            image = _to_mode(image, "L" if channels == 1 else "RGB")
    image = ImageOps.invert(image) if invert else image
    size, bilinear = (width, height), Image.Resampling.BILINEAR  # PIL's bilinear is antialiased when it shrinks
    if resize == "squash":
        image = image.resize(size, bilinear)
    elif resize == "pad":
        scale = min(width / image.width, height / image.height)  # ImageOps.pad alone would leave nothing of a thin side
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = ImageOps.pad(image.resize(inner, bilinear), size, color="black")
    else:
        image = ImageOps.fit(image, size, bilinear)
    pixels = np.asarray(image, dtype=np.uint8)  # (H, W) or (H, W, 3)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def resize_images(images: Tensor, image_shape: ImageShape) -> Tensor:
    """Resize uint8 (N, C, H, W) to the height and width of image_shape, antialiased, in pieces that fit the memory."""
    if images.shape[2:] == image_shape[1:]:
        return images.contiguous()
    resized = images.new_empty((len(images), *image_shape))
    for source, target in zip(torch.split(images, 1024), torch.split(resized, 1024), strict=True):
        target.copy_(TF.resize(source, list(image_shape[1:]), antialias=True))
    return resized


def read_values(path: str | Path) -> Numbers | None:
    """The pixels of an image that is not 8 bits, see `_values`, without opacity; raises what PIL raises."""
    with _open(path) as opened:
        _check_size(opened)
        values = _values(opened)
        return values if values is None or values.ndim == 2 else values[..., : {2: 1}.get(values.shape[2], 3)]


def _open(path: str | Path) -> ImageFile.ImageFile:
    """Open an image of any size, of which nothing is decoded yet."""
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        with Path(path).open("rb") as file:
            begin = file.read(16)
        kinds: list[Any] = [Image.OPEN[name] for name in Image.ID]
        return next(cast(ImageFile.ImageFile, kind(path)) for kind, accept in kinds if accept and accept(begin) is True)


def _check_size(image: ImageFile.ImageFile) -> None:
    """Refuse an image that would fill the memory."""
    if (pixels := math.prod(image.size)) > _LARGEST:
        way_out = "make it smaller, or save it as JPEG, which is read at a reduced size"
        raise Image.DecompressionBombError(
            f"Image size ({pixels} pixels) exceeds limit of {_LARGEST} pixels: {way_out}"
        )


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == mode else image.convert(mode)


def _to_8_bit_image(values: Numbers, opened: ImageFile.ImageFile, value_range: ValueRange | None) -> Image.Image:
    """Values as an image of 8 bits, which is still to be turned as the opened one says."""
    pixels = to_8_bits(values, value_range)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        pixels[..., -1] = values[..., -1] // 257  # opacity, of 16 bits, has a range of its own
    image, exif, orientation = Image.fromarray(pixels), Image.Exif(), ExifTags.Base.Orientation
    with contextlib.suppress(*UNREADABLE):
        exif[orientation] = opened.getexif()[orientation]
        image.info["exif"] = exif.tobytes()
    return image


def _values(image: ImageFile.ImageFile) -> Numbers | None:
    """The pixels of an image that is not 8 bits, (H, W) or (H, W, C), in the type of its file; None of one that is."""
    mode, format_ = image.mode, image.format
    if mode in ("RGB", "RGBA") and format_ in ("PNG", "TIFF", "PPM") and image.tile:
        return _values_in_colour(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits, signed = tags.get(258, (8,))[0], tags.get(339, (1,))[0] == 2
    if mode[0] not in "IF" and not (mode == "L" and signed):
        return None
    image.load()
    values = np.asarray(image)
    if mode == "I" and format_ in ("PNG", "PPM"):
        return values.astype(np.uint16)  # which PIL keeps in 32 bits
    return values.astype(f"{'ui'[signed]}{bits // 8}") if mode in ("I", "L") and tags else values  # as above; and signs


def _values_in_colour(image: ImageFile.ImageFile) -> Numbers | None:
    """The same of an image in colour, of whose 16 bits PIL keeps the upper 8."""
    tiles: list[Any] = list(image.tile)
    rawmode, most = (*tiles[0][3], 0)[:2] if isinstance(tiles[0][3], tuple) else (tiles[0][3], 0)
    path, is_ppm = Path(os.fsdecode(image.filename)), image.format == "PPM"
    if ";16" not in rawmode and not (is_ppm and most > 255):
        return None
    if image.format == "PNG":
        content = torch.from_numpy(np.fromfile(path, np.uint8))
        return np.asarray(decode_png(content, ImageReadMode.UNCHANGED).permute(1, 2, 0))  # (H, W, 2 to 4)
    values = np.empty((image.height, image.width, len(image.mode)), np.uint16)
    for codec, (left, top, right, bottom), offset, args in tiles:
        part = values[top:bottom, left:right]
        whole = is_ppm or args[1] in (0, part.shape[1] * part.shape[2] * 2)  # bytes of a row
        if codec not in ("raw", "ppm") or not whole or rawmode.partition(";")[0] != image.mode:
            warnings.warn("of 16-bit colour in compressed TIFF files the upper 8 bits are read", stacklevel=2)
            image.load()
            return np.asarray(image).astype(np.uint16) * 257
        order = "<" if rawmode.endswith("L") else ">"
        part[:] = np.fromfile(path, f"{order}u2", part.size, offset=offset).reshape(part.shape)
    return (values * (65535 / most)).round().astype(np.uint16) if is_ppm else values
