"""The network of airbench94 (Jordan 2024, https://arxiv.org/abs/2404.00498, its variant that Muon trains)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo.backbones.shapes import num_features, require
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import ImageShape

_EPS = 5e-4  # added to the variances that patches are divided by


class Airbench(nn.Module):
    """A fixed whitening convolution of 2x2 patches, three groups of two convolutions, max pooling, one linear layer.

    The whitening filters follow from training images, see `start_from`. Its scales of batch normalisation stay 1.

    Args:
        image_shape: (channels, height, width) of one image; height and width at least 9.
        num_classes: number of logits.
        widths: channels of the three groups.
        temperature: the logits are divided by it; by default by the last width.

    Raises:
        ConfigError: if there are no widths, one is below 1, or the temperature is not above 0.
        ImageShapeError: if the images are too small for three poolings.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        widths: Sequence[int] = (64, 256, 256),
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        require("Airbench", widths=min(widths, default=0))
        positive = f"Airbench: temperature is {temperature}, set --model.backbone.temperature above 0"
        refuse(ConfigError, (temperature is not None and not 0 < temperature < math.inf, positive))
        whitened = 2 * image_shape[0] * 2 * 2  # every direction of a patch, and its opposite
        self.whiten = nn.Conv2d(image_shape[0], whitened, 2)
        self.whiten.weight.requires_grad = False
        self.whiten.bias = nn.Parameter(torch.zeros(whitened))
        inputs = (whitened, *widths)
        self.features = nn.Sequential(*(_Group(inputs[i], width) for i, width in enumerate(widths)))
        num_features("Airbench", nn.Sequential(self.whiten, self.features), image_shape)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()
        self.temperature = float(widths[-1]) if temperature is None else temperature

    def start_from(self, images: Tensor) -> None:
        """Take the whitening filters from normalised training images, float (N, C, H, W)."""
        with torch.no_grad():
            patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # (N, C, H - 1, W - 1, 2, 2)
            patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()  # (patches, C * 4)
            values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
            filters = vectors.T.flip(0) / torch.sqrt(values.flip(0) + _EPS)[:, None]  # the largest first
            filters = filters.unflatten(1, (images.shape[1], 2, 2))
            self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups of airbench94: the whitening's bias learns for 3 of 8 epochs, the head 12.6 times faster."""
        head = {"params": list(self.head.parameters()), "lr_share": 0.67 / 0.053, "weight_decay": 3e-6}
        apart = {*self.whiten.parameters(), *self.head.parameters()}
        rest = [weight for weight in self.parameters() if weight not in apart]
        return [{"params": list(self.whiten.parameters()), "until": 3 / 8}, head, {"params": rest}]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = F.gelu(self.whiten(images))  # (B, 24, 31, 31) for 3x32x32
        x = self.features(x).amax(dim=(2, 3))  # (B, 256), of (B, 256, 3, 3)
        return self.head(x) / self.temperature  # (B, num_classes)


class _Group(nn.Sequential):
    """Two convolutions that begin as the identity; the first is pooled."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(
            *(_convolution(in_channels, width), nn.MaxPool2d(2), _normalisation(width), nn.GELU()),
            *(_convolution(width, width), _normalisation(width), nn.GELU()),
        )


def _convolution(in_channels: int, width: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, width, 3, padding="same", bias=False)
    nn.init.dirac_(convolution.weight.data[:in_channels])  # the other filters stay random
    return convolution


def _normalisation(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return norm
