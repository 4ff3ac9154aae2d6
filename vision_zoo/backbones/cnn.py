"""Tutorial network for MNIST: five convolutional blocks with batch normalisation (Ioffe and Szegedy 2015)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features, require
from vision_zoo.types import ImageShape


class CNN(nn.Module):
    """Blocks of two 3x3 convolutions, the second of which halves the image, then two linear layers.

    Takes images of any size: the last feature map of 28x28 and of 32x32 is a single pixel.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: number of logits.
        widths: channels of each block.
        hidden: width of the linear layer before the logits.

    Raises:
        ConfigError: if a width is less than one, or there is none.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        hidden: int = 50,
    ) -> None:
        super().__init__()
        require("CNN", widths=min(widths, default=0), hidden=hidden)
        self.features = nn.Sequential(*(_block(*channels) for channels in pairwise((image_shape[0], *widths))))
        fan_in = num_features("CNN", self.features, image_shape)
        self.head = nn.Sequential(
            nn.Linear(fan_in, hidden), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 512, 1, 1) for 28x28, by way of 14, 7, 4, 2
        return self.head(x.flatten(1))  # (B, num_classes)


def _block(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(width)),  # (B, width, H, W)
        *(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(width)),  # half of H and W
    )
