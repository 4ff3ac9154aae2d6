"""Image classification with PyTorch Lightning."""

from vision_zoo.version import __version__

TYPE_CHECKING = False  # as typing's, whose import takes longer than the answer to --version
if TYPE_CHECKING:
    from vision_zoo.api import Run, fit, load, predict, runs, test

__all__ = ["Run", "__version__", "fit", "load", "predict", "runs", "test"]


def __getattr__(name: str) -> object:
    """The functions for Python, imported when one is used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vision_zoo import api  # noqa: PLC0415  # the door imports little, until it is used

    return getattr(api, name)
