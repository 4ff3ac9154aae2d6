"""The random states of this process, as plain data for a checkpoint."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of torch, of the CPU and the process's own GPU, of Python and of numpy."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "python": (version, list(internal), gauss),
        "numpy": (str(name), torch.tensor(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][min(torch.cuda.current_device(), len(states["cuda"]) - 1)])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Leave the random states as if nothing had been drawn."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
