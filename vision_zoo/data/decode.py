"""Images of any size, mode and format to uint8 pixels of one shape."""

import contextlib
import functools
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vision_zoo.errors import DataError
from vision_zoo.types import ImageShape

Resize = Literal["crop", "squash", "pad"]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# What PIL raises for files that are damaged, truncated, too large or not images at all.
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError, MemoryError),
    *(RuntimeError, ZeroDivisionError, AssertionError),  # of AVIF, broken metadata, and a PNG that lacks its palette
)

_ONE = 1.05  # full brightness of images of fractions, which may overshoot where they were sharpened or resized


@functools.cache
def image_extensions() -> frozenset[str]:
    """Endings of the files that PIL can read, in lower case, with their dot."""
    endings = Image.registered_extensions()  # loads PIL's formats
    # For some formats, such as .h5 and .mpg, PIL knows what they are and no more.
    stub = ImageFile.StubImageFile
    stubs = {name for name, (kind, _) in Image.OPEN.items() if isinstance(kind, type) and issubclass(kind, stub)}
    readable = Image.OPEN.keys() - stubs - {"MPEG"}
    return frozenset(ending for ending, name in endings.items() if name in readable)


def decode_image(path: str | Path, image_shape: ImageShape, resize: Resize = "crop", invert: bool = False) -> Tensor:
    """Read one image as uint8 (C, H, W) in [0, 255].

    Args:
        path: a file in any format that PIL reads.
        image_shape: (channels, height, width) of the result; 1 channel is gray, 3 are RGB.
        resize: crop keeps the proportions and cuts the centre, pad keeps them and adds black, squash changes them.
        invert: turn dark into light; what pad adds stays black.

    Raises:
        DataError: if the file is missing or cannot be decoded.
    """
    try:
        return torch.from_numpy(decode(path, image_shape, resize, invert).copy())
    except UNREADABLE as error:
        message = f"{path} cannot be read as an image ({error}). Give a file in a common format such as PNG or JPEG"
        raise DataError(message) from error


def decoding_threads(processes: int = 1) -> int:
    """How many threads decode at once in each of several processes: one for each processor, 1 to 16."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors // processes, 16))


def decode(path: str | Path, image_shape: ImageShape, resize: Resize, invert: bool = False) -> Pixels:
    """As `decode_image`, to NumPy; raises what PIL raises, see `UNREADABLE`."""
    channels, height, width = image_shape
    with Image.open(path) as opened:
        longer = 2 * max(width, height)
        opened.draft("RGB", (longer, longer))  # JPEG only: skips detail that the resize throws away
        wide = opened.format in ("PNG", "PPM") and opened.mode != "F"  # there PIL's 32-bit mode means 16 bit
        opened.load()
        with contextlib.suppress(*UNREADABLE):  # broken metadata, which are written anew after the image is turned
            ImageOps.exif_transpose(opened, in_place=True)
        image = _to_mode(opened, "L" if channels == 1 else "RGB", wide)
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


def _to_mode(image: Image.Image, mode: str, wide: bool) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_8_bit(image, wide))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(mode)


def _to_8_bit(image: Image.Image, wide: bool) -> Pixels:
    """Gray of more than 8 bit to 8 bit, scaled; PIL's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    largest = values.max(initial=0)
    if np.isnan(largest):
        raise ValueError("some of its pixels are not numbers")
    if image.mode == "F" and largest <= _ONE:
        values = values * 255
    elif wide or image.mode.startswith("I;16") or largest > 255:
        values = values / 257  # 65535 -> 255
    return values.round().clip(0, 255).astype(np.uint8)
