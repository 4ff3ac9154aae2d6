"""What every run has: the callbacks that the command line adds to the user's own, in their order."""

from collections.abc import Sequence

from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar

from vision_zoo.training.averaging import AverageInTime
from vision_zoo.training.evaluation import TestArtifacts
from vision_zoo.training.performance import Performance
from vision_zoo.training.progress import ProgressBar
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.training.saving import Saving
from vision_zoo.training.tuning import FINDERS, Findings


def run_callbacks(
    own: Sequence[Callback],
    *,
    run: RunFolder | None = None,
    performance: Performance | None = None,
    saving: Saving | None = None,
    show_bar: bool = True,
) -> list[Callback]:
    """The callbacks of a run, in the order that they need; the progress bar is left out where the user has another.

    The folder comes first, for the loggers that others look for; Performance before what tells its choices; Saving
    before other checkpoint callbacks, which Lightning moves behind all that are none.
    """
    ours: list[Callback] = [callback for callback in (run, performance, saving) if callback is not None]
    if any(isinstance(callback, FINDERS) for callback in own) and run is not None:
        if run.resumes:
            own = [callback for callback in own if not isinstance(callback, FINDERS)]
        else:
            ours.append(Findings(run))
    if any(isinstance(callback, WeightAveraging) for callback in own):
        ours.append(AverageInTime())
    shown = [] if any(isinstance(callback, AnyProgressBar) for callback in own) else [ProgressBar(show_bar)]
    return [*ours, *own, *shown, TestArtifacts(run)]
