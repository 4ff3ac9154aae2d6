"""The evaluation of the test images: confusion matrix, per-class metrics and the most confident mistakes."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vision_zoo.classifier import Classifier
from vision_zoo.files import write_file
from vision_zoo.plots import plot_confusion_matrix, plot_images
from vision_zoo.trainer_facts import datamodule_of, gather
from vision_zoo.training.processes import expect_answers
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.types import Batch

MISTAKES = 20
_Mistake = tuple[float, int, int, Tensor]  # confidence, predicted and true class, image


def to_floats(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics as numbers with no more digits than they have: .89 in float32 is .89, not .8899999856948853."""
    return {name: float(str(value.detach().cpu().numpy())) for name, value in metrics.items()}


def per_class(matrix: Tensor) -> list[dict[str, float]]:
    """Precision, recall and F1 in [0, 1] and images of K classes, of counts (K, K) with the true classes as rows."""
    matrix = matrix.double()
    hits, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    parts = hits / predicted.clamp(min=1), hits / actual.clamp(min=1), 2 * hits / (predicted + actual).clamp(min=1)
    rows = zip(*(part.tolist() for part in parts), actual.tolist(), strict=True)
    return [{"precision": p, "recall": r, "f1": f, "images": int(n)} for p, r, f, n in rows]


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a table; its first row names the columns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_file(path, text.getvalue().encode(errors="surrogateescape"))  # names of folders may be any bytes


def write_matrix(path: Path, names: Sequence[str], counts: Iterable[Iterable[int]]) -> None:
    """Write the counts of a confusion matrix, with the true classes as rows."""
    write_csv(path, [["true \\ predicted", *names], *([name, *row] for name, row in zip(names, counts, strict=True))])


class TestArtifacts(Callback):
    """Writes confusion_matrix.png and .csv, per_class.csv, mistakes.png and test.json into a folder.

    Args:
        folder: a folder, or the run's that is chosen when training starts; None writes nothing.
        about: what is tested, for test.json: such as the checkpoint's name and step, and the data.
    """

    __test__ = False  # no test of pytest's

    def __init__(
        self, folder: Path | RunFolder | None = None, about: Mapping[str, str | int] = MappingProxyType({})
    ) -> None:
        self.folder, self.about = folder, about
        self.rows: list[dict[str, float]] = []  # of each class, after a test
        self._mistakes: list[_Mistake] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self._mistakes = []
        if trainer.state.fn != "fit":
            expect_answers(trainer)

    on_validation_start = on_test_start

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the wrong images of the batch in which the network was most sure."""
        images, labels = batch
        confidence, predicted = outputs.max(1)
        wrong = (predicted != labels).nonzero().flatten()
        top = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
        kept = map(Tensor.clone, images[top].cpu())  # each alone, so that the others of the batch can go
        new = zip(confidence[top].tolist(), predicted[top].tolist(), labels[top].tolist(), kept, strict=True)
        self._mistakes = nlargest(MISTAKES, [*self._mistakes, *new], itemgetter(0))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was collected, on the first process."""
        mistakes = nlargest(MISTAKES, chain(*gather(self._mistakes)), itemgetter(0))
        if not isinstance(pl_module, Classifier):
            return
        metrics = {n: value for n, value in to_floats(trainer.callback_metrics).items() if n.startswith("test/")}
        self.rows = per_class(pl_module.confusion_matrix)
        folder = self.folder.path if isinstance(self.folder, RunFolder) else self.folder
        if folder is None or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        names, matrix = pl_module.class_names, pl_module.confusion_matrix
        write_matrix(folder / "confusion_matrix.csv", names, matrix.tolist())
        scores = [[name, *row.values()] for name, row in zip(names, self.rows, strict=True)]
        write_csv(folder / "per_class.csv", [["class", *self.rows[0]], *scores])
        results: dict[str, Any] = {**metrics, **self.about}
        title = f"{pl_module.network_name}: {100 * metrics['test/accuracy']:.2f} % of {int(matrix.sum()):,} test images"
        if pl_module.test_time_augmentation != "none":
            results["test_time_augmentation"] = pl_module.test_time_augmentation
            title += f" ({pl_module.test_time_augmentation} averaged)"
        if note := getattr(datamodule_of(trainer), "note", ""):
            results["note"] = note
            title += f"; {note}"
        write_file(folder / "test.json", (json.dumps(results, indent=2) + "\n").encode())
        plot_confusion_matrix(matrix, names, folder / "confusion_matrix.png", title)
        (folder / "mistakes.png").unlink(missing_ok=True)  # of an earlier test
        if mistakes:
            images = torch.stack([image for *_, image in mistakes])
            titles = [f"said {names[p]} ({100 * c:.0f} %)\nis {names[t]}" for c, p, t, _ in mistakes]
            plot_images(images, titles, folder / "mistakes.png", "The most confident mistakes")
