"""ArrayFile: images and labels in a .npz file, as MedMNIST and Keras publish them, or in .npy files."""

import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from vision_zoo.data.discovery import TABLES
from vision_zoo.data.facts import lazy
from vision_zoo.data.own import OwnImages
from vision_zoo.data.splits import part_of, stratified_split
from vision_zoo.data.unpickling import Unpickler, plain_array
from vision_zoo.data.values import LOOKED_AT, Numbers, to_8_bits
from vision_zoo.errors import DataError, DatasetNotFoundError, refuse
from vision_zoo.files import expanded
from vision_zoo.types import ImageShape, LabelledImages, Resize, Split

_SCORED: tuple[Split, ...] = ("val", "test")
_MOST_UNNAMED = 100_000  # classes, where there are fewer images
# Of images and labels, such as train_images, y_test, X and digits_labels.
_PART = "(train|val(?:id(?:ation)?)?|test|)"
_KEY = re.compile(rf"(|.*?[\W_]){_PART}_?(images|x|labels|y)_?{_PART}", re.IGNORECASE)


class ArrayFile(OwnImages):
    """Your own images as arrays, (N, H, W), (N, H, W, C) or (N, C, H, W), with one label each.

    Images are uint8 in [0, 255], or other numbers, of which one range becomes 0 to 255 in all images. Labels, (N,) or
    (N, 1), are whole numbers from 0, or words; or they are one-hot (N, K).

    The keys are train_images, train_labels, test_images, test_labels (and val_images, val_labels), or x_train, y_train,
    x_test, y_test, or just images and labels, from which a test part is cut; class_names may hold the names. The option
    root is not used.

    Args:
        path: the .npz file, or a .npy file of images, with the other keys beside it: digits_images.npy and
            digits_labels.npy, say.
    """

    way_out = "Give another file with --data.path"
    resize: Resize = "squash"  # what image_size does to arrays, so predict does it to image files
    _cut_from = "all"

    def __init__(self, path: str, **options: Any) -> None:
        self.path = expanded(path).absolute()
        super().__init__(**options)
        self.hparams["path"] = str(self.path)
        self._ahead = dict[Split, LabelledImages]()  # what told the facts: reading it again takes as long

    @lazy
    def class_names(self) -> tuple[str, ...]:
        """What the file's class_names say, else "0", "1", ..."""
        return self._described[0]

    @lazy
    def image_shape(self) -> ImageShape:
        """(channels, height, width) of the images, after resizing."""
        return self._described[1]

    @lazy
    def has_val(self) -> bool:
        """Whether the file has validation images."""
        return "val" in self._parts

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, C, H, W) in [0, 255] and int64 (N,) in [0, K)."""
        ahead, self._ahead = self._ahead.get(split), {}
        if ahead:
            return ahead
        if split in self._parts:
            return self._pair(*self._parts[split])
        there, end = ("it has", "") if self._is_archive else ("with it are", "; each .npy, and give that of the images")
        message = (
            f"ArrayFile: {self.path} has no {split} images with labels; {there} {', '.join(self._names)}. Name them "
            f"{split}_images and {split}_labels, or x_{split} and y_{split}, or just images and labels{end}"
        )
        refuse(DataError, ("all" not in self._parts, message))
        images, labels = self._pair(*self._parts["all"])
        part = 0 if "test" in self._parts else self.test_split
        stays, cut = stratified_split(labels, part, self.seed, "--data.test_split")
        chosen = stays if split == "train" else cut
        self._refuse_empty(len(chosen), split, self.path, "it has none of its own")
        return LabelledImages(images[chosen], labels[chosen])

    @cached_property
    def _described(self) -> tuple[tuple[str, ...], ImageShape]:
        """Class names and image shape; parts that do not fit one another are refused before any work."""
        images, labels = found = self.load(self._describing)
        message = (
            f"ArrayFile: the {self._describing} labels in {self.path} go up to {labels.max()}, far beyond the classes "
            f"that {len(labels)} images can have: number the classes 0, 1, 2, ..., or name all in class_names"
        )
        refuse(DataError, (not self._given_names and labels.max() > max(len(labels), _MOST_UNNAMED), message))
        twice = ", ".join(name for name, count in Counter(self._given_names).items() if count > 1)
        refuse(DataError, (twice, f"ArrayFile: class_names in {self.path} has {twice} more than once"))
        names = self._given_names or tuple(map(str, range(int(labels.max()) + 1)))
        channels, height, width = images.shape[1:]
        for split in _SCORED:
            if split in self._parts:
                self._check_part(split, (channels, height, width), len(names))
        absent = sorted(set(range(len(names))) - set(labels.tolist())) if self._describing == "train" else []
        if absent:
            rank_zero_warn(
                f"ArrayFile: {self.path} has no train images of {len(absent)} of its {len(names)} "
                f"classes ({', '.join(map(str, absent[:5]))}{', ...' * (len(absent) > 5)}), which the network cannot "
                "learn. Classes are numbered 0, 1, 2, ...",
            )
        self._ahead = {self._describing: found}
        return names, (channels, *(self.image_size or (height, width)))

    def _check_part(self, split: Split, trained_with: ImageShape, classes: int) -> None:
        """Refuse a part that does not fit the training images, before any work."""
        images, labels = self.load(split)
        shape, highest = tuple(images.shape[1:]), int(labels.max())
        images_key, labels_key = self._parts[split]
        differs = shape[0] != trained_with[0] or (self.image_size is None and shape != trained_with)
        of_shape = (
            f"{images_key} in {self.path} has images of (channels, height, width) {shape}, but those to train with are "
            f"{trained_with}. Save both as gray or both as RGB; --data.image_size resizes all of them to one size"
        )
        of_labels = (
            f"{labels_key} in {self.path} go up to {highest}, but the classes are the {classes} of training, 0 to "
            f"{classes - 1}. Leave those images out, or name all classes in class_names"
        )
        refuse(DataError, (differs, f"ArrayFile: {of_shape}"), (highest >= classes, f"ArrayFile: {of_labels}"))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The keys of the file."""
        absent = f"ArrayFile: there is no file {self.path}. Set --data.path to a .npz or .npy file"
        table = f"ArrayFile: {self.path} is a table. If it names images: --data ImageTable --data.path {self.path}"
        refuse(DatasetNotFoundError, (not self.path.is_file(), absent), (self.path.suffix.lower() in TABLES, table))
        if not self._is_archive:
            return tuple(sorted(path.stem for path in self.path.parent.glob("*.npy")))
        with self._reading(self.path), zipfile.ZipFile(self.path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())

    @property
    def _is_archive(self) -> bool:
        return self.path.suffix.lower() != ".npy"

    @lazy
    def _parts(self) -> Mapping[str, tuple[str, str]]:
        """The keys of the images and of the labels of each split, and of all images where splits are cut from them."""
        given, found = _KEY.fullmatch(self.path.stem), dict[str, dict[str, str]]()
        for key in self._names:
            match = _KEY.fullmatch(key)
            if match and (self._is_archive or (given and match[1] == given[1])):
                kind = "images" if match[3].lower() in ("images", "x") else "labels"
                found.setdefault(part_of(match[2] or match[4]) or "all", {}).setdefault(kind, key)
        pairs = {split: (pair["images"], pair["labels"]) for split, pair in found.items() if len(pair) == 2}
        return {split: pair for split, pair in pairs.items() if split != "all" or "train" not in pairs}

    @property
    def _described_by(self) -> tuple[str, str]:
        return self._parts.get(self._describing) or self._parts.get("all", ("", ""))

    @cached_property
    def _given_names(self) -> tuple[str, ...]:
        """What class_names says, else the words that labels are, sorted; empty where labels are numbers."""
        named = "class_names" in self._names
        values = self._array("class_names" if named else self._described_by[1]).reshape(-1)
        return tuple(map(_text, values.tolist() if named else np.unique(values) if values.dtype.kind in "US" else ()))

    def _array(self, key: str) -> Any:
        path = self.path if self._is_archive else self.path.with_name(f"{key}.npy")
        size = path.stat().st_size
        with self._reading(path), zipfile.ZipFile(path) if self._is_archive else nullcontext() as archive:
            if archive:
                entry = archive.getinfo(f"{key}.npy")
                size, bomb = entry.file_size, f"{key} would unpack from {entry.compress_size:,} bytes to "
                refuse(ValueError, (size > max(2**30, 200 * entry.compress_size), f"{bomb}{size:,}"))
            with archive.open(entry) if archive else path.open("rb") as file:
                try:
                    return np.lib.format.read_array(file, allow_pickle=False)
                except ValueError as error:
                    if "allow_pickle" not in str(error):  # said of an array of objects, when its header is read
                        raise
                    return np.asarray(plain_array(Unpickler(file).load(), max(2**30, size)))

    def _values(self) -> Iterator[Numbers | None]:
        values = self._array(self._described_by[0])
        for image in values[:: max(1, len(values) // LOOKED_AT)] if values.ndim else ():
            yield image if values.dtype.kind in "iuf" and values.dtype != np.uint8 else None

    def _pair(self, images_key: str, labels_key: str) -> LabelledImages:
        images, labels = self._array(images_key), self._array(labels_key)
        side = math.isqrt(images.shape[1]) if images.ndim == 2 else 0
        flat = f". Save rows of pixels as images.reshape(-1, {side}, {side})" * (images.shape[1:] == (side * side,))
        of_images = (
            f"{images_key} in {self.path} is {images.dtype} of shape {images.shape}, but numbers of shape (N, H, W), "
            "(N, H, W, C) or (N, C, H, W) with 1 or 3 channels are needed"
            f"{flat}{'. Save them without opacity, as images[..., :3]' * (images.shape[3:] == (4,))}"
        )
        of_labels = (
            f"{labels_key} in {self.path} is {labels.dtype} of shape {labels.shape}, but one word, or one whole "
            f"number, 0 or more, is needed for each of {images_key}, which is of shape {images.shape}"
        )
        if images.ndim == 3:
            images = images[:, None]
        elif images.ndim == 4 and images.shape[3] in (1, 3):
            images = images.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        fits = images.dtype.kind in "biuf" and images.ndim == 4 and images.shape[1] in (1, 3) and images.size > 0
        refuse(DataError, (not fits, f"ArrayFile: {of_images}"))
        if labels.dtype.kind in "US":
            words, places = [_text(word) for word in labels.flat], {x: k for k, x in enumerate(self._given_names)}
            foreign = f"{', '.join(sorted({*words} - {*places})[:5])}, of which there are no training images"
            way_out = f"{labels_key} in {self.path} has {foreign}. Leave those out, or name all classes in class_names"
            refuse(DataError, (not {*words} <= {*places}, f"ArrayFile: {way_out}"))
            labels = np.array([places[word] for word in words]).reshape(labels.shape)
        numbers = labels.astype(np.float64) if labels.dtype.kind in "biuf" else np.array(-1.0)  # which fits nothing
        if numbers.ndim == 2 and numbers.size > len(images) == len(numbers) and np.isin(numbers, (0, 1)).all():
            numbers = numbers.argmax(1) if (numbers.sum(1) == 1).all() else numbers  # one-hot
        numbers = numbers.reshape(-1) if numbers.ndim == 2 and numbers.size == len(images) else numbers
        whole = numbers.shape == images.shape[:1] and ((numbers >= 0) & (numbers < 2**53)).all()
        whole = whole and (np.floor(numbers) == numbers).all()
        refuse(DataError, (not whole, f"ArrayFile: {of_labels}"))
        pixels = np.ascontiguousarray(self._to_8_bits(images, images_key))
        return LabelledImages(torch.from_numpy(pixels), torch.from_numpy(numbers.astype(np.int64)))

    def _to_8_bits(self, images: Any, key: str) -> Any:
        if images.dtype in (np.uint8, np.bool_):
            return images if images.dtype == np.uint8 else images * np.uint8(255)
        other = f"{key} in {self.path} is {images.dtype}, but the images to train with are 8 bits. Save both alike"
        broken = f"some of {key} in {self.path} are not numbers. Save the images as np.nan_to_num(images)"
        refuse(DataError, (np.isnan(images.max()), f"ArrayFile: {broken}"))  # before the range is told
        refuse(DataError, (self.value_range is None, f"ArrayFile: {other}"))
        return to_8_bits(images, self.value_range)


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)
