"""Training of the head first, and of the whole network from an epoch on."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from torch import nn
from torch.optim import Optimizer

# What schedules keep in a group of weights: rates that are shares of the group's own.
RATES = ("initial_lr", "max_lr", "min_lr")


class BackboneFinetuning(callbacks.BackboneFinetuning):
    """Lightning's, for networks whose head lies in the backbone: all but the last layer is frozen at first.

    A run that goes on trains the same weights at the same rates as one that was never stopped, which Lightning's does
    not (https://github.com/Lightning-AI/pytorch-lightning/pull/21901). Where there is a schedule, it moves the rate of
    what was frozen in proportion to that of the head.

    Args:
        unfreeze_backbone_at_epoch: epoch, from 0 on, at which the rest of the network begins to be trained.
        growth: factor of its rate from one epoch to the next, until it is that of the head. (A number, where Lightning
            has a function, lambda_func: no checkpoint may name one.)
        backbone_initial_ratio_lr: its first rate as a share of that of the head.
        backbone_initial_lr: its first rate, in place of a share.
        should_align: stay at the rate of the head.
        train_bn: train batch normalisation from the start.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        growth: float = 2.0,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        train_bn: bool = True,
    ) -> None:
        super().__init__(
            unfreeze_backbone_at_epoch,
            lambda epoch: growth,
            backbone_initial_ratio_lr,
            backbone_initial_lr,
            should_align,
            train_bn=train_bn,
        )

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze all but the last layer that has weights."""
        layers = [layer for layer in self._layers(pl_module) if list(layer.parameters(recurse=False))]
        self.freeze(layers[:-1], train_bn=self.train_bn)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave what is frozen to a group of weights of its own; of a run that goes on, restore the groups."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if weight.requires_grad]
        # The checkpoint says what was trained, but not whether batch statistics were counted.
        thawed = (m for m in self._layers(pl_module) if all(p.requires_grad for p in m.parameters(recurse=False)))
        self.make_trainable(thawed)
        super().on_fit_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Thaw the backbone when its epoch has come, and raise its rate in the epochs after."""
        super().on_train_epoch_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            if len(optimizer.param_groups) > 1:
                self._follow(optimizer, [config.scheduler for config in trainer.lr_scheduler_configs])

    @staticmethod
    def _follow(optimizer: Optimizer, schedules: list[Any]) -> None:
        head, body = optimizer.param_groups[0], optimizer.param_groups[-1]
        share = body["lr"] / head["lr"] if head["lr"] else 1.0
        body |= {name: share * head[name] for name in RATES if name in head}
        for name, value in head.items():
            body.setdefault(name, value)
        for schedule in schedules:
            if hasattr(schedule, "base_lrs"):
                schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def _layers(self, pl_module: LightningModule) -> Iterator[nn.Module]:
        yield from self.flatten_modules(pl_module.backbone)
