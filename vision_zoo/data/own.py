"""OwnImages: what is common to your own images, whether they come in a folder or in one file."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.facts import evenly, lazy, per_channel, statistics
from vision_zoo.data.splits import check_part, is_everything
from vision_zoo.data.values import Numbers, find_range
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import Resize, Split, ValueRange

_SAMPLE = 4096  # images that mean and std are computed from


class OwnImages(ImageDataModule):
    """Base of ArrayFile and ImageFolder, which read from the files what published datasets state.

    Args:
        test_split: what is cut from all images for testing: like val_split, or 1.0 to test with all of them and train
            with none. Not used where there are test images.
        value_range: the values that become 0 and 255 in images that are not 8 bits, such as 0 4095 for 12 bits in files
            of 16. By default they are learned from the training images, without the lowest and the highest 0.1 %.
    """

    resize: Resize  # how predict brings image files to the size that the network was trained with
    _parts: Mapping[Any, Any]  # what the files hold, such as "train", before anything is cut from it
    _cut_from: ClassVar[str]  # the part that the test images are cut from

    def __init__(self, *, test_split: int | float = 0.1, value_range: ValueRange = None, **options: Any) -> None:
        check_part(test_split, "--data.test_split")
        self.test_split, self._given_range = test_split, value_range
        super().__init__(**options)

    def _take_facts(self, mean: list[float] | None, std: list[float] | None) -> None:
        # None where they are computed; the number of channels may be known only once the files are read.
        self.given = {"mean": mean, "std": std}

    @lazy
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images."""
        given = self.given["mean"]
        return self._statistics[0] if given is None else per_channel("mean", given, self.image_shape[0])

    @lazy
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images."""
        given = self.given["std"]
        return self._statistics[1] if given is None else per_channel("std", given, self.image_shape[0])

    @lazy
    def value_range(self) -> ValueRange:
        """The values that become 0 and 255 in images that are not 8 bits; None where all are 8 bits."""
        return find_range(self._values(), self._given_range)

    def _values(self) -> Iterable[Numbers | None]:
        """Some training images as the files have them, of any shape and type; None in place of one of 8 bits."""
        return ()

    @lazy
    def cuts_test(self) -> bool:
        """Whether the test images are cut from others, for there are none of their own."""
        return "test" not in self._parts and self._cut_from in self._parts and self.test_split > 0

    @lazy
    def has_test(self) -> bool:
        """Whether there are test images, or some are cut from others."""
        return "test" in self._parts or self.cuts_test

    @property
    def _tests_all(self) -> bool:
        return self.cuts_test and is_everything(self.test_split)

    @property
    def _describing(self) -> Split:
        """The split that tells the facts: that of training, unless there is none and images are only scored."""
        tests_only = "test" in self._parts and not {"train", self._cut_from} & self._parts.keys()
        return "test" if self._tests_all or tests_only else "train"

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        source, indices = self.subset(self._describing)
        return statistics(part.images for part in self._by_parts(source, evenly(indices, _SAMPLE)))

    def _refuse_empty(self, count: int, split: Split, place: Path, absent: str) -> None:
        """Say why a split has no images."""
        why = f"{absent} and --data.test_split is 0" if split == "test" else absent
        why = "all are for the test, by --data.test_split 1.0" if self._tests_all else why
        refuse(ConfigError, (not count, f"{type(self).__name__}: no {split} images in {place}: {why}"))
