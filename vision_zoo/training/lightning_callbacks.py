"""Lightning's callbacks that change the weights, such that what is validated is what is saved, also after a resume."""

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor
from torch.nn.utils import prune

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.trainer_facts import callbacks_of
from vision_zoo.training import lightning_patches as patches

# What schedules keep in a group of weights: rates that are shares of the group's own.
RATES = ("initial_lr", "max_lr", "min_lr")


class StochasticWeightAveraging(callbacks.StochasticWeightAveraging):
    """Lightning's, which ends every run with the average: with an epoch that only counts batch statistics.

    Lightning does so for networks with batch normalisation; for others, the average comes after the last checkpoint.
    One rate, swa_lrs, is that of the layers that learn fastest; Lightning gives it to all, and undoes fine-tuning's.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run whose last epoch is not known, in which the average takes the place of the weights."""
        what = "--trainer.callbacks StochasticWeightAveraging ends with the average in the last epoch"
        unknown = trainer.max_epochs == -1 or trainer.max_steps > -1
        refuse(ConfigError, (unknown, f"{what}: set --trainer.max_epochs, and leave max_steps out"))
        super().on_fit_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to average when the epoch has come."""
        if trainer.current_epoch >= self.swa_start:
            patches.share_average_rate(self, trainer.optimizers[0])
        super().on_train_epoch_start(trainer, pl_module)

    @staticmethod
    def pl_module_contains_batch_norm(pl_module: LightningModule) -> bool:
        """Whether there is such an epoch: the average is validated and saved at its end."""
        return True


class EMA(WeightAveraging):
    """An exponential moving average of the weights after each step, which is validated, saved, tested and exported.

    Batch statistics are averaged likewise, so that they are those of the averaged weights; whole numbers are copied.

    Args:
        decay: share of the average that a step leaves, in [0, 1).
        warmup: let it grow as (1 + n) / (10 + n) after n steps, as of TensorFlow's ExponentialMovingAverage, so that
            the random weights of the start are soon forgotten.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        refuse(ConfigError, (not 0 <= decay < 1, f"--trainer.callbacks EMA: decay must be in [0, 1), got {decay}"))
        self.decay, self.warmup = decay, warmup
        super().__init__(multi_avg_fn=self._update)

    def _update(self, averages: Any, weights: Any, count: Any) -> None:
        grown = (1 + count) / (10 + count) if self.warmup else torch.ones_like(count)
        new = (1 - grown.clamp(max=self.decay)).to(averages[0].dtype)
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight.to(average.dtype), new)
            else:
                average.copy_(weight)


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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Have an average to end with, and to save."""
        for callback in self._averaging(trainer):
            patches.begin_average(callback, pl_module)

    on_save_checkpoint = on_train_end

    @staticmethod
    def _averaging(trainer: Trainer) -> list[WeightAveraging]:
        return [callback for callback in callbacks_of(trainer) if isinstance(callback, WeightAveraging)]


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
        rates = (backbone_initial_ratio_lr, backbone_initial_lr, should_align)
        super().__init__(unfreeze_backbone_at_epoch, lambda epoch: growth, *rates, train_bn=train_bn)

    def freeze_before_training(self, pl_module: Any) -> None:
        """Freeze all but the last layer that has weights."""
        layers = [m for m in self.flatten_modules(pl_module.backbone) if list(m.parameters(recurse=False))]
        self.freeze(layers[:-1], train_bn=self.train_bn)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave what is frozen to a group of weights of its own; of a run that goes on, restore the groups."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if weight.requires_grad]
        # The checkpoint says what was trained, but not whether batch statistics were counted.
        layers = self.flatten_modules(pl_module.backbone)
        thawed = (layer for layer in layers if all(p.requires_grad for p in layer.parameters(recurse=False)))
        self.make_trainable(thawed)
        super().on_fit_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Thaw the backbone when its epoch has come, and raise its rate in the epochs after."""
        super().on_train_epoch_start(trainer, pl_module)
        for optimizer in trainer.optimizers:
            head, body = optimizer.param_groups[0], optimizer.param_groups[-1]
            if head is body:  # the rest is frozen still
                continue
            share = body["lr"] / head["lr"] if head["lr"] else 1.0
            body |= {name: share * head[name] for name in RATES if name in head}
            for name, value in head.items():
                body.setdefault(name, value)
            for schedule in (config.scheduler for config in trainer.lr_scheduler_configs):
                if hasattr(schedule, "base_lrs"):
                    schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


class ModelPruning(callbacks.ModelPruning):
    """Lightning's, with checkpoints that every command reads: plain weights, and beside them which are pruned.

    The weights are pruned before the validation that ends an epoch, so that what is saved is what was validated, and
    for good at the end of training (make_pruning_permanent cannot be switched off).

    Args:
        pruning_fn: function of torch.nn.utils.prune, such as l1_unstructured or random_unstructured.
        amount: how many of the weights that are left are pruned each time: a share, or a number.
        options: as of Lightning's.
    """

    def __init__(self, pruning_fn: str = "l1_unstructured", amount: int | float = 0.5, **options: Any) -> None:
        super().__init__(pruning_fn=pruning_fn, amount=amount, **options)
        self._module: LightningModule | None = None
        self._masks: dict[str, Tensor] = {}
        self._first: list[dict[str, Tensor]] = []  # weights to which those that are left go back in each epoch
        self._pruned_epoch = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the weights, before training."""
        if stage == "fit":
            self._module = pl_module
            patches.prune_for_good(self)
            super().setup(trainer, pl_module, stage)
            patches.try_pruning(self, min(abs(trainer.max_epochs or 1), 100))

    def state_dict(self) -> dict[str, Any]:
        """Which weights are kept, as 0 and 1, by the names of their masks, and the first ones of each layer."""
        buffers = self._module.named_buffers() if self._module is not None else ()
        first = [layer["data"].state_dict() for layer in (self._original_layers or {}).values()]
        masks = {name: mask.cpu() for name, mask in buffers if name.endswith("_mask")}
        return {"masks": masks, "first": first, "epoch": self._pruned_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the masks of the run that is continued."""
        self._masks, self._first = state_dict["masks"], state_dict.get("first", [])
        self._pruned_epoch = state_dict.get("epoch", -1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune again what was; not before the optimizer has its weights, whose order this changes."""
        custom_from_mask: Any = prune.custom_from_mask  # which has no types
        for name, mask in self._masks.items():
            place, _, weight = name.removesuffix("_mask").rpartition(".")
            custom_from_mask(pl_module.get_submodule(place), weight, mask.to(pl_module.device))
        for layer, weights in zip((self._original_layers or {}).values(), self._first, strict=False):
            layer["data"].load_state_dict(weights)
        self._masks, self._first = {}, []

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Go back to copies of the first weights: Lightning goes back to these, and training then changes them."""
        first, self._original_layers = self._original_layers, copy.deepcopy(self._original_layers)
        super().apply_lottery_ticket_hypothesis()
        self._original_layers = first

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune before the validation that ends an epoch."""
        if trainer.state.fn == "fit" and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, once in an epoch."""
        if self._pruned_epoch != trainer.current_epoch and not trainer.sanity_checking:
            self._pruned_epoch = trainer.current_epoch
            super().on_train_epoch_end(trainer, pl_module)
