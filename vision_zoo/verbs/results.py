"""What fit leaves at its end: results.json, curves.png, and a table on the screen."""

import json
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from rich.markup import escape
from rich.table import Column, Table

from vision_zoo.classifier import Classifier
from vision_zoo.files import write_file
from vision_zoo.formatting import duration, metric_text
from vision_zoo.plots import plot_curves
from vision_zoo.trainer_facts import datamodule_of, device_name
from vision_zoo.training.made_with import versions
from vision_zoo.training.performance import Performance
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.training.saving import Saving
from vision_zoo.verbs.trainer import say


def write_results(
    trainer: Trainer,
    model: Classifier,
    run: RunFolder,
    saving: Saving | None,
    performance: Performance,
    metrics: dict[str, float],
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write results.json and curves.png; gives the content of the former, which ``more`` is added to."""
    data = datamodule_of(trainer)
    results = {
        "config": run.name,
        "network": model.network_name,
        "data": {"name": type(data).__name__, "note": getattr(data, "note", "")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": _epochs_trained(trainer),
        "fit_seconds": round(run.fit_seconds, 3),
        "train_images_per_second": round(run.images_seen / run.train_seconds, 1) if run.train_seconds else None,
        "metrics": {name: metrics[name] for name in sorted(metrics)},
        "known": model.known and {**model.known.facts, "test": metrics.get("test/known")},
        "test_time_augmentation": model.test_time_augmentation,
        "best_epoch": saving.best_epoch if saving is not None else None,
        "seed": run.config.get("seed_everything"),
        "device": device_name(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "speed": performance.choices,
        "versions": versions(),
        **(more or {}),
    }
    write_file(run.path / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    if (run.path / "metrics.csv").exists():
        plot_curves(run.path / "metrics.csv", run.path / "curves.png", f"{run.name}: {model.network_name}")
    return results


def _epochs_trained(trainer: Trainer) -> int:
    """How many epochs were begun; unlike `trainer.current_epoch`, right also where nothing was left to train."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    started, most = int(progress.started), trainer.max_epochs or -1
    return started if most == -1 else min(started, most)  # averaging weights ends with an epoch that trains nothing


def say_results(trainer: Trainer, run: RunFolder, saving: Saving | None, results: dict[str, Any]) -> None:
    """Print the table of metrics, and how the run ended."""
    epochs, speed = results["epochs"], results["train_images_per_second"]
    say(trainer, results_table(results["metrics"]))
    if results["data"]["note"]:
        say(trainer, f"{results['data']['name']}: {results['data']['note']}")
    stopping = trainer.early_stopping_callback
    if stopping is not None and stopping.stopping_reason_message:
        say(trainer, escape(stopping.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")))
    trained = f"{epochs} epoch{'s' * (epochs != 1)}"
    if trainer.global_step == trainer.max_steps:
        trained = f"{trainer.global_step:,} step{'s' * (trainer.global_step != 1)}"
    line = f"trained {trained} in {duration(run.fit_seconds)}"
    line += "" if speed is None else f", {speed:,.0f} images/s"
    if saving is not None and saving.best_epoch is not None:
        line += f"; best.ckpt is of the lowest validation loss, epoch {saving.best_epoch + 1}"
    elif saving is not None:
        line += "; best.ckpt is last.ckpt, for there was no validation"
    say(trainer, line)
    if results["test_time_augmentation"] != "none":
        say(trainer, f"tested with test-time augmentation: {results['test_time_augmentation']}")


def results_table(metrics: dict[str, float]) -> Table:
    """Metrics by split."""
    splits = [split for split in ("train", "val", "test") if any(name.startswith(f"{split}/") for name in metrics)]
    names = dict.fromkeys(name.split("/", 1)[1] for name in metrics if "/" in name and not name.endswith("_step"))
    table = Table("", *(Column(split, justify="right") for split in splits))
    for name in names:
        values = [metrics.get(f"{split}/{name}") for split in splits]
        table.add_row(name, *("" if value is None else metric_text(name, value) for value in values))
    return table
