"""ImageTable: your own images, with a table of their file names and labels."""

import csv
import importlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from vision_zoo.data.discovery import LeftOut, nfc, walk
from vision_zoo.data.folder import ImageFolder, Listing
from vision_zoo.data.splits import is_everything, part_of
from vision_zoo.errors import ConfigError, DataError, DatasetNotFoundError, refuse
from vision_zoo.files import expanded
from vision_zoo.types import Split

# What people call the columns; of several that are there, the first is taken.
_COLUMNS = {
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

    way_out = "Correct the table, or give another with --data.path"
    _absent = "no row has the split"

    def __init__(
        self,
        path: str,
        root: str | None = None,
        *,
        columns: dict[Literal["image", "label", "split", "group"], str] | None = None,
        **options: Any,
    ) -> None:
        self.path = expanded(path).absolute()
        self.columns = {str(kind): [name] for kind, name in (columns or {}).items()}
        super().__init__(root=str(self.path.parent) if root is None else root, **options)
        self.hparams["path"] = str(self.path)
        self.hparams["root"] = root and str(self.root)  # another table may lie elsewhere

    @cached_property
    def _scan(self) -> tuple[tuple[str, ...], dict[Split, Listing]]:
        """Class names, and the images of each split that the table names; all are "train" where it names none."""
        left, used, splits = LeftOut(), dict[Path, tuple[Split | None, str, str]](), dict[str, Split | None]()
        self._groups: dict[Path, str] = {}
        rows = self._rows()
        labels = {row["label"] for row in rows} - {""}
        for number, row in enumerate(rows, start=2):
            image, values = row["image"], (part_of(row.get("split", "train")), row["label"], row.get("group", ""))
            exact = [self.root / image] if os.path.isfile(self.root / image) else []  # noqa: PTH113  # of any length
            files = exact or self._below.get(nfc(image.replace("\\", "/")), [])
            key, split = f"{values[2]}/" if values[2] else nfc(image), values[0]
            used_before, split_before = (
                (used.get(files[0], values), splits.get(key, split)) if files else (values, split)
            )
            problems = (
                (not split, f"the split {row.get('split')!r} is none of train, val and test"),
                (len(files) > 1, f"{image} may be {' or '.join(map(str, files[:2]))}. Write the path in {self.root}"),
                (self.strict and image and not files, f"there is no file {image} in {self.root}"),
                (used_before != values, f"{image} stands above with another label, split or group"),
                (split_before != split, f"group {values[2]} stands above in another split"),
            )
            refuse(DataError, *((wrong, f"ImageTable: {self.path}, row {number}: {text}") for wrong, text in problems))
            if files and row["label"]:
                used[files[0]], splits[key], self._groups[files[0]] = values, split, key
            elif image or not row["label"]:
                left.add("names without a file" if row["label"] else "rows without a label", [image])
        nothing = f"ImageTable: no file that {self.path} names is in {self.root}. Set --data.root to their folder"
        refuse(DatasetNotFoundError, (not used, nothing))
        numbers = all(re.fullmatch(r"[+-]?\d+(\.\d+)?", label) for label in labels)
        names = {name: index for index, name in enumerate(sorted(sorted(labels), key=float if numbers else str))}
        found: dict[Split, Listing] = {}
        for split in dict.fromkeys(split for split, *_ in used.values() if split):
            files = [file for file, values in used.items() if values[0] == split]
            found[split] = (files, torch.tensor([names[used[file][1]] for file in files]))
        trained = {label for split, label, _ in used.values() if split == "train"} or labels
        lacks = [name for name in names if name not in trained and not is_everything(self.test_split)]
        untrained = f"ImageTable: {self.path} has no images to train with of the label {', '.join(lacks)}"
        one = f"ImageTable: {self.path} has the one label {', '.join(names)}, where two or more are needed"
        refuse(DataError, (len(names) < 2, one), (lacks, untrained))
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

    def _split_name(self, path: Path) -> str:
        return self._groups[path]

    def _rows(self) -> list[dict[str, str]]:
        """The values of each row in the columns that are used, by their names in `_COLUMNS`."""
        absent = f"ImageTable: there is no file {self.path}. Set --data.path to a table of file names and labels"
        refuse(DatasetNotFoundError, (not self.path.is_file(), absent))
        records = self._records()
        header = [name for name in records[0] if name is not None] if records else []
        simple = {re.sub(r"\W+", "_", name.strip().lower()): name for name in header}
        columns = {kind: [simple[x] for x in names.split() if x in simple][:1] for kind, names in _COLUMNS.items()}
        columns = {**columns, **self.columns}
        there_are = f"ImageTable: {self.path} has the columns {', '.join(header[:20])}{', ...' * (len(header) > 20)}"
        for kind, name in columns.items():
            give = f"{there_are}. Name that of the {kind}s with --data.columns.{kind}"
            refuse(ConfigError, (name[0] not in header if name else kind in ("image", "label"), give))
        long = next((number for number, record in enumerate(records, start=2) if None in record), 0)
        refuse(DataError, (long, f"ImageTable: {self.path}, row {long} has more values than there are columns"))
        return [{kind: _text(record[name[0]]) for kind, name in columns.items() if name} for record in records]

    def _records(self) -> list[dict[str | None, Any]]:
        """The rows by column; values beyond the columns stand under None."""
        if self.path.suffix.lower() != ".parquet":
            with self._reading(self.path, csv.Error), self.path.open(newline="", encoding="utf-8-sig") as file:
                header = file.readline()
                file.seek(0)
                return list(csv.DictReader(file, delimiter=max(",;\t|", key=header.count)))
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            way_out = "pip install pyarrow, or save the table as CSV"
            raise ConfigError(f"ImageTable: {self.path} is read with pyarrow, which is not here: {way_out}") from error
        with self._reading(self.path):
            return list(parquet.read_table(self.path).to_pylist())


def _text(value: Any) -> str:
    """A value as a word; a whole number without its .0, which it has beside empty values."""
    text = "" if value is None else nfc(str(value).strip()).removesuffix(".0")
    return "" if text == "nan" else text
