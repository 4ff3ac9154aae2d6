"""Training that begins with smaller images."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError
from vision_zoo.probe import REFUSALS, evaluating
from vision_zoo.trainer_facts import callbacks_of, steps_of_run
from vision_zoo.training.performance import Performance

STAGES = 4  # sizes below the full one


class ProgressiveResizing(Callback):
    """Trains on images that are made smaller, in four stages less and less so, then on whole ones.

    Early epochs learn coarse shapes, for which few pixels do, and a network that takes images of any size computes so
    much less on them: with half the side, on a quarter of the pixels. Whole images are what is validated and tested,
    so that early validation metrics are poor. Method: progressive learning (Tan and Le 2021,
    https://arxiv.org/abs/2104.00298), here of the size alone.

    Args:
        initial_scale: side of the first images as a share of the full side, above 0 and below 1; the other stages
            divide the way from there to 1 evenly.
        full_size_from: share of the run's steps after which images are whole, above 0 and at most 1; the stages take
            equal parts of it. A run that continues beyond its end keeps to whole images.

    Raises:
        ConfigError: if a share is out of its range.
    """

    topic = "sizes"

    def __init__(self, initial_scale: float = 0.5, full_size_from: float = 0.7) -> None:
        if not 0 < initial_scale < 1:
            raise ConfigError(f"ProgressiveResizing: initial_scale must lie between 0 and 1, got {initial_scale}")
        if not 0 < full_size_from <= 1:
            raise ConfigError(f"ProgressiveResizing: full_size_from must be above 0, at most 1, got {full_size_from}")
        self.full_size_from = full_size_from
        self._scales = [initial_scale + (1 - initial_scale) * stage / STAGES for stage in range(STAGES)]
        self._steps = 0  # of the run as it began
        self._first_size: tuple[int, int] | None = None  # height and width
        self._hook: RemovableHandle | None = None

    def state_dict(self) -> dict[str, Any]:
        """The number of steps that the stages are parts of."""
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the stages of the run as it began."""
        self._steps = state_dict["steps"]

    def scale(self, step: int) -> float:
        """Side of the images, as a share of the full one, after a number of steps."""
        stage = int(STAGES * step / (self._steps * self.full_size_from) + 1e-9)  # 2.4 / 0.8 is less than 3
        return self._scales[stage] if stage < STAGES else 1.0

    def describe(self) -> str:
        """The sizes of the images in one line."""
        height, width = self._first_size or (0, 0)
        return f"{height} x {width} pixels at first, whole after {100 * self.full_size_from:g} % of the steps"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a network that does not take each size, while it lies whole and in float32 where it was built."""
        if stage != "fit" or not isinstance(pl_module, Classifier):
            return
        whole = torch.zeros(1, *pl_module.image_shape, device=pl_module.device)
        for scale in self._scales:
            images = _resized(whole, scale)
            height, width = images.shape[2:]
            self._first_size = self._first_size or (height, width)
            try:
                with evaluating(pl_module):
                    pl_module.backbone(images)
            except REFUSALS as error:
                wrong = f"ProgressiveResizing: {pl_module.network_name} cannot take images of {height} x {width} pixels"
                way_out = "this is for networks that take any size, such as ResNet"
                raise ConfigError(f"{wrong}; {way_out} ({error})") from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have images resized on their way into the network, while it trains, if it is known for how many steps."""
        if not isinstance(pl_module, Classifier):
            return
        steps = steps_of_run(trainer)
        if not 0 < steps < math.inf:
            limits = "set --trainer.max_epochs or --trainer.max_steps"
            raise ConfigError(f"ProgressiveResizing divides the steps of the run: {limits}")
        self._steps = self._steps or int(steps)

        def resize(network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
            scale = self.scale(trainer.global_step) if network.training else 1.0
            return (_resized(inputs[0], scale),) if scale < 1 else None

        # Or torch would compile a network for each step's number.
        compiles = any(isinstance(callback, Performance) and callback.mode for callback in callbacks_of(trainer))
        hook = cast(Any, torch.compiler).disable(resize) if compiles else resize
        self._hook = pl_module.backbone.register_forward_pre_hook(hook)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as it was."""
        self.on_exception()
        if self._steps and self.scale(trainer.global_step) < 1:
            rank_zero_warn("ProgressiveResizing: the run ended before it saw whole images, which are tested")

    def on_exception(self, *_: Any, **__: Any) -> None:
        """Leave the network as it was."""
        if self._hook is not None:
            self._hook.remove()


def _resized(images: Tensor, scale: float) -> Tensor:
    size = [max(1, round(scale * side)) for side in images.shape[2:]]
    # (torch has no antialiasing in half precision on every device.)
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True).to(images.dtype)
