"""Sizes of feature maps, computed before the network runs, and the refusal of images that are too small."""

from collections.abc import Iterable

from torch import nn

from vision_zoo.errors import ConfigError, ImageShapeError
from vision_zoo.types import ImageShape

_Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


def conv_output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Length of one axis after a convolution or a pooling: floor((size + 2p - d(k - 1) - 1) / s + 1).

    Args:
        size: length of the axis before, in pixels.
        kernel: length of the window.
        stride: step of the window.
        padding: pixels added on both sides.
        dilation: distance between the taps of the window.

    Returns:
        The length after, in pixels; 0 where the window does not fit once.
    """
    return max(0, (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)


def num_features(network: str, features: nn.Sequential, image_shape: ImageShape) -> int:
    """Length of the flattened output of convolutions and poolings.

    Args:
        network: the network's name, for the refusal.
        features: layers that keep the size, mixed with convolutions and poolings that may change it.
        image_shape: (channels, height, width) of one image.

    Returns:
        Channels times height times width after the last layer.

    Raises:
        ImageShapeError: if nothing is left of the image on the way.
    """
    windows = [layer for layer in features.modules() if isinstance(layer, _Window)]
    channels, height, width = image_shape
    for layer in windows:
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
    left = _size_after(windows, height) * _size_after(windows, width)
    if left == 0:
        least = 1
        while _size_after(windows, least) == 0:
            least += 1
        raise ImageShapeError(
            f"{network}: images of shape {tuple(image_shape)} are too small, its convolutions need at least "
            f"{least} x {least} pixels: set --data.image_size to at least {least}"
        )
    return channels * left


def require_at_least(network: str, option: str, value: int) -> None:
    """Refuse an option of a network that is below one.

    Args:
        network: the network's name, for the refusal.
        option: the option's name.
        value: what was given.

    Raises:
        ConfigError: if the value is below one.
    """
    if value < 1:
        raise ConfigError(f"{network}: {option} is {value}, set --model.backbone.{option} to at least 1")


def require_rate(network: str, drop_rate: float) -> None:
    """Refuse a drop rate that is not a probability below one.

    Args:
        network: the network's name, for the refusal.
        drop_rate: what was given.

    Raises:
        ConfigError: if the rate is not in [0, 1).
    """
    if not 0 <= drop_rate < 1:
        raise ConfigError(
            f"{network}: drop_rate is {drop_rate}, set --model.backbone.drop_rate to at least 0 and less than 1"
        )


def _size_after(windows: Iterable[_Window], size: int) -> int:
    for layer in windows:
        if size == 0:
            break
        dilation = 1 if isinstance(layer, nn.AvgPool2d) else _side(layer.dilation)
        kernel, stride, padding = _side(layer.kernel_size), _side(layer.stride), _side(layer.padding)
        size = conv_output_size(size, kernel, stride, padding, dilation)
    return size


def _side(value: int | str | tuple[int, ...]) -> int:
    """One number of a layer's setting; all windows here are square."""
    if isinstance(value, str):
        raise TypeError(f"padding by name ({value!r}) has no size to compute with")
    return value if isinstance(value, int) else value[0]
