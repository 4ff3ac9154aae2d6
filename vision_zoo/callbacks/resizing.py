"""Training that begins with smaller images."""

from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from vision_zoo.errors import ConfigError

STAGES = 4  # sizes below the full one


class ProgressiveResizing(Callback):
    """Trains on images that are made smaller, less and less so, and on whole ones at the end.

    Early epochs learn coarse shapes, for which few pixels do, and a network that takes images of any size computes
    so much less on them: half the side is a quarter of the work. Validation and test see whole images always. Method:
    progressive learning (Tan and Le 2021, https://arxiv.org/abs/2104.00298), here by size alone.

    Args:
        initial_scale: side of the first images as a share of the full side, above 0 and below 1; four sizes, evenly
            spaced from it on, take equal parts of the time.
        full_size_from: when whole images begin, as a share of the steps of the run, above 0 and at most 1.

    Raises:
        ConfigError: if a share is out of its range.
    """

    def __init__(self, initial_scale: float = 0.5, full_size_from: float = 0.7) -> None:
        if not 0 < initial_scale < 1:
            raise ConfigError(f"ProgressiveResizing: initial_scale is {initial_scale}; give a share between 0 and 1")
        if not 0 < full_size_from <= 1:
            raise ConfigError(f"ProgressiveResizing: full_size_from is {full_size_from}; give a share up to 1")
        self.initial_scale = initial_scale
        self.full_size_from = full_size_from
        self._hook: Any = None

    def scale(self, done: float) -> float:
        """Side of the images, as a share of the full one, when a share `done` of the run lies behind."""
        stage = int(STAGES * done / self.full_size_from)
        return 1.0 if stage >= STAGES else self.initial_scale + (1 - self.initial_scale) * stage / STAGES

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have images resized on their way into the network."""
        steps = trainer.estimated_stepping_batches

        def resize(network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
            scale = self.scale(trainer.global_step / steps) if network.training else 1.0
            if scale == 1.0:
                return None
            size = [max(1, round(scale * side)) for side in inputs[0].shape[2:]]
            return (F.interpolate(inputs[0], size, mode="bilinear", antialias=True),)

        self._hook = pl_module.backbone.register_forward_pre_hook(resize)  # type: ignore[union-attr]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was."""
        self._hook.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the network as it was."""
        if self._hook is not None:
            self._hook.remove()
