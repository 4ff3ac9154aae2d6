"""Image classification with PyTorch Lightning."""

from vision_zoo.api import Run, fit, load, predict, runs, test
from vision_zoo.version import __version__

__all__ = ["Run", "__version__", "fit", "load", "predict", "runs", "test"]
