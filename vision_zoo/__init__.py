"""Image classification with PyTorch Lightning."""

__version__ = "0.1.0"

from vision_zoo.api import Run, fit, load, predict, runs, test

__all__ = ["Run", "__version__", "fit", "load", "predict", "runs", "test"]
