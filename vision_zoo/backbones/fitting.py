"""Fitting a network that was made for other images or classes: its first convolution, its last layer."""

from torch import nn

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
