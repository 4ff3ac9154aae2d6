"""Tutorial network for MNIST: linear layers of falling width, with batch normalisation or dropout."""

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from vision_zoo.backbones.shapes import require
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import ImageShape


class FullyConnected(nn.Module):
    """Linear layers whose widths fall by equal steps from the number of inputs to the number of classes.

    Args:
        image_shape: (channels, height, width) of one image; any size.
        num_classes: number of logits.
        n_layers: number of linear layers, the one that gives the logits included.
        norm: what follows each hidden layer.
        drop_rate: probability of dropping a value, where norm is dropout.

    Raises:
        ConfigError: if there is no layer, or more than values of an image, or the drop rate is not in [0, 1).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        n_layers: int = 5,
        norm: Literal["batch_norm", "dropout", "none"] = "batch_norm",
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        require("FullyConnected", n_layers=n_layers, drop_rate=drop_rate)
        in_features = math.prod(image_shape)
        most = f"FullyConnected: n_layers is {n_layers}, set --model.backbone.n_layers to at most {in_features}"
        refuse(ConfigError, (n_layers > in_features, f"{most}, the number of values of an image"))
        step = int((in_features - num_classes) / n_layers)
        widths = [in_features - i * step for i in range(n_layers)]  # 784, 630, 476, 322, 168 for MNIST
        layers: list[nn.Module] = []
        for fan_in, width in pairwise(widths):
            layers += [nn.Linear(fan_in, width), nn.LeakyReLU()]
            if norm == "batch_norm":
                layers.append(nn.BatchNorm1d(width))
            elif norm == "dropout":
                layers.append(nn.Dropout(drop_rate))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.features(images.flatten(1))  # (B, 168) for MNIST
        return self.head(x)  # (B, num_classes)
