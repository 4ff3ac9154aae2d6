"""Cutting a part from a set of labelled images: stratified by class, the same for the same seed."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vision_zoo.errors import ConfigError


def check_part(part: int | float, option: str) -> None:
    """Refuse a size of a part that is neither a fraction below one nor a count; for a test, 1.0 is everything."""
    whole = isinstance(part, float) and part == 1
    if not 0 <= part < math.inf or (part >= 1 and part != int(part)) or (whole and option != "--data.test_split"):
        all_ = ", or 1.0 for all" if option == "--data.test_split" else ""
        raise ConfigError(
            f"{option} must be a fraction of at least 0 and below 1, or a whole number of images{all_}, got {part}"
        )


def stratified_split(
    labels: Tensor,
    part: int | float,
    seed: int,
    option: str,
    names: Sequence[str] | None = None,
    below: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices of what stays and of what is cut off, int64, both in rising order.

    Args:
        labels: int64 (N,).
        part: fraction below 1, or count of images; 0 cuts nothing, and 1.0 everything.
        seed: decides which images of a class are cut.
        option: the option that `part` comes from, for the message.
        names: of the N images, where images may come and go: the order of cutting depends on each one's own name.
        below: with names, cut those whose place in that order, in [0, 1), is below this: about as many as `part` says,
            and none that was left where images are added later. Of each class one is cut at least, and two stay where
            there are three, whatever their places; of such small classes images may move later.

    Raises:
        ConfigError: if a class would be missing from one of the two.
    """
    check_part(part, option)
    everything = torch.arange(len(labels))
    if part == 0:
        return everything, everything[:0]
    if isinstance(part, float) and part == 1:
        return everything[:0], everything
    wanted = round(part * len(labels)) if part < 1 else int(part)
    classes, counts = labels.unique(return_counts=True)  # type: ignore[no-untyped-call]  # torch's
    if below is not None and int(counts.min()) < 2:
        raise ConfigError(
            f"{option} {part} needs at least one image of each class in both parts, and the smallest class has "
            f"{int(counts.min())} to deal: add images, or set {option} 0 to cut nothing"
        )
    whole = ", or 1.0 to test with all" if option == "--data.test_split" else ""
    if below is None and (wanted < len(classes) or wanted > len(labels) - len(classes) or int(counts.min()) < 2):
        raise ConfigError(
            f"{option} {part} would cut {wanted} of {len(labels)} images, but each of the {len(classes)} classes needs "
            f"at least one image in both parts (the smallest class has {int(counts.min())}). Choose a number between "
            f"{len(classes)} and {len(labels) - len(classes)}{whole}, add images, or set {option} 0 to cut nothing"
        )
    generator = torch.Generator().manual_seed(seed)
    cut = []
    quotas = _quotas(counts.tolist(), wanted) if below is None else [0] * len(classes)
    for label, quota in zip(classes.tolist(), quotas, strict=True):
        members, count = (labels == label).nonzero()[:, 0], quota
        if names is None:
            order = torch.randperm(len(members), generator=generator)
        else:
            texts = [f"{seed} {names[i]}".encode(errors="surrogateescape") for i in members.tolist()]
            places = [int.from_bytes(hashlib.sha256(text).digest()) / 2**256 for text in texts]
            order = torch.tensor(sorted(range(len(members)), key=places.__getitem__))
            if below is not None:
                count = max(1, min(sum(place < below for place in places), len(members) - 2))
        cut.append(members[order[:count]])
    held = torch.cat(cut).sort().values
    stays = torch.ones(len(labels), dtype=torch.bool)
    stays[held] = False
    return everything[stays], held


def _quotas(counts: list[int], wanted: int) -> list[int]:
    """Images to cut from each class: in proportion, at least one, never all, `wanted` in total."""
    exact = [count * wanted / sum(counts) for count in counts]
    quotas = [min(max(int(share), 1), count - 1) for share, count in zip(exact, counts, strict=True)]
    while (missing := wanted - sum(quotas)) != 0:
        step = 1 if missing > 0 else -1
        open_to_change = [k for k, quota in enumerate(quotas) if 1 <= quota + step <= counts[k] - 1]
        furthest = max(open_to_change, key=lambda k: (step * (exact[k] - quotas[k]), -k))
        quotas[furthest] += step
    return quotas
