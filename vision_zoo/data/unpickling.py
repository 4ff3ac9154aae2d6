"""Arrays and plain values out of pickles, with nothing run: what a pickle calls is kept as data, never imported."""

import pickle
import re
from functools import partial
from typing import Any

import numpy as np

from vision_zoo.errors import refuse

_CALLED = re.compile(r"numpy\._?core\.multiarray\.(_reconstruct|scalar)|numpy\.(ndarray|dtype)|_codecs\.encode")


class _Call:
    """What a pickle would make by a call: its name and arguments, and the state that is set afterwards."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments, self.state = name, arguments, arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Unpickler(pickle.Unpickler):
    """Reads plain values, and what `plain_array` takes for an array; anything else is an UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        """Stand in for what makes arrays: numpy's own believes what a file says of the memory of its objects."""
        foreign = f"it names {module}.{name}, which has no place in this dataset"
        refuse(pickle.UnpicklingError, (not _CALLED.fullmatch(f"{module}.{name}"), foreign))
        return partial(_Call, name)


def plain_array(item: Any, most_bytes: int = 2**30, *, inside: bool = False) -> Any:
    """The array of numbers or texts that was read, where one of objects becomes one of what they hold.

    Raises:
        ValueError: if its objects are of several kinds or shapes, or hold more than `most_bytes`.
    """
    if not isinstance(item, _Call):
        return item
    if item.name == "encode":  # bytes, in the older protocols
        return str(item.arguments[0]).encode("latin1")
    scalar = (0, (), item.arguments[0], False, item.arguments[-1])
    _, shape, dtype, fortran, content = scalar if item.name == "scalar" else item.state
    code, order = str(dtype.arguments[0]), dtype.state[1]
    if not code.startswith("O"):
        refuse(ValueError, (not re.fullmatch(r"[?buif]\d*|[US]\d+", code), f"it holds values of type {code}"))
        raw = content.encode("latin1") if isinstance(content, str) else plain_array(content)  # a text in Python 2
        return np.frombuffer(raw, np.dtype(f"{order}{code}")).reshape(shape, order="F" if fortran else "C")[()]
    values = [plain_array(value, inside=True) for value in content]
    plain = all(isinstance(value, (str, bytes, bool, int, float, np.generic, np.ndarray)) for value in values)
    refuse(ValueError, (inside or not plain, "its objects are not all numbers, texts or plain arrays"))
    unlike = len({(np.asarray(value).dtype.kind, np.shape(value)) for value in values}) > 1
    large = sum(getattr(value, "nbytes", 0) for value in values) > most_bytes
    refuse(ValueError, (unlike or large, "its objects are of several kinds or shapes, or hold more than the file"))
    array = np.array(values)
    return array.reshape(*shape, *array.shape[1:])
