"""Random transforms of a whole uint8 batch on its device, with one draw per image."""

from vision_zoo.transforms.automatic import RandAugment, TrivialAugmentWide
from vision_zoo.transforms.base import BatchTransform, LabelledTransform, apply_transforms, check_transforms
from vision_zoo.transforms.colour import ColorJitter, GaussianBlur, RandomGrayscale
from vision_zoo.transforms.erasing import Cutout, RandomErasing
from vision_zoo.transforms.geometry import (
    AlternatingFlip,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    mean_of_views,
    views,
)  # fmt: skip
from vision_zoo.transforms.mixing import CutMix, MixUp

__all__ = [
    "AlternatingFlip", "BatchTransform", "ColorJitter", "CutMix", "Cutout", "GaussianBlur", "LabelledTransform",
    "MixUp", "RandAugment", "RandomAffine", "RandomCrop", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip",
    "RandomResizedCrop", "RandomVerticalFlip", "TrivialAugmentWide", "apply_transforms", "check_transforms",
    "mean_of_views", "views",
]  # fmt: skip
