"""What every run has: the callbacks that the command line adds to the user's own, in their order."""

import json
import re
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder, ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure

from vision_zoo.data.base import ImageDataModule
from vision_zoo.files import write_file
from vision_zoo.plots import save
from vision_zoo.trainer_facts import callbacks_of, datamodule_of
from vision_zoo.training import lightning_patches as patches
from vision_zoo.training.evaluation import TestArtifacts
from vision_zoo.training.head_only import HeadOnly
from vision_zoo.training.lightning_callbacks import AverageInTime
from vision_zoo.training.performance import Performance
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.training.saving import Saving

IMBALANCE = 10  # times the images of the smallest class, from which on the largest is warned of
FINDERS = (LearningRateFinder, BatchSizeFinder)
# Where config.yaml has the two options.
RATE, BATCH_SIZE = ("model", "optimizer", "init_args", "lr"), ("data", "init_args", "batch_size")


def run_callbacks(
    own: Sequence[Callback],
    bar: Sequence[Callback],
    *,
    run: RunFolder | None = None,
    performance: Performance | None = None,
    head_only: HeadOnly | None = None,
    saving: Saving | None = None,
) -> list[Callback]:
    """The callbacks of a run, in the order that they need: ours, the user's own, and the progress bar.

    The folder comes first, for the loggers that others look for; HeadOnly before Performance, which asks whether images
    are read; Performance before what tells its choices; Saving before other checkpoint callbacks, which Lightning moves
    behind all that are none.
    """
    ours: list[Callback] = [callback for callback in (run, head_only, performance, saving) if callback is not None]
    ours.append(_Imbalance())
    for callback in own:
        if isinstance(callback, ModelCheckpoint):
            _keep_in_one_folder(callback)
    if run is not None and run.resumes:
        own = [callback for callback in own if not isinstance(callback, FINDERS)]
    if run is not None and any(isinstance(callback, FINDERS) for callback in own):
        ours.append(_Findings(run))
    if any(isinstance(callback, WeightAveraging) for callback in own):
        ours.append(AverageInTime())
    return [*ours, *own, *bar, TestArtifacts(run)]


def _keep_in_one_folder(callback: ModelCheckpoint) -> None:
    """Have {val/accuracy} in a filename become val_accuracy=0.98; Lightning makes a folder of what is before it."""
    filename, sign = callback.filename or "", callback.CHECKPOINT_EQUALS_CHAR
    if callback.auto_insert_metric_name and re.search(r"{[^:}]*/", filename):
        named = re.sub(r"{([^:}]*)", lambda found: f"{found[1].replace('/', '_')}{sign}{found[0]}", filename)
        callback.filename, callback.auto_insert_metric_name = named, False


class _Imbalance(Callback):
    """Warns, when training begins, of classes with far fewer images than others, unless something is done about it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn in one line."""
        data, loss = datamodule_of(trainer), (pl_module.hparams.get("loss") or {}).get("init_args") or {}
        if not isinstance(data, ImageDataModule) or data.sampler is not None or loss.get("class_weights") is not None:
            return
        counted = [pair for pair in zip(data.class_counts.tolist(), data.class_names, strict=True) if pair[0]]
        (few, small), (many, large) = min(counted), max(counted)
        if many >= IMBALANCE * few:
            rank_zero_warn(
                f"the largest class, {large} with {many:,} training images, has {many / few:,.3g} times those of "
                f"the smallest, {small} with {few:,}: --data.sampler balanced draws each class equally often, or "
                "--model.loss CrossEntropy --model.loss.class_weights balanced weighs them",
            )


class _Findings(Callback):
    """Trains with what was found, as if the options had been given, and keeps it in the run.

    config.yaml and checkpoints get the values, and the folder gets lr_finder.png and lr_finder.json. A run that goes on
    has its values already, so `run_callbacks` leaves the finders out.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._given: dict[tuple[str, ...], Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take note of the options."""
        if stage == "fit":
            self._given = self._options(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the finders, which come first of all callbacks, have found."""
        found = self._options(trainer, pl_module)
        for place, value in found.items():
            if value != self._given[place]:
                self.run.change_option(value, *place)
        if found != self._given:
            trainer.strategy.setup_optimizers(trainer)  # the schedule is laid out for rate and number of steps
        patches.forget_trial(trainer)
        for callback in callbacks_of(trainer):
            result = callback.optimal_lr if isinstance(callback, LearningRateFinder) else None
            if result is not None and trainer.is_global_zero:
                suggestion = result.suggestion()
                text = json.dumps({"suggestion": suggestion, **result.results}, indent=2)
                write_file(self.run.path / "lr_finder.json", f"{text}\n".encode())
                figure = Figure()
                result.plot(suggest=suggestion is not None, ax=figure.subplots())
                save(figure, self.run.path / "lr_finder.png", 100)

    @staticmethod
    def _options(trainer: Trainer, model: LightningModule) -> dict[tuple[str, ...], Any]:
        values = {RATE: getattr(model, "lr", None), BATCH_SIZE: getattr(datamodule_of(trainer), "batch_size", None)}
        return {place: value for place, value in values.items() if value is not None}
