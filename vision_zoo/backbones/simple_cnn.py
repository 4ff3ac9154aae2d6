"""Tutorial network for MNIST: one convolution with overlapping pooling, then two linear layers."""

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features, require
from vision_zoo.types import ImageShape


class SimpleCNN(nn.Module):
    """One 5x5 convolution, max pooling of stride one, dropout, then two linear layers.

    Args:
        image_shape: (channels, height, width) of one image; height and width at least 2.
        num_classes: number of logits.
        drop_rate: probability of dropping a value of the feature map.

    Raises:
        ImageShapeError: if the image is too small for the pooling.
        ConfigError: if the drop rate is not in [0, 1).
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, drop_rate: float = 0.2) -> None:
        super().__init__()
        require("SimpleCNN", drop_rate=drop_rate)
        self.features = nn.Sequential(
            *(nn.Conv2d(image_shape[0], 10, 5, padding=2), nn.ReLU()),  # (B, 10, H, W)
            *(nn.MaxPool2d(2, stride=1), nn.Dropout(drop_rate)),  # (B, 10, H - 1, W - 1)
        )
        fan_in = num_features("SimpleCNN", self.features, image_shape)
        self.head = nn.Sequential(nn.Linear(fan_in, 128), nn.ReLU(), nn.Linear(128, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 10, 27, 27) for 28x28
        return self.head(x.flatten(1))  # (B, num_classes)
