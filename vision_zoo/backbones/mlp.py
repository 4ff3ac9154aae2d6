"""Tutorial network for MNIST: a perceptron with one hidden layer (Rumelhart et al. 1986)."""

import math

from torch import Tensor, nn

from vision_zoo.backbones.shapes import require
from vision_zoo.types import ImageShape


class MLP(nn.Module):
    """One hidden linear layer with ReLU, then the logits.

    Args:
        image_shape: (channels, height, width) of one image; any size.
        num_classes: number of logits.
        hidden: width of the hidden layer; as many as there are inputs if not given.

    Raises:
        ConfigError: if the hidden layer is empty.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        in_features = math.prod(image_shape)
        width = in_features if hidden is None else hidden
        require("MLP", hidden=width)
        self.features = nn.Sequential(nn.Linear(in_features, width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images.flatten(1))  # (B, hidden)
        return self.head(x)  # (B, num_classes)
