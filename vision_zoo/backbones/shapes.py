"""Sizes of feature maps, found before the network runs, and the refusal of options and images that do not fit."""

import itertools

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vision_zoo.errors import ConfigError, ImageShapeError, refuse
from vision_zoo.types import ImageShape


def num_features(network: str, features: nn.Sequential, image_shape: ImageShape) -> int:
    """Length of the flattened output of convolutions and poolings.

    Args:
        network: the network's name, for the refusal.
        features: layers from images (B, C, H, W) to feature maps.
        image_shape: (channels, height, width) of one image.

    Returns:
        Channels times height times width after the last layer.

    Raises:
        ImageShapeError: if nothing is left of the image on the way.
    """
    channels, height, width = image_shape
    if length := _output_length(features, image_shape):
        return length
    sizes = itertools.count(min(height, width) + 1)
    least = next(size for size in sizes if _output_length(features, (channels, size, size)))
    raise ImageShapeError(
        f"{network}: images of shape {tuple(image_shape)} are too small, its convolutions need at least "
        f"{least} x {least} pixels: set --data.image_size to at least {least}"
    )


def require_at_least(network: str, option: str, value: int) -> None:
    """Refuse an option of a network that is below one.

    Raises:
        ConfigError: if the value is below one.
    """
    message = f"{network}: {option} is {value}, set --model.backbone.{option} to at least 1"
    refuse(ConfigError, (value < 1, message))


def require_rate(network: str, drop_rate: float) -> None:
    """Refuse a drop rate that is not a probability below one.

    Raises:
        ConfigError: if the rate is not in [0, 1).
    """
    message = f"{network}: drop_rate is {drop_rate}, set --model.backbone.drop_rate to at least 0 and less than 1"
    refuse(ConfigError, (not 0 <= drop_rate < 1, message))


def _output_length(features: nn.Sequential, image_shape: ImageShape) -> int:
    """Values per image that the layers give; 0 where the image is too small. On the meta device nothing is computed."""
    state = {
        name: value.to("meta") for name, value in itertools.chain(features.named_parameters(), features.named_buffers())
    }
    try:
        with torch.no_grad():
            maps: Tensor = functional_call(features, state, (torch.empty(2, *image_shape, device="meta"),))
    except RuntimeError:  # a window that does not fit once
        return 0
    return maps[0].numel()
