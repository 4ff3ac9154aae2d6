"""What would fail late, or score the wrong thing, is refused before any work."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import CheckpointError, ConfigError, did_you_mean, refuse
from vision_zoo.specs import listed
from vision_zoo.trainer_facts import callbacks_of
from vision_zoo.trust import TRUSTED_PACKAGES

# Options of the trainer of which 0 leaves nothing to train on.
NOT_ZERO = ("accumulate_grad_batches", "max_epochs", "max_steps", "limit_train_batches", "log_every_n_steps")
SOME_CLASSES = {  # what else helps where the data lack some of the classes
    "--data.root": ", or make an empty folder for a class of which there are no images to score",
    "--data.path": ", or name all classes in class_names, or in a table by rows without a file",
}


def check_fit(
    options: Mapping[str, Any], datamodule: ImageDataModule, test_after_fit: bool, save_every_minutes: float
) -> None:
    """Refuse options of the trainer and of fit that leave nothing to train on or to test.

    Raises:
        ConfigError: naming the option.
    """
    name, nothing = type(datamodule).__name__, "is 0, so that nothing would be"
    out = "leave the test out with --test_after_fit false"
    no_test = f"{name} has no test images: {out}; where they come from: vision_zoo fit --data.help {name}"
    zeros = [o for o in NOT_ZERO if options.get(o) == 0 and options.get(o) is not False]
    timers = [callback for callback in listed(options.get("callbacks")) if isinstance(callback, Timer)]
    timers += [] if options.get("max_time") is None else [Timer(options["max_time"])]
    no_time = any(timer.time_remaining() == 0 for timer in timers)
    not_scored = test_after_fit and options.get("limit_test_batches") == 0
    refuse(
        ConfigError,
        *((True, f"--trainer.{option} {nothing} trained: set it to at least 1") for option in zeros),
        (save_every_minutes <= 0, f"--save_every_minutes must be positive, got {save_every_minutes}"),
        (no_time, f"--trainer.max_time {nothing} trained: set it higher"),
        (test_after_fit and not datamodule.has_test, no_test),
        (not_scored, f"--trainer.limit_test_batches {nothing} scored: set it higher, or {out}"),
    )


def check_strategy(trainer: Trainer, test_after_fit: bool) -> None:
    """Refuse the final test of a network that lies in pieces."""
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    what = f"{type(trainer.strategy).__name__} shards the network, which can only be tested whole"
    way_out = "set --test_after_fit false, and test the best checkpoint on one device"
    refuse(ConfigError, (test_after_fit and not whole, f"{what}: {way_out}"))


def check_monitors(trainer: Trainer, model: Classifier, datamodule: ImageDataModule) -> None:
    """Refuse callbacks that wait for a metric which no run has, such as val_loss for val/loss, or take the worst."""
    known = ["lr", "train/loss_step", *map(str, model.train_metrics.keys())]
    validates = (datamodule.val_split or datamodule.has_val) and trainer.limit_val_batches
    known += map(str, model.val_metrics.keys() if validates else ())
    callbacks = callbacks_of(trainer)
    if any(type(callback).__module__.split(".")[0] not in TRUSTED_PACKAGES for callback in callbacks):
        return  # one of the user's own may log anything
    for callback in callbacks:
        wanted, option = getattr(callback, "monitor", None), f"--trainer.callbacks {type(callback).__name__}"
        if not isinstance(wanted, str) or (isinstance(callback, ModelCheckpoint) and wanted in ("epoch", "step")):
            continue
        better = "min" if "loss" in wanted else "max"
        taken = "lowest" if better == "max" else "highest"
        wrong_mode = wanted != "lr" and getattr(callback, "mode", better) not in (better, "auto")
        none = "--trainer.limit_val_batches is 0" if datamodule.val_split else "--data.val_split is 0"
        there_are = did_you_mean(wanted, known) or f". There are {', '.join(known)}"
        if wanted.startswith("val/") and not validates:
            there_are = f", for nothing is validated: {none}"
        best = f"it takes the {taken} {wanted} for the best: set --trainer.callbacks.mode {better}"
        refuse(
            ConfigError,
            (wanted not in known, f"{option}: there is no metric {wanted}{there_are}"),
            (wrong_mode, f"{option}: {best}"),
        )


def check_part(trainer: Trainer, part: Literal["val", "test"], way_out: str) -> None:
    """Refuse to score no batches."""
    option = f"limit_{part}_batches"
    nothing = f"--trainer.{option} is 0, so that nothing would be scored: {way_out}"
    refuse(ConfigError, (getattr(trainer, option) == 0, nothing))


def check_data(model: Classifier, datamodule: ImageDataModule) -> None:
    """Refuse data that the network was not built for.

    Raises:
        CheckpointError: if image shape or number of classes differ, or both have names for them, and other ones.
    """
    name, option, place = type(datamodule).__name__, _option_of(datamodule), data_place(datamodule)
    channels, height, width = model.image_shape
    turns = "" if datamodule.image_shape[0] == channels else f"--data.channels {channels} "
    can_turn = height == width and (not turns or "channels" in datamodule.hparams)
    resize = f"set {turns}--data.image_size {height}" if can_turn else "choose another --data"

    ours, theirs = model.class_names, tuple(datamodule.class_names)
    where, other = "", f"choose another {option}"
    if option != "--data":
        where = f" in {place} (only one of them has {', '.join(sorted(set(ours) ^ set(theirs))[:5])})"
        if set(theirs) < set(ours):
            other += SOME_CLASSES[option]

    numbered = tuple(map(str, range(len(ours))))  # stands for classes without names
    reordered = set(ours) == set(theirs)  # such as folders 0, 1, 10, 2, which are sorted as text
    other_names = ours != theirs and (reordered or numbered not in (ours, theirs))
    known, found = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), ("", ""))
    rename = "Choose another --data" if option == "--data" else f"Rename them, or choose another {option}"
    refuse(
        CheckpointError,
        (
            datamodule.image_shape != model.image_shape,
            f"the checkpoint's network takes images of shape {model.image_shape}, {name} has "
            f"{datamodule.image_shape}: {resize}",
        ),
        (
            len(ours) != len(theirs),
            f"the checkpoint knows {len(ours)} classes, {name} has {len(theirs)}{where}: {other}",
        ),
        (
            other_names,
            f"the classes of {name if option == '--data' else place} are not those of the checkpoint: it has "
            f"{found!r} where the checkpoint knows {known!r}. {rename}",
        ),
    )


def _option_of(datamodule: ImageDataModule) -> str:
    """The option that chooses the classes; a dataset whose class has no constant for them finds them in its files."""
    if isinstance(getattr(type(datamodule), "class_names", None), tuple):
        return "--data"
    return "--data.path" if "path" in datamodule.hparams else "--data.root"


def data_place(datamodule: ImageDataModule) -> str:
    """The folder or file that the images come from."""
    return str(datamodule.hparams.get("path") or datamodule.root)
