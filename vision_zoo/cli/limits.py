"""The options and callbacks of Lightning that cannot work here, each with its reason; everything else does."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim.swa_utils import SWALR

from vision_zoo.specs import listed

Options = Mapping[str, Any]

# The least and the greatest number of options whose libraries do not look: beyond, they train uphill, divide by zero,
# or ask for all memory. (No image file has more than 65,535 rows; sixteen processes to a processor hardly begin.)
RANGES = {
    "data.image_size": (1, 65_535),
    "data.mean": (0, 1),
    "trainer.devices": (-1, 16 * (os.cpu_count() or 1)),
    "trainer.gradient_clip_val": (0, math.inf),
    "trainer.val_check_interval": (1e-6, math.inf),
    "trainer.callbacks.amount": (0, math.inf),
    "trainer.callbacks.unfreeze_backbone_at_epoch": (0, math.inf),
    "trainer.callbacks.window": (1, 10_000),
    **dict.fromkeys(("model.backbone.batch_norm_momentum", "model.scheduler.base_momentum"), (0, 1)),
    "model.scheduler.max_momentum": (0, 1),
    **dict.fromkeys((f"model.scheduler.{name}" for name in ("base_lr", "eta_min", "max_lr", "min_lr")), (0, 1e9)),
    **dict.fromkeys(("trainer.callbacks.min_lr", "trainer.callbacks.max_lr"), (1e-30, 1e9)),
    **dict.fromkeys(
        (f"trainer.{name}" for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps")),
        (1, math.inf),
    ),
}


class Limit(NamedTuple):
    """Something that is impossible, or would silently give wrong results."""

    name: str  # an option of the trainer, with its value where only that one cannot work
    applies: Callable[[Options], bool]  # whether options of the trainer ask for it
    reason: str  # why not, and the way out


def _with(kind: type, test: Callable[[Any], bool] = lambda _: True) -> Callable[[Options], bool]:
    """A test for a callback of a kind."""
    return lambda options: any(isinstance(c, kind) and test(c) for c in listed(options.get("callbacks")))


def _on_cpu(options: Options) -> bool:
    auto = options.get("accelerator") in (None, "auto") and not torch.accelerator.is_available()
    return auto or options.get("accelerator") == "cpu"


def _joins_statistics(options: Options) -> bool:
    several = str(options.get("devices")) not in ("1", "auto", "None") or (options.get("num_nodes") or 1) > 1
    return options.get("sync_batchnorm") is True and several and _on_cpu(options)


LIMITS = (
    Limit(
        "strategy ModelParallelStrategy",
        lambda options: isinstance(options.get("strategy"), ModelParallelStrategy),
        "it asks the module's configure_model how to cut the network, which a module around any network "
        "cannot know. Take fsdp",
    ),
    Limit(
        "callbacks ModelCheckpoint with save_last, or with filename best or last, and without dirpath",
        _with(callbacks.ModelCheckpoint, lambda c: not c.dirpath and (c.save_last or c.filename in ("best", "last"))),
        "it would replace a checkpoint of the run's own, which has best.ckpt and last.ckpt in any case. Leave it out, "
        "or set its dirpath",
    ),
    Limit(
        "callbacks StochasticWeightAveraging",  # https://github.com/pytorch/pytorch/issues/163105
        lambda options: "state_dict" not in vars(SWALR) and _with(callbacks.StochasticWeightAveraging)(options),
        "this torch saves the state of its schedule as code, which no checkpoint may hold. Take EMAWeightAveraging or "
        "a newer torch",
    ),
    Limit(
        "precision 16-mixed on a CPU",
        lambda options: str(options.get("precision")) in ("16", "16-mixed") and _on_cpu(options),
        "a CPU cannot compute in float16, and Lightning would take bf16-mixed in its place: set bf16-mixed or 32-true",
    ),
    Limit(
        "sync_batchnorm over several processes on a CPU",
        _joins_statistics,
        "torch joins batch statistics on GPUs only. Leave the option out (each process then normalises its own batch), "
        "or train on GPUs",
    ),
)
