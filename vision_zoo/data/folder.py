"""ImageFolder: your own images, one folder per class."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vision_zoo.data.decode import UNREADABLE, read_values
from vision_zoo.data.discovery import INSIDE, TABLES, LeftOut, look_into, nfc
from vision_zoo.data.facts import lazy
from vision_zoo.data.own import OwnImages
from vision_zoo.data.sources import Files, InMemory, Source
from vision_zoo.data.splits import (
    is_everything,
    part_of,
    places_by_name,
    split_by_fold,
    split_by_place,
    stratified_split,
)
from vision_zoo.data.values import LOOKED_AT, Numbers
from vision_zoo.errors import DataError, DatasetNotFoundError, refuse
from vision_zoo.types import LabelledImages, Resize, Split

_IN_MEMORY = 2**30  # bytes of decoded images

Listing = tuple[list[Any], Tensor]
"""Image files, or their places in others, and their labels, int64 (N,)."""

_NOTHING: Listing = ([], torch.empty(0, dtype=torch.int64))


class ImageFolder(OwnImages):
    """Your own images: root/CLASS/*.jpg, or root/train/CLASS/*.jpg with root/val and root/test where there are such.

    Mean and standard deviation are computed from the training images.

    Args:
        root: the folder of the class folders, or of train, val and test.
        image_size: side of the square that every image is resized to, or height and width: 96 128. By default 224, or
            what the pretrained weights were trained with.
        channels: 3 for colour, 1 for gray.
        resize: crop keeps the proportions and cuts out the centre, pad keeps them and adds black, squash changes them.
        strict: stop at a file that cannot be decoded, instead of naming it and leaving it out.
        in_memory: decode everything once and keep it, or decode each batch anew. By default the former up to 1 GiB.
    """

    way_out = "Repair or remove the files, or set --data.root to another folder"
    _cut_from = "train"
    _absent: ClassVar[str] = "there is no folder"

    def __init__(
        self,
        root: str = "data",
        *,
        image_size: int | tuple[int, int] | None = None,
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

    @property
    def _own_val(self) -> bool:
        return "val" in self._parts

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

    @property
    def split_names(self) -> list[str]:
        """What decides where the images of train, val and test are dealt to; empty where their order does."""
        return [self._split_name(path) for x in get_args(Split) for path in self._splits.get(x, _NOTHING)[0]]

    def _files(self, split: Split) -> Files:
        paths, labels = self._splits.get(split, _NOTHING)
        self._refuse_empty(len(paths), split, self.root, f"{self._absent} {split}")
        how = (self.image_shape, self.resize, self.strict, self.value_range, self.interpolation)
        return self._source(paths, labels, *how)

    def _source(self, listed: list[Any], *how: Any) -> Files:
        """A source of some of what is listed; `how` is what `Files` takes besides."""
        return Files([str(path) for path in listed], *how)

    def _values(self) -> Iterator[Numbers | None]:
        listed, labels = self._splits[self._describing]
        some = listed[:: max(1, len(listed) // LOOKED_AT)]
        source = self._source(some, labels[: len(some)], self.image_shape)
        for index in range(len(some)):
            with suppress(*UNREADABLE):  # such a file is named when its turn comes
                yield read_values(source.file(index))

    @lazy
    def _parts(self) -> Mapping[Split, Listing]:
        return self._scan[1]

    @cached_property
    def _scan(self) -> tuple[tuple[str, ...], dict[Split, Listing]]:
        """Class names, and the images of each split that has a folder; all are "train" where there are none."""
        advice = "Set --data.root to a folder that has one folder of images for each class"
        absent = f"ImageFolder: there is no folder {self.root}. {advice}"
        refuse(DatasetNotFoundError, (not self.root.is_dir(), absent))
        scored = is_everything(self.test_split)  # what is only scored may lack a class: its empty folder stands for it
        left = LeftOut()
        found = _split_folders(self.root, left) or {"train": self.root}
        listed = {x: _list_classes(folder, left, may_be_empty=scored or x != "train") for x, folder in found.items()}
        first, (names, _) = next(iter(listed.items()))
        for split, (others, _) in listed.items():
            message = (
                f"ImageFolder: {found[split]} and {found[first]} must have the same class folders; only one "
                f"of them has {', '.join(sorted(set(names) ^ set(others)))}. An empty folder stands for a class of "
                "which there are no images to score"
            )
            refuse(DataError, (others != names, message))
        left.warn(f"ImageFolder: {self.root}")
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
            option, places = f"--data.{split}_split", self._places(paths)
            below = below + part * (1 - below) if places is not None and below is not None and part < 1 else None
            if split == "val" and self.fold is not None:
                stays, cut = split_by_fold(labels, self.fold, self.seed, places)
            elif below is not None and places is not None:
                stays, cut = split_by_place(labels, places, below, option)
            elif places is None or is_everything(part) or len(set(places.tolist())) == len(places):
                stays, cut = stratified_split(labels, part, self.seed, option, places)
            else:  # images of one place stay together, so that about as many are cut
                count = min(int(part) or round(part * len(places)), len(places) - 1)
                stays, cut = split_by_place(labels, places, float(places.sort()[0][count]), option)
            found["train"], found[split] = (([paths[k] for k in x.tolist()], labels[x]) for x in (stays, cut))
        return found

    def _places(self, listed: list[Any]) -> Tensor | None:
        """Where each image stands in the order that parts are cut from; None draws, as of arrays."""
        return places_by_name(map(self._split_name, listed), self.seed)

    def _split_name(self, path: Any) -> str:
        """The name that decides where an image is dealt to."""
        return f"{path.parent.name}/{path.name}"


def _split_folders(root: Path, left: LeftOut) -> dict[Split, Path]:
    """The folder of each split, whatever it is called; none where the folders of root are classes."""
    images, folders = look_into(root, LeftOut())
    named: dict[Split, list[Path]] = {x: [y for y in folders if part_of(y.name) == x] for x in get_args(Split)}
    full = {folder for folder in chain(*named.values()) if look_into(folder, LeftOut())[1]}
    # Of images that are only scored, there may be a folder test and nothing else.
    if not (full & set(named["train"]) or (full and full == set(folders) and not named["train"])):
        return {}
    for split, same in named.items():
        both = f"{' and '.join(x.name for x in same)} are all for {split}. Rename or move all but one of them"
        refuse(DataError, (len(same) > 1, f"ImageFolder: in {root}, {both}"))
    if other := [f"{same[0].name} is taken for {x}" for x, same in named.items() if same and same[0].name != x]:
        rank_zero_warn(f"ImageFolder: in {root}, {', '.join(other)}")
    look_into(root, left)
    left["beside the parts"] += [path.name for path in (*images, *folders) if not part_of(path.name)]
    return {split: same[0] for split, same in named.items() if same}


def _list_classes(root: Path, left: LeftOut, *, may_be_empty: bool) -> tuple[tuple[str, ...], Listing]:
    """Class names, and the images directly inside of each class folder, of which some may have none."""
    beside, folders = look_into(root, left)
    names = {nfc(folder.name): folder for folder in folders}
    number = f"only one folder, {folders[0].name}" if folders else "no folders"
    table = next((path for path in sorted(root.iterdir()) if path.suffix.lower() in TABLES), None)
    hint = f". If {table.name} names images and labels: --data ImageTable --data.path {table}" if table else ""
    few = (
        f"ImageFolder: {root} has {number}, but two classes or more are needed, with a folder of images each. Set "
        f"--data.root to the folder that holds the class folders{hint}"
    )
    no_classes = (
        f"ImageFolder: {root} has the folders {', '.join(x.name for x in folders)}, which are not classes. Parts are "
        "named train, val and test, and have a folder of images for each class in them"
    )
    twice = f"ImageFolder: {root} has two folders of the same name, whose letters are stored differently. Join them"
    refuse(
        DataError,
        (len(folders) < 2, few),
        ({part_of(name) for name in names} - {"train", None}, no_classes),
        (len(names) < len(folders), twice),
    )
    paths: list[Path] = []
    labels: list[int] = []
    left["beside the class folders"] += [path.name for path in beside]
    for label, name in enumerate(sorted(names)):
        images, inside = look_into(names[name], left)
        left[INSIDE] += [path.name for path in inside]
        none = f"ImageFolder: {names[name]} has no images{left}"
        advice = "Images must lie directly in the folder of their class; remove folders that are not classes"
        refuse(DataError, (not images and not may_be_empty, f"{none}. {advice}"))
        paths += images
        labels += [label] * len(images)
    refuse(DataError, (not paths, f"ImageFolder: the class folders in {root} have no images"))
    return tuple(sorted(names)), (paths, torch.tensor(labels))
