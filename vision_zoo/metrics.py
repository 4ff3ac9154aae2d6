"""Metrics: many batches are counted at once, and losses are summed on the host."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from vision_zoo.errors import diverged
from vision_zoo.trainer_facts import gather, steps_after, validates
from vision_zoo.types import Split

MOST_PENDING = 2**20  # logits that wait to be counted


class MacroAccuracy(Metric):
    """Mean of the classes' recalls, over those that have images: balanced accuracy.

    In torchmetrics' own, a class without images has recall 0 as soon as one is taken for it.
    """

    hits: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("hits", "images"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits float (B, K), labels int64 (B,)."""
        self.hits.index_add_(0, labels, (logits.argmax(1) == labels).long())
        self.images.index_add_(0, labels, torch.ones_like(labels))

    def compute(self) -> Tensor:
        """The mean, a scalar in [0, 1]."""
        there = self.images > 0
        return (self.hits[there] / self.images[there]).mean()


class Metrics(nn.Module):
    """Loss, accuracy and, for more than five classes, top-5 accuracy.

    Of the images that are scored also macro accuracy, and of the test images what tells more.

    An update only takes note of a batch, for counting one costs more than a small training step. Sums of losses are
    Python's floats: they must not depend on how the images are spread over batches and processes, half precision would
    stop counting after some images, and Apple's GPUs have no float64.
    """

    def __init__(self, split: Split, num_classes: int) -> None:
        super().__init__()
        self.split = split
        options: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        counts: dict[str, Any] = {"accuracy": MulticlassAccuracy(average="micro", **options)}
        if num_classes > 5:
            counts["top5_accuracy"] = MulticlassAccuracy(top_k=5, average="micro", **options)
        if split != "train":
            counts["macro_accuracy"] = MacroAccuracy(num_classes)
        if split == "test":
            counts["f1"] = MulticlassF1Score(average="macro", **options)
            counts["calibration_error"] = MulticlassCalibrationError(n_bins=15, **options)
            counts["confusion_matrix"] = MulticlassConfusionMatrix(**options)
        self.counts = MetricCollection(counts, compute_groups=False)
        self.sums = dict.fromkeys(("loss", "images"), 0.0)
        self._losses: list[tuple[Tensor, int]] = []
        self._outputs: list[tuple[Tensor, Tensor]] = []

    def keys(self) -> list[str]:
        """Names of the metrics, such as val/accuracy."""
        return [f"{self.split}/{name}" for name in ("loss", *self.counts)]

    def update(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Take note of a batch: logits float (B, K), labels int64 (B,), losses float32 (B,) or their mean ()."""
        self._losses.append((losses.detach(), len(labels)))
        self._outputs.append((logits.detach(), labels))
        if len(self._outputs) * logits.numel() >= MOST_PENDING:
            self.count_outputs()

    def count_losses(self) -> tuple[list[float], float]:
        """Add the losses since the last call to the sum; return them and their mean over images."""
        if not self._losses:
            return [], math.nan
        device = self._losses[-1][0].device  # those of a checkpoint are on the host
        values: list[float] = torch.cat([losses.reshape(-1).to(device) for losses, _ in self._losses]).tolist()
        weights = [size / losses.numel() for losses, size in self._losses for _ in range(losses.numel())]
        self._losses.clear()
        total, images = math.fsum(map(math.prod, zip(values, weights, strict=True))), math.fsum(weights)
        self.sums["loss"] += total
        self.sums["images"] += images
        return values, total / images if images else math.nan

    def count_outputs(self) -> None:
        """Count the pending outputs."""
        if not self._outputs:
            return
        logits, labels = (torch.cat(parts) for parts in zip(*self._outputs, strict=True))
        self._outputs.clear()
        for name, metric in self.counts.items():
            metric.update(logits.softmax(1) if name == "calibration_error" else logits, labels)

    def compute(self) -> dict[str, Any]:
        """Every metric over the images of all processes, by its whole name; scalars, but for the confusion matrix."""
        self.count_losses()
        self.count_outputs()
        parts = gather(self.sums)
        sums = {name: math.fsum(part[name] for part in parts) for name in self.sums}
        values = {"loss": sums["loss"] / (sums["images"] or math.nan), **self.counts.compute()}
        return {name: values[name.removeprefix(f"{self.split}/")] for name in self.keys()}

    def reset(self) -> None:
        """Forget every image."""
        self.counts.reset()
        self.sums = dict.fromkeys(self.sums, 0.0)
        self._losses.clear()
        self._outputs.clear()

    def state(self) -> dict[str, Any]:
        """What was counted and what waits, as plain data for a checkpoint; pending losses stay pending."""
        self.count_outputs()
        states: dict[str, Any] = {"loss": {"mean_value": self.sums["loss"], "weight": self.sums["images"]}}
        for name, metric in self.counts.items():
            counted: dict[str, Any] = metric.metric_state
            states[name] = {key: value.cpu().clone() for key, value in counted.items()}
        return {"states": states, "pending_losses": [(losses.cpu(), size) for losses, size in self._losses]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave."""
        sums = state["states"]["loss"]
        self.sums |= {"loss": float(sums["mean_value"]), "images": float(sums["weight"])}
        for name, metric in self.counts.items():
            counted = state["states"].get(name, {})
            metric.load_state_dict({key: value.to(metric.device) for key, value in counted.items()})
        self._losses = list(state["pending_losses"])


class ScoredModule(LightningModule):
    """A LightningModule with metrics of training, validation and test, logged by epochs, and exact after a resume."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.train_metrics, self.val_metrics = Metrics("train", num_classes), Metrics("val", num_classes)
        self.test_metrics = Metrics("test", num_classes)
        self._counted_batch = -1  # the last of this epoch
        self._val_loss: float | None = None  # the last of this epoch

    def begin(self) -> None:
        """Forget a fit that broke off, and train, for a loaded module evaluates; what is partly frozen stays so."""
        for metrics in (self.train_metrics, self.val_metrics, self.test_metrics):
            metrics.reset()
        self._counted_batch, self._val_loss = -1, None
        if not self.training:
            self.train()

    def log_training(self, batch_idx: int, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Count a training batch; every ``log_every_n_steps`` steps, log mean loss and learning rate.

        Raises:
            TrainingError: if a loss since the last time is not finite.
        """
        if batch_idx == self._counted_batch:  # LBFGS evaluates each batch many times
            return
        self._counted_batch = batch_idx
        # The larger part of a mixed image counts as its class.
        self.train_metrics.update(logits, labels.argmax(1) if labels.is_floating_point() else labels, loss)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # which Lightning sets from outside
        if not every or (self.global_step + 1) % every or not steps_after(self.trainer, batch_idx):
            return
        self.log("train/loss_step", self._count_losses(), prog_bar=True, on_step=True, on_epoch=False)
        self.train_metrics.count_outputs()
        group = self.trainer.optimizers[0].param_groups[0]
        if "lr" in group:  # an optimizer of one's own may have none
            self.log("lr", group["lr"], on_step=True, on_epoch=False)

    def _count_losses(self) -> float:
        """Count the losses of the last batches; their mean over images."""
        losses, mean = self.train_metrics.count_losses()
        for index, loss in enumerate(losses):
            if not math.isfinite(loss) and not torch.is_anomaly_enabled():  # which names the operation
                ago = (len(losses) - 1 - index) // self.trainer.accumulate_grad_batches
                raise diverged(f"the training loss is {loss}", self.global_step - ago, self.current_epoch)
        return mean

    def log_epoch(self) -> None:
        """Log the epoch's training metrics, once, if a batch was counted."""
        self._count_losses()
        if self.train_metrics.sums["images"]:
            self.log_dict(self.train_metrics.compute(), prog_bar=True)
            self.train_metrics.reset()
        self._counted_batch = -1

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics and, where our schedule watches a metric, let it decide."""
        self.log_epoch()
        if scheduler := self._plateau():
            # One metric for the whole run, and none that has been looked at before.
            watched = self._val_loss if validates(self.trainer) else self.trainer.callback_metrics.get("train/loss")
            if watched is not None:
                scheduler.step(watched)
        self._val_loss = None

    def _plateau(self) -> ReduceLROnPlateau | None:
        """The schedule of `build_schedule` that watches a loss; those of a subclass are Lightning's to step."""
        ours = (
            c.scheduler for c in self.trainer.lr_scheduler_configs if (c.monitor, c.strict) == ("train/loss", False)
        )
        return next((schedule for schedule in ours if isinstance(schedule, ReduceLROnPlateau)), None)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedule; ours of a loss has stepped in ``on_train_epoch_end``, before the checkpoint."""
        if scheduler is not self._plateau():
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy of the validation images."""
        values = self.val_metrics.compute()
        self.log_dict(values, prog_bar=True)
        self.val_metrics.reset()
        if not self.trainer.sanity_checking:
            self._val_loss = float(torch.tensor(values["val/loss"]))  # as logged

    def on_test_epoch_end(self) -> None:
        """Log every scalar metric of the test images; the confusion matrix (K, K) is kept for a drawing."""
        values = self.test_metrics.compute()
        self.confusion_matrix: Tensor = values.pop("test/confusion_matrix").cpu()
        self.log_dict(values)
        self.test_metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a run that stopped within an epoch continues from."""
        # Those of each process: sums of floating point numbers depend on their order.
        checkpoint |= {"train_metrics": gather(self.train_metrics.state()), "val_loss_in_epoch": self._val_loss}
        # Callbacks that freeze layers freeze them anew when a run resumes, whatever was thawed since.
        checkpoint["frozen"] = [name for name, weight in self.named_parameters() if not weight.requires_grad]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` added."""
        self._val_loss = checkpoint.get("val_loss_in_epoch")
        for name, weight in self.named_parameters() if "frozen" in checkpoint else ():
            weight.requires_grad = name not in checkpoint["frozen"]
        processes = checkpoint.get("train_metrics", [])
        if self.global_rank < len(processes):  # the run folder refuses to resume with another number
            self.train_metrics.load_state(processes[self.global_rank])
