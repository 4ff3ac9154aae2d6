"""What can go wrong, for the person at the terminal: each message says what, where and the way out."""

import difflib
import errno
import mmap
import os
import re
import threading
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


def one_line(error: Exception) -> str:
    """The beginning of what an error says, of which some libraries write pages; a LookupError says a key alone."""
    text, name = " ".join(str(error).split())[:300], type(error).__name__
    return f"{name}: {text}" if isinstance(error, LookupError) else text or name


def diverged(what: str, step: int, epoch: int) -> TrainingError:
    """What ends a training whose numbers are not finite any more."""
    helps = "What was saved before is kept; a smaller --model.optimizer.lr or --trainer.gradient_clip_val 1 often helps"
    return TrainingError(f"{what} at step {step} (epoch {epoch}). {helps}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Close matches as the end of a sentence, or nothing."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[c] for c in close)}?" if close else ""


# What a machine or its limits may lack: numbers of an OSError, words of other errors, what to tell.
_LACKS = (
    ((errno.EMFILE, errno.ENFILE), "open files", "no more files can be opened: raise the limit (ulimit -n)"),
    ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "space left", "the disk is full, or files may not grow (ulimit -f)"),
    ((errno.EAGAIN,), "start new thread", "no more threads or processes can be started: raise the limit (ulimit -u)"),
    ((errno.ENOMEM,),
     "MemoryError|allocate memory|bad_alloc|map segment|calculation overflowed|multiplication over|create a primitive",
     "there is not enough memory: set --data.batch_size or --data.image_size lower, or take a smaller network"),
)  # fmt: skip


def lack(error: BaseException, *, reading: bool = False) -> str:
    """What the machine or its limits lack, where an error says so, and the way out; else nothing.

    Where it comes from ``reading`` a file, that may be broken and ask for more memory than any machine has.
    """
    said = re.sub(r"'[^']*[/\\][^']*'", "", f"{type(error).__name__}: {error}")  # a path may hold any words
    for numbers, words, told in _LACKS:
        if getattr(error, "errno", None) in numbers or re.search(words, said):
            if reading and errno.ENOMEM in numbers:
                return missing()
            return f"{told} ({str(error).partition(chr(10))[0] or type(error).__name__})"
    return ""


def missing() -> str:
    """What the machine lacks now, where an error does not say so: C code may fail in any way without memory."""
    try:
        mmap.mmap(-1, 2**30).close()  # more than the largest image takes
        os.close(os.open(os.devnull, os.O_RDONLY))
        threading.Thread(target=int).start()
    except (OSError, RuntimeError) as error:
        return lack(error)
    return ""
