"""Averages of the weights: what is validated, saved and tested is the average, from when it begins."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Callback, WeightAveraging

from vision_zoo.trainer_facts import callbacks_of
from vision_zoo.training import lightning_patches as patches


class StochasticWeightAveraging(callbacks.StochasticWeightAveraging):
    """Lightning's, which ends every run with the average: with an epoch that only counts batch statistics.

    Lightning does so for networks with batch normalisation; for others, the average comes after the last checkpoint.
    """

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: LightningModule) -> bool:
        """Whether there is such an epoch: the average is validated and saved at its end."""
        return True


class AverageInTime(Callback):
    """Lets a `WeightAveraging` update for an epoch come before its validation, and begin with the weights themselves.

    It comes before them in the list.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the average of the epoch, so that what is validated is what is saved."""
        ends_epoch = trainer.state.fn == "fit" and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        for callback in self._averaging(trainer):
            if ends_epoch and not trainer.sanity_checking:
                callback.on_train_epoch_end(trainer, pl_module)  # which it does once in an epoch
            patches.begin_average(callback, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have an average to save."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have an average to end with."""
        for callback in self._averaging(trainer):
            patches.begin_average(callback, pl_module)

    @staticmethod
    def _averaging(trainer: Trainer) -> list[WeightAveraging]:
        return [callback for callback in callbacks_of(trainer) if isinstance(callback, WeightAveraging)]
