"""Metrics of training, validation and test."""

import csv
import json
import math
import warnings
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.optim import SGD, Adam

from tests.conftest import QUICK
from tests.test_classifier import NAMES, classifier, trainer
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST5k
from vision_zoo.errors import TrainingError
from vision_zoo.metrics import Metrics


def batches(count=7, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for size in range(1, count + 1):
        logits = torch.randn(size, classes, generator=generator)
        labels = torch.randint(0, classes, (size,), generator=generator)
        yield logits, labels, F.cross_entropy(logits, labels, reduction="none")


def test_batches_counted_at_once_give_what_they_give_one_by_one(monkeypatch):
    together, single = Metrics("test", 10), Metrics("test", 10)
    for batch in batches():
        together.update(*batch)
    monkeypatch.setattr("vision_zoo.metrics.MOST_PENDING", 1)
    for batch in batches():
        single.update(*batch)
    one, other = together.compute(), single.compute()
    assert list(one) == together.keys()
    for name, value in one.items():
        torch.testing.assert_close(torch.as_tensor(other[name]), torch.as_tensor(value), msg=name)


@pytest.mark.parametrize("split", ["val", "test"])
def test_macro_accuracy_is_the_mean_of_the_recalls_of_the_classes_that_there_are(split):
    metrics = Metrics(split, 10)
    answers, truth = list[int](), list[int]()
    for logits, labels, losses in batches(count=12):
        few = labels.clamp(max=6) // 3  # of three classes, the third the smallest
        metrics.update(logits, few, losses)
        answers += logits.argmax(1).tolist()
        truth += few.tolist()
    with warnings.catch_warnings(action="ignore"):  # of answers that are no class of the labels
        expected = balanced_accuracy_score(truth, answers)
    assert float(metrics.compute()[f"{split}/macro_accuracy"]) == pytest.approx(expected)


def test_batch_means_weigh_as_many_images_as_they_stand_for():
    each, means = Metrics("train", 10), Metrics("train", 10)
    for logits, labels, losses in batches():
        each.update(logits, labels, losses)
        means.update(logits, labels, losses.mean())
    assert means.compute()["train/loss"] == pytest.approx(each.compute()["train/loss"], rel=1e-6)


@pytest.mark.slow
def test_sums_do_not_stop_counting_after_many_images():
    """10 seconds."""
    metrics = Metrics("val", 2)
    labels = torch.zeros(2**20, dtype=torch.int64)
    losses = torch.full((2**20,), 0.1)
    for _ in range(32):  # float32 would be off in the third digit
        metrics.update(torch.zeros(1, 2).expand(2**20, 2), labels, losses)
        metrics._outputs.clear()
    assert metrics.count_losses()[1] == pytest.approx(0.1, rel=1e-7)


def test_a_state_is_plain_and_continues(tmp_path):
    whole, begun, resumed = (Metrics("train", 10) for _ in range(3))
    parts = list(batches())
    for number, (logits, labels, losses) in enumerate(parts):
        whole.update(logits, labels, losses.mean())
        if number < 3:
            begun.update(logits, labels, losses.mean())
        if number == 1:
            whole.count_losses()
            begun.count_losses()
    torch.save(begun.state(), tmp_path / "state.pt")
    resumed.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for logits, labels, losses in parts[3:]:
        resumed.update(logits, labels, losses.mean())
    assert resumed.compute() == whole.compute()


def test_sums_of_an_old_checkpoint_continue():
    metrics = Metrics("train", 3)
    sums = {"mean_value": torch.tensor(6.0).double(), "weight": torch.tensor(4.0).double()}
    metrics.load_state({"states": {"loss": sums}, "pending_losses": [(torch.tensor(0.5), 4)]})
    assert metrics.compute()["train/loss"] == 1.0


def test_no_images_have_no_loss():
    metrics = Metrics("train", 3)
    assert metrics.count_losses()[0] == []
    assert math.isnan(metrics.compute()["train/loss"])


def test_metrics_add_no_keys_to_the_weights():
    model = classifier()
    assert all(key.startswith("backbone.") for key in model.state_dict())


def test_an_infinite_loss_stops_the_run_and_names_the_step(here):
    model = classifier()
    original = model.forward

    def forward(x):
        logits = original(x)
        return logits * float("inf") if model.global_step == 3 and model.training else logits

    model.forward = forward
    with pytest.raises(TrainingError, match=r"the training loss is nan at step 4 \(epoch 0\)"):
        trainer(max_epochs=1, limit_train_batches=6).fit(model, MNIST5k())


def test_accuracy_and_loss_of_training_are_those_of_all_its_images(here):
    """Metrics are counted for many steps at once; nothing may be lost at the epoch's end."""
    model = classifier(optimizer=lambda parameters: SGD(parameters, lr=0.0))
    data = MNIST5k(batch_size=300)
    run = trainer(max_epochs=1, log_every_n_steps=5, limit_val_batches=0)
    run.fit(model, data)
    everything = data.split_images("train")
    model.eval()
    with torch.no_grad():
        logits = model(everything.images)
    loss = nn.functional.cross_entropy(logits.double(), everything.labels)
    accuracy = (logits.argmax(1) == everything.labels).double().mean()
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(loss.item(), rel=1e-6)
    assert float(run.callback_metrics["train/accuracy"]) == pytest.approx(accuracy.item(), abs=1e-7)


def test_losses_are_summed_exactly_where_the_network_is_of_half_precision(trained_run, here):
    words = ["--trainer.precision", "bf16-true", "--output", "out"]
    assert main(["test", "--ckpt_path", str(trained_run), *words]) == 0
    found = json.loads((here / "out" / "test.json").read_text())["test/loss"]
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt").to(torch.bfloat16).eval()
    data = MNIST5k()
    data.prepare_data()
    data.setup("test")
    losses = []
    with torch.no_grad():
        for images, labels in data.test_dataloader():
            losses.append(F.cross_entropy(model(images).float(), labels, reduction="none").double())
    assert found == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)


def test_a_batch_that_is_evaluated_many_times_is_counted_once(here):
    words = ["--model.optimizer", "LBFGS", "--model.scheduler", "null", "--trainer.max_epochs", "1"]
    assert main([*QUICK, *words, "--data.batch_size", "7", "--trainer.limit_train_batches", "1"]) == 0
    metrics = json.loads((here / "runs/default/version_0/results.json").read_text())["metrics"]
    assert 7 * metrics["train/accuracy"] == pytest.approx(round(7 * metrics["train/accuracy"]))
    assert 2.2 < metrics["train/loss"] < 2.5  # of the weights before the step


def test_the_metrics_of_a_step_are_those_of_a_batch_that_is_evaluated_many_times_too(here):
    words = ["--model.optimizer", "LBFGS", "--model.scheduler", "null", "--trainer.max_epochs", "1"]
    words += ["--data.batch_size", "7", "--trainer.limit_train_batches", "3", "--trainer.log_every_n_steps", "1"]
    assert main([*QUICK, *words, "--test_after_fit", "false"]) == 0
    with (here / "runs/default/version_0/metrics.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss_step"]]
    assert steps == ["1", "2", "3"]


class Logging(Classifier):
    """Logs something of its own in each step, for the epoch's mean."""

    def training_step(self, batch, batch_idx):
        self.log("own", float(batch_idx), on_step=False, on_epoch=True, batch_size=1)
        return super().training_step(batch, batch_idx)


def test_what_a_subclass_logs_keeps_its_mean_over_the_epoch():
    run = Trainer(
        max_epochs=1, limit_train_batches=6, limit_val_batches=0, log_every_n_steps=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
    )  # fmt: skip
    run.fit(Logging(LeNet5, (1, 28, 28), NAMES, optimizer=Adam), datamodule=MNIST5k())
    assert float(run.callback_metrics["own"]) == 2.5


class Reads(Callback):
    """Takes note of the loss of each epoch, as callbacks that search or report do."""

    seen: ClassVar[list[float]] = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))


def test_a_callback_reads_the_loss_of_the_epoch_that_ends(here, monkeypatch):
    monkeypatch.setattr(Reads, "seen", [])
    words = ["--trainer.callbacks", f"{__name__}.Reads", "--trainer.max_epochs", "3"]
    assert main([*QUICK, *words, "--model.scheduler", "ReduceLROnPlateau", "--data.val_split", "0"]) == 0
    with (here / "runs/default/version_0/metrics.csv").open(newline="") as file:
        written = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert Reads.seen == pytest.approx(written)
    assert len(written) == 3
