"""Facts about datasets: given, read from files when they are first asked for, or computed once and cached."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.files import new_file

Facts = dict[str, Any]
T = TypeVar("T")


def lazy(compute: Callable[[Any], T]) -> T:
    """A fact that a dataset reads from its files when it is first asked for, where others state a constant."""
    return cast(T, cached_property(compute))


def per_channel(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return one value per channel, or refuse the list by its name on the command line."""
    count = f"--data.{option} has {len(values)} values, but the images have {channels} channel(s)"
    refuse(
        ConfigError,
        (len(values) not in (1, channels), f"{count}: give one value, or one for each channel"),
        (not all(map(math.isfinite, values)), f"--data.{option} must be finite, got {list(values)}"),
        (option == "std" and min(values, default=1) <= 0, f"--data.std must be positive, got {list(values)}"),
    )
    return tuple(float(value) for value in values) * (channels if len(values) == 1 else 1)


def cached_facts(files: Iterable[Path], options: object, compute: Callable[[], Facts]) -> Facts:
    """Read the facts of these files from the cache, or compute and keep them.

    Args:
        files: what the facts depend on; a change of size or time of any of them makes the kept facts void.
        options: everything else that they depend on.
        compute: computes the facts, as values that JSON can hold. A cache that cannot be written is no error.
    """
    stats = [(path, path.stat(follow_symlinks=path.exists())) for path in files]  # of a link to nowhere, its own
    known = [[(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats], options]
    name = f"vision_zoo/facts/{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]}.json"
    path = None
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: of a user without a home
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), name)
        if isinstance(kept := json.loads(path.read_text(encoding="utf-8")), dict):
            return kept
    facts = compute()
    with contextlib.suppress(OSError):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as temporary:
                temporary.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    return facts


def statistics(images: Tensor) -> Facts:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W), as fractions of 255."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)  # (C, 256)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-4, std, 1.0)  # a channel of one colour must not be divided by zero
    return {"mean": [round(x, 4) for x in mean.tolist()], "std": [round(x, 4) for x in std.tolist()]}
