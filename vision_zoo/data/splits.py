"""Cutting a part from a set of labelled images: stratified by class, the same for the same seed."""

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from vision_zoo.data.discovery import nfc
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.types import Split

_CALLED: dict[Split, str] = {
    "train": "train(ing|val)?|trn",
    "val": "val(id|idation)?|dev(el|elopment)?|eval(uation)?",
    "test": "test(s|ing)?|tst|h[oe]ld[-_ ]?out|unseen",
}


@functools.cache
def part_of(name: str) -> Split | None:
    """The split that a name stands for, such as Testing, dev, train_set or seg_test; None for other names."""
    around = r"(.*[\W\d_])?({})[\W\d_]*(set|data|images?|imgs|split)?[\W\d_]*"
    return next((x for x, words in _CALLED.items() if re.fullmatch(around.format(words), name, re.I)), None)


def is_everything(part: int | float) -> bool:
    """Whether a size of a part is the fraction 1.0; the count 1 is one image."""
    return isinstance(part, float) and part == 1


def check_part(part: int | float, option: str) -> None:
    """Refuse a size of a part that is neither a fraction below one nor a count; for a test, 1.0 is everything."""
    tests = option == "--data.test_split"
    wrong = not 0 <= part < math.inf or (part >= 1 and part != int(part)) or (is_everything(part) and not tests)
    kinds = f"a fraction of at least 0 and below 1, or a whole number of images{', or 1.0 for all' * tests}"
    refuse(ConfigError, (wrong, f"{option} must be {kinds}, got {part}"))


def stratified_split(
    labels: Tensor, part: int | float, seed: int, option: str, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cut an exact number of images, of each class in proportion.

    Args:
        labels: int64 (N,).
        part: fraction below 1, or count of images; 0 cuts nothing, and 1.0 everything.
        seed: decides which images of a class are cut.
        option: the option that `part` comes from, for the message.
        places: float (N,), which order the images of a class; without them, a draw by the seed does.

    Returns:
        Indices of what stays and of what is cut, int64, both in rising order.

    Raises:
        ConfigError: if a class would be missing from one of the two.
    """
    check_part(part, option)
    everything = torch.arange(len(labels))
    if part == 0:
        return everything, everything[:0]
    if is_everything(part):
        return everything[:0], everything
    wanted = round(part * len(labels)) if part < 1 else int(part)
    classes, counts = np.unique(labels.numpy(), return_counts=True)
    least, most = len(classes), len(labels) - len(classes)
    whole = ", or 1.0 to test with all" if option == "--data.test_split" else ""
    message = (
        f"{option} {part} would cut {wanted} of {len(labels)} images, but each of the {least} classes needs at least "
        f"one image in both parts (the smallest class has {counts.min()}). "
        f"{f'Choose a number between {least} and {most}{whole}, add' if counts.min() > 1 else 'Add'} images, "
        f"or set {option} 0 to cut nothing"
    )
    refuse(ConfigError, (not least <= wanted <= most or counts.min() < 2, message))
    generator = torch.Generator().manual_seed(seed)
    is_cut = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in zip(classes.tolist(), _quotas(counts.tolist(), wanted), strict=True):
        members = (labels == label).nonzero()[:, 0]
        random = torch.randperm(len(members), generator=generator)
        order = random if places is None else places[members].argsort(stable=True)
        is_cut[members[order[:quota]]] = True
    return everything[~is_cut], everything[is_cut]


def read_fold(fold: str) -> tuple[int, int]:
    """Which part of how many a fold such as 2/5 is; a ConfigError for anything else."""
    number, of = map(int, found.groups()) if (found := re.fullmatch(r"(\d{1,6})/(\d{1,6})", fold)) else (0, 0)
    wrong = not 1 <= number <= of or of < 2
    refuse(ConfigError, (wrong, f"--data.fold must be a part of two or more, as 2/5 is of five, got {fold}"))
    return number, of


def split_by_fold(labels: Tensor, fold: str, seed: int, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cut one of several parts that together hold every image once, each with as many of each class.

    Images of one place stay together. The arguments are those of `stratified_split`, with the fold as 2/5.

    Raises:
        ConfigError: if a class or a fold would be without images.
    """
    from sklearn import model_selection  # noqa: PLC0415  # takes a second

    number, of = read_fold(fold)
    places = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) if places is None else places
    order = places.argsort(stable=True)  # so that nothing is left to draw
    groups, kinds = places[order].numpy(), labels[order].numpy()
    shared = len(set(groups.tolist())) < len(labels)  # whether images have a place in common
    of_class = [len(set(groups[kinds == kind])) for kind in set(kinds.tolist())]
    grouped = " (images of one group count as one)" * shared
    few = f"--data.fold {fold}: the classes have {min(of_class)} to {max(of_class)} images to deal{grouped}"
    refuse(ConfigError, (min(of_class) < 2 or max(of_class) < of, f"{few}: add images, or deal fewer folds"))
    whole = model_selection.StratifiedGroupKFold(of) if shared else model_selection.StratifiedKFold(of)
    stays, cut = list(whole.split(kinds, kinds, groups if shared else None))[number - 1]
    return order[torch.from_numpy(stays)].sort()[0], order[torch.from_numpy(cut)].sort()[0]


def split_by_place(labels: Tensor, places: Tensor, below: float, option: str) -> tuple[Tensor, Tensor]:
    """Cut the images whose place is below a limit: an image is not moved when others are added.

    Images of one place stay together. Of each class at least one place is cut, and two stay where there are three,
    whatever they are; of such small classes images may move later. Returns and raises what `stratified_split` does.

    Args:
        labels: int64 (N,).
        places: float (N,), evenly spread over [0, 1).
        below: the limit, so about the fraction that is cut.
        option: the option that asks for the cut, for the message.
    """
    pairs = np.unique(np.stack([places.numpy(), labels.numpy()]), axis=1)  # (2, P): each place with each of its classes
    stays = Counter(pairs[1].tolist())  # places of each class
    least, smallest = {label: min(2, count - 1) for label, count in stays.items()}, min(stays.values())
    cut, done = list[float](), set[float]()
    for place, at_place in groupby(pairs.T.tolist(), key=itemgetter(0)):
        if place >= below and len(done) == len(stays):
            break
        classes = {label for _, label in at_place}
        if (place < below or not classes <= done) and all(stays[label] > least[label] for label in classes):
            cut.append(place)
            done |= classes
            stays.subtract(classes)
    grouped = " (images of one group count as one)" * (pairs.shape[1] < len(labels))
    message = (
        f"{option} needs at least one image of each class in both parts, and the smallest class has {smallest} to deal"
        f"{grouped}: add images, or set {option} 0 to cut nothing"
    )
    refuse(ConfigError, (smallest < 2 or len(done) < len(stays), message))
    everything, is_cut = torch.arange(len(labels)), torch.from_numpy(np.isin(places.numpy(), cut))
    return everything[~is_cut], everything[is_cut]


def places_by_name(names: Iterable[str], seed: int) -> Tensor:
    """A place in [0, 1) for each image, float64 (N,), which its name and the seed alone decide."""
    texts = [f"{seed} {nfc(name)}".encode(errors="surrogateescape") for name in names]
    places = [int.from_bytes(hashlib.sha256(text).digest()) / 2**256 for text in texts]
    return torch.tensor(places, dtype=torch.float64)


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
