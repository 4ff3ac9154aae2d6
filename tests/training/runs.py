"""Commands, and comparisons of runs, for the tests of what happens while it trains."""

import csv
import signal
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import SWALR

from vision_zoo.training.saving import Saving

WITH_SWA = pytest.mark.skipif("state_dict" not in vars(SWALR), reason="torch saves the state of SWALR as code")


STATEFUL = [
    "fit", "--model.backbone", "SimpleCNN", "--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.003",
    "--data.batch_size", "32", "--data.image_size", "14", "--data.sampler", "balanced",
    "--trainer.limit_val_batches", "2",
    "--data.augmentation", "[AlternatingFlip, {class_path: RandomCrop, init_args: {padding: 2}}, RandomErasing, "
    "RandomResizedCrop, RandAugment, {class_path: MixUp, init_args: {p: 0.5}}, CutMix]",
    "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "12", "--trainer.val_check_interval", "6",
    "--trainer.log_every_n_steps", "4", "--test_after_fit", "false",
    "--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 10}}]",
]  # fmt: skip


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(path: Path) -> dict:
    checkpoint = torch.load(path, weights_only=True)
    for name in ("fit_seconds", "train_seconds"):
        checkpoint["callbacks"]["RunFolder"].pop(name)
    checkpoint["callbacks"].pop("Timer", None)
    for name in ("vision_zoo", "datamodule_hyper_parameters"):
        checkpoint.pop(name)
    return checkpoint


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def stop_at(monkeypatch, step: int, how: str) -> None:
    """Stop training after a step: by a signal that is handled, or by a crash that nothing handles."""
    original = Saving.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == step:
            if how == "crash":
                raise OSError("the machine fell over")
            signal.raise_signal(getattr(signal, how))
        original(self, trainer, *rest)

    monkeypatch.setattr(Saving, "on_train_batch_end", on_train_batch_end)


PLAIN = [
    "fit", "--model.backbone", "LeNet5", "--model.scheduler", "null", "--test_after_fit", "false",
    "--trainer.max_epochs", "4", "--trainer.limit_train_batches", "6", "--trainer.limit_val_batches", "2",
    "--trainer.log_every_n_steps", "1",
]  # fmt: skip
