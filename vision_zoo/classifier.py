"""Classifier, the one LightningModule: raw images in, logits out, around any backbone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vision_zoo import probe
from vision_zoo.building import (
    build_backbone,
    described_options,
    load_backbone_weights,
    preprocessing_of,
    settled,
    start_from_images,
    without_random_weights,
)
from vision_zoo.checkpoints import open_checkpoint
from vision_zoo.errors import CheckpointError, ImageShapeError, VisionZooError
from vision_zoo.finetuning import FineTuning, Freezing
from vision_zoo.known import Known, with_features
from vision_zoo.losses import CrossEntropy, TrainingLoss
from vision_zoo.metrics import Metrics, ScoredModule
from vision_zoo.optimizers.building import build_optimizer, check_optimizer, companions, learning_rate
from vision_zoo.optimizers.groups import weight_groups
from vision_zoo.schedules import build_schedule, set_peaks
from vision_zoo.specs import copyable, describe, importable, without_downloads
from vision_zoo.trainer_facts import datamodule_of, steps_of_run
from vision_zoo.transforms import mean_of_views
from vision_zoo.types import TTA, Batch, ImageShape, ValueRange


class Classifier(ScoredModule):
    """An image classifier around a backbone: normalisation, loss, optimizer and metrics, the same for every network.

    ``forward`` takes raw images, uint8 in [0, 255], and returns logits: a loaded checkpoint needs no preprocessing.

    Args:
        backbone: the network: a class called with the image shape (channels, height, width) and the number of
            classes, or a function of the two annotated ``-> nn.Module``. It maps normalised float images
            (B, C, H, W) to logits (B, K).
        image_shape: (channels, height, width) of one image.
        class_names: a name for each logit.
        mean: one value, or one for each channel, of pixels scaled to [0, 1]; subtracted from the images. Those of
            pretrained weights go before it, and before std.
        std: likewise, each above 0; the images are divided by it.
        optimizer: called with the parameters, such as torch.optim.Adam with an lr. Needed for training only.
        scheduler: learning rate schedule, called with the optimizer. T_max and total_steps may be left out: they are
            then the number of steps of the whole run, and the schedule moves with every step instead of every epoch.
        finetune: what is frozen at first, and how fast each layer learns, for a network with pretrained weights.
        decay_vectors: weight decay also of norms and biases; FineTuning has none in any case.
        loss: of the training batches: a class that is called with logits and labels, see `losses`.
        value_range: the values that became 0 and 255 in training images that were not 8 bits, for predict.
        weights: file with the backbone's weights to start from: a checkpoint, or a state dict of torch.save or
            safetensors, of any program. The last layer of another number of classes is left out.

    Raises:
        ConfigError: if the backbone is of the wrong kind or beyond the memory.
        ImageShapeError: if the backbone cannot take images of this shape.
        CheckpointError: if the weights cannot be read safely or do not fit the backbone.
        RuntimeError: if mean or std has another number of values.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        backbone: Callable[[ImageShape, int], nn.Module],
        image_shape: ImageShape,
        class_names: Sequence[str],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
        finetune: FineTuning | None = None,
        loss: Callable[[], nn.Module] = CrossEntropy,
        weights: str | None = None,
        value_range: Sequence[float] | None = None,
        decay_vectors: bool = True,
    ) -> None:
        super().__init__(len(class_names))
        backbone = settled(backbone)
        if prepared := preprocessing_of(backbone):
            mean, std = prepared.for_channels(image_shape[0])
        # Plain types only: a checkpoint has to load with weights_only=True.
        options = {
            "backbone": without_downloads(describe(backbone)),
            "image_shape": list(image_shape),
            "class_names": list(class_names),
            "mean": list(mean),
            "std": list(std),
            "value_range": list(value_range) if value_range else None,
            **dict(zip(("optimizer", "scheduler"), importable(optimizer, scheduler), strict=True)),
            "finetune": describe(partial(type(finetune), **vars(finetune))) if finetune else None,
            "decay_vectors": decay_vectors,
            "loss": describe(loss),
        }
        self.save_hyperparameters(options, logger=False)
        self.image_shape: ImageShape = (image_shape[0], image_shape[1], image_shape[2])
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.value_range: ValueRange = (value_range[0], value_range[1]) if value_range else None
        self.optimizer, self.scheduler = copyable(optimizer), copyable(scheduler)
        self.loss, self.decay_vectors = TrainingLoss(loss), decay_vectors
        self.backbone = build_backbone(backbone, self.image_shape, self.num_classes)
        if weights is not None:
            load_backbone_weights(self.backbone, weights, self.network_name, self.num_classes)
        self.freezing = Freezing(finetune, self.backbone) if finetune else None
        self.has_weights = prepared is not None or weights is not None  # before any training
        # One multiplication and one addition bring uint8 to normalised float. Both follow from the hyperparameters, so
        # the state dict holds the backbone's own keys and nothing else.
        mean_, std_ = (torch.tensor(list(v)).expand(image_shape[0]).reshape(-1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", 1 / (255 * std_), persistent=False)
        self.register_buffer("shift", -mean_ / std_, persistent=False)
        # How a run computes on its machine, no part of the model: see training/performance.py.
        self.channels_last = self.fuses_optimizer = False
        self.test_time_augmentation: TTA = "none"  # see transforms.views; set for one test
        self.known: Known | None = None  # which images are of none of the classes, where `fit --known` asked for that
        self.reads_features = ""  # the head's name while it is trained on features: see training/head_only.py

    @property
    def network_name(self) -> str:
        """What to call the backbone: its attribute ``name``, for a class that holds many networks, else its class."""
        name = getattr(self.backbone, "name", None)
        return name if isinstance(name, str) else type(self.backbone).__name__

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
        if (shape := tuple(images.shape[1:])) != self.image_shape:
            raise ImageShapeError(f"expected images of shape {self.image_shape} (channels, height, width), got {shape}")
        images = images * self.scale + self.shift
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.backbone(images))

    def answer(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits as `forward` gives, and scores, float (B,), high for images of the classes; see `known`."""
        if self.known is None:
            return self(images), None
        logits, features = with_features(self.backbone, partial(self, images))
        with torch.autocast(self.device.type, enabled=False):
            return logits, self.known(logits.float(), features.float())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, a scalar."""
        images, labels = batch
        logits = self._logits(images).float()
        loss = self.loss(logits, labels, images)
        self.log_training(batch_idx, logits, labels, loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count one batch of validation images."""
        self._count(self.val_metrics, self._logits(batch[0]), batch[1])

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) of raw images (B, C, H, W), or of features (B, D) if the model reads such."""
        network = self.backbone.get_submodule(self.reads_features) if self.reads_features else self
        return cast(Tensor, network(images))

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Count one batch of test images and return its probabilities, float (B, K)."""
        images, labels = batch
        if self.test_time_augmentation == "none" or self.known is not None:
            logits, scores = self.answer(images)
            if self.known is not None and scores is not None:
                passed = (scores >= self.known.threshold).float().mean()
                self.log("test/known", passed, batch_size=len(images), sync_dist=True)
        if self.test_time_augmentation != "none":
            logits = mean_of_views(self, images, self.test_time_augmentation)
        self._count(self.test_metrics, logits, labels)
        return logits.softmax(1)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Probabilities of raw images, with labels beside them or without, float (B, K)."""
        return cast(Tensor, self(batch if isinstance(batch, Tensor) else batch[0]).softmax(1))

    def _count(self, metrics: Metrics, logits: Tensor, labels: Tensor) -> None:
        metrics.update(logits.float(), labels, F.cross_entropy(logits.float(), labels, reduction="none"))

    def configure_callbacks(self) -> list[Callback]:
        """What freezes and thaws the network, if it is fine-tuned, and what its optimizer needs."""
        return [*([self.freezing] if self.freezing else []), *companions(self.optimizer)]

    def _weights(self) -> list[nn.Parameter] | list[dict[str, Any]]:
        return weight_groups(self.backbone, self.optimizer, self.freezing, self.decay_vectors)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and, where one is set, the schedule with its length filled in."""
        if self.freezing is not None:
            self.freezing.thaw_step = self.freezing.options.thaw_step(steps_of_run(self.trainer))
        optimizer = build_optimizer(self.optimizer, self._weights(), self.fuses_optimizer)
        schedule = self.scheduler and build_schedule(self.scheduler, optimizer, steps_of_run(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer

    @property
    def lr(self) -> float:
        """Learning rate of the optimizer's options; a new one also reaches the schedule of a run that has begun."""
        return learning_rate(self.optimizer)

    @lr.setter
    def lr(self, rate: float) -> None:
        self.optimizer = partial(self.optimizer, lr=float(rate))
        self.hparams["optimizer"], _ = importable(self.optimizer, self.scheduler)
        with suppress(RuntimeError):  # there is no trainer yet
            set_peaks(self.trainer.lr_scheduler_configs, rate)

    def setup(self, stage: str) -> None:
        """Refuse, before any work, what would fail in the middle of it."""
        if stage == "fit":
            self.begin()
            data = datamodule_of(self.trainer)
            self.check(getattr(data, "batch_size", None))
            self.loss.prepare(self, data)
            start_from_images(self, data)
            self.trainer.precision_plugin.convert_module(self)  # or a checkpoint's weights would be rounded

    def check(self, batch_size: int | None = None) -> None:
        """Refuse a network that does not classify, or cannot learn from batches of this size; see `probe.check`."""
        probe.check(self, batch_size)

    def check_optimizer(self) -> None:
        """Refuse a loss, optimizer or schedule that cannot work; see `optimizers.check_optimizer`."""
        self.loss.check()
        check_optimizer(self.optimizer, self.scheduler, self._weights())

    def set_memory_format(self, channels_last: bool) -> None:
        """Lay out convolution weights and inputs in channels_last or torch's contiguous format; no value changes."""
        self.channels_last = channels_last
        set_memory_format(self.backbone, torch.channels_last if channels_last else torch.contiguous_format)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, *, trusted_packages: Sequence[str] = ()
    ) -> Self:
        """Build the classifier that a checkpoint describes, in eval mode, ready for raw uint8 images.

        Args:
            checkpoint_path: file written by training, or a run folder, for its best.
            map_location: device for the weights, as in ``torch.load``.
            trusted_packages: further packages whose classes the checkpoint may name.

        Raises:
            CheckpointError: if the file is missing or broken, holds or names what it may not (see trust.py), or its
                network cannot be built or has other weights.
        """
        model = cls.from_checkpoint(open_checkpoint(str(checkpoint_path), trusted_packages).content)
        return model if map_location is None else model.to(map_location)

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Self:
        """Build the classifier of what `read_checkpoint` gave, in eval mode; see `load_from_checkpoint`."""
        try:
            with without_random_weights():
                model = cls(**described_options(checkpoint))
            return model.take_over(checkpoint)
        except VisionZooError:
            raise
        except Exception as error:  # whatever a network makes of options that nothing has checked
            what = "the network that the checkpoint describes cannot be built, or its weights do not fit"
            raise CheckpointError(f"{what}: {error}") from error

    def take_over(self, checkpoint: Mapping[str, Any]) -> Self:
        """Take the weights of a checkpoint, and compute as it was evaluated, in eval mode."""
        self.load_state_dict(checkpoint["state_dict"])
        self.set_memory_format(bool(checkpoint.get("channels_last")))
        self.known = Known.restore(checkpoint.get("known"), self.backbone)
        return self.eval()


def set_memory_format(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Set the memory format of convolution weights; no value changes."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # A copy, for `contiguous` leaves weights of one input channel with strides that convolution takes for the
            # plain format.
            module.weight.data = module.weight.data.clone(memory_format=memory_format)
