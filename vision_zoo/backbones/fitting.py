"""Fitting a network that was made for other images or classes: its first convolution, its last layer."""

import copy

import torch
from torch import Tensor, nn

from vision_zoo.errors import lack

_RGB = 3
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def head_of(network: nn.Module) -> str:
    """The name of the layer that gives the logits: the last linear one (in SqueezeNet, the last convolution)."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def fit_classes(network: nn.Module, num_classes: int) -> None:
    """Replace the last layer by a fresh one for this number of classes."""
    path = head_of(network)
    last = network.get_submodule(path)
    if isinstance(last, nn.Linear):
        network.set_submodule(path, nn.Linear(last.in_features, num_classes, bias=last.bias is not None))
    elif isinstance(last, nn.Conv2d):
        network.set_submodule(path, nn.Conv2d(last.in_channels, num_classes, 1))


def fit_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one that takes this number of channels in place of three.

    One channel takes the sum of the red, green and blue filters (the network then answers as if the gray image stood in
    all three), others take them in turn, scaled by 3 / channels.
    """
    if channels == _RGB:
        return
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    rgb = first.weight.detach()  # (width, 3, k, k)
    turns = rgb[:, [c % _RGB for c in range(channels)]] * (_RGB / channels)  # (width, channels, k, k)
    first.weight = nn.Parameter(rgb.sum(dim=1, keepdim=True) if channels == 1 else turns)
    first.in_channels = channels


class WithFeatures(nn.Module):
    """A network that gives its features beside its logits: what its last linear layer is given.

    Args:
        network: gives logits (B, K), the output of its last linear layer, with nothing after it.

    Raises:
        ValueError: if the last layer is not linear, or, at the first images, if it is not alone in giving the logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        path = head_of(network)
        head = network.get_submodule(path)
        if not isinstance(head, nn.Linear):
            raise ValueError("the network does not end in a linear layer")
        self.num_classes = head.out_features
        # A copy whose layers are the same objects, but for those on the way to the head.
        self.network = copy.deepcopy(network, {id(part): part for part in network.parameters()})
        self.network.set_submodule(path, _Beside(head))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and features (B, D) of normalised images (B, C, H, W)."""
        try:
            both = self.network(images)  # (B, K + D)
        except RuntimeError as error:  # such as the mean of two heads, of other widths now
            if lack(error):
                raise
            raise ValueError(f"the logits are not those of the last linear layer alone ({error})") from error
        return both[:, : self.num_classes], both[:, self.num_classes :]


class _Beside(nn.Module):
    """The head, with its input beside its output."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits and features, (B, K + D)."""
        return torch.cat([self.head(features), features], dim=1)
