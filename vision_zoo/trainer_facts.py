"""What a trainer and its processes are, and are about to do."""

import math
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks, which its types do not know of."""
    return cast(list[Callback], cast(Any, trainer).callbacks)


def datamodule_of(trainer: Trainer) -> Any:
    """The trainer's data module or None, which its types do not know of."""
    return cast(Any, trainer).datamodule


def steps_after(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps after this batch, or only accumulates its gradients."""
    return batch_idx + 1 >= trainer.num_training_batches or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def steps_of_run(trainer: Trainer) -> float:
    """How many steps the optimizer makes in the whole run; infinite if nothing ends it."""
    steps = trainer.estimated_stepping_batches
    changing = next((c for c in callbacks_of(trainer) if isinstance(c, GradientAccumulationScheduler)), None)
    if changing is None or trainer.max_epochs in (None, -1):
        return steps
    # Lightning's estimate knows only how many batches are accumulated for a step at the start.
    accumulated = map(changing.get_accumulate_grad_batches, range(trainer.max_epochs or 0))
    total = sum(math.ceil(trainer.num_training_batches / batches) for batches in accumulated)
    return total if trainer.max_steps == -1 else min(total, trainer.max_steps)


def validates(trainer: Trainer) -> bool:
    """Whether a run has validation images, also before its first validation."""
    if trainer.val_dataloaders is not None:
        return trainer.enable_validation and sum(trainer.num_val_batches) > 0
    sizes = getattr(datamodule_of(trainer), "sizes", None)
    return trainer.enable_validation and (not isinstance(sizes, Mapping) or sizes.get("val", 0) > 0)


def gather(value: Any) -> list[Any]:
    """A value of each process, in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def device_name(device: torch.device) -> str:
    """What a network runs on, for people and results."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: *(.*\S)", cpuinfo.read_text()) if cpuinfo.exists() else None
    model = named[1] if named else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"cpu ({model}, {threads} thread{'s' * (threads != 1)})"
