"""ArrayFile: images and labels in one .npz file, as MedMNIST and Keras publish them."""

import math
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.decode import Resize
from vision_zoo.data.facts import Facts, cached_facts, lazy, per_channel, statistics
from vision_zoo.data.splits import check_part, stratified_split
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError, refuse
from vision_zoo.files import expanded
from vision_zoo.types import ImageShape, LabelledImages, Split

_BROKEN = (OSError, EOFError, ValueError, KeyError, MemoryError, zlib.error, zipfile.BadZipFile, NotImplementedError)
_MOST_UNNAMED = 100_000  # classes, where there are fewer images


class ArrayFile(ImageDataModule):
    """Your own images in a .npz file, as uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), with one label each.

    The keys are train_images, train_labels, test_images, test_labels (and val_images, val_labels), or x_train, y_train,
    x_test, y_test, or just images and labels, from which a test part is cut; class_names may hold the names. The option
    root is not used.

    Args:
        path: the .npz file.
        test_split: what is cut from all images for testing: like val_split, or 1.0 to test with all of them and train
            with none. Not used if the file has test images.
    """

    way_out = "Give another file with --data.path"
    resize: Resize = "squash"  # what image_size does to arrays, so predict does it to image files

    def __init__(self, path: str, *, test_split: int | float = 0.1, **options: Any) -> None:
        check_part(test_split, "--data.test_split")
        self.path = expanded(path).absolute()
        self.test_split = test_split
        super().__init__(**options)
        self.hparams["path"] = str(self.path)

    def _take_facts(self, mean: list[float] | None, std: list[float] | None) -> None:
        self._given = {"mean": mean, "std": std}  # the number of channels is known once the file is read

    @lazy
    def class_names(self) -> tuple[str, ...]:
        """What the file's class_names say, else "0", "1", ..."""
        return tuple(self._facts["class_names"])

    @lazy
    def image_shape(self) -> ImageShape:
        """(channels, height, width) of the images, after resizing."""
        channels, height, width = self._facts["image_shape"]
        return channels, height, width

    @lazy
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images."""
        return self._statistic("mean")

    @lazy
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images."""
        return self._statistic("std")

    @cached_property
    def has_val(self) -> bool:
        """Whether the file has validation images."""
        return self._keys("val") is not None

    @property
    def has_test(self) -> bool:
        """Whether the file has test images, or some are cut from all of them."""
        return self._keys("test") is not None or ({"images", "labels"} <= set(self._names) and self.test_split > 0)

    @property
    def cuts_test(self) -> bool:
        """Whether the test images are cut from all, for the file has none."""
        return self.has_test and self._keys("test") is None

    def load(self, split: Split) -> LabelledImages:
        """uint8 (N, C, H, W) in [0, 255] and int64 (N,) in [0, K)."""
        if keys := self._keys(split):
            return self._pair(*keys)
        message = (
            f"ArrayFile: {self.path} has no {split} images; it has {', '.join(self._names)}. Name them {split}_images "
            f"and {split}_labels, or x_{split} and y_{split}, or just images and labels"
        )
        refuse(DataError, (not {"images", "labels"} <= set(self._names), message))
        images, labels = self._pair("images", "labels")
        part = self.test_split if self._keys("test") is None else 0
        stays, cut = stratified_split(labels, part, self.seed, "--data.test_split")
        chosen = stays if split == "train" else cut
        why = "all are for the test, by --data.test_split 1.0"
        if split == "test":
            why = "it has none of its own, and --data.test_split is 0"
        refuse(ConfigError, (not len(chosen), f"ArrayFile: no {split} images in {self.path}: {why}"))
        return LabelledImages(images[chosen], labels[chosen])

    def _statistic(self, name: str) -> tuple[float, ...]:
        given = self._given[name]
        return tuple(self._facts[name]) if given is None else per_channel(name, given, self.image_shape[0])

    @cached_property
    def _facts(self) -> Facts:
        options = [self.image_size, self.val_split, self.test_split, self.seed]
        self._names  # noqa: B018  # refuses a file that is missing or broken, before its size is asked for
        facts = cached_facts([self.path], options, self._compute_facts)
        if absent := facts.get("absent"):
            rank_zero_warn(
                f"ArrayFile: {self.path} has no train images of {len(absent)} of its {len(facts['class_names'])} "
                f"classes ({', '.join(map(str, absent[:5]))}{', ...' * (len(absent) > 5)}), which the network cannot "
                "learn. Classes are numbered 0, 1, 2, ...",
                category=UserWarning,
            )
        return facts

    def _compute_facts(self) -> Facts:
        tests_all = self.cuts_test and isinstance(self.test_split, float) and self.test_split == 1
        # Of images that are there to be scored alone, there may be those of a test and nothing else.
        tests_only = self._keys("test") is not None and self._keys("train") is None and "images" not in self._names
        source: Split = "test" if tests_all or tests_only else "train"
        images, labels = self.load(source)
        message = (
            f"ArrayFile: the {source} labels in {self.path} go up to {labels.max()}, far beyond the classes that "
            f"{len(labels)} images can have: number the classes 0, 1, 2, ..., or name all in class_names"
        )
        unnamed = "class_names" not in self._names
        refuse(DataError, (unnamed and labels.max() > max(len(labels), _MOST_UNNAMED), message))
        height, width = (self.image_size or size for size in images.shape[2:])
        self.image_shape = (images.shape[1], height, width)
        names = self._array("class_names").reshape(-1).tolist() if "class_names" in self._names else []
        names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
        self.class_names = tuple(names or [str(label) for label in range(int(labels.max()) + 1)])
        absent = sorted(set(range(len(self.class_names))) - set(labels.tolist())) if source == "train" else []
        for split in ("val", "test"):
            if keys := self._keys(split):
                self._check_shape(keys[0], (images.shape[1], images.shape[2], images.shape[3]))
                self._check_labels(keys[1])
        del images  # which the next line reads anew, as a part that is kept
        shown = statistics(self.split_images(source).images)
        return {"class_names": self.class_names, "image_shape": self.image_shape, "absent": absent, **shown}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """The keys of the file."""
        absent = f"ArrayFile: there is no file {self.path}. Set --data.path to a .npz file"
        refuse(DatasetNotFoundError, (not self.path.is_file(), absent))
        with self._reading(self.path, _BROKEN):
            other = "not a .npz archive such as numpy.savez writes"
            refuse(ValueError, (not zipfile.is_zipfile(self.path), other))
            with np.load(self.path, allow_pickle=False) as content:
                return tuple(content.files)

    def _keys(self, split: str) -> tuple[str, str] | None:
        """The keys of a split's images and labels, whichever convention the file follows."""
        pairs = ((f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}"))
        return next((pair for pair in pairs if set(pair) <= set(self._names)), None)

    def _array(self, key: str) -> Any:
        with self._reading(self.path, _BROKEN):
            _check_size(self.path, f"{key}.npy")
            with np.load(self.path, allow_pickle=False) as content:
                return content[key]

    def _check_shape(self, key: str, trained_with: ImageShape) -> None:
        """Refuse images of another split that differ in shape, before any work; the head of the array tells."""
        with self._reading(self.path, _BROKEN):
            shape = _check_size(self.path, f"{key}.npy")
        if len(shape) not in (3, 4):
            return  # which reading them refuses
        last = len(shape) == 3 or shape[3] not in (1, 3)  # (N, H, W), or (N, C, H, W)
        channels = 1 if len(shape) == 3 else shape[1] if last else shape[3]
        size = shape[-2:] if last else shape[1:3]
        known = f"but the training images have {trained_with[0]}. Save both as gray or both as RGB"
        of_channels = f"has {channels} channel(s), {known}"
        of_size = (
            f"are {size[0]} x {size[1]} pixels, but the training images {trained_with[1]} x {trained_with[2]}. "
            "--data.image_size resizes all of them to one size"
        )
        other_size = self.image_size is None and size != trained_with[1:]
        where = f"ArrayFile: {key} in {self.path}"
        refuse(DataError, (channels != trained_with[0], f"{where} {of_channels}"), (other_size, f"{where} {of_size}"))

    def _check_labels(self, key: str) -> None:
        """Refuse classes that training does not know, before any work."""
        highest, classes = self._array(key).max(initial=0), self.num_classes
        message = (
            f"ArrayFile: {key} in {self.path} go up to {highest}, but the classes are the {classes} of training, 0 to "
            f"{classes - 1}. Leave those images out, or name all classes in class_names"
        )
        refuse(DataError, (highest >= classes, message))

    def _pair(self, images_key: str, labels_key: str) -> LabelledImages:
        images, labels = self._array(images_key), self._array(labels_key)
        given = images.shape
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim == 4 and images.shape[3] in (1, 3):
            images = images.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        flat = labels.reshape(-1)
        whole = labels.dtype.kind in "iu"
        of_images, of_labels = f"ArrayFile: {images_key} in {self.path}", f"ArrayFile: {labels_key} in {self.path}"
        refuse(
            DataError,
            (
                images.dtype != np.uint8,
                f"{of_images} is {images.dtype}, but uint8 in [0, 255] is needed. Save values in [0, 1] as "
                "(255 * images).round().astype('uint8')",
            ),
            (
                images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[1:],
                f"{of_images} has the shape {given}, but (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels "
                "is needed",
            ),
            (
                not whole or labels.ndim == 0 or labels.size != len(labels),
                f"{of_labels} is {labels.dtype} of shape {labels.shape}, but one whole number for each image is needed",
            ),
            (
                len(flat) == 0 or given[:1] != flat.shape or (whole and flat.min() < 0),
                f"ArrayFile: {self.path} has {len(images) if given else 0} {images_key} and {len(flat)} {labels_key}; "
                "their numbers must be equal, not 0, and the labels 0 or more",
            ),
        )
        return LabelledImages(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(flat.astype(np.int64)))


def _check_size(path: Path, name: str) -> tuple[int, ...]:
    """Refuse an array that is larger than the memory, before it is unpacked.

    Returns:
        The shape that the array announces.

    Raises:
        ValueError: if the entry unpacks to far more than it is, or announces more than it holds.
    """
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        entry = archive.getinfo(name)
        bomb = f"{name} would unpack from {entry.compress_size:,} bytes to {entry.file_size:,}"
        refuse(ValueError, (entry.file_size > max(2**30, 200 * entry.compress_size), bomb))
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(file)
        too_large = not kind.hasobject and math.prod(shape) * kind.itemsize > entry.file_size
        refuse(ValueError, (too_large, f"{name} announces the shape {shape}, but holds {entry.file_size:,} bytes"))
        return tuple(shape)
