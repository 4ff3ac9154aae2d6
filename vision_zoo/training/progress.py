"""What the terminal shows while training: a bar where there is a terminal, a line for each epoch everywhere."""

import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar as RichBar
from rich.table import Table
from rich.text import Text
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from vision_zoo.classifier import Classifier
from vision_zoo.formatting import metric_text
from vision_zoo.trainer_facts import validates
from vision_zoo.training.performance import Speed
from vision_zoo.training.resizing import ProgressiveResizing

REFRESH_SECONDS = 1.0


class _Line(Progress):
    """A bar with everything about it in one line of text, which is drawn in half the time of rich's own table."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn: the bar gets what the words leave of the terminal's width."""
        for task in self.tasks:
            parts = [column(task) for column in self.columns if isinstance(column, ProgressColumn)]
            free = self.console.width - sum(part.cell_len + 1 for part in parts if isinstance(part, Text))
            for place, part in enumerate(parts):
                if isinstance(part, RichBar):
                    part.width = max(4, min(30, free))
                    parts[place] = Text.assemble(*((s.text, s.style or "") for s in self.console.render(part)))
            line = Text(" ").join(part for part in parts if isinstance(part, Text))
            line.no_wrap, line.overflow = True, "ellipsis"
            yield line


class Console(ProgressBar):
    """A progress bar with loss and accuracy, and for each epoch a line that stays.

    Args:
        bar: whether there is a bar at all; the lines stay.
    """

    def __init__(self, bar: bool = True) -> None:
        super().__init__()
        self._bar = bar
        self.console = RichConsole(file=sys.stdout, highlight=False, soft_wrap=True)
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = self._started = 0.0
        self._seen = 0  # images since the bar began, which is not the epoch's start where a run goes on within one

    def disable(self) -> None:
        """Show nothing, as processes other than the first do."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            self.console.print(*args, **kwargs)

    # The bar is drawn by hand, once a second at most: a drawing thread would compete with the training.

    def _start(self, text: str, total: float) -> None:
        if not self._enabled or not self._bar or not self.console.is_terminal:
            return
        if self._progress is None:
            self._progress = _Line(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[speed]}"),
                TextColumn("{task.fields[metrics]}"),
                console=self.console,
                auto_refresh=False,
                transient=True,
            )
            self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        size = None if total == float("inf") else int(total)
        self._task = self._progress.add_task(text, total=size, metrics="", speed="")
        self._started, self._seen = time.monotonic(), 0

    def _advance(self, done: int, images: int) -> None:
        if self._progress is None or self._task is None:
            return
        self._seen += images
        now = time.monotonic()
        if now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        shown = {k: v for k, v in self.trainer.progress_bar_metrics.items() if isinstance(v, (int, float))}
        text = "  ".join(f"{name} {metric_text(name, value)}" for name, value in shown.items())
        speed = f"{self._seen / max(now - self._started, 1e-9):,.0f} images/s"
        self._progress.update(self._task, completed=done, metrics=text, speed=speed, refresh=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is about to happen: network, data, optimizer, loss, device."""
        if not isinstance(pl_module, Classifier):
            return
        facts = Table.grid(padding=(0, 2))
        channels, height, width = pl_module.image_shape
        sizes = getattr(trainer.datamodule, "sizes", {})  # type: ignore[attr-defined]
        parameters = sum(p.numel() for p in pl_module.parameters())
        frozen = sum(p.numel() for p in pl_module.parameters() if not p.requires_grad)
        still = f", {frozen:,} of them frozen" if frozen else ""
        facts.add_row("network", f"{pl_module.network_name}, {parameters:,} parameters{still}")
        facts.add_row(
            "data",
            f"{type(trainer.datamodule).__name__}: "  # type: ignore[attr-defined]
            + ", ".join(f"{size:,} {split}" for split, size in sizes.items())
            + f"; {channels} x {height} x {width} pixels, {pl_module.num_classes} classes",
        )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # which Lightning sets from outside
            if isinstance(callback, ProgressiveResizing):
                facts.add_row("sizes", callback.describe(pl_module.image_shape))
        batch_size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if batch_size:
            effective = batch_size * trainer.world_size * trainer.accumulate_grad_batches
            spread = f" x {trainer.world_size} processes" if trainer.world_size > 1 else ""
            spread += f" x {trainer.accumulate_grad_batches} batches" if trainer.accumulate_grad_batches > 1 else ""
            spread = f" = {batch_size}{spread}" if spread else ""
            facts.add_row("batch", f"{effective} images per step{spread}; the learning rate is used as given")
        optimizer = trainer.optimizers[0]
        rate = f", lr {optimizer.defaults['lr']:g}" if "lr" in optimizer.defaults else ""
        facts.add_row("optimizer", f"{type(optimizer).__name__}{rate}")
        for config in trainer.lr_scheduler_configs:
            name = type(config.scheduler).__name__
            moves = f"every {config.interval}"
            if isinstance(config.scheduler, ReduceLROnPlateau):  # see Classifier.on_train_epoch_end
                moves = "by val/loss, at the end of an epoch" if validates(trainer) else "by train/loss, every epoch"
            if isinstance(config.scheduler, OneCycleLR):  # which does not look at the optimizer's
                group = config.scheduler.optimizer.param_groups[0]
                moves += f", up to lr {group['max_lr']:g}"
                if "base_momentum" in group:
                    moves += f"; momentum {group['max_momentum']:g} to {group['base_momentum']:g}, the schedule's own"
            facts.add_row("schedule", f"{name}, {moves}")
        smoothing = f", label smoothing {pl_module.label_smoothing}" if pl_module.label_smoothing else ""
        facts.add_row("loss", f"cross-entropy{smoothing}")
        facts.add_row("device", f"{device_name(trainer)}, {trainer.precision}")
        speed = next((c for c in trainer.callbacks if isinstance(c, Speed)), None)  # type: ignore[attr-defined]
        if speed is not None and speed.choices:
            facts.add_row("speed", speed.describe(optimizer))
        self.print(facts)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the epoch's bar."""
        total = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        self._start(f"epoch {trainer.current_epoch + 1}{total}", self.total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._advance(batch_idx + 1, len(batch[1]) * trainer.world_size)

    # Called by Run, whose hooks come after all metrics of the epoch are known.

    def validation_line(self, trainer: Trainer, lowest: float | None) -> None:
        """A line for a validation within an epoch, with the lowest validation loss so far."""
        self._line(trainer, f"step {trainer.global_step}", ("val/loss", "val/accuracy"), lowest)

    def epoch_line(self, trainer: Trainer, lowest: float | None) -> None:
        """A line for an epoch; with the lowest validation loss so far if the epoch was validated, else None."""
        total = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        validated = ("val/loss", "val/accuracy") if lowest is not None else ()  # Lightning keeps those of earlier ones
        self._line(
            trainer, f"epoch {trainer.current_epoch + 1}{total}", ("train/loss", "train/accuracy", *validated), lowest
        )

    def _line(self, trainer: Trainer, head: str, names: tuple[str, ...], lowest: float | None) -> None:
        metrics = trainer.callback_metrics
        text = "  ".join(f"{name} {metric_text(name, float(metrics[name]))}" for name in names if name in metrics)
        if lowest is not None:
            best = float(metrics["val/loss"]) == lowest
            text += "  [green](lowest)[/green]" if best else f"  (lowest {lowest:.4f})"
        self.print(f"{head:>11}  {text}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    # (Validations within a training are short, and its bar stays.)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of the validation images."""
        if trainer.state.fn == "validate":
            self._start("validate", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if trainer.state.fn == "validate":
            self.on_test_batch_end(trainer, *args, **kwargs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        if trainer.state.fn == "validate":
            self._stop()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of the test images."""
        self._start("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._advance(batch_idx + 1, len(batch[1]) * trainer.world_size)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._stop()


def device_name(trainer: Trainer) -> str:
    """What the network runs on, for people and results."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        model = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.exists():
            names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
            model = names[0] if names else model
        threads = torch.get_num_threads()
        return f"cpu ({model}, {threads} thread{'s' * (threads != 1)})"
    return str(device)
