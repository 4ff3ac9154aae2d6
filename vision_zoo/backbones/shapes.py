"""Sizes of feature maps, found before the network runs, and the refusal of options and images that do not fit."""

import itertools

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vision_zoo.errors import ConfigError, ImageShapeError
from vision_zoo.types import ImageShape


def num_features(network: str, features: nn.Sequential, image_shape: ImageShape) -> int:
    """Values of an image after convolutions and poolings; if nothing is left of it, that is an ImageShapeError."""
    channels, height, width = image_shape
    if length := _output_length(features, image_shape):
        return length
    sizes = itertools.count(min(height, width) + 1)
    least = next(size for size in sizes if _output_length(features, (channels, size, size)))
    raise ImageShapeError(
        f"{network}: images of shape {tuple(image_shape)} are too small, its convolutions need at least "
        f"{least} x {least} pixels: set --data.image_size to at least {least}"
    )


def require(network: str, **options: float) -> None:
    """A drop rate that is not in [0, 1), or any other option below one, is a ConfigError."""
    for name, value in options.items():
        is_rate = name == "drop_rate"
        if not (0 <= value < 1 if is_rate else value >= 1):
            wanted = "at least 0 and less than 1" if is_rate else "at least 1"
            raise ConfigError(f"{network}: {name} is {value}, set --model.backbone.{name} to {wanted}")


def _output_length(features: nn.Sequential, image_shape: ImageShape) -> int:
    """Values per image that the layers give; 0 where the image is too small. On the meta device nothing is computed."""
    tensors = itertools.chain(features.named_parameters(), features.named_buffers())
    state = {name: value.to("meta") for name, value in tensors}
    try:
        with torch.no_grad():
            maps: Tensor = functional_call(features, state, (torch.empty(2, *image_shape, device="meta"),))
    except RuntimeError:  # a window that does not fit once
        return 0
    return maps[0].numel()
