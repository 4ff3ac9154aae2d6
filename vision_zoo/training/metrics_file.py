"""What a run logs: metrics.csv, with a row for each logged step, validation and epoch, and TensorBoard's events."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from vision_zoo.errors import CheckpointError
from vision_zoo.files import write_file


class EventFiles(TensorBoardLogger):
    """TensorBoard's event files alone: config.yaml already holds what hparams.yaml would."""

    def save(self) -> None:
        """Nothing: the writer's thread flushes, and waiting for it at a logged step took longer than a small step."""


class MetricsFile:
    """Appends rows, and goes back to the number of rows that a checkpoint knows of."""

    def __init__(self) -> None:
        self.rows = 0
        self.columns: list[str] = []  # in the order of the file

    def append(self, file: Path, row: Mapping[str, Any]) -> None:
        """Write a row of numbers and scalar tensors; values that the file has no column for get one."""
        # numpy prints a float32 with as many digits as it has, so that the file reads back exactly.
        text = {name: str(x.detach().cpu().numpy()) if isinstance(x, Tensor) else x for name, x in row.items()}
        if new := [name for name in text if name not in self.columns]:
            self.columns += new
            write_file(file, _to_csv(self.columns, _read(file) if file.exists() else [], header=True))
        with file.open("ab") as stream:
            stream.write(_to_csv(self.columns, [text], header=False))
        self.rows += 1

    def cut(self, file: Path) -> None:
        """Remove the rows that were written after the checkpoint.

        Raises:
            CheckpointError: if rows are missing that the checkpoint knows of.
        """
        if not file.exists():  # the checkpoint was taken out of its run
            self.rows, self.columns = 0, []
        elif self.rows == 0:
            file.unlink()
        else:
            rows = _read(file)[: self.rows]
            if len(rows) < self.rows:
                raise CheckpointError(f"{file} has {len(rows)} rows, the checkpoint was saved after {self.rows}")
            write_file(file, _to_csv(self.columns, rows, header=True))


def training_metrics(file: Path) -> dict[str, float]:
    """The last training metrics of metrics.csv, and the validation metrics of the lowest validation loss."""
    last: dict[str, float] = {}
    best: dict[str, float] = {}
    for row in _read(file) if file.exists() else []:
        last |= {name: float(value) for name, value in row.items() if name.startswith("train/") and value}
        if row.get("val/loss") and (not best or float(row["val/loss"]) < best["val/loss"]):
            best = {name: float(value) for name, value in row.items() if name.startswith("val/") and value}
    last.pop("train/loss_step", None)
    return last | best


def _read(file: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def _to_csv(columns: list[str], rows: list[dict[str, Any]], *, header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
