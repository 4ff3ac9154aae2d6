"""Images of any size, mode and format to uint8 pixels of one shape."""

import contextlib
import functools
import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import EpsImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vision_zoo.data.values import Numbers, Pixels, to_8_bits
from vision_zoo.errors import DataError, TrainingError, lack, refuse
from vision_zoo.types import ImageShape, Interpolation, Resize, ValueRange

File = str | Path | io.BytesIO

# What PIL raises for files that are damaged, truncated, too large or not images at all.
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, MemoryError),
    *(RuntimeError, ZeroDivisionError, AssertionError),  # of AVIF, broken metadata, and a PNG that lacks its palette
)

# PIL refuses images of twice as many pixels: here those of 2 GiB in colour.
Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS and max(Image.MAX_IMAGE_PIXELS, 2**28)
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 2**26)  # bytes; colour profiles of printers are long
EpsImagePlugin.gs_binary = False  # PostScript is a program, which Ghostscript would run, perhaps for ever
for _order, _mode in ((b"II", "F;64F"), (b"MM", "F;64BF")):  # as NumPy saves; PIL reads it, but not of TIFF
    TiffImagePlugin.OPEN_INFO.setdefault((_order, 1, (3,), 1, (64,), ()), ("F", _mode))


@functools.cache
def image_extensions() -> frozenset[str]:
    """Endings of the files that PIL can read, in lower case, with their dot."""
    endings = Image.registered_extensions()  # loads PIL's formats
    # For some formats, such as .h5 and .mpg, PIL knows what they are and no more.
    stub = ImageFile.StubImageFile
    stubs = {name for name, (kind, _) in Image.OPEN.items() if isinstance(kind, type) and issubclass(kind, stub)}
    readable = Image.OPEN.keys() - stubs - {"MPEG", "EPS"}
    return frozenset(ending for ending, name in endings.items() if name in readable)


def decode_image(
    path: str | Path,
    image_shape: ImageShape,
    resize: Resize = "crop",
    invert: bool = False,
    value_range: ValueRange = None,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Read one image as uint8 (C, H, W) in [0, 255].

    Args:
        path: a file in any format that PIL reads.
        image_shape: (channels, height, width) of the result; 1 channel is gray, 3 are RGB.
        resize: crop keeps the proportions and cuts the centre, pad keeps them and adds black, squash changes them.
        invert: turn dark into light; what pad adds stays black.
        value_range: the values that become 0 and 255 in an image that is not 8 bits, such as a classifier's
            value_range. By default the whole range of its type, 0 to 1 for floats.
        interpolation: bilinear or bicubic.

    Raises:
        DataError: if the file is missing or cannot be decoded; TrainingError for what the machine lacks.
    """
    try:
        return torch.from_numpy(decode(path, image_shape, resize, invert, value_range, interpolation).copy())
    except UNREADABLE as error:
        refuse(TrainingError, (what := lack(error, reading=True), what))
        message = f"{path} cannot be read as an image ({error}). Give a file in a common format such as PNG or JPEG"
        raise DataError(message) from error


def decoding_threads(processes: int = 1) -> int:
    """How many threads decode at once in each of several processes: one for each processor, 1 to 16."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors // processes, 16))


def decode(
    path: File,
    image_shape: ImageShape,
    resize: Resize,
    invert: bool = False,
    value_range: ValueRange = None,
    interpolation: Interpolation = "bilinear",
) -> Pixels:
    """As `decode_image`, to NumPy; raises what PIL raises, see `UNREADABLE`."""
    channels, height, width = image_shape
    with _open(path, 2 * max(width, height)) as opened:
        values = _values(opened, path)
        image = _upright(opened) if values is None else Image.fromarray(to_8_bits(values, value_range))
        if values is not None and opened.mode == "RGBA":
            image.putalpha(opened.getchannel("A"))  # which has no range
        image = _to_mode(image, "L" if channels == 1 else "RGB")
    image = ImageOps.invert(image) if invert else image
    size, filter_ = (width, height), Image.Resampling[interpolation.upper()]  # PIL's is antialiased when it shrinks
    if resize == "squash":
        image = image.resize(size, filter_)
    elif resize == "pad":
        scale = min(width / image.width, height / image.height)  # ImageOps.pad alone would leave nothing of a thin side
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = ImageOps.pad(image.resize(inner, filter_), size, color="black")
    else:
        image = ImageOps.fit(image, size, filter_)
    pixels = np.asarray(image, dtype=np.uint8)  # (H, W) or (H, W, 3)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def resize_images(images: Tensor, image_shape: ImageShape, interpolation: Interpolation = "bilinear") -> Tensor:
    """Resize uint8 (N, C, H, W) to the height and width of image_shape, antialiased, in pieces that fit the memory."""
    if images.shape[2:] == image_shape[1:]:
        return images.contiguous()
    resized = images.new_empty((len(images), *image_shape))
    for source, target in zip(torch.split(images, 1024), torch.split(resized, 1024), strict=True):
        target.copy_(TF.resize(source, list(image_shape[1:]), TF.InterpolationMode(interpolation), antialias=True))
    return resized


def read_values(path: File) -> Numbers | None:
    """The pixels of an image that is not 8 bits, (H, W) or (H, W, 3), in its own type; raises what PIL raises."""
    with _open(path, 1) as opened:
        values = _values(opened, path)
        return values if values is None or values.ndim == 2 else values[..., :3]


def size_of(path: File) -> tuple[int, int]:
    """Width and height of an image as it is shown; its pixels are not decoded."""
    with _open(path, 2**16) as opened:
        size: tuple[int, int] = opened.size
        with contextlib.suppress(*UNREADABLE):  # broken metadata
            return size[::-1] if opened.getexif().get(0x0112) in (5, 6, 7, 8) else size  # which exchange them
        return size


def _open(path: File, longer: int) -> Any:
    """Open an image of which `longer` pixels a side will do, a JPEG of any size, as an ImageFile."""
    opened: Any
    try:
        opened = Image.open(path)
    except Image.DecompressionBombError as error:
        way_out = "make it smaller, or save it as JPEG, which is read at a reduced size"
        try:
            if isinstance(path, io.BytesIO):
                path.seek(0)
            opened = JpegImagePlugin.JpegImageFile(path)
        except SyntaxError:
            raise Image.DecompressionBombError(f"{str(error).partition(',')[0]}: {way_out}") from error
    opened.draft("RGB", (longer, longer))  # JPEG only: skips detail that the resize throws away
    return opened


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB") if image.mode == "LAB" else image  # PIL knows no way from there to gray
    return image if image.mode == mode else image.convert(mode)


def _values(image: Any, path: File) -> Numbers | None:
    """The pixels of an image that is not 8 bits, (H, W) or (H, W, C), in the type of its file: PIL knows fewer."""
    mode, tags = image.mode, getattr(image, "tag_v2", {})  # of TIFF
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    coding = str(image.tile[:1])
    gray = "LA;16" in coding  # and alpha: PIL tells the four bytes of a pixel as RGBA
    if mode in ("RGB", "RGBA") and (gray or f"{mode};16" in coding):  # PIL gives the upper 8 bits alone
        with _open(path, 1) as lower:
            lower.tile = [type(tile)(*tile[:3], "RGBA" if gray else _swapped(tile[3])) for tile in lower.tile]
            upper: Numbers = np.asarray(_upright(image)).astype(np.uint16) * 256
            low: Numbers = np.asarray(_upright(lower))
        whole: Numbers = upper[..., 0] + low[..., 1] if gray else upper + low
        return whole
    if mode[0] not in "IF" and not (mode == "L" and signed):
        return None
    values: Numbers = np.asarray(_upright(image))
    narrower = mode == "I" and image.format in ("PNG", "PPM")
    kind = f"{'ui'[signed]}{bits // 8}" if narrower or (tags and mode in "IL") else values.dtype
    return values.astype(kind, copy=False)


def _swapped(coding: Any) -> tuple[Any, ...]:
    """A decoder's arguments with the other order of bytes: of 16 bits it takes the first byte, or the last."""
    rawmode, *others = (coding,) if isinstance(coding, str) else coding
    last = "B" if rawmode[-1] == "L" or (rawmode[-1] == "N" and sys.byteorder == "little") else "L"
    return (rawmode[:-1] + last, *others)


def _upright(image: Any) -> Any:
    """Decode an image and turn it as its camera says."""
    image.load()
    with contextlib.suppress(*UNREADABLE):  # broken metadata, which are written anew after the image is turned
        ImageOps.exif_transpose(image, in_place=True)
    return image
