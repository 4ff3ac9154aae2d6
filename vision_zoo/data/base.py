"""ImageDataModule: what all data sets share, from files on a disk to augmented batches on a device."""

import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from vision_zoo.data.decode import ImageFiles, decoding_threads
from vision_zoo.data.fetch import DOWNLOAD_ERRORS, fetch
from vision_zoo.data.loaders import Loader, StreamLoader, TensorLoader
from vision_zoo.data.splits import check_part, stratified_split
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError, InputError
from vision_zoo.files import expanded
from vision_zoo.specs import import_path
from vision_zoo.transforms import apply_transforms
from vision_zoo.types import Batch, ImageShape, LabelledImages, Split

NO_NETWORK_NEEDED = "or use the images that need no network: --data MNIST5k"
_SAID_FROM = 2_000  # pictures, which take seconds to minutes to decode
_STAGES: dict[str | None, tuple[Literal["train", "test"], ...]] = {
    None: ("train", "test"),
    "fit": ("train",),
    "validate": ("train",),
    "test": ("test",),
    "predict": ("test",),
}


@dataclass(frozen=True)
class Part:
    """One split: where its images are, and which of them belong to it.

    Attributes:
        data: images in memory or in files, shared with the other part that is cut from the same source.
        indices: int64 (N,), in file order.
    """

    data: LabelledImages | ImageFiles
    indices: Tensor


class ImageDataModule(LightningDataModule):
    """Base of the data sets: a subclass states facts and writes `load`.

    Args:
        root: folder that holds the files, or where they are downloaded to.
        batch_size: images per batch, in each process.
        val_split: what is cut from the training images for validation, stratified by class: a fraction, a count, or 0
            for none.
        seed: decides the split and the order of the images in each epoch.
        image_size: height and width that the images are resized to. By default they keep their own.
        augmentation: random transforms of the training batches, on the device.
        num_workers: processes that decode image files while training; data sets in memory need none.
        mean: mean of each channel, as a fraction of full brightness; one value serves all channels. By default the
            published one.
        std: standard deviation of each channel, like mean.
        shuffle: draw the training images in a new order in each epoch; otherwise in file order.

    Attributes:
        class_names: a name for each label.
        image_shape: (channels, height, width) of every image.
        mean: mean of each channel of the training images, in [0, 1].
        std: standard deviation of each channel of the training images, in [0, 1].
        note: how the files that were read differ from the published ones; empty where they do not, or nobody knows.
    """

    class_names: tuple[str, ...]
    image_shape: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""

    folder: ClassVar[str] = ""  # below root, where the files are
    way_out: ClassVar[str] = (
        "Delete the broken files so that they are downloaded again, set --data.root to a good copy, "
        f"{NO_NETWORK_NEEDED}"
    )

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
    ) -> None:
        super().__init__()
        self.root = expanded(root).absolute()
        self.batch_size = at_least(1, "batch_size", batch_size)
        self.val_split = val_split
        self.seed = at_least(0, "seed", seed)
        self.image_size = None if image_size is None else at_least(1, "image_size", image_size)
        self.augmentation = list(augmentation or [])
        for transform in self.augmentation:
            if not callable(transform):  # such as the description in a checkpoint, which Lightning passes on
                raise ConfigError(f"--data.augmentation: {transform} cannot be applied to images; give a module")
        self.num_workers = at_least(0, "num_workers", num_workers)
        self.shuffle = shuffle
        check_part(val_split, "--data.val_split")
        self._parts: dict[Split, Part] = {}
        self._take_facts(mean, std)
        self._describe()

    def _take_facts(self, mean: list[float] | None, std: list[float] | None) -> None:
        """Let the options override the constants of the class."""
        if self.image_size is not None:
            self.image_shape = (self.image_shape[0], self.image_size, self.image_size)
        if mean is not None:
            self.mean = per_channel("mean", mean, self.image_shape[0])
        if std is not None:
            self.std = per_channel("std", std, self.image_shape[0])

    def _describe(self) -> None:
        """Keep the options as plain values: objects in a checkpoint would need trust to be loaded."""
        self.save_hyperparameters(logger=False)
        self.hparams["root"] = str(self.root)
        transforms = self.hparams.get("augmentation")
        self.hparams["augmentation"] = transforms and [_described(transform) for transform in transforms]
        self.hparams.setdefault("_class_path", f"{type(self).__module__}.{type(self).__qualname__}")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def has_val(self) -> bool:
        """Whether `load` knows a split "val", so that none is cut from train."""
        return False

    @property
    def has_test(self) -> bool:
        """Whether there are test images."""
        return True

    @property
    def cuts_test(self) -> bool:
        """Whether the test images are cut from those of training, as test_split says."""
        return False

    @property
    def sizes(self) -> dict[str, int]:
        """How many images each split that was set up has."""
        return {split: len(part.indices) for split, part in self._parts.items()}

    # What a data set writes.

    def load(self, split: Literal["train", "test"]) -> LabelledImages:
        """Read all images of a split: uint8 (N, C, H, W) in [0, 255] and int64 (N,) in [0, K)."""
        raise NotImplementedError

    def files(self) -> Sequence[str]:
        """Names of the files that must be there, below root/folder; alternatives are separated by a bar."""
        return ()

    def download(self, root: Path) -> None:
        """Fetch the files into a root of their own, with torchvision's data set of the same name.

        The exceptions in `fetch.DOWNLOAD_ERRORS` become a clean message; any other is shown as a bug.
        """
        raise NotImplementedError

    # What Lightning calls.

    def prepare_data(self) -> None:
        """Download what is missing; called in one process per machine.

        Raises:
            DatasetNotFoundError: if files are missing and cannot be downloaded.
        """
        if not self._missing():
            return
        try:
            fetch(self.download, self.root, self._missing)
        except DOWNLOAD_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._not_found(f" and the download failed ({reason})") from error
        if self._missing():
            raise self._not_found(" after the download")

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs, once: fit and validate never read the test images.

        Raises:
            DatasetNotFoundError: if files are missing.
            DataError: if files are broken or do not fit the data set.
            ConfigError: if the images cannot be split as the options say.
        """
        if stage == "validate" and self.has_val:
            if "val" not in self._parts:
                self._parts["val"] = self._whole("val")
            return
        for source in _STAGES[stage]:
            if source in self._parts:
                continue
            if source == "test":
                self._parts["test"] = self._whole("test")
            elif self.has_val:
                train = self._whole("train")
                self._parts["val"] = self._parts.get("val") or self._whole("val")
                self._parts["train"] = train
            else:
                data = self._read("train")
                train_indices, val_indices = stratified_split(
                    data.labels, self.val_split, self.seed, "--data.val_split"
                )
                self._parts["train"] = Part(data, train_indices)
                self._parts["val"] = Part(data, val_indices)

    def train_dataloader(self) -> Loader:
        """Batches of the training images, in a new order in each epoch."""
        loader = self._loader("train", training=True)
        if not len(loader):
            raise ConfigError(
                f"{len(self._parts['train'].indices)} training images are too few for {loader.world_size} processes"
            )
        return loader

    def val_dataloader(self) -> Loader | list[Loader]:
        """Batches of the validation images; an empty list when there are none."""
        self._ensure("val")
        return self._evaluation_loader("val") if len(self._parts["val"].indices) else []

    def test_dataloader(self) -> Loader:
        """Batches of the test images."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> Loader:
        """Batches of the test images."""
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment a training batch, on the device that it was moved to."""
        if not self.augmentation or self.trainer is None or not self.trainer.training:
            return batch
        images, labels = batch
        return apply_transforms(self.augmentation, images), labels

    def check_augmentation(self) -> None:
        """Apply the augmentation to two black images, so that one that cannot be used is refused before any work.

        Raises:
            ConfigError: if a transform fails, or changes the shape or the type of the images.
        """
        if not self.augmentation:
            return
        try:
            with torch.random.fork_rng(devices=[]):  # the run's own draws stay what they are
                apply_transforms(self.augmentation, torch.zeros(2, *self.image_shape, dtype=torch.uint8))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ConfigError(f"--data.augmentation fails on images of shape {self.image_shape}: {error}") from error

    # What commands other than fit and test use.

    def split_images(self, split: Split) -> LabelledImages:
        """All images of a split, in file order and without augmentation.

        Raises:
            ConfigError: if the split has no images.
            InputError: if they cannot be read, see `setup`.
        """
        self._ensure(split)
        part = self._parts[split]
        return self._gather(part, part.indices)

    def sample(self, split: Split, count: int) -> LabelledImages:
        """Up to `count` images, evenly spaced over a split; of files not kept in memory only these are read.

        Raises:
            ConfigError: if the split has no images.
            InputError: if they cannot be read, see `setup`.
        """
        self._ensure(split)
        part = self._parts[split]
        places = torch.linspace(0, max(len(part.indices) - 1, 0), min(count, len(part.indices))).round().long()
        return self._gather(part, part.indices[places])

    # Inside.

    def _whole(self, split: Split) -> Part:
        data = self._read(split)
        return Part(data, torch.arange(len(data.labels)))

    def _ensure(self, split: Split) -> None:
        if split not in self._parts:
            self.setup({"train": "fit", "val": "validate", "test": "test"}[split])

    def _gather(self, part: Part, indices: Tensor) -> LabelledImages:
        if not len(indices):
            raise ConfigError("This split has no images: --data.val_split is 0, so that nothing is held out")
        if isinstance(part.data, ImageFiles):
            return self._decode(part.data, indices)
        return LabelledImages(part.data.images[indices], part.data.labels[indices])

    def _decode(self, files: ImageFiles, indices: Tensor) -> LabelledImages:
        if len(indices) > _SAID_FROM:
            rank_zero_only(print)(f"decoding {len(indices):,} pictures of {self.root}", file=sys.stderr)
        loader, done = StreamLoader(files, indices, 64), 0
        images = torch.empty((len(indices), *files.image_shape), dtype=torch.uint8)
        labels = torch.empty(len(indices), dtype=torch.int64)
        pool = ThreadPoolExecutor(decoding_threads(), "decode")
        try:
            batches = [batch.tolist() for batch in loader.batches()]
            for part, part_labels, failures in pool.map(files.__getitem__, batches):
                loader.report(failures)
                images[done : done + len(part)], labels[done : done + len(part)] = part, part_labels
                done += len(part)
        finally:
            pool.shutdown(cancel_futures=True)
        if not done:
            raise DataError(f"{type(self).__name__}: no file in {self.root} can be decoded. {self.way_out}")
        return LabelledImages(images[:done], labels[:done])

    def _evaluation_loader(self, split: Split) -> Loader:
        loader = self._loader(split)
        if len(loader.indices) < loader.world_size:  # one without images would leave the others waiting for its counts
            raise ConfigError(
                f"{len(loader.indices)} {split} images are too few for {loader.world_size} processes: each needs one. "
                "Set --trainer.devices lower"
            )
        return loader

    def _loader(self, split: Split, training: bool = False) -> Loader:
        self._ensure(split)
        part, trainer = self._parts[split], self.trainer
        order: dict[str, Any] = {
            "training": training,
            "shuffle": training and self.shuffle and not getattr(trainer, "overfit_batches", 0),
            "seed": self.seed,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
        }
        if isinstance(part.data, ImageFiles):
            return StreamLoader(part.data, part.indices, self.batch_size, self.num_workers, **order)
        return TensorLoader(part.data, part.indices, self.batch_size, **order)

    def _read(self, split: Split) -> LabelledImages | ImageFiles:
        """Load a split, check it and bring it to `image_shape`."""
        if self._missing():
            raise self._not_found("")
        images, labels = self.load(split)  # type: ignore[arg-type]  # "val" only where has_val says so
        return self._checked(images, labels, split)

    def _checked(self, images: Tensor, labels: Tensor, split: Split) -> LabelledImages:
        name, where = type(self).__name__, self.hparams.get("path") or self.root / self.folder
        if len(images) != len(labels):
            raise DataError(f"{name}: {len(images)} {split} images but {len(labels)} labels in {where}. {self.way_out}")
        if not len(images):
            raise DataError(f"{name}: no {split} images in {where}. {self.way_out}")
        if images.shape[1] != self.image_shape[0]:
            raise DataError(
                f"{name}: the {split} images in {where} have {images.shape[1]} channel(s), where {self.image_shape[0]} "
                f"are needed. {self.way_out}"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(
                f"{name}: {split} labels from {low} to {high} in {where}, but the {self.num_classes} classes have "
                f"0 to {self.num_classes - 1}. {self.way_out}"
            )
        return LabelledImages(resize_images(images, self.image_shape), labels)

    def _missing(self) -> list[str]:
        folder = self.root / self.folder
        return [
            names.split("|")[0]
            for names in self.files()
            if not any((folder / name).is_file() for name in names.split("|"))
        ]

    def _place_for_them(self) -> str:
        if not self.folder:
            return "Set --data.root to a folder that has them"
        return f"Put them there, or set --data.root to the folder that holds {self.folder}"

    def _not_found(self, reason: str) -> DatasetNotFoundError:
        return DatasetNotFoundError(
            f"{type(self).__name__}: {', '.join(self._missing())} not found under {self.root / self.folder}{reason}. "
            f"{self._place_for_them()}, {NO_NETWORK_NEEDED}"
        )

    @contextmanager
    def _reading(self, path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
        """Turn what a reader raises about a broken file into one message."""
        try:
            yield
        except errors as error:
            raise DataError(
                f"{type(self).__name__}: {path} is broken ({str(error) or type(error).__name__}). {self.way_out}"
            ) from error


def at_least(lowest: int, option: str, value: int) -> int:
    """Return the value, or refuse it by its name on the command line."""
    if value < lowest:
        raise ConfigError(f"--data.{option} must be at least {lowest}, got {value}")
    return value


def per_channel(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel, or refuse the list by its name on the command line."""
    if len(values) not in (1, channels):
        raise ConfigError(
            f"--data.{option} has {len(values)} values, but the images have {channels} channel(s): give one value, or "
            "one for each channel"
        )
    if not all(math.isfinite(value) for value in values):
        raise ConfigError(f"--data.{option} must be finite, got {list(values)}")
    if option == "std" and min(values) <= 0:
        raise ConfigError(f"--data.std must be positive, got {list(values)}")
    return tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)


def resize_images(images: Tensor, image_shape: ImageShape) -> Tensor:
    """Bring uint8 (N, C, H, W) to the height and width of image_shape, antialiased, in pieces that fit the memory."""
    if images.shape[2:] == image_shape[1:]:
        return images.contiguous()
    resized = images.new_empty((len(images), *image_shape))
    for source, target in zip(torch.split(images, 1024), torch.split(resized, 1024), strict=True):
        target.copy_(TF.resize(source, list(image_shape[1:]), antialias=True))
    return resized


def _described(transform: object) -> object:
    """A module as {class_path, init_args}, as far as its attributes tell; what is plain already stays."""
    if isinstance(transform, (list, tuple, nn.ModuleList)):
        return [_described(item) for item in transform]
    if not isinstance(transform, nn.Module):
        return transform
    plain = (bool, int, float, str, list, tuple, nn.ModuleList, type(None))
    options = {name: getattr(transform, name, ...) for name in inspect.signature(type(transform)).parameters}
    return {
        "class_path": f"{type(transform).__module__}.{type(transform).__qualname__}",
        "init_args": {name: _described(value) for name, value in options.items() if isinstance(value, plain)},
    }


def described_data(config: Mapping[str, Any]) -> ImageDataModule | None:
    """The data module that a checkpoint's configuration describes, without its augmentation.

    Args:
        config: of a run, vetted; see `vision_zoo.checkpoints.Checkpoint`.

    Returns:
        The data module, whose files are not looked at; None if the configuration names none, or one that cannot be
        made here.
    """
    spec = config.get("data")
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return None
    options = {name: value for name, value in (spec.get("init_args") or {}).items() if name != "augmentation"}
    try:
        module = import_path(spec["class_path"])(**options)
    except (InputError, TypeError):
        return None
    return module if isinstance(module, ImageDataModule) else None
