"""What would fail late, or score the wrong thing, is refused before any work."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import CheckpointError, ConfigError, did_you_mean
from vision_zoo.specs import listed
from vision_zoo.trainer_facts import callbacks_of
from vision_zoo.trust import TRUSTED_PACKAGES

# Options of the trainer of which 0 leaves nothing to train on.
NOT_ZERO = ("accumulate_grad_batches", "max_epochs", "max_steps", "limit_train_batches", "log_every_n_steps")


def check_fit(
    options: Mapping[str, Any], datamodule: ImageDataModule, test_after_fit: bool, save_every_minutes: float
) -> None:
    """Refuse options of fit that leave nothing to train on or to test.

    Args:
        options: of the trainer.
        datamodule: the data.
        test_after_fit: whether the best checkpoint is tested in the end.
        save_every_minutes: minutes between saves.

    Raises:
        ConfigError: naming the option.
    """
    name = type(datamodule).__name__
    out = "leave the test out with --test_after_fit false"
    refusals = {
        f"--trainer.{o} is 0, so that nothing would be trained: set it to at least 1": options.get(o) == 0
        and options.get(o) is not False
        for o in NOT_ZERO
    }
    refusals |= {
        f"--save_every_minutes must be positive, got {save_every_minutes}": save_every_minutes <= 0,
        "--trainer.max_time is 0, so that nothing would be trained: set it higher": _no_time(options),
        f"{name} has no test images: {out}; where they come from: vision_zoo fit --data.help {name}": test_after_fit
        and not datamodule.has_test,
        f"--trainer.limit_test_batches is 0, so that nothing would be scored: set it higher, or {out}": test_after_fit
        and options.get("limit_test_batches") == 0,
    }
    for message, applies in refusals.items():
        if applies:
            raise ConfigError(message)


def _no_time(options: Mapping[str, Any]) -> bool:
    if options.get("max_time") is None and not any(isinstance(c, Timer) for c in listed(options.get("callbacks"))):
        return False
    timers = [c for c in listed(options.get("callbacks")) if isinstance(c, Timer)]
    timers += [] if options.get("max_time") is None else [Timer(options["max_time"])]
    return any(timer.time_remaining() == 0 for timer in timers)


def check_strategy(trainer: Trainer, test_after_fit: bool) -> None:
    """Refuse the final test of a network that lies in pieces."""
    if test_after_fit and not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"{type(trainer.strategy).__name__} shards the network, which can only be tested whole: set "
            "--test_after_fit false, and test the best checkpoint on one device"
        )


def check_monitors(trainer: Trainer, model: Classifier, datamodule: ImageDataModule) -> None:
    """Refuse callbacks that wait for a metric which no run has, such as val_loss for val/loss, or take the worst one.

    Raises:
        ConfigError: naming the callback and close metrics.
    """
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
        problem = ""
        better = "min" if "loss" in wanted else "max"
        if wanted not in known and wanted.startswith("val/") and not validates:
            none = "--trainer.limit_val_batches is 0" if datamodule.val_split else "--data.val_split is 0"
            problem = f"there is no metric {wanted}, for nothing is validated: {none}"
        elif wanted not in known:
            there_are = did_you_mean(wanted, known) or f". There are {', '.join(known)}"
            problem = f"there is no metric {wanted}{there_are}"
        elif wanted != "lr" and getattr(callback, "mode", better) not in (better, "auto"):
            taken = "lowest" if better == "max" else "highest"
            problem = f"it takes the {taken} {wanted} for the best: set --trainer.callbacks.mode {better}"
        if problem:
            raise ConfigError(f"{option}: {problem}")


def check_part(trainer: Trainer, part: Literal["val", "test"], way_out: str) -> None:
    """Refuse to score no batches."""
    if getattr(trainer, f"limit_{part}_batches") == 0:
        raise ConfigError(f"--trainer.limit_{part}_batches is 0, so that nothing would be scored: {way_out}")


def check_data(model: Classifier, datamodule: ImageDataModule) -> None:
    """Refuse data that the network was not built for.

    Raises:
        CheckpointError: if image shape or number of classes differ, or both have names for them, and other ones.
    """
    problem = _other_shape(model, datamodule) or _other_count(model, datamodule) or _other_names(model, datamodule)
    if problem:
        raise CheckpointError(problem)


def _other_shape(model: Classifier, datamodule: ImageDataModule) -> str:
    channels, height, width = model.image_shape
    if datamodule.image_shape == model.image_shape:
        return ""
    turns = "" if datamodule.image_shape[0] == channels else f"--data.channels {channels} "
    can = height == width and (not turns or "channels" in datamodule.hparams)
    way_out = f"set {turns}--data.image_size {height}" if can else "choose another --data"
    return (
        f"the checkpoint's network takes images of shape {model.image_shape}, {type(datamodule).__name__} has "
        f"{datamodule.image_shape}: {way_out}"
    )


def _other_count(model: Classifier, datamodule: ImageDataModule) -> str:
    if datamodule.num_classes == model.num_classes:
        return ""
    option = _option_of(datamodule)
    odd = sorted(set(model.class_names) ^ set(datamodule.class_names))
    where = way_out = ""
    if option != "--data":
        where = f" in {data_place(datamodule)} (only one of them has {', '.join(odd[:5])})"
        if set(datamodule.class_names) < set(model.class_names):
            way_out = {
                "--data.root": ", or make an empty folder for a class of which there are no images to score",
                "--data.path": ", or name all classes in class_names",
            }[option]
    return (
        f"the checkpoint knows {model.num_classes} classes, {type(datamodule).__name__} has "
        f"{datamodule.num_classes}{where}: choose another {option}{way_out}"
    )


def _other_names(model: Classifier, datamodule: ImageDataModule) -> str:
    ours, theirs = model.class_names, tuple(datamodule.class_names)
    numbered = tuple(str(label) for label in range(model.num_classes))  # stands for classes without names
    reordered = set(ours) == set(theirs)  # such as folders 0, 1, 10, 2, which are sorted as text
    if ours == theirs or (numbered in (ours, theirs) and not reordered):
        return ""
    known, found = next(pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1])
    option = _option_of(datamodule)
    where = type(datamodule).__name__ if option == "--data" else data_place(datamodule)
    return (
        f"the classes of {where} are not those of the checkpoint: it has {found!r} where the checkpoint knows "
        f"{known!r}. " + ("Choose another --data" if option == "--data" else f"Rename them, or choose another {option}")
    )


def _option_of(datamodule: ImageDataModule) -> str:
    """The option that chooses the classes; a dataset whose class has no constant for them finds them in its files."""
    if isinstance(getattr(type(datamodule), "class_names", None), tuple):
        return "--data"
    return "--data.path" if "path" in datamodule.hparams else "--data.root"


def data_place(datamodule: ImageDataModule) -> str:
    """The folder or file that the images come from."""
    return str(datamodule.hparams.get("path") or datamodule.root)
