"""What a run does besides training: its folder, what the terminal shows, the artifacts of the test."""

from vision_zoo.training.callbacks import run_callbacks
from vision_zoo.training.evaluation import TestArtifacts
from vision_zoo.training.lightning_callbacks import EMA, BackboneFinetuning, ModelPruning, StochasticWeightAveraging
from vision_zoo.training.performance import Performance
from vision_zoo.training.progress import ProgressBar
from vision_zoo.training.resizing import ProgressiveResizing
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.training.saving import AtomicCheckpointIO, Saving

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "BackboneFinetuning",
    "ModelPruning",
    "Performance",
    "ProgressBar",
    "ProgressiveResizing",
    "RunFolder",
    "Saving",
    "StochasticWeightAveraging",
    "TestArtifacts",
    "run_callbacks",
]
