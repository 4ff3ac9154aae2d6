"""Schedule-free optimizers of the package schedulefree, an extra, with what they need in a run."""

import importlib
from collections.abc import Iterable
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from torch import Tensor

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.optimizers.around import Around, Closure, Companion
from vision_zoo.specs import is_package
from vision_zoo.trainer_facts import callbacks_of


class AtAverage(Companion):
    """Has a run validate, save and end with the averaged weights, and train on where it was, bit for bit."""

    def __init__(self) -> None:
        self._training: list[tuple[Tensor, Tensor]] = []  # weights, and their values in training

    def problems(self, trainer: Trainer) -> list[tuple[object, str]]:
        """Conditions and messages: others would replace the weights for validation and checkpoints too."""
        changing = (WeightAveraging, StochasticWeightAveraging, ModelPruning)
        other = next((type(c).__name__ for c in callbacks_of(trainer) if isinstance(c, changing)), "")
        twice = f"--trainer.callbacks {other} does not work with a schedule-free optimizer, which averages the weights"
        return [*super().problems(trainer), (other, f"{twice}: leave one out")]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go over to the averaged weights."""
        if trainer.state.fn == "fit":
            self._training = [(weight, weight.detach().clone()) for weight in pl_module.parameters()]
            cast(Any, trainer.optimizers[0]).eval()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to those of training: to the values kept, for computing them rounds."""
        if self._training:
            cast(Any, trainer.optimizers[0]).train()
            for weight, value in self._training:
                weight.data.copy_(value)
            self._training = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the averaged weights as the network's, and those of training beside them."""
        if trainer.state.fn == "fit" and not self._training:
            self.on_validation_start(trainer, pl_module)
            averaged = {name: value.clone() for name, value in checkpoint["state_dict"].items()}
            self.on_validation_end(trainer, pl_module)
            checkpoint |= {"current_model_state": checkpoint["state_dict"], "state_dict": averaged}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Train on with the weights of training."""
        if trainer.state.fn == "fit" and "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End with the averaged weights."""
        cast(Any, trainer.optimizers[0]).eval()


class ScheduleFree(Around):
    """An optimizer of the package schedulefree (Defazio et al. 2024, https://arxiv.org/abs/2405.15682)."""

    companion = AtAverage

    def __init__(self, name: str, params: Iterable[Any], **options: Any) -> None:
        missing = f"--model.optimizer {name} needs the package schedulefree: pip install 'vision_zoo[schedulefree]'"
        refuse(ConfigError, (not is_package("schedulefree"), missing))
        super().__init__(getattr(importlib.import_module("schedulefree"), name)(params, **options))

    def train(self) -> None:
        """Have the weights be those that gradients are taken at."""
        self.share().train()

    def eval(self) -> None:
        """Have the weights be the averaged ones."""
        self.share().eval()

    def step(self, closure: Closure = None) -> Any:
        """Make one step."""
        self.train()
        return self.inner.step(closure)


class AdamWScheduleFree(ScheduleFree):
    """AdamW that needs no schedule (Defazio et al. 2024): what is validated and saved is an average of its weights.

    https://arxiv.org/abs/2405.15682. Batch statistics are those of the weights in training.

    Args:
        params: weights, or groups of them with options of their own.
        lr: learning rate.
        betas: share of the average in the weights that gradients are taken at; decay of the mean squared gradient.
        eps: added to the root of the mean squared gradient.
        weight_decay: as of AdamW.
        warmup_steps: steps until the learning rate is reached.

    Raises:
        ValueError: if a beta is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        wrong = not (0 < betas[0] < 1 and 0 <= betas[1] < 1)  # the package divides by the first
        refuse(ValueError, (wrong, f"betas must be in (0, 1) and [0, 1), got {betas[0]:g} and {betas[1]:g}"))
        options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__("AdamWScheduleFree", params, lr=lr, **options)


class SGDScheduleFree(ScheduleFree):
    """SGD that needs no schedule (Defazio et al. 2024): what is validated and saved is an average of its weights.

    https://arxiv.org/abs/2405.15682. Batch statistics are those of the weights in training.

    Args:
        params: weights, or groups of them with options of their own.
        lr: learning rate, larger than that of SGD.
        momentum: share of the average in the weights that gradients are taken at, in (0, 1).
        weight_decay: as of SGD.
        warmup_steps: steps until the learning rate is reached.
    """

    def __init__(
        self, params: Any, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0, warmup_steps: int = 0
    ) -> None:
        options = {"momentum": momentum, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__("SGDScheduleFree", params, lr=lr, **options)
