"""ArrayFile: images and labels in one .npz file, as MedMNIST and Keras publish them."""

import zipfile
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from vision_zoo.data.decode import Resize
from vision_zoo.data.discovery import TABLES
from vision_zoo.data.facts import lazy
from vision_zoo.data.own import OwnImages
from vision_zoo.data.splits import stratified_split
from vision_zoo.errors import DataError, DatasetNotFoundError, refuse
from vision_zoo.files import expanded
from vision_zoo.types import ImageShape, LabelledImages, Split

_SCORED: tuple[Split, ...] = ("val", "test")
_MOST_UNNAMED = 100_000  # classes, where there are fewer images


class ArrayFile(OwnImages):
    """Your own images in a .npz file, as uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), with one label each.

    The keys are train_images, train_labels, test_images, test_labels (and val_images, val_labels), or x_train, y_train,
    x_test, y_test, or just images and labels, from which a test part is cut; class_names may hold the names. The option
    root is not used.

    Args:
        path: the .npz file.
    """

    way_out = "Give another file with --data.path"
    resize: Resize = "squash"  # what image_size does to arrays, so predict does it to image files
    _cut_from = "all"

    def __init__(self, path: str, **options: Any) -> None:
        self.path = expanded(path).absolute()
        super().__init__(**options)
        self.hparams["path"] = str(self.path)

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
        if split in self._parts:
            return self._pair(*self._parts[split])
        message = (
            f"ArrayFile: {self.path} has no {split} images; it has {', '.join(self._names)}. Name them {split}_images "
            f"and {split}_labels, or x_{split} and y_{split}, or just images and labels"
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
        images, labels = self.load(self._describing)
        unnamed = "class_names" not in self._names
        message = (
            f"ArrayFile: the {self._describing} labels in {self.path} go up to {labels.max()}, far beyond the classes "
            f"that {len(labels)} images can have: number the classes 0, 1, 2, ..., or name all in class_names"
        )
        refuse(DataError, (unnamed and labels.max() > max(len(labels), _MOST_UNNAMED), message))
        values = range(int(labels.max()) + 1) if unnamed else self._array("class_names").reshape(-1).tolist()
        names = tuple(x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in values)
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
                category=UserWarning,
            )
        return names, (channels, self.image_size or height, self.image_size or width)

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
        absent = f"ArrayFile: there is no file {self.path}. Set --data.path to a .npz file"
        table = f"ArrayFile: {self.path} is a table. If it names images: --data ImageTable --data.path {self.path}"
        is_table = self.path.suffix.lower() in TABLES
        refuse(DatasetNotFoundError, (not self.path.is_file(), absent), (is_table, table))
        with self._reading(self.path), zipfile.ZipFile(self.path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())

    @lazy
    def _parts(self) -> Mapping[str, tuple[str, str]]:
        """The keys of the images and of the labels of each split, and of all images where splits are cut from them."""
        pairs = {"all": ("images", "labels")}
        for split in ("train", "val", "test"):
            keras, medmnist = (f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels")
            pairs[split] = medmnist if set(medmnist) <= set(self._names) else keras
        return {part: pair for part, pair in pairs.items() if set(pair) <= set(self._names)}

    def _array(self, key: str) -> Any:
        with self._reading(self.path), zipfile.ZipFile(self.path) as archive:
            entry = archive.getinfo(f"{key}.npy")
            bomb = f"{key} would unpack from {entry.compress_size:,} bytes to {entry.file_size:,}"
            refuse(ValueError, (entry.file_size > max(2**30, 200 * entry.compress_size), bomb))
            with archive.open(entry) as file:
                return np.lib.format.read_array(file, allow_pickle=False)

    def _pair(self, images_key: str, labels_key: str) -> LabelledImages:
        images, labels = self._array(images_key), self._array(labels_key)
        of_images = (
            f"{images_key} in {self.path} is {images.dtype} of shape {images.shape}, but uint8 in [0, 255] of shape "
            "(N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels is needed. Save values in [0, 1] as "
            "(255 * images).round().astype('uint8')"
        )
        of_labels = (
            f"{labels_key} in {self.path} is {labels.dtype} of shape {labels.shape}, but one whole number, 0 or more, "
            f"is needed for each of {images_key}, which is of shape {images.shape}"
        )
        if images.ndim == 3:
            images = images[:, None]
        elif images.ndim == 4 and images.shape[3] in (1, 3):
            images = images.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3) and images.size > 0
        count = images.shape[:1]
        whole = labels.dtype.kind in "iu" and labels.shape in (count, (*count, 1)) and labels.min(initial=0) >= 0
        refuse(DataError, (not fits, f"ArrayFile: {of_images}"), (not whole, f"ArrayFile: {of_labels}"))
        pixels = np.ascontiguousarray(images)
        return LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels.reshape(-1).astype(np.int64)))
