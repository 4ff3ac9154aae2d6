"""ImageFolder: your own pictures, one folder per class."""

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.decode import ImageFiles, Resize, picture_extensions, unreadable_extensions
from vision_zoo.data.facts import Facts, cached_facts, statistics
from vision_zoo.data.splits import check_part, stratified_split
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError
from vision_zoo.types import LabelledImages, Split

_IN_MEMORY = 2**30  # bytes of decoded images
_SAMPLE = 4096  # images that mean and std are computed from
_SPLIT_NAMES = {"val", "valid", "validation", "test"}  # what people call the parts beside train

Listing = tuple[list[Path], Tensor]
"""Pictures and their labels, int64 (N,)."""

_NOTHING: Listing = ([], torch.empty(0, dtype=torch.int64))


class ImageFolder(ImageDataModule):
    """Your own pictures: root/CLASS/*.jpg, or root/train/CLASS/*.jpg with root/val and root/test where there are such.

    Mean and standard deviation are computed from the training pictures, once.

    Args:
        root: the folder of the class folders, or of train, val and test.
        batch_size: images per batch, in each process.
        val_split: what is cut from the training pictures for validation, stratified by class: a fraction, a count, or 0
            for none. Not used if there is a folder val.
        seed: decides the splits and the order of the images in each epoch.
        image_size: height and width that every picture is brought to; 224 by default.
        augmentation: random transforms of the training batches, on the device.
        num_workers: processes that decode pictures while training, where they are not in memory.
        mean: mean of each channel, as a fraction of full brightness; one value serves all channels. By default that of
            the training pictures.
        std: standard deviation of each channel, like mean.
        shuffle: draw the training images in a new order in each epoch; otherwise in file order.
        channels: 3 for colour, 1 for gray.
        resize: crop keeps the proportions and cuts out the centre, pad keeps them and adds black, squash changes them.
        test_split: what is cut from all pictures for testing: like val_split, or 1.0 to test with all of them and train
            with none. Not used if there is a folder test.
        strict: stop at a file that cannot be decoded, instead of naming it and leaving it out.
        in_memory: decode everything once and keep it, or decode each batch anew. By default the former up to 1 GiB.
    """

    way_out = "Repair or remove the files, or set --data.root to another folder"

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_split: int | float = 0.1,
        seed: int = 0,
        image_size: int | None = None,
        augmentation: list[nn.Module] | None = None,
        num_workers: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        shuffle: bool = True,
        channels: Literal[1, 3] = 3,
        resize: Resize = "crop",
        test_split: int | float = 0.1,
        strict: bool = False,
        in_memory: bool | None = None,
    ) -> None:
        self.image_shape = (channels, 224, 224)
        self.resize: Resize = resize
        self.test_split = test_split
        self.strict = strict
        self.in_memory = in_memory
        check_part(test_split, "--data.test_split")
        super().__init__(root, batch_size, val_split, seed, image_size, augmentation, num_workers, mean, std, shuffle)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the class folders, sorted."""
        return self._scan[0]

    @cached_property
    def mean(self) -> tuple[float, ...]:  # type: ignore[override]
        """Mean of each channel of the training pictures."""
        return tuple(self._facts["mean"])

    @cached_property
    def std(self) -> tuple[float, ...]:  # type: ignore[override]
        """Standard deviation of each channel of the training pictures."""
        return tuple(self._facts["std"])

    @property
    def has_val(self) -> bool:
        """Whether there is a folder val, or validation pictures are cut from those of training."""
        return "val" in self._scan[1]

    @property
    def has_test(self) -> bool:
        """Whether there is a folder test, or test pictures are cut from all."""
        return bool(self._scan[1]["test"][0])

    @property
    def cuts_test(self) -> bool:
        """Whether the test pictures are cut from all, for there is no folder test."""
        return self.has_test and self._scan[1]["test"][0][0].parent.parent != self.root / "test"

    def load(self, split: Literal["train", "test"]) -> LabelledImages:
        """Decode all pictures of a split: uint8 (N, C, H, W) in [0, 255] and int64 (N,) in [0, K)."""
        files = self._files(split)
        return self._decode(files, torch.arange(len(files)))

    def _read(self, split: Split) -> LabelledImages | ImageFiles:
        in_memory = self.in_memory
        if in_memory is None:
            count = sum(len(paths) for paths, _ in self._scan[1].values())
            in_memory = count * torch.Size(self.image_shape).numel() <= _IN_MEMORY
            if not in_memory and not self.num_workers and split == "train":
                rank_zero_warn(
                    f"ImageFolder: {count:,} pictures are too many to be kept in memory, and one process decodes them "
                    "anew in each epoch: --data.num_workers 4 decodes with four, --data.in_memory true keeps them",
                    category=UserWarning,
                )
        return self.load(split) if in_memory else self._files(split)  # type: ignore[arg-type]

    def _files(self, split: Split) -> ImageFiles:
        paths, labels = self._scan[1].get(split, _NOTHING)
        if not paths and split == "test":
            raise ConfigError("ImageFolder: no test pictures, since --data.test_split is 0 and there is no folder test")
        if not paths:
            why = "all are for the test, by --data.test_split 1.0" if self.cuts_test else f"there is no folder {split}"
            raise ConfigError(f"ImageFolder: no {split} pictures in {self.root}: {why}")
        return ImageFiles([str(path) for path in paths], labels, self.image_shape, self.resize, self.strict)

    @cached_property
    def _facts(self) -> Facts:
        options = [self.image_shape, self.resize, _SAMPLE]
        return cached_facts(
            self._scan[1]["train"][0], options, lambda: statistics(self.sample("train", _SAMPLE).images)
        )

    @cached_property
    def _scan(self) -> tuple[tuple[str, ...], dict[Split, Listing]]:
        """Class names, and the pictures of each split; no "val" where there is none.

        What is cut depends on the names of the files: pictures that are added later must not reshuffle the split, for a
        test would then score pictures of the training. A fraction is a range of the names' order, validation next to
        the test, so that no picture of the training is ever held out later; a count takes more or fewer of a class as
        the classes grow.
        """
        if not self.root.is_dir():
            raise DatasetNotFoundError(
                f"ImageFolder: there is no folder {self.root}. Set --data.root to a folder that has one folder of "
                "pictures for each class"
            )
        inside = {folder.name for folder in _folders(self.root)}
        # Of pictures that are there to be scored alone, there may be a folder test and nothing else.
        split_folders = _folders(self.root / "train") != [] or (bool(inside) and inside <= {"val", "test"})
        first = next(name for name in ("train", "val", "test") if name in inside) if split_folders else ""
        # What is only scored may lack a class: its empty folder stands for it.
        scored = first in ("val", "test") or (isinstance(self.test_split, float) and self.test_split == 1)
        names, listed = _list_classes(self.root / first, may_be_empty=scored)
        found: dict[Split, Listing] = {"train": listed if first in ("train", "") else _NOTHING}
        for folder in _folders(self.root) if split_folders else []:
            if folder.name.lower() in _SPLIT_NAMES and folder.name not in ("val", "test"):
                raise DataError(
                    f"ImageFolder: {folder} is not looked into; the parts lie in train, val and test. Rename it or "
                    "move it"
                )
        for split in ("val", "test"):
            if split_folders and (self.root / split).is_dir():
                others, found[split] = _list_classes(self.root / split, may_be_empty=True)
                if others != names:
                    raise DataError(
                        f"ImageFolder: {self.root / split} and {self.root / first} must have the same class folders; "
                        f"only one of them has {', '.join(sorted(set(names) ^ set(others)))}. An empty folder stands "
                        "for a class of which there are no pictures to score"
                    )
        parts: dict[Split, int | float] = {"test": self.test_split, "val": self.val_split}
        below: float | None = 0.0
        for split, part in parts.items():
            if split in found or (split == "val" and not part):
                continue
            paths, labels = found["train"]
            if not paths:  # all of them are for the test
                found[split] = _NOTHING
                continue
            own = [f"{path.parent.name}/{path.name}" for path in paths]
            below = below + part * (1 - below) if below is not None and part < 1 else None
            stays, cut = stratified_split(labels, part, self.seed, f"--data.{split}_split", own, below)
            for to, chosen in (("train", stays), (split, cut)):
                found[to] = [paths[index] for index in chosen.tolist()], labels[chosen]  # type: ignore[index]  # a Split
        return names, found


def _folders(path: Path) -> list[Path]:
    """Visible folders inside of a folder, sorted; none if there is no such folder."""
    if not path.is_dir():
        return []
    return sorted(x for x in path.iterdir() if x.is_dir() and not x.name.startswith((".", "__MACOSX")))


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a link to one that is not there, which decoding then names."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _list_classes(root: Path, *, may_be_empty: bool) -> tuple[tuple[str, ...], Listing]:
    """Class names, and the pictures directly inside of each class folder, of which some may have none."""
    folders = _folders(root)
    if len(folders) < 2:
        inside = f"only one folder, {folders[0].name}" if folders else "no folders"
        raise DataError(
            f"ImageFolder: {root} has {inside}, but two classes or more are needed, with a folder of pictures each. "
            "Set --data.root to the folder that holds the class folders"
        )
    if "train" in (names := {folder.name.lower() for folder in folders}) and names & _SPLIT_NAMES:
        raise DataError(
            f"ImageFolder: {root} has the folders {', '.join(x.name for x in folders)}, which are not classes. "
            "Parts are named train, val and test, and have a folder of pictures for each class in them"
        )
    endings, unreadable = picture_extensions(), unreadable_extensions()
    paths: list[Path] = []
    labels: list[int] = []
    unknown: list[Path] = []
    for label, folder in enumerate(folders):
        files = sorted(x for x in folder.iterdir() if not x.name.startswith(".") and _is_file(x))
        pictures = [x for x in files if x.suffix.lower() in endings]
        unknown += [x for x in files if x.suffix.lower() in unreadable]
        nested = _folders(folder)
        if not pictures and (nested or not may_be_empty):
            raise DataError(
                f"ImageFolder: {folder} has no pictures"
                + (f", only folders ({', '.join(x.name for x in nested[:3])}, ...)" if nested else "")
                + ". Pictures must lie directly in the folder of their class; remove folders that are not classes"
            )
        if nested:
            rank_zero_warn(f"ImageFolder: the folders inside of {folder} are not looked into", category=UserWarning)
        paths += pictures
        labels += [label] * len(pictures)
    if not paths:
        raise DataError(f"ImageFolder: the class folders in {root} have no pictures")
    if unknown:
        kinds = ", ".join(sorted({x.suffix.lower() for x in unknown}))
        rank_zero_warn(
            f"ImageFolder: {root} has {len(unknown):,} pictures of kinds that cannot be read ({kinds}), which are left "
            "out: convert them to PNG or JPEG",
            category=UserWarning,
        )
    return tuple(folder.name for folder in folders), (paths, torch.tensor(labels))
