"""Networks and a data set of a user's own, named on the command line by their class paths."""

from pathlib import Path

from torch import nn

from vision_zoo.data import MNIST5k


class Foreign(nn.Module):
    """A network from outside the package."""

    def __init__(self, shape, classes, width=4):
        super().__init__()
        channels, height, pixels = shape
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * height * pixels, width), nn.Linear(width, classes)
        )

    def forward(self, images):
        return self.layers(images)


class Stemmed(nn.Module):
    """A network with a part that its options choose."""

    def __init__(self, shape, classes, stem: nn.Module, act: type[nn.Module] = nn.Tanh):
        super().__init__()
        self.stem = nn.Sequential(stem, act())
        channels, height, pixels = shape
        self.head = nn.Linear(channels * height * pixels, classes)

    def forward(self, images):
        return self.head(self.stem(images).flatten(1))


def foreign_function(shape, classes) -> nn.Module:
    return Foreign(shape, classes, 3)


def quoted_function(shape, classes) -> "nn.Module":  # as under `from __future__ import annotations`
    return Foreign(shape, classes, 3)


class Labelled(MNIST5k):
    """A data set with an option that names a file."""

    def __init__(self, table: str | Path = "", **options):
        super().__init__(**options)
        self.hparams["table"] = str(table)
        assert Path(table).is_file()
