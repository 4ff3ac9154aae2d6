"""What LearningRateFinder and BatchSizeFinder find: it becomes the run's own option."""

import io
import json
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from matplotlib.figure import Figure

from vision_zoo.files import write_file
from vision_zoo.trainer_facts import callbacks_of, datamodule_of
from vision_zoo.training import lightning_patches as patches
from vision_zoo.training.run_folder import RunFolder

FINDERS = (LearningRateFinder, BatchSizeFinder)
# Where config.yaml has the two options.
RATE, BATCH_SIZE = ("model", "optimizer", "init_args", "lr"), ("data", "init_args", "batch_size")


class Findings(Callback):
    """Trains with what was found, as if the options had been given, and keeps it in the run.

    config.yaml and checkpoints get the values, and the folder gets lr_finder.png and lr_finder.json. A run that goes on
    has its values already, so `run_callbacks` leaves the finders out.

    Args:
        run: the folder.
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
                image, figure = io.BytesIO(), Figure()
                result.plot(suggest=suggestion is not None, ax=figure.subplots())
                figure.savefig(image, format="png", dpi=100)
                write_file(self.run.path / "lr_finder.png", image.getvalue())

    @staticmethod
    def _options(trainer: Trainer, model: LightningModule) -> dict[tuple[str, ...], Any]:
        values = {RATE: getattr(model, "lr", None), BATCH_SIZE: getattr(datamodule_of(trainer), "batch_size", None)}
        return {place: value for place, value in values.items() if value is not None}
