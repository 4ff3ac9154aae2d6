"""The evaluation of the test images: confusion matrix, per-class metrics and the most confident mistakes."""

import csv
import io
import json
from collections.abc import Mapping
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
from vision_zoo.trainer_facts import gather
from vision_zoo.training.processes import expect_answers
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.training.signals import end_on_sigterm
from vision_zoo.types import Batch

MISTAKES = 20


def to_floats(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Metrics as numbers with no more digits than they have: .89 in float32 is .89, not .8899999856948853."""
    return {name: float(str(value.detach().cpu().numpy())) for name, value in metrics.items()}


def per_class(matrix: Tensor) -> list[dict[str, float]]:
    """Precision, recall and F1 of each class.

    Args:
        matrix: counts, int (K, K); rows are the true classes.

    Returns:
        K rows with precision, recall and f1 in [0, 1] and the number of images.
    """
    matrix = matrix.double()
    hits, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    precision, recall = hits / predicted.clamp(min=1), hits / actual.clamp(min=1)
    f1 = 2 * hits / (predicted + actual).clamp(min=1)
    return [
        {"precision": p, "recall": r, "f1": f, "images": int(n)}
        for p, r, f, n in zip(precision.tolist(), recall.tolist(), f1.tolist(), actual.tolist(), strict=True)
    ]


class TestArtifacts(Callback):
    """Collects what a test shows beyond single metrics and writes it into a folder.

    Args:
        folder: for confusion_matrix.png and .csv, per_class.csv, mistakes.png and test.json: a folder, or the run's
            that is chosen when training starts; None writes nothing.
        about: what is tested, for test.json: such as the checkpoint's name and step, and the data.

    Attributes:
        rows: precision, recall, f1 and number of images of each class, after a test; see `per_class`.
    """

    __test__ = False  # no test of pytest's

    def __init__(
        self, folder: Path | RunFolder | None = None, about: Mapping[str, str | int] = MappingProxyType({})
    ) -> None:
        self.folder = folder
        self.about = about
        self.rows: list[dict[str, float]] = []
        self._mistakes: list[tuple[float, int, int, Tensor]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self._mistakes = []
        end_on_sigterm()
        expect_answers(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal end the command; within a training, it is the training that ends."""
        if trainer.state.fn == "validate":
            end_on_sigterm()
            expect_answers(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the wrong images of the batch in which the network was most sure."""
        images, labels = batch
        confidence, predicted = outputs.max(1)
        wrong = (predicted != labels).nonzero().flatten()
        if len(wrong):
            top = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES]
            self._mistakes += [
                (float(confidence[i]), int(predicted[i]), int(labels[i]), images[i].cpu().clone()) for i in top.tolist()
            ]
            self._mistakes = sorted(self._mistakes, key=lambda m: -m[0])[:MISTAKES]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was collected, on the first process."""
        mistakes = sorted((m for part in gather(self._mistakes) for m in part), key=lambda m: -m[0])[:MISTAKES]
        if not isinstance(pl_module, Classifier):
            return
        metrics = {n: value for n, value in to_floats(trainer.callback_metrics).items() if n.startswith("test/")}
        self.rows = per_class(pl_module.confusion_matrix)
        folder = self.folder.path if isinstance(self.folder, RunFolder) else self.folder
        if folder is None or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        names, matrix = pl_module.class_names, pl_module.confusion_matrix
        text = io.StringIO()  # names of folders may be any bytes, hence surrogateescape
        csv.writer(text, lineterminator="\n").writerows(
            [
                ["true \\ predicted", *names],
                *([name, *counts] for name, counts in zip(names, matrix.tolist(), strict=True)),
            ]
        )
        write_file(folder / "confusion_matrix.csv", text.getvalue().encode(errors="surrogateescape"))
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["class", "precision", "recall", "f1", "images"])
        table.writerows([name, *row.values()] for name, row in zip(names, self.rows, strict=True))
        write_file(folder / "per_class.csv", text.getvalue().encode(errors="surrogateescape"))
        results: dict[str, Any] = {**metrics, **self.about}
        if pl_module.test_time_augmentation != "none":
            results["test_time_augmentation"] = pl_module.test_time_augmentation
        write_file(folder / "test.json", (json.dumps(results, indent=2) + "\n").encode())
        accuracy = metrics["test/accuracy"]
        title = f"{pl_module.network_name}: {100 * accuracy:.2f} % of {int(matrix.sum()):,} test images"
        if pl_module.test_time_augmentation != "none":
            title += f" ({pl_module.test_time_augmentation} averaged)"
        plot_confusion_matrix(matrix, names, folder / "confusion_matrix.png", title)
        (folder / "mistakes.png").unlink(missing_ok=True)  # of an earlier test
        if mistakes:
            plot_images(
                torch.stack([image for *_, image in mistakes]),
                [f"said {names[p]} ({100 * c:.0f} %)\nis {names[t]}" for c, p, t, _ in mistakes],
                folder / "mistakes.png",
                "The most confident mistakes",
            )
