"""What a run was made with, for who makes it again: versions, machine, processes, images."""

import platform
from importlib.metadata import version
from typing import Any

from lightning.pytorch import Trainer

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.sources import fingerprint
from vision_zoo.trainer_facts import datamodule_of, device_name
from vision_zoo.types import Split
from vision_zoo.version import __version__

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse")  # whose versions a result depends on
SPLITS: tuple[Split, ...] = ("train", "val")


def versions() -> dict[str, str]:
    """Of Python, of us and of the packages that a result depends on."""
    ours = {"python": platform.python_version(), "vision_zoo": __version__}
    return ours | {package: version(package) for package in PACKAGES}


def made_with(trainer: Trainer) -> dict[str, Any]:
    """Plain data for checkpoints; the images are those of our data modules."""
    data = datamodule_of(trainer)
    known = isinstance(data, ImageDataModule)
    marks = {split: fingerprint(data.subset(split), data.root) for split in SPLITS} if known else {}
    where = {"device": device_name(trainer.strategy.root_device), "processes": trainer.world_size}
    return {"versions": versions(), **where, "data": marks}
