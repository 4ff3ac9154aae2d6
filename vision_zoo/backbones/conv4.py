"""Tutorial network for CIFAR-10: four convolutions whose sizes all follow from the image and a few numbers."""

from itertools import pairwise

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features, require
from vision_zoo.types import ImageShape


class Conv4(nn.Module):
    """Four unpadded 3x3 convolutions with max pooling, each twice as wide as the one before, then two linear layers.

    Args:
        image_shape: (channels, height, width) of one image; height and width at least 46.
        num_classes: number of logits.
        initial_filters: channels of the first convolution.
        num_fc1: width of the linear layer before the logits.
        drop_rate: probability of dropping a value before the last linear layer.

    Raises:
        ImageShapeError: if the image is too small for the last pooling.
        ConfigError: if a width is less than one, or the drop rate is not in [0, 1).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        initial_filters: int = 8,
        num_fc1: int = 100,
        drop_rate: float = 0.25,
    ) -> None:
        super().__init__()
        require("Conv4", initial_filters=initial_filters, num_fc1=num_fc1, drop_rate=drop_rate)
        layers: list[nn.Module] = []
        for in_channels, width in pairwise((image_shape[0], *(initial_filters * 2**i for i in range(4)))):
            layers += [nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        fan_in = num_features("Conv4", self.features, image_shape)
        self.head = nn.Sequential(
            nn.Linear(fan_in, num_fc1), nn.ReLU(), nn.Dropout(drop_rate), nn.Linear(num_fc1, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 8 * initial_filters, 2, 2) for 64x64, by way of 31, 14, 6
        return self.head(x.flatten(1))  # (B, num_classes)
