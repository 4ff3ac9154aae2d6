"""InFiles: what is common to your own images that stand in larger files, many in each."""

import glob
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vision_zoo.data.discovery import LeftOut, as_word
from vision_zoo.data.folder import ImageFolder, Listing
from vision_zoo.data.sources import Files, Members
from vision_zoo.data.splits import is_everything, part_of
from vision_zoo.errors import DataError, DatasetNotFoundError, refuse
from vision_zoo.files import expanded, is_address
from vision_zoo.types import Split

Member = tuple[str, str, tuple[int, int, int]]
"""Name and label of an image, and where it stands in its file: three of what `Members.spans` has."""

LABELS = ("label", "labels", "class", "cls", "class_name", "category", "target")  # what people call them


class InFiles(ImageFolder):
    """Base of the readers of such files: a subclass writes `_members`. The option root is not used.

    Args:
        path: a file, a folder of them, or a pattern in quotation marks.
    """

    way_out = "Repair the file, or give others with --data.path"
    _absent = "no file is of the split"
    _errors: ClassVar[tuple[type[Exception], ...]] = ()  # what a reader raises of a broken file
    _ending = ""  # of files in a folder
    _kind: Any = Members  # of the source

    def __init__(self, path: str, **options: Any) -> None:
        self.path = Path(path) if is_address(path) else expanded(path).absolute()
        super().__init__(**options)
        self.root = self.path if self.path.is_dir() else self.path.parent
        self.hparams["path"] = path if is_address(path) else str(self.path)
        self._more = dict[str, Any]()  # of its fields
        self._classes = list[str]()  # in their order, where the files tell them

    def _members(self, file: Path, left: LeftOut) -> Iterator[Member]:
        """The images of one file that have a label."""
        raise NotImplementedError

    @cached_property
    def _scan(self) -> tuple[tuple[str, ...], dict[Split, Listing]]:
        """Class names, and the images of each split that the names of the files tell; else all are "train"."""
        name, left = type(self).__name__, LeftOut()
        if self.path.is_dir():
            files = [file for file in self.path.rglob("*") if file.suffix.lower() == self._ending and file.is_file()]
        else:
            files = [self.path] if self.path.is_file() else [*map(Path, glob.glob(str(self.path), recursive=True))]  # noqa: PTH207  # any path
        found, what = sorted(files), f"{self._ending} file in" if self.path.is_dir() else "file"
        refuse(DatasetNotFoundError, (not found, f"{name}: there is no {what} {self.path}. Set --data.path to others"))
        self._holders, self._paths, self._keys = [str(file) for file in found], list[str](), list[str]()
        labels, spans, splits = list[str](), list[tuple[int, ...]](), dict[Split, list[int]]()
        told = list[list[str]]()  # the class names of each file that tells them
        stems = [re.sub(r"-\d+(-of-\d+)?(-[0-9a-f]+)?$", "", file.stem) for file in found]
        folders = [part_of(file.parent.name) if file.parent != self.root else None for file in found]  # data/*/*.tar
        parts = [part_of(stem) or folder for stem, folder in zip(stems, folders, strict=True)]
        words = [{*map(part_of, re.split(r"[\W_]", stem))} - {None} for stem in stems]
        if {"train"} in words:  # as in train_a, test_a; without it, dev_kit is a name as any other
            parts = [
                part or (next(iter(own)) if len(own) == 1 else None) for part, own in zip(parts, words, strict=True)
            ]
        for number, (file, part) in enumerate(zip(found, parts, strict=True)):
            rows = splits.setdefault(part or "train", [])
            with self._reading(file, *self._errors):
                for key, label, span in self._members(file, left):
                    rows.append(len(labels))
                    self._paths.append(f"{file}/{key}")
                    self._keys.append(f"{file.name}/{key}")
                    labels.append(label)
                    spans.append((number, *span))
            told += [[*map(as_word, self._classes)]] if self._classes else []
        left.warn(f"{name}: {self.path}")
        numbers = all(re.fullmatch(r"\d{1,300}", label) for label in labels)
        names = told[0] if told else sorted(sorted({*labels}), key=float if numbers else str)
        few = f"{name}: {self.path} has {len({*labels})} labels, where two or more are needed{left}"
        trained = {labels[row] for row in splits.get("train", ())} or {*labels}
        lacks = ", ".join(sorted({*labels} - trained)) if not is_everything(self.test_split) else ""
        others = {*labels, *chain(*told)}.difference(names) | {x for x in names if not all(x in own for own in told)}
        other = f"{name}: the files of {self.path} name different classes: {', '.join(sorted(others))}"
        untrained = f"{name}: {self.path} has no images to train with of the label {lacks}"
        refuse(DataError, (len({*labels}) < 2, few), (told and others, other), (lacks, untrained))
        self._spans, places = torch.tensor(spans), {label: place for place, label in enumerate(names)}
        listed = {x: (rows, torch.tensor([places[labels[row]] for row in rows])) for x, rows in splits.items() if rows}
        return tuple(names), listed

    def _source(self, listed: list[Any], *how: Any) -> Files:
        places = {"files": self._holders, "spans": self._spans[listed], **self._more}
        source: Files = self._kind([self._paths[row] for row in listed], *how, **places)
        return source

    def _places(self, listed: list[Any]) -> Tensor | None:
        return super()._places(listed) if self._keys else None

    def _split_name(self, path: Any) -> str:
        return self._keys[path] if self._keys else ""
