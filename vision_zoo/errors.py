"""What can go wrong, for the person at the terminal: each message says what, where and the way out."""

import difflib
from collections.abc import Iterable


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


def refuse(kind: type[Exception], *problems: tuple[object, str]) -> None:
    """Raise the first problem, a condition and a message, whose condition holds."""
    for wrong, message in problems:
        if wrong:
            raise kind(message)


def diverged(what: str, step: int, epoch: int) -> TrainingError:
    """What ends a training whose numbers are not finite any more."""
    helps = "What was saved before is kept; a smaller --model.optimizer.lr or --trainer.gradient_clip_val 1 often helps"
    return TrainingError(f"{what} at step {step} (epoch {epoch}). {helps}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Close matches as the end of a sentence, or nothing."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[c] for c in close)}?" if close else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, numpy or Python could not have the memory that it asked for."""
    words = ("allocate memory", "Storage size calculation overflowed", "numel: integer multiplication overflow")
    # By name: this module comes without torch.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(word in str(error) for word in words)
