"""What the pixels tell without a network: copies of one image, and images that something is wrong with."""

import hashlib
from collections import defaultdict
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vision_zoo.data.decode import decode, decoding_threads, resize_images, size_of
from vision_zoo.data.sources import Files, InMemory, Source, pump
from vision_zoo.types import ImageShape

SIDE = 32  # of the small images
ALIKE, SAME = 0.95, 0.7  # least correlation of gray 16 x 16 pixels, and least cosine of features, of near copies
_OTHERS, _APART = 10, 0.25  # to be copies, images are that much nearer than the tenth one: strokes of digits are alike
MOST = 0.2  # share of the images from which on something is how the data set is, and no fault
_BLOCK = 1024  # images that are compared with all others at a time


class Looks(NamedTuple):
    """The readable images of a source."""

    small: Tensor  # uint8 (N, 3, 32, 32)
    places: Tensor  # int64 (N,), which images of the source they are
    sizes: Tensor  # int64 (N, 2), width and height in pixels
    unreadable: list[tuple[int, str]]  # the place of each of the others, and why

    def of(self, chosen: Tensor) -> "Looks":
        """Those where a mask, bool (N,), is true."""
        return Looks(self.small[chosen], self.places[chosen], self.sizes[chosen], self.unreadable)

    @property
    def gray(self) -> Tensor:
        """Float32 (N, 16, 16), in [0, 255]."""
        return F.avg_pool2d(self.small.float().mean(1, keepdim=True), 2)[:, 0]


def look(source: Source) -> Looks:
    """See every image of a source at a small size."""
    if isinstance(source, InMemory):
        shape: ImageShape = (source.images.shape[1], SIDE, SIDE)
        small = resize_images(source.images, shape).expand(-1, 3, -1, -1)
        sizes = torch.tensor([source.images.shape[3], source.images.shape[2]]).expand(len(source), 2)
        return Looks(small, torch.arange(len(source)), sizes, [])
    assert isinstance(source, Files)
    how: dict[str, Any] = {"image_shape": (3, SIDE, SIDE), "resize": "squash", "interpolation": "bilinear"}
    numbered = replace(source, labels=torch.arange(len(source)), strict=False, **how)
    images, places, failures = list[Tensor](), list[Tensor](), list[tuple[str, str]]()
    batches = torch.split(torch.arange(len(source)), 64)
    for small, numbers, failed in pump(numbered.fetch, batches, decoding_threads(), 4):
        images.append(small)
        places.append(numbers)
        failures += failed
    found, reasons = torch.cat(places), dict(failures)
    sizes = torch.tensor([size_of(source.file(index)) for index in found.tolist()]).reshape(-1, 2)
    unreadable = [(index, reasons[path]) for index, path in enumerate(source.paths) if path in reasons]
    return Looks(torch.cat(images), found, sizes, unreadable)


def picture(source: Source, index: int, size: tuple[int, int], most: int = 0) -> Image.Image:
    """An image of a source; if `most` is given, no side has more pixels."""
    if isinstance(source, InMemory):
        return Image.fromarray(source.images[index].expand(3, -1, -1).permute(1, 2, 0).numpy())
    assert isinstance(source, Files)
    scale = min(1.0, most / max(size)) if most else 1.0
    width, height = (max(1, round(side * scale)) for side in size)
    pixels = decode(source.file(index), (3, height, width), "squash", value_range=source.value_range)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def copies(source: Source, looks: Looks, features: Tensor) -> list[tuple[bool, list[int]]]:
    """Groups of images that are the same, or nearly so: whether all their pixels are, and which, as rows of `looks`.

    Near copies have nearly the same pixels at a small size, up to brightness and contrast, and nearly the same
    features, and are much more alike than others are. What is equal at a small size is compared in full.

    Args:
        source: of the images.
        looks: the images at a small size.
        features: float32 (N, D), of the same images.
    """
    pairs, pixels = list[Tensor](), looks.gray.flatten(1)
    pixels, features = (F.normalize(values - values.mean(1, keepdim=True)) for values in (pixels, features))
    for start in range(0, len(pixels), _BLOCK):
        unlike = 1 - pixels[start : start + _BLOCK] @ pixels.T
        unlike[torch.arange(len(unlike)), torch.arange(start, start + len(unlike))] = 2.0  # itself
        usual = unlike.topk(min(_OTHERS, len(pixels)), largest=False).values[:, -1:]
        found = (unlike < (usual * _APART).clamp(max=1 - ALIKE)).nonzero() + torch.tensor([start, 0])  # (P, 2)
        pairs.append(found[(features[found[:, 0]] * features[found[:, 1]]).sum(1) > SAME])
    mutual, times = np.unique(torch.cat(pairs).sort(1).values.numpy(), axis=0, return_counts=True)
    pairs = [torch.from_numpy(mutual[times == 2])]
    equal = defaultdict[bytes, list[int]](list)
    for row, (small, size) in enumerate(zip(looks.small.numpy(), looks.sizes.tolist(), strict=True)):
        equal[hashlib.sha1(small.tobytes() + repr(size).encode(), usedforsecurity=False).digest()].append(row)
    pairs += [torch.tensor([[rows[0], other] for other in rows[1:]]) for rows in equal.values() if len(rows) > 1]
    first, second = torch.cat(pairs).unbind(1)
    graph = coo_array((torch.ones(len(first)), (first, second)), shape=(len(pixels), len(pixels)))
    group_of = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    groups = defaultdict[int, list[int]](list)
    for row in sorted({*first.tolist(), *second.tolist()}):
        groups[int(group_of[row])].append(row)
    return [(len({_digest(source, looks, row) for row in rows}) == 1, rows) for rows in groups.values()]


def _digest(source: Source, looks: Looks, row: int) -> bytes:
    """The SHA-1 of an image's size and pixels."""
    width, height = looks.sizes[row].tolist()
    image = picture(source, int(looks.places[row]), (width, height))
    return hashlib.sha1(repr(image.size).encode() + image.tobytes(), usedforsecurity=False).digest()


def oddities(looks: Looks) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Images that something is wrong with, by what it is, as rows of `looks`; and how many of what is common.

    The limits hold for the small images, so that a few bright or dark pixels do not count.
    """
    pixels = np.sort(looks.small.float().mean(1).flatten(1).numpy(), axis=1)  # the darkest one first
    brightness = torch.from_numpy(pixels)  # (N, 1024)
    dark, bright = brightness[:, int(0.05 * SIDE**2)], brightness[:, int(0.99 * SIDE**2)]
    colour = (looks.small.amax(1).int() - looks.small.amin(1).int()).flatten(1).amax(1)  # (N,)
    proportion = (looks.sizes[:, 0] / looks.sizes[:, 1]).log()
    shorter = looks.sizes.amin(1).float()
    blank = brightness[:, -1] - brightness[:, 0] < 6
    wrong = {
        "blank": blank,
        "underexposed": (bright < 64) & ~blank,
        "overexposed": (dark > 235) & ~blank,
        "gray among colour": (colour < 12) & ~blank,
        "tiny": shorter < shorter.median() / 4,
        "odd shape": (proportion - proportion.median()).abs() > torch.tensor(3.0).log(),
    }
    found = {kind: mask.nonzero()[:, 0].tolist() for kind, mask in wrong.items()}
    common = {kind: len(rows) for kind, rows in found.items() if len(rows) > MOST * len(looks.places)}
    return {kind: rows for kind, rows in found.items() if rows and kind not in common}, common
