"""What can go wrong, for the person at the terminal: each message says what, where and the way out."""


class VisionZooError(Exception):
    """A failure that the user can read and act on; shown as its message alone, without a traceback."""

    exit_code = 1


class InputError(VisionZooError):
    """Wrong usage or input, found before any work was done."""

    exit_code = 2


class ConfigError(InputError):
    """An option, a name or a configuration file that cannot be used."""


class DatasetNotFoundError(InputError):
    """Files of a data set are missing and could not be downloaded."""


class DataError(InputError):
    """Files of a data set are there but cannot be used: broken, of another format, or inconsistent."""


class ImageShapeError(InputError):
    """A network cannot take images of this shape or type."""


class CheckpointError(InputError):
    """A checkpoint is missing, broken, not trusted, or does not fit the model or the data."""


class TrainingError(VisionZooError):
    """A failure that shows only while running: the loss is not finite, the disk is full, a process was lost."""


def diverged(what: str, step: int, epoch: int) -> TrainingError:
    """What ends a training whose numbers are not finite any more."""
    return TrainingError(
        f"{what} at step {step} (epoch {epoch}). What was saved before is kept; a smaller --model.optimizer.lr or "
        "--trainer.gradient_clip_val 1 often helps"
    )
