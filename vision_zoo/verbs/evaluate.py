"""validate and test: score a checkpoint."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from rich.markup import escape
from rich.table import Column, Table

from vision_zoo.checkpoints import Checkpoint, run_folder
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.ensemble import Ensemble
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.formatting import metric_text
from vision_zoo.training.evaluation import TestArtifacts, to_floats
from vision_zoo.types import TTA
from vision_zoo.verbs.checks import check_data, data_place
from vision_zoo.verbs.output import output_folder
from vision_zoo.verbs.results import results_table
from vision_zoo.verbs.trainer import TrainerMaker, say

SHOWN_CLASSES = 100  # in the table of each class


def validate(
    make_trainer: TrainerMaker, model: Classifier, datamodule: ImageDataModule, checkpoint: Checkpoint
) -> dict[str, float]:
    """Score a checkpoint on the validation images."""
    return _score(make_trainer([*make_trainer.own, *make_trainer.bar]), "val", model, datamodule)


def test(
    make_trainer: TrainerMaker,
    model: Classifier,
    datamodule: ImageDataModule,
    checkpoint: Checkpoint,
    output: str | None = None,
    tta: TTA = "none",
) -> dict[str, float]:
    """Score a checkpoint on the test images.

    Args:
        make_trainer: builds the trainer.
        model: the checkpoint's classifier.
        datamodule: the data.
        checkpoint: the checkpoint.
        output: folder for the confusion matrix, metrics by class and mistakes, by default "test" in the run folder, of
            several checkpoints in the working directory.
        tta: test-time augmentation: average the predictions for each image and its mirror image (flip), its shifts by
            one pixel to each side (shift), its two diagonal shifts at half the weight each (diagonal), or of all these
            also the mirror images (flip+...); by default as the run was tested.
    """
    several, run = isinstance(model, Ensemble), run_folder(checkpoint.path)
    folder = output_folder(output or (Path.cwd() if several or run is None else run) / "test")
    about: dict[str, Any] = {"checkpoint": checkpoint.path.name, "step": checkpoint.step}
    if isinstance(model, Ensemble):
        about = {"members": model.members}
    about |= {"data": type(datamodule).__name__, "images": data_place(datamodule)}
    if datamodule.cuts_test:
        about |= {name: datamodule.hparams[name] for name in ("test_split", "seed")}
    artifacts = TestArtifacts(folder, about)
    trainer = make_trainer([*make_trainer.own, *make_trainer.bar, artifacts])
    model.test_time_augmentation = tta
    metrics = _score(trainer, "test", model, datamodule)
    if datamodule.cuts_test and datamodule.hparams["test_split"] != 1.0:
        say(trainer, "on the part that --data.test_split cuts out; with 1.0, all images are tested")
    if datamodule.note:
        say(trainer, f"{type(datamodule).__name__}: {datamodule.note}")
    if tta != "none":
        say(trainer, f"with test-time augmentation: {tta}")
    say(trainer, _per_class_table(model.class_names, artifacts.rows))
    if (more := len(artifacts.rows) - SHOWN_CLASSES) > 0:
        say(trainer, f"and {more:,} more, in per_class.csv")
    say(trainer, escape(str(folder.resolve())))
    return metrics


def _score(
    trainer: Trainer, part: Literal["val", "test"], model: Classifier, datamodule: ImageDataModule
) -> dict[str, float]:
    """Score a part of the data, print the metrics, and give them by name."""
    option = f"limit_{part}_batches"
    nothing = f"--trainer.{option} is 0, so that nothing would be scored: set it higher"
    refuse(ConfigError, (getattr(trainer, option) == 0, nothing))
    check_data(model, datamodule)
    (trainer.test if part == "test" else trainer.validate)(model, datamodule=datamodule, verbose=False)
    none = "there are no validation images: --data.val_split is 0, so all of them were trained with"
    refuse(ConfigError, (not datamodule.sizes[part], f"{none}. To score the test images: vision_zoo test"))
    metrics = to_floats(trainer.callback_metrics)
    say(trainer, results_table(metrics))
    return metrics


def _per_class_table(class_names: tuple[str, ...], rows: list[dict[str, float]]) -> Table:
    """Precision, recall and F1 of each class, or of the first hundred."""
    table = Table("class", *(Column(name, justify="right") for name in ("precision", "recall", "F1", "images")))
    for name, row in list(zip(class_names, rows, strict=True))[:SHOWN_CLASSES]:
        shares = (metric_text(key, row[key]) for key in ("precision", "recall", "f1"))
        table.add_row(escape(name), *shares, f"{row['images']:,}")
    return table
