"""Classes of a user's own, for those of Lightning's that are there to be derived from."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, BasePredictionWriter, Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import Optimizer


class Note(Callback):
    """Leaves a file when training starts."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Path("note").touch()


class OwnCheckpoint(Checkpoint):
    """Saves a file of its own at the end of training."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint("own.ckpt")


class FreezeFeatures(BaseFinetuning):
    """Trains the head alone."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.backbone.features)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        pass


class Writer(BasePredictionWriter):
    """Writes nothing: fit predicts nothing."""


class LineLogger(Logger):
    """One line of text for each call."""

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with Path("lines.txt").open("a") as file:
            file.write(f"{step} {' '.join(metrics)}\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Counter(Profiler):
    """Counts what is begun."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def start(self, action_name: str) -> None:
        self.count += 1

    def stop(self, action_name: str) -> None:
        Path("count.txt").write_text(str(self.count))


class OwnDevice(SingleDeviceStrategy):
    """One CPU."""

    def __init__(self) -> None:
        super().__init__(device="cpu")


class OwnParallel(DDPStrategy):
    """Lightning's own under another name."""


def images_of(batch: Any) -> int:
    """For ThroughputMonitor."""
    return len(batch[1])


def touch(*_: Any) -> None:
    """For LambdaCallback."""
    Path("touched").touch()


def count(*_: Any) -> None:
    """For LambdaCallback, a byte for each step."""
    with Path("counted").open("ab") as file:
        file.write(b".")
