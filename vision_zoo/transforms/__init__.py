"""Random transforms of a whole uint8 batch on its device, with one draw per image."""

from vision_zoo.transforms.geometry import (
    BatchTransform,
    Cutout,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    apply_transforms,
    check_transforms,
    views,
)

__all__ = [
    "BatchTransform",
    "Cutout",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomVerticalFlip",
    "apply_transforms",
    "check_transforms",
    "views",
]
