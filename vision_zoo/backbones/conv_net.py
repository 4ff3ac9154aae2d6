"""A plain convolutional network of any size (after VGG, Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features, require
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import ImageShape


class ConvNet(nn.Module):
    """Stages of 3x3 convolutions with batch normalisation and ReLU, max pooling between them, and a global average.

    Args:
        image_shape: (channels, height, width) of one image; with three stages, height and width at least 4.
        num_classes: number of logits.
        stages: widths of the convolutions of each stage; each stage but the first begins with a 2x2 max pooling.
        drop_rate: dropout before the last layer, in [0, 1).

    Raises:
        ConfigError: if a stage has no convolution, a width is below 1, or drop_rate is not in [0, 1).
        ImageShapeError: if the images are too small to be pooled so often.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        stages: Sequence[Sequence[int]] = ((32, 32), (64, 64), (128, 128)),
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        empty = "ConvNet: each of the stages needs widths of its convolutions, such as [[32, 32], [64, 64]]"
        refuse(ConfigError, (not stages or not all(stages), f"{empty}, got {stages}"))
        require("ConvNet", drop_rate=drop_rate, stages=min(map(min, stages)))
        widths = [image_shape[0], *(width for stage in stages for width in stage)]
        layers = [_convolution(*pair) for pair in pairwise(widths)]
        parts: list[nn.Module] = []
        for number, stage in enumerate(stages):
            parts += [nn.MaxPool2d(2)] if number else []
            parts += [layers.pop(0) for _ in stage]
        self.features = nn.Sequential(*parts)
        num_features("ConvNet", self.features, image_shape)
        self.dropout = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 128, 7, 7) for 28x28
        return self.head(self.dropout(x.mean(dim=(2, 3))))  # (B, num_classes)


def _convolution(in_channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
