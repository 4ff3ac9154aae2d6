"""Tutorial networks for Fashion-MNIST (Xiao et al. 2017): one of linear layers, one of convolutions, to compare."""

import math

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features, require
from vision_zoo.types import ImageShape


class DNN(nn.Module):
    """Three linear layers of 256, 128 and num_classes, with dropout after the first.

    Args:
        image_shape: (channels, height, width) of one image; any size.
        num_classes: number of logits.
        drop_rate: probability of dropping a value of the first hidden layer.

    Raises:
        ConfigError: if the drop rate is not in [0, 1).
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, drop_rate: float = 0.25) -> None:
        super().__init__()
        require("DNN", drop_rate=drop_rate)
        self.features = nn.Sequential(
            *(nn.Linear(math.prod(image_shape), 256), nn.ReLU(), nn.Dropout(drop_rate)),
            *(nn.Linear(256, 128), nn.ReLU()),
        )
        self.head = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images.flatten(1))  # (B, 128)
        return self.head(x)  # (B, num_classes)


class FashionCNN(nn.Module):
    """Two 3x3 convolutions with batch normalisation and max pooling, then three linear layers.

    As in its source, nothing but dropout stands between the linear layers.

    Args:
        image_shape: (channels, height, width) of one image; height and width at least 8.
        num_classes: number of logits.
        drop_rate: probability of dropping a value of the first linear layer's output.

    Raises:
        ImageShapeError: if the image is too small for the last pooling.
        ConfigError: if the drop rate is not in [0, 1).
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, drop_rate: float = 0.25) -> None:
        super().__init__()
        require("FashionCNN", drop_rate=drop_rate)
        self.features = nn.Sequential(
            *(nn.Conv2d(image_shape[0], 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),  # (B, 32, 28, 28) for 28x28
            nn.MaxPool2d(2),  # (B, 32, 14, 14)
            *(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU()),  # (B, 64, 12, 12)
            nn.MaxPool2d(2),  # (B, 64, 6, 6)
        )
        self.head = nn.Sequential(
            *(nn.Linear(num_features("FashionCNN", self.features, image_shape), 600), nn.Dropout(drop_rate)),
            nn.Linear(600, 120),
            nn.Linear(120, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 64, 6, 6) for 28x28
        return self.head(x.flatten(1))  # (B, num_classes)
