"""ImageDataModule: what all datasets share, from files on a disk to augmented batches on a device."""

import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from vision_zoo.data.decode import UNREADABLE, decoding_threads, resize_images
from vision_zoo.data.facts import evenly, per_channel
from vision_zoo.data.fetch import DOWNLOAD_ERRORS, fetch
from vision_zoo.data.loaders import AT_ONCE, Loader, joined
from vision_zoo.data.sources import Files, InMemory, OnDevice, Source, Subset
from vision_zoo.data.splits import check_part, read_fold, split_by_fold, stratified_split
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError, one_line, refuse
from vision_zoo.files import expanded
from vision_zoo.specs import plain
from vision_zoo.transforms import LabelledTransform, apply_transforms, check_transforms
from vision_zoo.types import Batch, ImageShape, Interpolation, LabelledImages, Sampler, Split, ValueRange

NO_NETWORK_NEEDED = "or use the images that need no network: --data MNIST5k"
# What readers of arrays, archives and pickles raise about damaged files, as those of images do.
_BROKEN: tuple[type[Exception], ...] = (
    *UNREADABLE,
    AttributeError,
    ImportError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_ANNOUNCED = 2_000  # images, which take seconds to minutes to decode
_STAGES: dict[str | None, tuple[Split, ...]] = {
    None: ("train", "val", "test"),
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class ImageDataModule(LightningDataModule):
    """Base of the datasets: a subclass states facts and writes `load`.

    A subclass with options of its own takes the others as ``**options`` and hands them to ``super().__init__``.

    Args:
        root: folder that holds the files, or where they are downloaded to.
        batch_size: images per batch, in each process.
        val_split: what is cut from the training images for validation, stratified by class: a fraction, a count, or 0
            for none. Not used where the dataset has validation images.
        seed: decides the splits and the order of the images in each epoch.
        image_size: side of the square that the images are resized to, or height and width: 96 128. By default they
            keep their own size.
        augmentation: random transforms of the training batches, on the device.
        num_workers: threads that decode image files ahead of the training, where the images are not in memory. By
            default one for each processor; 0 decodes in the thread that trains.
        mean: mean of each channel, as a fraction of full brightness; one value serves all channels. By default the
            published one; of your own images, that of the training images.
        std: standard deviation of each channel, like mean.
        shuffle: draw the training images in a new order in each epoch; otherwise in file order.
        interpolation: how images are resized, bilinear or bicubic. By default bilinear, or as for the pretrained
            weights.
        sampler: balanced draws each class equally often: as many images per epoch as without, those of a small class
            several times, each as often as the others or once more; of a large class other ones in each epoch. By
            default each image is drawn once per epoch.
        fold: for cross-validation: 2/5 trains with all but the second of five parts of the training images and
            validates on that. Every image is in one part; they have as many of each class, and keep the groups of a
            table together. Then val_split is not used.
        device: keep the images on the device that computes, such as a GPU, where batches are then picked; for images
            that are in memory. Results stay the same.
    """

    class_names: tuple[str, ...]  # a name for each label
    image_shape: ImageShape  # (channels, height, width) of every image
    mean: tuple[float, ...]  # of each channel of the training images, in [0, 1]
    std: tuple[float, ...]  # likewise
    value_range: ValueRange = None  # what becomes 0 and 255 in images that are not 8 bits; None where all are
    note: str = ""  # how the files that were read differ from the published ones, where that is known
    in_memory: bool | None = None  # whether image files are decoded once and kept; None: where they are few
    has_val: bool = False  # whether `load` knows a split "val", so that none is cut from train
    has_test: bool = True  # whether there are test images
    cuts_test: bool = False  # whether they are cut from those of training, as test_split says

    folder: ClassVar[str] = ""  # below root, where the files are
    names: Mapping[str, Sequence[str]] = {}  # of the files of "train" and "test"
    endings: Sequence[str] = ("",)  # of the names; a file with any of them will do
    torchvision_class: ClassVar[Callable[..., object]]  # which downloads them
    torchvision_options: Sequence[Mapping[str, object]] = ({},)  # of its calls
    way_out = f"Delete the broken files to download them again, set --data.root to a good copy, {NO_NETWORK_NEEDED}"

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        val_split: int | float = 0.1,
        seed: int = 0,
        image_size: int | tuple[int, int] | None = None,
        augmentation: list[nn.Module] | None = None,
        num_workers: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        shuffle: bool = True,
        interpolation: Interpolation | None = None,
        sampler: Sampler = None,
        fold: str | None = None,
        device: bool = False,
        _class_path: str | None = None,  # of the options in a checkpoint, which Lightning hands on
    ) -> None:
        super().__init__()
        self.root = expanded(root).absolute()
        self.batch_size, self.seed = batch_size, seed
        self.image_size: Any = image_size
        self.augmentation = list(augmentation or [])
        self.num_workers, self.shuffle = num_workers, shuffle
        self.interpolation: Interpolation = interpolation or "bilinear"
        self.sampler: Sampler = sampler
        self.device = device
        self._subsets: dict[Split, Subset] = {}
        self._on_device: dict[tuple[Source, torch.device], OnDevice] = {}
        for name, least in {"batch_size": 1, "image_size": 1, "seed": 0, "num_workers": 0}.items():
            value = getattr(self, name)
            small = value is not None and min(value if isinstance(value, Sequence) else [value]) < least
            refuse(ConfigError, (small, f"--data.{name} must be at least {least}, got {value}"))
        unknown = f"--data.sampler must be balanced, or null for each image once, got {sampler}"
        ordered = "--data.sampler balanced draws another order in each epoch: leave out --data.shuffle false"
        refuse(ConfigError, (sampler not in (None, "balanced"), unknown), (sampler and not shuffle, ordered))
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size  # (height, width)
        for it in self.augmentation:  # such as the description in a checkpoint, which Lightning passes on
            message = f"--data.augmentation: {it} cannot be applied to images; give a module"
            refuse(ConfigError, (not callable(it), message))
        check_part(val_split, "--data.val_split")
        self.fold = fold
        self.val_split = val_split if fold is None else 1 / read_fold(fold)[1]
        self._take_facts(mean, std)
        # Plain values: objects in a checkpoint would need trust to be loaded.
        self.save_hyperparameters(logger=False)
        self.hparams["root"] = str(self.root)
        self.hparams["augmentation"] = plain(self.hparams.get("augmentation"))
        own_path = f"{type(self).__module__}.{type(self).__qualname__}"
        self.hparams["_class_path"] = self.hparams.get("_class_path") or own_path

    def _take_facts(self, mean: list[float] | None, std: list[float] | None) -> None:
        """Let the options override the constants of the class."""
        channels = self.image_shape[0]
        if self.image_size is not None:
            self.image_shape = (channels, *self.image_size)
        if mean is not None:
            self.mean = per_channel("mean", mean, channels)
        if std is not None:
            self.std = per_channel("std", std, channels)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def sizes(self) -> dict[str, int]:
        """How many images each split that was set up has."""
        return {split: len(subset.indices) for split, subset in self._subsets.items()}

    @property
    def class_counts(self) -> Tensor:
        """How many training images each class has, int64 (K,), without those that are held out for validation."""
        source, indices = self.subset("train")
        return source.labels[indices].bincount(minlength=self.num_classes)

    def load(self, split: Split) -> LabelledImages:
        """Images, uint8 (N, C, H, W) or (N, H, W), and labels, int (N,) in [0, K), also arrays. "val" if `has_val`."""
        raise ConfigError(f"{type(self).__name__} must define load(split), which gives images and labels")

    def download(self, root: Path) -> None:
        """Fetch the files into a root of their own; may raise what is in `fetch.DOWNLOAD_ERRORS`."""
        for options in self.torchvision_options:
            type(self).torchvision_class(root, download=True, **options)

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
            raise DatasetNotFoundError(self._not_found(f" and the download failed ({one_line(error)})")) from error
        refuse(DatasetNotFoundError, (self._missing(), self._not_found(" after the download")))

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs, once: fit and validate never read the test images.

        Raises:
            DatasetNotFoundError: if files are missing.
            DataError: if files are broken or do not fit the dataset.
            ConfigError: if the images cannot be split as the options say.
        """
        own = f"--data.fold {self.fold} would not use the validation images that {type(self).__name__} has: join them"
        refuse(ConfigError, (self.fold and self._own_val, f"{own} with those of training, or leave it out"))
        for split in _STAGES[stage]:
            if split in self._subsets:
                continue
            if split == "test" or self.has_val:
                source = self._read(split)
                self._subsets[split] = Subset(source, torch.arange(len(source)))
            else:
                source = self._read("train")
                if self.fold is None:
                    train, val = stratified_split(source.labels, self.val_split, self.seed, "--data.val_split")
                else:
                    train, val = split_by_fold(source.labels, self.fold, self.seed)
                self._subsets |= {"train": Subset(source, train), "val": Subset(source, val)}

    @property
    def _own_val(self) -> bool:
        return self.has_val

    def train_dataloader(self) -> Loader:
        """Batches of the training images, in a new order after each set_epoch, which a Trainer calls."""
        return self.loader("train", training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Batches of the validation images; an empty list when there are none."""
        return self.loader("val") if len(self.subset("val").indices) else []

    def test_dataloader(self) -> Loader:
        """Batches of the test images."""
        return self.loader("test")

    predict_dataloader = test_dataloader

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment a training batch, on the device that it was moved to."""
        if not self.augmentation or self.trainer is None or not self.trainer.training:
            return batch
        images, labels = batch
        return apply_transforms(self.augmentation, images, labels, self.num_classes, self.trainer.current_epoch)

    @property
    def mixes_labels(self) -> bool:
        """Whether training batches come with probabilities, float (B, K), for labels."""
        return any(isinstance(transform, LabelledTransform) for transform in self.augmentation)

    def check_augmentation(self) -> None:
        """Refuse an augmentation that cannot be used, before any work; see `check_transforms`."""
        check_transforms(self.augmentation, self.image_shape, self.num_classes)

    def split_images(self, split: Split) -> LabelledImages:
        """All images of a split, in file order and without augmentation; raises what `setup` does."""
        return self._gather(*self.subset(split))

    def sample(self, split: Split, count: int) -> LabelledImages:
        """Up to `count` images, evenly spaced over a split; of files not kept in memory only these are read."""
        source, indices = self.subset(split)
        return self._gather(source, evenly(indices, count))

    def subset(self, split: Split) -> Subset:
        """One split, read if need be; raises what `setup` does."""
        if split not in self._subsets:
            self.setup({"train": "fit", "val": "validate"}.get(split, split))
        return self._subsets[split]

    def subsets(self) -> dict[Split, Subset]:
        """Every split that has images."""
        self.setup("fit")
        there = {"train": True, "val": bool(self.sizes["val"]), "test": self.has_test}
        return {split: self.subset(split) for split in get_args(Split) if there[split]}

    def _gather(self, source: Source, indices: Tensor) -> LabelledImages:
        """These images, without the files that cannot be decoded."""
        return joined(self._by_parts(source, indices), len(indices))

    def _by_parts(self, source: Source, indices: Tensor) -> Iterator[LabelledImages]:
        """These images, some at a time, without the files that cannot be decoded."""
        nothing = "This split has no images: --data.val_split is 0, so that nothing is held out"
        refuse(ConfigError, (not len(indices), nothing))
        if isinstance(source, Files) and len(indices) > _ANNOUNCED:
            rank_zero_only(print)(f"decoding {len(indices):,} images of {self.root}", file=sys.stderr)
        count, threads = 0, decoding_threads() if isinstance(source, Files) else 0
        for images, labels in Loader(source, indices, AT_ONCE, threads):
            count += len(labels)
            yield LabelledImages(images, labels)
        broken = f"{type(self).__name__}: no file in {self.root} can be decoded. {self.way_out}"
        refuse(DataError, (not count, broken))

    def loader(self, split: Split, training: bool = False) -> Loader:
        """Batches of a split; to train, as `Loader` says."""
        (source, indices), trainer = self.subset(split), self.trainer
        rank, processes = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        few = f"{len(indices)} {'training' if training else split} images are too few for {processes} processes"
        # A process without images would leave the others waiting for its counts.
        refuse(ConfigError, (len(indices) < processes, f"{few}: each needs one. Set --trainer.devices lower"))
        per_device = decoding_threads(getattr(trainer, "num_devices", 1))
        threads = 0 if isinstance(source, InMemory) else per_device if self.num_workers is None else self.num_workers
        shuffle = training and self.shuffle and not getattr(trainer, "overfit_batches", 0)
        order = (shuffle, self.sampler == "balanced", self.seed)
        if self.device and trainer:
            key = source, trainer.strategy.root_device
            source = self._on_device.setdefault(key, OnDevice(*key))
        return Loader(source, indices, self.batch_size, threads, training, *order, rank, processes)

    def _read(self, split: Split) -> Source:
        """Load a split, check it and bring it to `image_shape`."""
        refuse(DatasetNotFoundError, (self._missing(), self._not_found("")))
        images, labels = map(torch.as_tensor, self.load(split))
        images = images[:, None] if images.ndim == 3 else images  # gray
        name, where = type(self).__name__, self.hparams.get("path") or self.root / self.folder
        channels = images.shape[1] if images.ndim > 1 else 0
        low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        needed, classes = self.image_shape[0], self.num_classes
        of_labels = f"{split} labels from {low} to {high}, but the {classes} classes have 0 to {classes - 1}"
        problems = (
            (len(images) != len(labels), f"{len(images)} {split} images but {len(labels)} labels"),
            (not len(images), f"no {split} images"),
            (images.dtype != torch.uint8, f"{split} images of {images.dtype}, where uint8 in [0, 255] is needed"),
            (channels != needed, f"{split} images of {channels} channel(s), where {needed} are needed"),
            (labels.is_floating_point(), f"{split} labels of {labels.dtype}, where whole numbers are needed"),
            (low < 0 or high >= classes, of_labels),
        )
        own = type(self).way_out is ImageDataModule.way_out and not self.names
        way_out = "Correct what its load gives" if own else self.way_out
        refuse(DataError, *((wrong, f"{name}: {message}, in {where}. {way_out}") for wrong, message in problems))
        return InMemory(resize_images(images, self.image_shape, self.interpolation), labels.long())

    def _missing(self) -> list[str]:
        place = self.root / self.folder
        wanted = [name for names in self.names.values() for name in names]
        return [name for name in wanted if not any((place / f"{name}{x}").is_file() for x in self.endings)]

    def _not_found(self, reason: str) -> str:
        place = f"Put them there, or set --data.root to the folder that holds {self.folder or 'them'}"
        missing = f"{type(self).__name__}: {', '.join(self._missing())} not found under {self.root / self.folder}"
        return f"{missing}{reason}. {place}, {NO_NETWORK_NEEDED}"

    @contextmanager
    def _reading(self, path: Path, *more: type[Exception]) -> Iterator[None]:
        """Turn what a reader raises about a broken file, the errors of `_BROKEN` or more, into one message."""
        try:
            yield
        except (*_BROKEN, *more) as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{type(self).__name__}: {path} is broken ({reason}). {self.way_out}") from error
