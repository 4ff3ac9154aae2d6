"""What the terminal shows while training: a bar where there is a terminal, a line for each epoch everywhere."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar as RichBar
from rich.table import Table
from rich.text import Text
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from vision_zoo.classifier import Classifier
from vision_zoo.formatting import metric_text
from vision_zoo.stopping import StoppedBySignalError
from vision_zoo.trainer_facts import callbacks_of, datamodule_of, device_name, steps_of_run, validates
from vision_zoo.training.head_only import HeadOnly
from vision_zoo.training.performance import Performance
from vision_zoo.training.resizing import ProgressiveResizing
from vision_zoo.training.saving import Saving

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


class ProgressBar(callbacks.ProgressBar):
    """A progress bar with loss and accuracy, unless it is false, and for each epoch a line that stays."""

    def __init__(self, bar: bool = True) -> None:
        super().__init__()
        self._bar = bar
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._drawn = self._started = 0.0
        self._validated = False  # at the end of the epoch
        self._ended_epoch = ""  # what its line begins with, until it is printed
        self._seen = 0  # images since the bar began, which is not the epoch's start where a run goes on within one

    def disable(self) -> None:
        """Show nothing, as processes other than the first do."""
        self.console.quiet = True

    def enable(self) -> None:
        """Show what happens, on the first process."""
        self.console.quiet = not self.trainer.is_global_zero

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        self.console.print(*args, **kwargs)

    # The bar is drawn by hand, once a second at most: a drawing thread would compete with the training.

    def _start(self, text: str, total: float) -> None:
        self._stop()
        if self._bar and not self.console.quiet and self.console.is_terminal:
            fields = [TextColumn(f"{{task.fields[{name}]}}") for name in ("speed", "metrics")]
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True), *fields)
            options: dict[str, Any] = {"console": self.console, "auto_refresh": False, "transient": True}
            self._progress = _Line(TextColumn("{task.description}"), *columns, **options)
            self._progress.start()
            size = None if total == float("inf") else int(total)
            self._progress.add_task(text, total=size, metrics="", speed="")
            self._started, self._seen = time.monotonic(), 0

    def _stop(self, *_: Any, **__: Any) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _advance(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._progress is None or (trainer.state.fn == "fit" and not trainer.training):
            return  # validations within a training are short, and its bar stays
        self._seen += len(batch[1]) * trainer.world_size
        now = time.monotonic()
        if now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            metrics = trainer.progress_bar_metrics.items()
            text = "  ".join(f"{k} {metric_text(k, v)}" for k, v in metrics if isinstance(v, (int, float)))
            speed = f"{self._seen / max(now - self._started, 1e-9):,.0f} images/s"
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=batch_idx + 1, metrics=text, speed=speed, refresh=True)

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _advance

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what is about to happen: network, data, optimizer, loss, device."""
        if isinstance(pl_module, Classifier):
            self.print(_describe_run(trainer, pl_module))
        if trainer.fit_loop.restarted_mid_epoch:  # Lightning begins no epoch then
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the epoch's bar."""
        self._print_epoch(trainer)
        self._start(self._epoch(trainer), self.total_train_batches)

    @staticmethod
    def _epoch(trainer: Trainer) -> str:
        total = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        return f"epoch {trainer.current_epoch + 1}{total}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember which epoch ended: its metrics are known after this hook, and saving comes before printing."""
        self._ended_epoch = self._epoch(trainer)

    def _print_epoch(self, trainer: Trainer) -> None:
        """Print the line of the epoch that has ended, once."""
        head, self._ended_epoch = self._ended_epoch, ""
        if head:
            validated = ("val/loss", "val/accuracy") if self._validated else ()  # Lightning keeps those of earlier ones
            self._line(trainer, head, ("train/loss", "train/accuracy", *validated))
            self._validated = False

    def _line(self, trainer: Trainer, head: str, names: tuple[str, ...]) -> None:
        metrics = trainer.callback_metrics
        text = "  ".join(f"{name} {metric_text(name, float(metrics[name]))}" for name in names if name in metrics)
        saving = next((callback for callback in callbacks_of(trainer) if isinstance(callback, Saving)), None)
        if saving is not None and "val/loss" in names:
            loss, lowest = float(metrics["val/loss"]), saving.best_score
            lower = lowest is None or loss <= lowest
            text += "  [green](lowest)[/green]" if lower else f"  (lowest {lowest:.4f})"
        self.print(f"{head:>11}  {text}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._print_epoch(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        if isinstance(exception, StoppedBySignalError):  # at the end of an epoch
            self._print_epoch(trainer)
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar of the validation or test images; that of a training stays."""
        if trainer.state.fn != "fit":
            counts = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
            self._start("test" if trainer.testing else "validate", sum(counts))

    on_test_start, on_test_end = on_validation_start, _stop

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar; within an epoch, print a line."""
        if trainer.state.fn == "validate":
            self._stop()
        elif not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            self._validated = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            if not self._validated:
                self._line(trainer, f"step {trainer.global_step}", ("val/loss", "val/accuracy"))


def _describe_run(trainer: Trainer, model: Classifier) -> Table:
    """Network, data, optimizer, schedule, loss and device of a training that starts, and what its callbacks add."""
    facts = Table.grid(padding=(0, 2))
    parameters = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    still = f", {frozen:,} of them frozen" if frozen else ""
    facts.add_row("network", f"{model.network_name}, {parameters:,} parameters{still}")
    data = datamodule_of(trainer)
    channels, height, width = model.image_shape
    sizes = ", ".join(f"{size:,} {split}" for split, size in getattr(data, "sizes", {}).items())
    shape = f"{channels} x {height} x {width} pixels, {model.num_classes} classes"
    facts.add_row("data", f"{type(data).__name__}: {sizes}; {shape}")
    if batch_size := getattr(data, "batch_size", None):
        factors = ((trainer.world_size, "processes"), (trainer.accumulate_grad_batches, "batches"))
        spread = "".join(f" x {count} {what}" for count, what in factors if count > 1)
        effective = batch_size * trainer.world_size * trainer.accumulate_grad_batches
        spread = f" = {batch_size}{spread}" if spread else ""
        facts.add_row("batch", f"{effective} images per step{spread}; the learning rate is used as given")
    optimizer = trainer.optimizers[0]
    rate = f", lr {optimizer.defaults['lr']:g}" if "lr" in optimizer.defaults else ""
    facts.add_row("optimizer", f"{type(optimizer).__name__}{rate}")
    for config in trainer.lr_scheduler_configs:
        moves = f"every {config.interval}"
        if isinstance(config.scheduler, ReduceLROnPlateau):  # see ScoredModule.on_train_epoch_end
            moves = f"by {config.monitor}, every {config.interval}"
            moves = moves if config.strict or not validates(trainer) else "by val/loss, at the end of an epoch"
        if isinstance(config.scheduler, OneCycleLR):  # which does not look at the optimizer's
            group = config.scheduler.optimizer.param_groups[0]
            moves += f", up to lr {group['max_lr']:g}"
            if "base_momentum" in group:
                moves += f"; momentum {group['max_momentum']:g} to {group['base_momentum']:g}, the schedule's own"
        facts.add_row("schedule", f"{type(config.scheduler).__name__}, {moves}")
    if model.freezing is not None:
        facts.add_row("fine-tuning", model.freezing.options.describe(steps_of_run(trainer)))
    facts.add_row("loss", model.loss.describe())
    facts.add_row("device", f"{device_name(trainer.strategy.root_device)}, {trainer.precision}")
    for callback in callbacks_of(trainer):
        if isinstance(callback, Performance | HeadOnly | ProgressiveResizing) and (line := callback.describe()):
            facts.add_row(callback.topic, line)
    return facts
