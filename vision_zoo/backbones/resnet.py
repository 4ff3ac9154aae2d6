"""ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385), with a stem for images of about 32x32."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo.errors import ConfigError
from vision_zoo.types import ImageShape

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """A 3x3 convolution without pooling, four stages of basic blocks, global average pooling, one linear layer.

    Takes images of any size; three of the four stages halve it.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: number of logits.
        depth: number of layers with weights.

    Raises:
        ConfigError: if the depth is neither 18 nor 34.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, depth: Literal[18, 34] = 18) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ConfigError(f"ResNet: depth is {depth}, set --model.backbone.depth to 18 or 34")
        self.name = f"ResNet-{depth}"
        in_channels = _WIDTHS[0]
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], in_channels, 3, padding=1, bias=False), nn.BatchNorm2d(in_channels), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        for stage, (width, n_blocks) in enumerate(zip(_WIDTHS, _BLOCKS[depth], strict=True)):
            for i in range(n_blocks):
                blocks.append(BasicBlock(in_channels, width, stride=2 if stage > 0 and i == 0 else 1))
                in_channels = width
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x = self.stem(images)  # (B, 64, H, W)
        x = self.features(x)  # (B, 512, 4, 4) for 32x32
        return self.head(x.mean(dim=(2, 3)))  # (B, num_classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to their input; a 1x1 convolution fits the input where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *(nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, width, ceil(H / stride), ceil(W / stride)) of feature maps (B, in_channels, H, W)."""
        return F.relu(self.residual(x) + self.shortcut(x))
