"""AlexNet (Krizhevsky et al. 2012), in a tutorial's version for the 32x32 images of CIFAR-10."""

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features, require
from vision_zoo.types import ImageShape


class AlexNet(nn.Module):
    """Five small convolutions, three of them followed by max pooling, then three linear layers.

    Args:
        image_shape: (channels, height, width) of one image; height and width at least 10.
        num_classes: number of logits.
        drop_rate: probability of dropping a value before the first and the second linear layer.

    Raises:
        ImageShapeError: if the image is too small for the last pooling.
        ConfigError: if the drop rate is not in [0, 1).
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, drop_rate: float = 0.5) -> None:
        super().__init__()
        require("AlexNet", drop_rate=drop_rate)
        self.features = nn.Sequential(
            *(nn.Conv2d(image_shape[0], 64, 3), nn.ReLU(), nn.MaxPool2d(2)),  # (B, 64, 15, 15) for 32x32
            *(nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # (B, 192, 7, 7)
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 1), nn.ReLU(), nn.MaxPool2d(2)),  # (B, 256, 3, 3)
        )
        self.head = nn.Sequential(
            *(nn.Dropout(drop_rate), nn.Linear(num_features("AlexNet", self.features, image_shape), 1024), nn.ReLU()),
            *(nn.Dropout(drop_rate), nn.Linear(1024, 512), nn.ReLU()),
            nn.Linear(512, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 256, 3, 3)
        return self.head(x.flatten(1))  # (B, num_classes)
