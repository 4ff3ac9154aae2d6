"""What a run does besides training: its folder, what the terminal shows, the evaluation of the test images."""

from vision_zoo.training.evaluation import Evaluation
from vision_zoo.training.performance import Speed
from vision_zoo.training.progress import Console
from vision_zoo.training.resizing import ProgressiveResizing
from vision_zoo.training.run_folder import AtomicCheckpointIO, Run

__all__ = ["AtomicCheckpointIO", "Console", "Evaluation", "ProgressiveResizing", "Run", "Speed"]
