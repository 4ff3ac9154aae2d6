"""What audit finds in a data set: its images in one row, and a list of issues."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.folder import ImageFolder
from vision_zoo.data.sources import Files, Source, join
from vision_zoo.types import Split
from vision_zoo.verbs.audit.labels import held_out_probabilities, suspects
from vision_zoo.verbs.audit.pictures import Looks, copies, oddities

ACROSS_SPLITS, ACROSS_CLASSES, WITHIN = "copies across splits", "copies across classes", "copies within a class"
WRONG, UNREADABLE = "perhaps wrong label", "unreadable"
_ORDER = (ACROSS_SPLITS, ACROSS_CLASSES, WRONG, WITHIN, UNREADABLE)  # leaks are told first, what is odd last


class Audited(NamedTuple):
    """All images of a data set."""

    source: Source
    names: list[str]  # of each image: the path of its file from the folder on, or its split and its number in that
    splits: list[Split]  # of each image
    classes: tuple[str, ...]

    def class_of(self, place: int) -> str:
        """The name of an image's label."""
        return self.classes[int(self.source.labels[place])]


class Issue(NamedTuple):
    """Something that may be wrong with an image, or with several that are copies."""

    kind: str
    places: list[int]  # the images, by their place in the source
    suggestion: str = ""  # the likelier class
    score: float | None = None  # the probability of the label that it has
    detail: str = ""


def has_class_folders(datamodule: ImageDataModule) -> bool:
    """Whether a file's folder is its label, so that files can be moved to correct it."""
    return isinstance(datamodule, ImageFolder) and "path" not in datamodule.hparams


def all_of(datamodule: ImageDataModule) -> Audited:
    """The images of every split, one after the other."""
    datamodule.in_memory = False  # where those that cannot be read are left out
    parts = datamodule.subsets()
    source = join([*parts.values()])
    numbered = [(split, index) for split, part in parts.items() for index in part.indices.tolist()]
    names = [f"{split} {index}" for split, index in numbered]
    if isinstance(source, Files):
        paths, root = map(Path, source.paths), datamodule.root
        names = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in paths]
    return Audited(source, names, [split for split, _ in numbered], datamodule.class_names)


def find(audited: Audited, looks: Looks, features: Tensor, seed: int) -> tuple[list[Issue], list[str]]:
    """The issues, leaks first and of each kind the worst first, and what else is to be said.

    Args:
        audited: the images.
        looks: those that can be read, at a small size.
        features: float32 (N, D), of the same.
        seed: decides which images are held out together.
    """
    where, labels = looks.places.tolist(), audited.source.labels[looks.places]
    odd, common = oddities(looks)
    groups = copies(audited.source, looks, features)
    issues = [*_copies(audited, [(same, [where[row] for row in rows]) for same, rows in groups])]
    copy_of = torch.arange(len(where))
    for _, rows in groups:
        copy_of[rows] = rows[0]
    present, compact = map(torch.from_numpy, np.unique(labels.numpy(), return_inverse=True))  # some may be unreadable
    probabilities = held_out_probabilities(features, looks.gray.flatten(1), compact, copy_of, seed)
    notes = [
        f"{kind}: {count:,} of {len(where):,} images, so that this is how the data are, and no fault"
        for kind, count in common.items()
    ]
    if probabilities is None:
        notes.append("wrong labels were not looked for, since a class has but one image")
    else:
        found = suspects(probabilities, compact)
        likelier = [audited.classes[label] for label in present[found.likelier].tolist()]
        for row, name, score in zip(found.places.tolist(), likelier, found.self_confidence.tolist(), strict=True):
            issues.append(Issue(WRONG, [where[row]], name, score, f"rather {name}; its label: {score:.0%}"))
    issues += [Issue(UNREADABLE, [place], detail=reason) for place, reason in looks.unreadable]
    for kind, rows in odd.items():
        sizes = [" x ".join(map(str, looks.sizes[row].tolist())) for row in rows]
        issues += [Issue(kind, [where[row]], detail=f"{size} pixels") for row, size in zip(rows, sizes, strict=True)]
    issues.sort(key=lambda issue: _ORDER.index(issue.kind) if issue.kind in _ORDER else len(_ORDER))
    return issues, notes


def _copies(audited: Audited, groups: Iterable[tuple[bool, list[int]]]) -> Iterator[Issue]:
    """Groups of copies, those of one image's very pixels first."""
    for same, places in sorted(groups, key=lambda group: not group[0]):
        classes, splits = ({of(place) for place in places} for of in (audited.class_of, audited.splits.__getitem__))
        kind = ACROSS_SPLITS if len(splits) > 1 else ACROSS_CLASSES if len(classes) > 1 else WITHIN
        also = ", in several classes" * (len(splits) > 1 and len(classes) > 1)
        yield Issue(kind, places, detail=f"{'identical' if same else 'nearly identical'}{also}")


def rows_of(issues: Iterable[Issue], audited: Audited) -> Iterator[list[object]]:
    """The rows of issues.csv, an image each; those of one group are copies of each other."""
    yield ["kind", "path", "split", "label", "suggestion", "self_confidence", "group", "detail"]
    for number, issue in enumerate(issues):
        group = number if len(issue.places) > 1 else ""
        score = "" if issue.score is None else f"{issue.score:.4f}"
        for place in issue.places:
            of = (audited.names[place], audited.splits[place], audited.class_of(place))
            yield [issue.kind, *of, issue.suggestion, score, group, issue.detail]


def balance(audited: Audited) -> list[list[object]]:
    """How many images each class has in each split; the first row names the columns."""
    splits = list(dict.fromkeys(audited.splits))
    counts = Counter(zip(audited.source.labels.tolist(), audited.splits, strict=True))
    rows = [[name, *(counts[label, split] for split in splits)] for label, name in enumerate(audited.classes)]
    return [["class", *splits], *rows]
