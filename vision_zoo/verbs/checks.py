"""What would fail late, or score the wrong thing, is refused before any work, with a ConfigError unless it says so."""

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import CheckpointError, ConfigError, did_you_mean, refuse
from vision_zoo.trainer_facts import callbacks_of
from vision_zoo.trust import TRUSTED_PACKAGES

# Options of the trainer of which 0 leaves nothing to train on.
NOT_ZERO = ("max_epochs", "max_steps", "limit_train_batches")


def check_fit(
    options: Mapping[str, Any], datamodule: ImageDataModule, test_after_fit: bool, save_every_minutes: float
) -> None:
    """Refuse options of the trainer and of fit that leave nothing to train on or to test."""
    name, nothing = type(datamodule).__name__, "is 0, so that nothing would be"
    out = "leave the test out with --test_after_fit false"
    no_test = f"{name} has no test images: {out}; where they come from: vision_zoo fit --data.help {name}"
    zeros = [o for o in NOT_ZERO if options.get(o) == 0 and options.get(o) is not False]
    time = options.get("max_time")
    no_time = isinstance(time, str) and re.fullmatch("0+(:0+)+", time) is not None
    not_scored = test_after_fit and options.get("limit_test_batches") == 0
    refuse(
        ConfigError,
        *((True, f"--trainer.{option} {nothing} trained: set it to at least 1") for option in zeros),
        (save_every_minutes <= 0, f"--save_every_minutes must be positive, got {save_every_minutes}"),
        (no_time, f"--trainer.max_time {nothing} trained: set it higher"),
        (test_after_fit and not datamodule.has_test, no_test),
        (not_scored, f"--trainer.limit_test_batches {nothing} scored: set it higher, or {out}"),
    )


def check_known(options: Mapping[str, Any], datamodule: ImageDataModule, share: float | None) -> None:
    """Refuse a share of known images that no threshold can give, and a threshold that nothing can be fitted on."""
    if share is None:
        return
    what = f"--known must be a share above 0 and below 1, such as 0.95, got {share}"
    needs = "--known fits its threshold on validation images, and --data.val_split is 0, so that there are none"
    unkept = "--known is kept in the checkpoint, and --trainer.enable_checkpointing false leaves none: leave one out"
    refuse(
        ConfigError,
        (not 0 < share < 1, what),
        (not (datamodule.val_split or datamodule.has_val), f"{needs}: set it to 0.1, or leave out --known"),
        (options.get("enable_checkpointing") is False, unkept),
    )


def check_share(trainer: Trainer, datamodule: ImageDataModule) -> None:
    """Refuse a share of the test batches that is less than one; Lightning would after the training."""
    share = trainer.limit_test_batches
    if isinstance(share, float) and 0 < share < 1:  # only then the test images are counted before
        datamodule.prepare_data()
        datamodule.setup("test")
        batches = math.ceil(max(datamodule.sizes["test"] // trainer.world_size, 1) / datamodule.batch_size)
        less = f"--trainer.limit_test_batches {share} of {batches} is less than one batch: set it to {1 / batches:.3g}"
        refuse(ConfigError, (int(share * batches) < 1, f"{less} at least, or to a number of batches"))


def check_strategy(trainer: Trainer, test_after_fit: bool, known: float | None = None) -> None:
    """Refuse the final test, and the fit of a threshold, of a network that lies in pieces."""
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    what = f"{type(trainer.strategy).__name__} shards the network, which can only be tested whole"
    way_out = "set --test_after_fit false, and test the best checkpoint on one device"
    unfit = f"{type(trainer.strategy).__name__} shards the network, and --known needs it whole: leave --known out"
    refuse(ConfigError, (test_after_fit and not whole, f"{what}: {way_out}"), (known is not None and not whole, unfit))


def check_monitors(trainer: Trainer, model: Classifier, datamodule: ImageDataModule) -> None:
    """Refuse callbacks that wait for a metric which no run has, such as val_loss for val/loss, or take the worst."""
    callbacks = callbacks_of(trainer)
    if any(type(callback).__module__.split(".")[0] not in TRUSTED_PACKAGES for callback in callbacks):
        return  # one of the user's own may log anything
    validates = (datamodule.val_split or datamodule.has_val) and trainer.limit_val_batches
    none = "--trainer.limit_val_batches is 0" if datamodule.val_split else "--data.val_split is 0"
    known = ["epoch", "step", "lr", "train/loss_step", *map(str, model.train_metrics.keys())]
    known += map(str, model.val_metrics.keys() if validates else ())
    there_are = f". There are {', '.join(known)}"
    for callback in callbacks:
        wanted, option = getattr(callback, "monitor", None), f"--trainer.callbacks {type(callback).__name__}"
        filename = callback.filename or "" if isinstance(callback, ModelCheckpoint) else ""
        for name in re.findall(r"{([^:}]*)", filename):  # Lightning writes 0 for what there is not
            unknown = f"{option}: its filename {filename} has {name}, which is no metric"
            refuse(ConfigError, (name not in known, f"{unknown}{did_you_mean(name, known) or there_are}"))
        try:  # to write it: epoch and step are whole numbers
            if isinstance(callback, ModelCheckpoint):
                callback.format_checkpoint_name(cast(Any, {**dict.fromkeys(known, 0.5), "epoch": 0, "step": 0}))
        except (ValueError, LookupError) as error:
            raise ConfigError(f"{option}: its filename {filename} cannot be written: {error}") from error
        if not isinstance(wanted, str):
            continue
        instead = did_you_mean(wanted, known) or there_are
        if wanted.startswith("val/") and not validates:
            instead = f", for nothing is validated: {none}"
        better, worst = ("min", "highest") if "loss" in wanted else ("max", "lowest")
        wrong_mode = "/" in wanted and getattr(callback, "mode", better) not in (better, "auto")
        best = f"it takes the {worst} {wanted} for the best: set --trainer.callbacks.mode {better}"
        refuse(
            ConfigError,
            (wanted not in known, f"{option}: there is no metric {wanted}{instead}"),
            (wrong_mode, f"{option}: {best}"),
        )


def check_data(model: Classifier, datamodule: ImageDataModule) -> None:
    """Refuse data that the network was not built for.

    Raises:
        CheckpointError: if image shape or number of classes differ, or both have names for them, and other ones.
    """
    name, (channels, height, width) = type(datamodule).__name__, model.image_shape
    turns = "" if datamodule.image_shape[0] == channels else f"--data.channels {channels} "
    can_turn, size = not turns or "channels" in datamodule.hparams, f"{height}{f' {width}' * (width != height)}"
    resize = f"set {turns}--data.image_size {size}" if can_turn else "choose another --data"

    option, where, rename = "--data", "", "Choose"
    named = isinstance(getattr(type(datamodule), "class_names", None), tuple)
    if not named:  # they come from its files
        option = "--data.path" if "path" in datamodule.hparams else "--data.root"
        where, rename = f" in {data_place(datamodule)}", "Rename them, or choose"
    ours, theirs = model.class_names, tuple(datamodule.class_names)
    differ = ", ".join(sorted(set(ours) ^ set(theirs))[:5])
    numbered = tuple(map(str, range(len(ours))))  # stands for classes without names
    reordered = set(ours) == set(theirs)  # such as folders 0, 1, 10, 2, which are sorted as text
    without = (ours, theirs)[: 2 - named]  # the digits of a known data set are their names
    other_names = ours != theirs and (reordered or numbered not in without)
    known, found = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), ("", ""))
    shapes = f"the checkpoint's network takes images of shape {model.image_shape}, {name} has {datamodule.image_shape}"
    counts = f"the checkpoint knows {len(ours)} classes, {name} has {len(theirs)}{where}"
    classes = f"the classes of {name}{where} are not those of the checkpoint"
    refuse(
        CheckpointError,
        (datamodule.image_shape != model.image_shape, f"{shapes}: {resize}"),
        (len(ours) != len(theirs), f"{counts} (only one of them has {differ}): choose another {option}"),
        (other_names, f"{classes}: it has {found!r} where the checkpoint knows {known!r}. {rename} another {option}"),
    )


def data_place(datamodule: ImageDataModule) -> str:
    """The folder or file that the images come from."""
    return str(datamodule.hparams.get("path") or datamodule.root)
