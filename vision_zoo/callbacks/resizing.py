"""Training that begins with smaller images."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError

STAGES = 4  # sizes below the full one


class ProgressiveResizing(Callback):
    """Trains on images that are made smaller, in four stages less and less so, then on whole ones.

    Early epochs learn coarse shapes, for which few pixels do, and a network that takes images of any size computes so
    much less on them: with half the side, on a quarter of the pixels. Whole images are what is validated and tested,
    so that early validation figures are low. Method: progressive learning (Tan and Le 2021,
    https://arxiv.org/abs/2104.00298), here of the size alone.

    Args:
        initial_scale: side of the first images as a share of the full side, above 0 and below 1; the other stages
            divide the way from there to 1 evenly.
        full_size_from: share of the run's steps after which images are whole, above 0 and at most 1; the stages take
            equal parts of it.

    Raises:
        ConfigError: if a share is out of its range.
    """

    def __init__(self, initial_scale: float = 0.5, full_size_from: float = 0.7) -> None:
        if not 0 < initial_scale < 1:
            raise ConfigError(f"ProgressiveResizing: initial_scale must lie between 0 and 1, got {initial_scale}")
        if not 0 < full_size_from <= 1:
            raise ConfigError(f"ProgressiveResizing: full_size_from must be above 0, at most 1, got {full_size_from}")
        self.initial_scale = initial_scale
        self.full_size_from = full_size_from
        self._hook: RemovableHandle | None = None

    def scale(self, done: float) -> float:
        """Side of the images as a share of the full one.

        Args:
            done: share of the run's steps that are made, 0 to 1.
        """
        stage = int(STAGES * done / self.full_size_from + 1e-9)  # 2.4 / 0.8 is less than 3
        return 1.0 if stage >= STAGES else self.initial_scale + (1 - self.initial_scale) * stage / STAGES

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have images resized on their way into the network, while it trains.

        Raises:
            ConfigError: if the run has no end, or the network takes images of one size only.
        """
        if not isinstance(pl_module, Classifier):
            return
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ConfigError(
                "ProgressiveResizing needs a run with an end: set --trainer.max_epochs or --trainer.max_steps"
            )

        def resized(images: Tensor, scale: float) -> Tensor:
            size = [max(1, round(scale * side)) for side in images.shape[2:]]
            return F.interpolate(images, size, mode="bilinear", antialias=True)

        smallest = resized(torch.zeros(1, *pl_module.image_shape, device=pl_module.device), self.initial_scale)
        try:
            with pl_module.undisturbed():
                pl_module.backbone(smallest)
        except (RuntimeError, ValueError) as error:
            height, width = smallest.shape[2:]
            raise ConfigError(
                f"ProgressiveResizing: {pl_module.network_name} cannot take images of {height} x {width} pixels; this "
                f"is for networks that take any size, such as ResNet, and a higher initial_scale may do ({error})"
            ) from error

        def resize(network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
            scale = self.scale(trainer.global_step / steps)
            return (resized(inputs[0], scale),) if network.training and scale < 1 else None

        self._hook = pl_module.backbone.register_forward_pre_hook(resize)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was."""
        if self._hook is not None:
            self._hook.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the network as it was."""
        self.on_train_end(trainer, pl_module)
