"""Parquet: your own images in tables, as Hugging Face's datasets stores them (https://huggingface.co/docs/datasets)."""

import functools
import importlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_zoo.data.discovery import LeftOut, as_word
from vision_zoo.data.members import LABELS, InFiles, Member
from vision_zoo.data.sources import Members
from vision_zoo.errors import ConfigError, DataError, refuse


@dataclass(eq=False)
class Rows(Members):
    """Images in rows of tables; a span is the number of the file, the group of rows, the row in it, and 0."""

    column: str = "image"

    def raw(self, index: int) -> bytes:
        """The bytes of an image, none where its row has none; its group is kept for the next ones."""
        number, group, row, _ = self.spans[index].tolist()
        value = _group(self.files[number], group, self.column)[row].as_py()
        return (value.get("bytes") if isinstance(value, dict) else value) or b""


class Parquet(InFiles):
    """Your own images in Parquet files, as Hugging Face's datasets stores them: a column of bytes, and one of labels.

    A label is a number or a word; the files may name the classes. Names such as train-00000-of-00005.parquet tell the
    split. Rows are read in groups: what is larger than the memory is fast in a file of `vision_zoo pack` alone.

    Args:
        path: the files: one, a folder of them, or a pattern in quotation marks: 'data/*.parquet'.
        columns: the columns image and label, where they are called otherwise: {label: fine_label}.
    """

    _ending, _kind = ".parquet", Rows

    def __init__(self, path: str, columns: dict[str, str] | None = None, **options: Any) -> None:
        super().__init__(path, **options)
        self.columns = columns or {}
        wrong = ", ".join(self.columns.keys() - {"image", "label"})
        refuse(ConfigError, (wrong, f"--data.columns: {wrong} is none of image, label"))

    def _members(self, file: Path, left: LeftOut) -> Iterator[Member]:
        table = open_parquet(str(file))
        fields = {field.name: str(field.type) for field in table.schema_arrow}
        known = {
            "image": [x for x, kind in fields.items() if "binary" in kind and "list<" not in kind],
            "label": [x for x in LABELS if x in fields],
        }
        image, label = (self.columns.get(kind) or next(iter(names), "") for kind, names in known.items())
        there_are = f"Parquet: {file} has the columns {', '.join(fields)}. Name that of the"
        for name, kind in ((image, "image"), (label, "label")):
            names_of_files = "; of a table of file names: --data ImageTable" * (kind == "image")
            refuse(ConfigError, (name not in fields, f"{there_are} {kind}s with --data.columns.{kind}{names_of_files}"))
        several = f"Parquet: {file}: {label} holds {fields[label]}, and one label for each image is needed"
        refuse(DataError, ("list<" in fields[label] or fields[label].startswith(("struct", "map")), several))
        self._more["column"], self._classes, first = image, _class_names(table, label), 0
        names = dict(enumerate(self._classes))
        for group in range(table.num_row_groups):
            values = table.read_row_group(group, columns=[label]).column(label).to_pylist()
            for row, value in enumerate(values):
                stray = names and value not in (None, -1) and value not in names
                refuse(DataError, (stray, f"Parquet: {file}, row {first + row}: {value} is the label of no class"))
                if value in (None, -1) or not (word := as_word(names[value] if names else value)):
                    left["rows without a label"].append(str(first + row))  # -1 is what Hugging Face has for none
                else:
                    yield f"{first + row}", word, (group, row, 0)
            first += len(values)


def _class_names(table: Any, label: str) -> list[str]:
    """The names that a file gives to the numbers of its label, if any."""
    about = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    with suppress(ValueError, KeyError, TypeError):
        return [*map(str, json.loads(about)["info"]["features"][label]["names"])]
    return []


def open_parquet(file: str) -> Any:
    """A Parquet file of pyarrow; a ConfigError without that."""
    lacks = f"to read {file}, pip install 'vision_zoo[parquet]', which brings pyarrow"
    refuse(ConfigError, (not importlib.util.find_spec("pyarrow"), lacks))
    return importlib.import_module("pyarrow.parquet").ParquetFile(file)


@functools.lru_cache(maxsize=4)
def _group(file: str, group: int, column: str) -> Any:
    return open_parquet(file).read_row_group(group, columns=[column]).column(column)
