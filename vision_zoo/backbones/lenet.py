"""LeNet-5 (LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf)."""

from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features
from vision_zoo.types import ImageShape


class LeNet5(nn.Module):
    """Three 5x5 convolutions with tanh and average pooling, then two linear layers.

    Args:
        image_shape: (channels, height, width) of one image; height and width at least 28.
        num_classes: number of logits.

    Raises:
        ImageShapeError: if the image is too small for the last convolution.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(image_shape[0], 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),  # (B, 6, 14, 14) for 28x28
            *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),  # (B, 16, 5, 5)
            *(nn.Conv2d(16, 120, 5), nn.Tanh()),  # (B, 120, 1, 1)
        )
        fan_in = num_features("LeNet5", self.features, image_shape)
        self.head = nn.Sequential(nn.Linear(fan_in, 84), nn.Tanh(), nn.Linear(84, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images)  # (B, 120, 1, 1) for 28x28
        return self.head(x.flatten(1))  # (B, num_classes)
