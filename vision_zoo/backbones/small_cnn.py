"""Tutorial network for MNIST: two convolutions and one linear layer, 5,142 parameters."""

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features
from vision_zoo.types import ImageShape


class SmallCNN(nn.Module):
    """Two 5x5 convolutions with max pooling, then one linear layer.

    Args:
        image_shape: (channels, height, width) of one image; height and width at least 16.
        num_classes: number of logits.

    Raises:
        ImageShapeError: if the image is too small for the last pooling.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(image_shape[0], 6, 5), nn.ReLU(), nn.MaxPool2d(2)),  # (B, 6, 12, 12) for 28x28
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),  # (B, 16, 4, 4)
        )
        self.head = nn.Linear(num_features("SmallCNN", self.features, image_shape), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 16, 4, 4)
        return self.head(x.flatten(1))  # (B, num_classes)
