"""ImageFolder: your own images, one folder per class."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vision_zoo.data.decode import UNREADABLE, Resize, image_extensions, read_values, unreadable_extensions
from vision_zoo.data.facts import lazy
from vision_zoo.data.own import OwnImages
from vision_zoo.data.sources import Files, InMemory, Source
from vision_zoo.data.splits import is_everything, places_by_name, split_by_place, stratified_split
from vision_zoo.data.values import LOOKED_AT, Numbers
from vision_zoo.errors import DataError, DatasetNotFoundError, refuse
from vision_zoo.types import LabelledImages, Split

_IN_MEMORY = 2**30  # bytes of decoded images
_SPLIT_NAMES = {"val", "valid", "validation", "test"}  # what people call the parts beside train

Listing = tuple[list[Path], Tensor]
"""Image files and their labels, int64 (N,)."""

_NOTHING: Listing = ([], torch.empty(0, dtype=torch.int64))


class ImageFolder(OwnImages):
    """Your own images: root/CLASS/*.jpg, or root/train/CLASS/*.jpg with root/val and root/test where there are such.

    Mean and standard deviation are computed from the training images.

    Args:
        root: the folder of the class folders, or of train, val and test.
        image_size: side of the square that every image is resized to, or height and width: 96 128.
        channels: 3 for colour, 1 for gray.
        resize: crop keeps the proportions and cuts out the centre, pad keeps them and adds black, squash changes them.
        strict: stop at a file that cannot be decoded, instead of naming it and leaving it out.
        in_memory: decode everything once and keep it, or decode each batch anew. By default the former up to 1 GiB.
    """

    way_out = "Repair or remove the files, or set --data.root to another folder"
    _cut_from = "train"

    def __init__(
        self,
        root: str = "data",
        *,
        image_size: int | tuple[int, int] | None = 224,
        channels: Literal[1, 3] = 3,
        resize: Resize = "crop",
        strict: bool = False,
        in_memory: bool | None = None,
        **options: Any,
    ) -> None:
        self.resize = resize
        self.strict = strict
        self.in_memory = in_memory
        super().__init__(root=root, image_size=224 if image_size is None else image_size, **options)
        self.image_shape = (channels, *self.image_size)

    @lazy
    def class_names(self) -> tuple[str, ...]:
        """The names of the class folders, sorted."""
        return self._scan[0]

    @lazy
    def has_val(self) -> bool:
        """Whether there is a folder val, or validation images are cut from those of training."""
        return "val" in self._parts or self.val_split > 0

    def load(self, split: Split) -> LabelledImages:
        """Decode all images of a split: uint8 (N, C, H, W) in [0, 255] and int64 (N,) in [0, K)."""
        files = self._files(split)
        return self._gather(files, torch.arange(len(files)))

    def _read(self, split: Split) -> Source:
        in_memory = self.in_memory
        if in_memory is None:
            count = sum(len(paths) for paths, _ in self._splits.values())
            in_memory = count * torch.Size(self.image_shape).numel() <= _IN_MEMORY
        return InMemory(*self.load(split)) if in_memory else self._files(split)

    def _files(self, split: Split) -> Files:
        paths, labels = self._splits.get(split, _NOTHING)
        self._refuse_empty(len(paths), split, self.root, f"there is no folder {split}")
        names = [str(path) for path in paths]
        return Files(names, labels, self.image_shape, self.resize, self.strict, self.value_range)

    def _values(self) -> Iterator[Numbers | None]:
        paths, _ = self._splits[self._describing]
        for path in paths[:: max(1, len(paths) // LOOKED_AT)]:
            with suppress(*UNREADABLE):  # such a file is named when its turn comes
                yield read_values(path)

    @lazy
    def _parts(self) -> Mapping[Split, Listing]:
        return self._scan[1]

    @cached_property
    def _scan(self) -> tuple[tuple[str, ...], dict[Split, Listing]]:
        """Class names, and the images of each split that has a folder; all are "train" where there are none."""
        advice = "Set --data.root to a folder that has one folder of images for each class"
        absent = f"ImageFolder: there is no folder {self.root}. {advice}"
        refuse(DatasetNotFoundError, (not self.root.is_dir(), absent))
        folders = _folders(self.root)
        inside = {folder.name for folder in folders}
        scored = is_everything(self.test_split)  # what is only scored may lack a class: its empty folder stands for it
        # Of images that are only scored, there may be a folder test and nothing else.
        if not (_folders(self.root / "train") or (inside and inside <= {"val", "test"})):
            names, listing = _list_classes(self.root, may_be_empty=scored)
            return names, {"train": listing}
        stray = ", ".join(x for x in sorted(inside - {"val", "test"}) if x.lower() in _SPLIT_NAMES)
        advice = "is not looked into; the parts lie in train, val and test. Rename it or move it"
        refuse(DataError, (stray, f"ImageFolder: in {self.root}, {stray} {advice}"))
        splits: tuple[Split, ...] = ("train", "val", "test")
        listed = {x: _list_classes(self.root / x, may_be_empty=scored or x != "train") for x in splits if x in inside}
        first, (names, _) = next(iter(listed.items()))
        for split, (others, _) in listed.items():
            message = (
                f"ImageFolder: {self.root / split} and {self.root / first} must have the same class folders; only one "
                f"of them has {', '.join(sorted(set(names) ^ set(others)))}. An empty folder stands for a class of "
                "which there are no images to score"
            )
            refuse(DataError, (others != names, message))
        return names, {split: listing for split, (_, listing) in listed.items()}

    @cached_property
    def _splits(self) -> dict[Split, Listing]:
        """The images of each split, those of splits without a folder cut from train; no "val" where there is none.

        The names of the files decide: images that are added later must not reshuffle the split, for a test would then
        score images of the training. A fraction is a range of the names' order, validation next to the test, so that no
        image of the training is ever held out later; a count takes more or fewer of a class as the classes grow.
        """
        found: dict[Split, Listing] = {"train": _NOTHING, **self._parts}
        wanted: dict[Split, int | float] = {"test": self.test_split, "val": self.val_split}
        below: float | None = 0.0
        for split, part in wanted.items():
            paths, labels = found["train"]
            if split in found or not part or not paths:
                continue
            option = f"--data.{split}_split"
            places = places_by_name((f"{path.parent.name}/{path.name}" for path in paths), self.seed)
            below = below + part * (1 - below) if below is not None and part < 1 else None
            if below is None:
                stays, cut = stratified_split(labels, part, self.seed, option, places)
            else:
                stays, cut = split_by_place(labels, places, below, option)
            found["train"], found[split] = (
                ([paths[index] for index in chosen.tolist()], labels[chosen]) for chosen in (stays, cut)
            )
        return found


def _folders(path: Path) -> list[Path]:
    """Visible folders inside of a folder, sorted; none if there is no such folder."""
    if not path.is_dir():
        return []
    return sorted(x for x in path.iterdir() if x.is_dir() and not x.name.startswith((".", "__MACOSX")))


def _list_classes(root: Path, *, may_be_empty: bool) -> tuple[tuple[str, ...], Listing]:
    """Class names, and the images directly inside of each class folder, of which some may have none."""
    folders = _folders(root)
    names = {folder.name.lower() for folder in folders}
    number = f"only one folder, {folders[0].name}" if folders else "no folders"
    few = (
        f"ImageFolder: {root} has {number}, but two classes or more are needed, with a folder of images each. Set "
        "--data.root to the folder that holds the class folders"
    )
    no_classes = (
        f"ImageFolder: {root} has the folders {', '.join(x.name for x in folders)}, which are not classes. Parts are "
        "named train, val and test, and have a folder of images for each class in them"
    )
    refuse(DataError, (len(folders) < 2, few), ("train" in names and names & _SPLIT_NAMES, no_classes))
    paths: list[Path] = []
    labels: list[int] = []
    unknown: list[Path] = []
    for label, folder in enumerate(folders):
        visible = sorted(x for x in folder.iterdir() if not x.name.startswith("."))
        files = [x for x in visible if x.is_file() or not x.exists()]  # decoding names a link to nowhere
        images = [x for x in files if x.suffix.lower() in image_extensions()]
        unknown += [x for x in files if x.suffix.lower() in unreadable_extensions()]
        advice = "Images must lie directly in the folder of their class; remove folders that are not classes"
        refuse(DataError, (not images and not may_be_empty, f"ImageFolder: {folder} has no images. {advice}"))
        if _folders(folder):
            rank_zero_warn(f"ImageFolder: the folders inside of {folder} are not looked into", category=UserWarning)
        paths += images
        labels += [label] * len(images)
    refuse(DataError, (not paths, f"ImageFolder: the class folders in {root} have no images"))
    if unknown:
        kinds = ", ".join(sorted({x.suffix.lower() for x in unknown}))
        left_out = f"{len(unknown):,} images of kinds that cannot be read ({kinds}), which are left out"
        rank_zero_warn(f"ImageFolder: {root} has {left_out}: convert them to PNG or JPEG", category=UserWarning)
    return tuple(folder.name for folder in folders), (paths, torch.tensor(labels))
