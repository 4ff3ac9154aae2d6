"""The table at the start of a run: what is about to be trained, on what, and how."""

from typing import Protocol, runtime_checkable

from lightning.pytorch import Trainer
from rich.table import Table
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from vision_zoo.classifier import Classifier
from vision_zoo.trainer_facts import callbacks_of, datamodule_of, device_name, validates


@runtime_checkable
class Described(Protocol):
    """A callback with a row of its own in the table: its topic is the head of the row, one word."""

    topic: str

    def describe(self) -> str:
        """What the callback does to this run, in one line; nothing leaves the row out."""


def describe_run(trainer: Trainer, model: Classifier) -> Table:
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
        if isinstance(config.scheduler, ReduceLROnPlateau):  # see Classifier.on_train_epoch_end
            moves = "by val/loss, at the end of an epoch" if validates(trainer) else "by train/loss, every epoch"
        if isinstance(config.scheduler, OneCycleLR):  # which does not look at the optimizer's
            group = config.scheduler.optimizer.param_groups[0]
            moves += f", up to lr {group['max_lr']:g}"
            if "base_momentum" in group:
                moves += f"; momentum {group['max_momentum']:g} to {group['base_momentum']:g}, the schedule's own"
        facts.add_row("schedule", f"{type(config.scheduler).__name__}, {moves}")
    smoothing = f", label smoothing {model.label_smoothing}" if model.label_smoothing else ""
    facts.add_row("loss", f"cross-entropy{smoothing}")
    facts.add_row("device", f"{device_name(trainer)}, {trainer.precision}")
    for callback in callbacks_of(trainer):
        if isinstance(callback, Described) and (line := callback.describe()):
            facts.add_row(callback.topic, line)
    return facts
