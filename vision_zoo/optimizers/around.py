"""What optimizers that use another one have in common."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim import LBFGS, Optimizer

from vision_zoo.errors import ConfigError, did_you_mean, refuse

Closure = Callable[[], Any] | None


class Around(Optimizer):
    """An optimizer that uses another one, whose groups of weights and whose state are its own."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of weights, as callbacks do on the way."""
        if any(group is param_group for group in self.inner.param_groups):
            super().add_param_group(param_group)
        else:
            self.share().add_param_group(param_group)

    def share(self) -> Any:
        """The other one with the present groups and state: a checkpoint or a trainer may have replaced them."""
        self.inner.param_groups, self.inner.state = self.param_groups, self.state
        return self.inner


class Companion(Callback):
    """What belongs to an optimizer of ours in a run: options that it works with."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse others, before training."""
        if stage == "fit":
            refuse(ConfigError, *self.problems(trainer))

    def problems(self, trainer: Trainer) -> list[tuple[object, str]]:
        """Conditions and messages: with shards of weights, norms and matrices would be those of pieces."""
        whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        pieces = f"{type(trainer.strategy).__name__}, which shards the network: use ddp, or one device"
        return [(not whole, f"--model.optimizer: this one does not work with {pieces}")]


def class_of(option: str, name: str, *own: type[Optimizer]) -> type[Optimizer]:
    """An optimizer of torch or of `own` by its name, never by a path, for a checkpoint may name it."""
    of_torch = (c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, Optimizer))
    known = {c.__name__: c for c in (*of_torch, *own) if c not in (Optimizer, LBFGS)}
    name = name.removeprefix("torch.optim.")
    hint = did_you_mean(name, known) or f". Known are {', '.join(sorted(known))}"
    refuse(ConfigError, (name not in known, f"--model.optimizer.{option} {name}: unknown{hint}"))
    return known[name]
