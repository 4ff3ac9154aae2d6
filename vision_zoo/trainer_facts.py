"""What a trainer and its processes are about to do."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer


def steps_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this batch, or only accumulates its gradients."""
    is_last = batch_idx + 1 >= trainer.num_training_batches
    return is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


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
