"""ImageTable: your own images, with a table of their file names and labels."""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch

from vision_zoo.data.discovery import LeftOut, as_word, nfc, walk
from vision_zoo.data.folder import ImageFolder, Listing
from vision_zoo.data.parquet import open_parquet
from vision_zoo.data.splits import is_everything, part_of
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError, refuse
from vision_zoo.files import expanded
from vision_zoo.types import Split

# What people call the columns; of several that are there, the first is taken.
_CALLED = {
    "image": "file filename file_name filepath file_path path image_path image_name image image_id id_code id",
    "label": "label labels class class_name category target diagnosis species breed dx",
    "split": "split",
    "group": "group",
}


class ImageTable(ImageFolder):
    """Your own images, with a table of their file names and labels: CSV, TSV or Parquet.

    The first row names the columns: the file, such as file, image or id; the label, a word or a number; and, where
    there are such, split (train, val or test) and group, whose images are never in two splits. The ending of a file may
    be left out. A row with a label and no file stands for a class of which there are no images to score.

    Args:
        path: the table.
        root: folder that the file names start from, by default that of the table.
        columns: the columns image, label, split and group, where they are called otherwise: {label: diagnosis}.
    """

    way_out = "Correct the table (CSV in UTF-8, or Parquet), or give another with --data.path"
    _absent = "no row has the split"

    def __init__(
        self, path: str, root: str | None = None, columns: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.path, self.columns = expanded(path).absolute(), columns or {}
        wrong = ", ".join(self.columns.keys() - _CALLED.keys())
        refuse(ConfigError, (wrong, f"--data.columns: {wrong} is none of {', '.join(_CALLED)}"))
        super().__init__(str(self.path.parent) if root is None else root, **options)
        self.hparams["path"], self.hparams["root"] = str(self.path), root and str(self.root)

    @cached_property
    def _scan(self) -> tuple[tuple[str, ...], dict[Split, Listing]]:
        """Class names, and the images of each split that the table names; all are "train" where it names none."""
        rows, left, self._groups = self._rows(), LeftOut(), dict[Path, str]()
        used, splits = dict[Path, tuple[str, str, str]](), dict[str, str]()  # of each file, and of each group
        for number, (image, label, split, group) in enumerate(rows, start=2):
            path, values = Path(os.path.normpath(self.root / image)), (label, split, group)  # however it is spelled
            key = f"{group}/" if group else image
            exact = os.path.isfile(path)  # noqa: PTH113  # names may be of any length
            files = [path] if exact else self._below.get(image.replace("\\", "/"), [])
            before, of_group = values, split
            if label and len(files) == 1:
                self._groups[files[0]] = key
                before, of_group = used.setdefault(files[0], values), splits.setdefault(key, split)
            elif image or not label:
                left["names without one file" if label else "rows without a label"].append(image)
            problems = (
                (not part_of(split), f"the split {split!r} is none of train, val and test"),
                (self.strict and image and len(files) != 1, f"there is no one file {image} in {self.root}"),
                (before != values, f"{image} stands above with another label, split or group"),
                (of_group != split, f"group {group} stands above in another split"),
            )
            refuse(DataError, *((wrong, f"ImageTable: {self.path}, row {number}: {text}") for wrong, text in problems))
        labels = {label for _, label, *_ in rows} - {""}
        numbers = all(re.fullmatch(r"[+-]?\d+(\.\d+)?", label) for label in labels)
        names = {name: index for index, name in enumerate(sorted(sorted(labels), key=float if numbers else str))}
        found: dict[Split, Listing] = {}
        for part in get_args(Split):
            if paths := [path for path, (_, split, _) in used.items() if split == part]:
                found[part] = (paths, torch.tensor([names[used[path][0]] for path in paths]))
        trained = {used[path][0] for path in found.get("train", (used, 0))[0]}
        lacks = ", ".join(sorted(labels - trained)) if not is_everything(self.test_split) else ""
        nothing = f"ImageTable: none of the files that {self.path} labels is in {self.root}{left}. Set --data.root to "
        nothing += "their folder, or, where a Parquet file holds the images themselves, --data Parquet"
        few = f"ImageTable: {self.path} has the one label {', '.join(names)}, where two or more are needed"
        untrained = f"ImageTable: {self.path} has no images to train with of the label {lacks}"
        refuse(DataError, (not used, nothing), (len(names) < 2, few), (lacks, untrained))
        left.warn(f"ImageTable: {self.path}")
        return tuple(names), found

    @cached_property
    def _below(self) -> Mapping[str, list[Path]]:
        """The images below root by their paths and their names, with endings and without."""
        found = defaultdict[str, list[Path]](list)
        for path in walk(self.root, LeftOut()) if self.root.is_dir() else ():
            inside = Path(nfc(path.relative_to(self.root).as_posix()))
            for name in {inside.as_posix(), inside.with_suffix("").as_posix(), inside.name, inside.stem}:
                found[name].append(path)
        return found

    def _split_name(self, path: Any) -> str:
        return self._groups[path]

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Image, label, split and group of each row."""
        absent = f"ImageTable: there is no file {self.path}. Set --data.path to a table of file names and labels"
        refuse(DatasetNotFoundError, (not self.path.is_file(), absent))
        with self._reading(self.path, csv.Error), self.path.open(newline="", encoding="utf-8-sig") as file:
            if self.path.suffix.lower() == ".parquet":
                table = open_parquet(str(self.path))
                held = [x.name for x in table.schema_arrow if str(x.type).startswith(("binary", "large_b", "struct"))]
                themselves = f"ImageTable: {self.path} holds the images themselves: --data Parquet reads them"
                refuse(ConfigError, (held, themselves))
                records = table.read().to_pylist()
                header = list(records[0]) if records else []
            else:
                mark = max(",;\t|", key=file.readline().count)
                file.seek(0)
                reader = csv.DictReader(file, delimiter=mark, strict=True, skipinitialspace=True)
                header, records = list(reader.fieldnames or []), list(reader)
        long = next((number for number, record in enumerate(records, start=2) if None in record), 0)
        refuse(
            DataError,
            (not records, f"ImageTable: {self.path} has no rows"),
            (long, f"ImageTable: {self.path}, row {long} has more values than there are columns"),
            (len({*header} - {""}) < sum(map(bool, header)), f"ImageTable: {self.path} has two columns of one name"),
        )
        known = {re.sub(r"\W+", "_", name.strip().lower()): name for name in header}
        there_are = f"ImageTable: {self.path} has the columns {', '.join(header[:20])}{', ...' * (len(header) > 20)}"
        columns = []
        for kind, names in _CALLED.items():
            name = self.columns.get(kind) or next((known[name] for name in names.split() if name in known), None)
            give = f"{there_are}. Name that of the {kind}s with --data.columns.{kind}"
            refuse(ConfigError, (name not in header if name else kind in ("image", "label"), give))
            columns.append([as_word(record[name]) if name else "" for record in records])
        split_of = [part_of(text) or text for text in columns[2]] if any(columns[2]) else ["train"] * len(records)
        return list(zip(columns[0], columns[1], split_of, columns[3], strict=True))
