"""What a trainer and its processes are about to do."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


def steps_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this batch, or only accumulates its gradients."""
    is_last = batch_idx + 1 >= trainer.num_training_batches
    return is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def steps_of_run(trainer: Trainer) -> float:
    """How many steps the optimizer makes in the whole run; infinite if nothing ends it."""
    steps = trainer.estimated_stepping_batches
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # which Lightning sets from outside
    changing = next((c for c in callbacks if isinstance(c, GradientAccumulationScheduler)), None)
    if changing is None or trainer.max_epochs in (None, -1):
        return steps
    # Lightning's estimate knows only how many batches are accumulated for a step at the start.
    accumulated = map(changing.get_accumulate_grad_batches, range(trainer.max_epochs or 0))
    total = sum(math.ceil(trainer.num_training_batches / batches) for batches in accumulated)
    return total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def validates(trainer: Trainer) -> bool:
    """Whether a run has validation images, also before its first validation."""
    if trainer.fit_loop.epoch_loop.val_loop._combined_loader is not None:  # the loaders are there
        return trainer.enable_validation and sum(trainer.num_val_batches) > 0
    sizes = getattr(trainer.datamodule, "sizes", None)  # type: ignore[attr-defined]  # set from outside
    return trainer.enable_validation and (not isinstance(sizes, Mapping) or sizes.get("val", 0) > 0)


def gather(value: Any) -> list[Any]:
    """A value of each process, in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
