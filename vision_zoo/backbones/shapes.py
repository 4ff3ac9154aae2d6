"""Sizes of feature maps, found before the network runs, and the refusal of options and images that do not fit."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vision_zoo.errors import ConfigError, ImageShapeError
from vision_zoo.types import ImageShape


def num_features(network: str, features: nn.Sequential, image_shape: ImageShape) -> int:
    """Values of an image after convolutions and poolings; if nothing is left of it, that is an ImageShapeError."""
    state = {name: value.to("meta") for name, value in features.state_dict().items()}  # where nothing is computed
    try:
        with torch.no_grad():
            maps: Tensor = functional_call(features, state, (torch.empty(2, *image_shape, device="meta"),))
    except RuntimeError as error:  # a window that does not fit once
        small = f"images of shape {tuple(image_shape)} are too small for its convolutions ({error})"
        raise ImageShapeError(f"{network}: {small}: set --data.image_size higher") from error
    return maps[0].numel()


def require(network: str, **options: float) -> None:
    """A drop rate that is not in [0, 1), or any other option below one, is a ConfigError."""
    for name, value in options.items():
        is_rate = name == "drop_rate"
        if not (0 <= value < 1 if is_rate else value >= 1):
            wanted = "at least 0 and less than 1" if is_rate else "at least 1"
            raise ConfigError(f"{network}: {name} is {value}, set --model.backbone.{name} to {wanted}")
