"""Facts about the user's own images, computed once and kept in the user's cache folder."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_zoo.files import new_file

Facts = dict[str, Any]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:  # a link to nowhere, which is left out by name when it is read
        return path.lstat()


def cached_facts(files: Iterable[Path], options: object, compute: Callable[[], Facts]) -> Facts:
    """Read the facts of these files from the cache, or compute and keep them.

    Args:
        files: what the facts depend on; a change of size or time of any of them makes the kept facts void.
        options: everything else that they depend on.
        compute: computes the facts, as values that JSON can hold. A cache that cannot be written is no error.
    """
    stats = [(str(path), (stat := _stat(path)).st_size, stat.st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([stats, options]).encode()).hexdigest()
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user without a home
        return compute()
    path = cache / "vision_zoo" / "facts" / f"{key[:32]}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    if isinstance(kept, dict):
        return kept
    facts = compute()
    with contextlib.suppress(OSError):
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
