"""What a run does besides training: its folder, what the terminal shows, the evaluation of the test images."""

from vision_zoo.callbacks.console import Console
from vision_zoo.callbacks.evaluation import Evaluation
from vision_zoo.callbacks.resizing import ProgressiveResizing
from vision_zoo.callbacks.run import AtomicCheckpointIO, Run
from vision_zoo.callbacks.speed import Speed

__all__ = ["AtomicCheckpointIO", "Console", "Evaluation", "ProgressiveResizing", "Run", "Speed"]
