"""Classifier, the one LightningModule: raw images in, logits out, around any backbone."""

import inspect
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from vision_zoo.checkpoints import read_checkpoint, read_state_dict
from vision_zoo.errors import CheckpointError, ConfigError, ImageShapeError, VisionZooError, diverged, is_out_of_memory
from vision_zoo.specs import (
    class_and_arguments,
    copyable,
    describe,
    has_classes,
    parsed,
    rebuild,
    returned_class,
    takes,
    without_downloads,
)
from vision_zoo.trainer_facts import gather, steps_after, validates
from vision_zoo.transforms import views
from vision_zoo.types import TTA, Batch, ImageShape

MOST_PENDING = 1000  # batches whose outputs wait to be counted
# How a network says that it cannot take an image.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError)


class Classifier(LightningModule):
    """An image classifier around a backbone: normalisation, loss, optimizer and metrics, the same for every network.

    ``forward`` takes raw images, uint8 in [0, 255], and returns logits, so that nobody who loads a checkpoint has to
    know how the training images were scaled.

    Args:
        backbone: the network: a class called with the image shape (channels, height, width) and the number of
            classes, or a function of the two annotated ``-> nn.Module``. It maps normalised float images
            (B, C, H, W) to logits (B, K).
        image_shape: (channels, height, width) of one image.
        class_names: a name for each logit.
        mean: one value, or one for each channel, of pixels scaled to [0, 1]; subtracted from the images.
        std: likewise, each above 0; the images are divided by it.
        optimizer: called with the parameters, such as torch.optim.Adam with an lr. Needed for training only.
        scheduler: learning rate schedule, called with the optimizer. T_max and total_steps may be left out: they are
            then the number of steps of the whole run, and the schedule moves with every step instead of every epoch.
        label_smoothing: of the training loss, in [0, 1).
        weights: file with the backbone's weights to start from: a checkpoint, or a state dict of torch.save or
            safetensors.

    Raises:
        ConfigError: if label_smoothing is not in [0, 1), or the backbone is of the wrong kind or too large for the
            memory.
        ImageShapeError: if the backbone cannot take images of this shape.
        CheckpointError: if the weights cannot be read safely or do not fit the backbone.
        RuntimeError: if mean or std has another number of values.
    """

    def __init__(
        self,
        backbone: Callable[[ImageShape, int], nn.Module],
        image_shape: ImageShape,
        class_names: Sequence[str],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        label_smoothing: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"--model.label_smoothing must be in [0, 1), got {label_smoothing}")
        # Plain types only: a checkpoint has to load with weights_only=True.
        self.save_hyperparameters(
            {
                "backbone": without_downloads(describe(backbone)),
                "image_shape": list(image_shape),
                "class_names": list(class_names),
                "mean": list(mean),
                "std": list(std),
                "optimizer": describe(optimizer),
                "scheduler": describe(scheduler),
                "label_smoothing": label_smoothing,
            },
            logger=False,
        )
        self.image_shape: ImageShape = (image_shape[0], image_shape[1], image_shape[2])
        self.class_names = tuple(class_names)
        self.optimizer = copyable(optimizer)
        self.scheduler = copyable(scheduler)
        self.label_smoothing = label_smoothing
        self.backbone = build_backbone(backbone, self.image_shape, len(self.class_names))
        if weights is not None:
            self.load_backbone_weights(weights)
        # One multiplication and one addition bring uint8 to normalised float. Both follow from the hyperparameters, so
        # the state dict holds the backbone's own keys and nothing else.
        channels = self.image_shape[0]
        mean_, std_ = (torch.tensor(list(values)).expand(channels).reshape(-1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", 1 / (255 * std_), persistent=False)
        self.register_buffer("shift", -mean_ / std_, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

        # How a run computes on its machine, no part of the model: see callbacks/speed.py.
        self.channels_last = self.fuses_optimizer = False
        self.test_time_augmentation: TTA = "none"  # see transforms.views; set for one test
        self.train_metrics, self.val_metrics, self.test_metrics = (self._metrics(s) for s in ("train", "val", "test"))
        # Metrics of training steps are computed for many steps at once: one update costs more than a small step.
        self._pending_losses: list[tuple[Tensor, int]] = []
        self._pending_outputs: list[tuple[Tensor, Tensor]] = []
        self._counted_batch = -1  # the last of this epoch
        self._step_logged = False  # in the last step
        self._val_loss: float | None = None  # the last of this epoch

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; Lightning notes the name of the running hook here some forty times a step."""
        if name in self.__dict__ and (value is None or type(value) is str):
            self.__dict__[name] = value  # without torch's search for a parameter, buffer or module of that name
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert; sums of losses stay float64, for half precision would stop counting after some images."""
        every = (*self.train_metrics.values(), *self.val_metrics.values(), *self.test_metrics.values())
        sums = [metric for metric in every if isinstance(metric, MeanMetric)]
        try:
            fn(torch.empty(0, dtype=torch.float64))
            exact = torch.float64
        except TypeError:  # Apple's GPUs have none: a classifier classifies there, and its sums are not needed
            exact = torch.float32
            for metric in sums:
                metric.set_dtype(exact)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for metric in sums:
            metric.set_dtype(exact)
        return self

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.class_names)

    @property
    def network_name(self) -> str:
        """What to call the backbone: its attribute ``name``, for a class that holds many networks, else its class."""
        name = getattr(self.backbone, "name", None)
        return name if isinstance(name, str) else type(self.backbone).__name__

    def _metrics(self, split: str) -> MetricCollection:
        classes = self.num_classes
        metrics: dict[str, Any] = {
            # float64: the sum must not depend on how the images are spread over batches and processes.
            # ("disable" would ignore the sizes of training batches; there, one that is not finite has ended the run.)
            "loss": MeanMetric(nan_strategy="error" if split == "train" else "disable").set_dtype(torch.float64),
            "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
        }
        if classes > 5:
            metrics["top5_accuracy"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
        if split == "test":
            metrics["f1"] = MulticlassF1Score(classes, average="macro", validate_args=False)
            metrics["calibration_error"] = MulticlassCalibrationError(classes, n_bins=15, validate_args=False)
            metrics["nll"] = MeanMetric(nan_strategy="disable").set_dtype(torch.float64)
            metrics["confusion_matrix"] = MulticlassConfusionMatrix(classes, validate_args=False)
        return MetricCollection(metrics, prefix=f"{split}/", compute_groups=False)

    # ---------------------------------------------------------------------------------------------- forward and steps

    def forward(self, images: Tensor) -> Tensor:
        """Classify raw images.

        Args:
            images: uint8 in [0, 255]: a batch (B, C, H, W), one image (C, H, W), or gray images (B, H, W).

        Returns:
            Logits, float (B, K); B is 1 for one image.

        Raises:
            ImageShapeError: if dtype or shape are not those of the images that the network was built for.
        """
        if images.dtype != torch.uint8:
            raise ImageShapeError(f"expected raw uint8 images in [0, 255], got {images.dtype}; do not normalise them")
        if images.ndim == 3:  # (C, H, W), or gray (B, H, W)
            images = images.unsqueeze(1 if self.image_shape[0] == 1 else 0)
        if tuple(images.shape[1:]) != self.image_shape:
            raise ImageShapeError(
                f"expected images of shape {self.image_shape} (channels, height, width), got {tuple(images.shape[1:])}"
            )
        images = images * self.scale + self.shift
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.backbone(images)
        return logits

    def lay_out(self, channels_last: bool) -> None:
        """Order the weights of convolutions in memory, and the images to come; no value changes.

        Args:
            channels_last: the order that convolutions are fastest with; otherwise the plain one.
        """
        self.channels_last = channels_last
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for module in self.backbone.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                for weight in module.parameters(recurse=False):
                    if weight.ndim == 4:
                        # A copy, for `contiguous` leaves weights of one input channel with strides that convolution
                        # takes for the plain order.
                        weight.data = weight.data.clone(memory_format=layout)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, a scalar; the metrics follow every ``log_every_n_steps`` steps."""
        images, labels = batch
        logits = self(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if batch_idx == self._counted_batch:  # LBFGS evaluates a batch many times
            return loss
        self._counted_batch = batch_idx
        if self._step_logged:  # or Lightning would go through these again at the end of every step
            for name, logged in cast(dict[str, Any], self.trainer._results).items():
                if name in ("training_step.train/loss_step", "training_step.lr"):
                    logged.reset()
            self._step_logged = False
        self._pending_losses.append((loss.detach(), len(labels)))
        self._pending_outputs.append((logits.detach(), labels))
        if len(self._pending_outputs) == MOST_PENDING:
            self._count_pending_outputs()
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # which Lightning sets from outside
        logs = (self.global_step + 1) % every == 0
        if logs and steps_after(self.trainer, batch_idx):
            mean_loss = self._count_pending_losses()
            self._count_pending_outputs()
            self.log("train/loss_step", mean_loss, prog_bar=True, on_step=True, on_epoch=False)
            group = self.trainer.optimizers[0].param_groups[0]
            if "lr" in group:  # an optimizer of one's own may have none
                self.log("lr", group["lr"], on_step=True, on_epoch=False)
            self._step_logged = True
        return loss

    # Lightning looks at the parameters before every step; so they are taken from the function but once.
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]  # PEP 362

    def _count_pending_losses(self) -> Tensor:
        """Move the losses of the last steps into the epoch's mean.

        Returns:
            Their mean over images, a float64 scalar.

        Raises:
            TrainingError: if one of them is not finite.
        """
        # (Those of a checkpoint come before the module is moved to its device.)
        losses = torch.stack([loss.to(self.device) for loss, _ in self._pending_losses]).double()
        if not losses.isfinite().all():
            first = int((~losses.isfinite()).nonzero()[0])
            step = self.global_step - (len(losses) - 1 - first) // self.trainer.accumulate_grad_batches
            raise diverged(f"the training loss is {losses[first].item()}", step, self.current_epoch)
        sizes = torch.tensor([size for _, size in self._pending_losses], dtype=torch.float64, device=losses.device)
        self._pending_losses.clear()
        self.train_metrics["loss"].update(losses, sizes)
        return (losses * sizes).sum() / sizes.sum()

    def _count_pending_outputs(self) -> None:
        if not self._pending_outputs:
            return
        logits, labels = (torch.cat(parts) for parts in zip(*self._pending_outputs, strict=True))
        self._pending_outputs.clear()
        for name in ("accuracy", "top5_accuracy"):
            if name in self.train_metrics.keys(keep_base=True):
                self.train_metrics[name].update(logits, labels)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training metrics and, where the schedule watches a metric, let it decide."""
        self._counted_batch = -1
        if self._pending_losses:
            self._count_pending_losses()
        self._count_pending_outputs()
        self.log_dict(self.train_metrics.compute(), prog_bar=True)
        self.train_metrics.reset()
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            # One metric for the whole run, and none that has been looked at before.
            if not validates(self.trainer):
                scheduler.step(self.trainer.callback_metrics["train/loss"])
            elif self._val_loss is not None:
                scheduler.step(self._val_loss)
        self._val_loss = None

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the schedule; one that watches a metric has stepped in ``on_train_epoch_end``, before the checkpoint."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of validation images."""
        images, labels = batch
        self._count(self.val_metrics, self(images), labels)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Count one batch of test images.

        Returns:
            Probabilities, float (B, K).
        """
        images, labels = batch
        if self.test_time_augmentation == "none":
            logits = self(images)
        else:  # the logarithm of the views' mean probability serves as logits
            seen = [self(view).float().log_softmax(1) for view in views(images, self.test_time_augmentation)]
            logits = torch.stack(seen).logsumexp(0) - math.log(len(seen))
        self._count(self.test_metrics, logits, labels)
        probabilities: Tensor = logits.softmax(1)
        return probabilities

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Probabilities of raw images, with labels beside them or without, float (B, K)."""
        probabilities: Tensor = self(batch if isinstance(batch, Tensor) else batch[0]).softmax(1)
        return probabilities

    def _count(self, metrics: MetricCollection, logits: Tensor, labels: Tensor) -> None:
        logits = logits.float()
        for name, metric in metrics.items(keep_base=True):
            if name == "loss":
                metric.update(
                    F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none").double()
                )
            elif name == "nll":
                metric.update(F.cross_entropy(logits, labels, reduction="none").double())
            else:
                metric.update(logits.softmax(1) if name == "calibration_error" else logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy of the validation images."""
        values = self.val_metrics.compute()
        if not self.trainer.sanity_checking:
            self._val_loss = float(values["val/loss"])
        self.log_dict(values, prog_bar=True)
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log every scalar metric of the test images; the confusion matrix (K, K) is kept for whoever draws it."""
        values = self.test_metrics.compute()
        self.confusion_matrix: Tensor = values.pop("test/confusion_matrix").cpu()
        self.log_dict(values)
        self.test_metrics.reset()

    # ------------------------------------------------------------------------------------------ optimizer and schedule

    def setup(self, stage: str) -> None:
        """Refuse, before any work, what would fail in the middle of it."""
        if stage == "fit":
            datamodule = getattr(self.trainer, "datamodule", None)
            self.check(getattr(datamodule, "batch_size", None))

    def check(self, batch_size: int | None = None) -> None:
        """Classify one black image, so that a network of the wrong kind is refused by name.

        Args:
            batch_size: of the training images.

        Raises:
            ConfigError: if there is but one class, or the backbone fails on the image or returns anything but logits of
                shape (1, K), or has batch normalisation and is to learn from single images.
        """
        if self.num_classes < 2:
            raise ConfigError(f"two classes or more are needed, but the data has {self.num_classes}")
        if batch_size == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.backbone.modules()):
            raise ConfigError(
                f"{self.network_name} has batch normalisation, which cannot learn from single images: "
                "set --data.batch_size to at least 2, or take a network without it"
            )
        name = self.network_name
        try:
            with self.undisturbed():
                logits = self(torch.zeros(1, *self.image_shape, dtype=torch.uint8, device=self.scale.device))
        except REFUSALS as error:
            raise ConfigError(f"backbone {name} cannot classify images of shape {self.image_shape}: {error}") from error
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (1, self.num_classes):
            raise ConfigError(
                f"backbone {name} must return logits of shape (images, classes) = (1, {self.num_classes}), got {shape}"
            )

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Look at the network in eval mode, without gradients, and without changing it or the random numbers."""
        modes = [(module, module.training) for module in self.backbone.modules()]
        self.backbone.eval()
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                yield
        finally:
            for module, training in modes:  # each its own: somebody may have frozen a part in eval mode
                module.training = training

    def _optimizer_builder(self) -> Callable[..., Any]:
        if self.optimizer is None:
            raise ConfigError("training needs an optimizer: set --model.optimizer, for example to torch.optim.Adam")
        build: Callable[..., Any] = self.optimizer
        return build

    def check_optimizer(self) -> None:
        """Build optimizer and schedule for a trial, so that numbers they cannot take are refused before any work.

        Raises:
            ConfigError: if there is no optimizer, or their options cannot be used, or nothing would be learned.
        """
        build = self._optimizer_builder()
        try:
            optimizer = build(self.parameters())
            rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"--model.optimizer cannot be used so: {error}") from error
        if isinstance(optimizer, SparseAdam):
            raise ConfigError(
                "--model.optimizer SparseAdam is for sparse gradients, which no network has here: say Adam"
            )
        for rate in rates:
            if not math.isfinite(rate) or rate < 0 or max(rates) == 0:
                raise ConfigError(
                    f"--model.optimizer.lr is {rate:g}, so that nothing would be learned: set it to a positive number, "
                    "such as 0.001"
                )
        _check_plain("--model.optimizer", optimizer.state_dict())
        if self.scheduler is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a schedule that moves before the optimizer does
                try:
                    scheduler, _ = self._build_scheduler(self.scheduler, optimizer, lambda: 1000)
                    if not isinstance(scheduler, ReduceLROnPlateau):
                        scheduler.step()
                except (TypeError, ValueError, ZeroDivisionError) as error:
                    raise ConfigError(f"--model.scheduler cannot be used so: {error}") from error
                if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode == "max":
                    raise ConfigError(
                        "--model.scheduler.mode max: it watches the loss, which is better the lower it is; leave it out"
                    )
                try:
                    state = scheduler.state_dict()
                except AttributeError as error:  # LambdaLR looks into its function, unless Python wrote it
                    raise ConfigError(
                        "--model.scheduler cannot be saved with a function that is built into Python: write one of "
                        f"your own around it ({error})"
                    ) from error
                _check_plain("--model.scheduler", [state, [group.get("lr") for group in optimizer.param_groups]])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and, where one is set, the schedule with its length filled in.

        Raises:
            ConfigError: if there is no optimizer, or the schedule does not fit the length of the run.
        """
        optimizer = self._build_optimizer(self._optimizer_builder())
        if self.scheduler is None:
            return optimizer
        scheduler, interval = self._build_scheduler(self.scheduler, optimizer, self._total_steps)
        steps = self._steps_of_run()
        if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < steps:
            raise ConfigError(
                f"--model.scheduler OneCycleLR ends after {scheduler.total_steps:,} steps, and the run has {steps:,}: "
                "leave its total_steps out, so that it takes those of the run"
            )
        config: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config |= {"monitor": "train/loss", "strict": False}
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": config})

    @staticmethod
    def _build_scheduler(
        build: Callable[..., LRScheduler | ReduceLROnPlateau], optimizer: Optimizer, total_steps: Callable[[], int]
    ) -> tuple[LRScheduler | ReduceLROnPlateau, Literal["step", "epoch"]]:
        """The schedule, and whether it moves with every step or every epoch."""
        class_, given = class_and_arguments(build)
        length = next((n for n in ("total_steps", "T_max") if takes(class_, n)), None)
        per_step = issubclass(class_, (OneCycleLR, CyclicLR)) if inspect.isclass(class_) else False
        # T_max has no default in torch: 0 in a configuration stands for "left out".
        left_out = length if length and not given.get(length) and not given.get("epochs") else None
        scheduler = partial(build, **{left_out: total_steps()} if left_out else {})(optimizer)
        return scheduler, "step" if per_step or left_out else "epoch"

    def _build_optimizer(self, build: Callable[..., Optimizer]) -> Optimizer:
        class_, given = class_and_arguments(build)
        # The user's word counts, and each of these excludes the fused form.
        free = all(given.get(name) is None for name in ("fused", "foreach")) and not given.get("differentiable")
        if self.fuses_optimizer and free and takes(class_, "fused"):
            try:
                return partial(build, fused=True)(self.parameters())
            except RuntimeError:  # a weight of a type or on a device that torch has no fused step for
                pass
        return build(self.parameters())

    def _steps_of_run(self) -> float:
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # which Lightning sets from outside
        changing = next((c for c in callbacks if isinstance(c, GradientAccumulationScheduler)), None)
        if changing is None or trainer.max_epochs in (None, -1):
            return steps
        # Lightning's estimate knows only how many batches are accumulated for a step at the start.
        accumulated = map(changing.get_accumulate_grad_batches, range(trainer.max_epochs or 0))
        total = sum(math.ceil(trainer.num_training_batches / batches) for batches in accumulated)
        return total if trainer.max_steps == -1 else min(total, trainer.max_steps)

    def _total_steps(self) -> int:
        steps = self._steps_of_run()
        if steps == float("inf"):
            raise ConfigError("the schedule needs an end: set --trainer.max_epochs, or its T_max or total_steps")
        return int(steps)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the training metrics so far, so that a run stopped within an epoch continues its sums."""
        self._count_pending_outputs()
        states = {}
        for name, metric in self.train_metrics.items(keep_base=True):
            metric.persistent(mode=True)
            states[name] = {key: value.cpu().clone() for key, value in metric.state_dict().items()}
            metric.persistent(mode=False)
        pending = [(loss.cpu(), size) for loss, size in self._pending_losses]
        # Those of each process: sums of floating point numbers depend on their order.
        checkpoint["train_metrics"] = gather({"states": states, "pending_losses": pending})
        checkpoint["val_loss_in_epoch"] = self._val_loss
        # Callbacks that freeze layers freeze them anew when a run resumes, whatever was thawed since.
        checkpoint["frozen"] = [name for name, weight in self.named_parameters() if not weight.requires_grad]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` added, and refuse weights of another network by name."""
        hparams = checkpoint.get("hyper_parameters", {})
        names = hparams.get("class_names")
        if names is not None and len(names) != self.num_classes:
            raise CheckpointError(f"the checkpoint knows {len(names)} classes, the data has {self.num_classes}")
        self._val_loss = checkpoint.get("val_loss_in_epoch")
        if "frozen" in checkpoint:
            for name, weight in self.named_parameters():
                weight.requires_grad = name not in checkpoint["frozen"]
        processes = checkpoint.get("train_metrics", [])
        if self.global_rank < len(processes):  # Run refuses to resume with another number
            own = processes[self.global_rank]
            for name, state in own["states"].items():
                self.train_metrics[name].load_state_dict({key: value.to(self.device) for key, value in state.items()})
            self._pending_losses = [(loss.to(self.device), size) for loss, size in own["pending_losses"]]

    def load_backbone_weights(self, path: str) -> None:
        """Load the weights of a file into the backbone.

        Args:
            path: a checkpoint, or a file written by ``torch.save(backbone.state_dict(), path)`` or by ``export`` as
                ``state_dict`` or ``safetensors``.

        Raises:
            CheckpointError: if the file cannot be read safely or holds other keys or shapes.
        """
        state = read_state_dict(path)
        own = self.backbone.state_dict()
        name = self.network_name
        missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or foreign:
            raise CheckpointError(
                f"{path} does not fit {name}: "
                + "; ".join(
                    f"{what} {', '.join(map(str, keys[:5]))}{' ...' if len(keys) > 5 else ''}"
                    for what, keys in (("lacks", missing), ("has foreign keys", foreign))
                    if keys
                )
            )
        wrong = [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if state[k].shape != own[k].shape
        ]
        if wrong:
            raise CheckpointError(
                f"{path} does not fit {name}: {'; '.join(wrong[:5])}. It serves as many classes, and images of the "
                "size, that it was trained with"
            )
        self.backbone.load_state_dict(state)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        trusted_packages: Sequence[str] = (),
    ) -> Self:
        """Build the classifier that a checkpoint describes, in eval mode, ready for raw uint8 images.

        Args:
            checkpoint_path: file written by training.
            map_location: device for the weights, as in ``torch.load``.
            trusted_packages: further packages whose classes the checkpoint may name.

        Raises:
            CheckpointError: if the file is missing, broken, needs more than plain data, names a class of a package that
                is not trusted, or has weights that do not fit the network.
            InputError: if the network cannot be built.
        """
        model = cls.from_checkpoint(read_checkpoint(checkpoint_path, trusted_packages))
        return model if map_location is None else model.to(map_location)

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Self:
        """Build the classifier that a checkpoint describes, in eval mode, on the CPU.

        Args:
            checkpoint: what `read_checkpoint` gave, which has vetted it.

        Raises:
            CheckpointError: if its weights do not fit the network.
            InputError: if the network cannot be built.
        """
        hparams = {key: rebuild(value) for key, value in checkpoint["hyper_parameters"].items()}
        about = checkpoint.get("vision_zoo")
        spec = about["config"]["model"].get("backbone") if about is not None else None
        try:
            described = checkpoint["hyper_parameters"]["backbone"]
            if isinstance(spec, Mapping) and has_classes(described.get("init_args")):
                hparams["backbone"] = parsed(without_downloads(spec))
            model = cls(**hparams)
        except VisionZooError:
            raise
        except Exception as error:  # whatever a network makes of options that nobody has checked
            raise CheckpointError(f"the network that the checkpoint describes cannot be built: {error}") from error
        try:
            model.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint's weights do not fit the network it names: {error}") from error
        return model.eval()


# ------------------------------------------------------------------------------------------- classes as plain data


def _check_plain(option: str, state: Any) -> None:
    """Refuse a state that a checkpoint would not give back: what is read is plain data, so that it runs nothing."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{option} has a state that no checkpoint could be continued from, for it is not plain data: numpy's "
            "numbers are to be made Python's with float() or int(), and functions are not to be kept in attributes "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def build_backbone(
    backbone: Callable[[ImageShape, int], nn.Module], image_shape: ImageShape, num_classes: int
) -> nn.Module:
    """Call a backbone class or function with the image shape and the number of classes.

    Raises:
        ConfigError: if it is not made to be called so, or does not give an ``nn.Module``.
    """
    target, arguments = class_and_arguments(backbone)
    path = f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else repr(target)
    expected = (
        f"backbone {path} must be an nn.Module class (or a function annotated '-> nn.Module') whose first two "
        "parameters are the image shape (channels, height, width) and the number of classes"
    )
    # jsonargparse gives functions no options; a checkpoint must not call just any function of a package.
    made = target if inspect.isclass(target) else returned_class(target)
    if made is None or not issubclass(made, nn.Module):
        raise ConfigError(expected)
    try:
        bound = inspect.signature(target).bind(image_shape, num_classes, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{expected}: {error}") from error
    first = next(iter(bound.signature.parameters.values()))
    if first.annotation in (int, float, str, bool, "int", "float", "str", "bool"):
        raise ConfigError(f"{expected}; its first one is {first}")
    try:
        module = backbone(image_shape, num_classes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"backbone {path} for images of shape {tuple(image_shape)} does not fit into the memory: set "
            "--data.image_size or the options of the network lower"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{expected}; it gave a {type(module).__name__}")
    return module
