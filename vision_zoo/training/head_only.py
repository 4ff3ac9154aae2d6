"""Training of the head alone on features that are computed once, where all that comes before it stays as it is."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Callback

from vision_zoo.backbones.fitting import head_of
from vision_zoo.checkpoints import Checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.sources import InMemory, Subset
from vision_zoo.trainer_facts import datamodule_of, gather, validates
from vision_zoo.training.features import features_of, follows_from_features
from vision_zoo.types import Split

# Callbacks that neither look at images nor change weights; others may.
_HARMLESS = (callbacks.EarlyStopping, callbacks.Checkpoint, callbacks.LearningRateMonitor, callbacks.Timer)


class HeadOnly(Callback):
    """Trains and validates the head on features in place of images, if these are the same in every epoch.

    Args:
        own: the user's callbacks.
        checkpoint: of the run that is continued.
        exact: whether the features of training are computed in float32, as those of validation are in any case.
    """

    topic = "features"

    def __init__(self, own: Sequence[Callback], checkpoint: Checkpoint | None, exact: bool) -> None:
        self.own, self.checkpoint, self.exact = own, checkpoint, exact
        self.count, self.seconds = 0, 0.0  # of the images, of computing
        self._images: dict[Split, Subset] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have features handed out, if they stay the same."""
        data = datamodule_of(trainer)
        if stage != "fit" or not isinstance(pl_module, Classifier) or not self._all_stays(trainer, pl_module, data):
            return
        if self.checkpoint is not None:
            pl_module.load_state_dict(self.checkpoint.content["state_dict"])  # Lightning does after this
        pl_module.to(trainer.strategy.root_device)
        freezing = cast(Any, pl_module.freezing)
        freezing._freeze(freezing.options.frozen(pl_module.backbone))  # as before the first step
        if not trainer.strategy.broadcast(follows_from_features(pl_module, copy.deepcopy(pl_module.backbone))):
            return
        splits: list[Split] = ["train", "val"]
        for split in splits[: 1 + validates(trainer)]:
            source, indices = self._images[split] = data._subsets[split]
            values, places, seconds = features_of(pl_module, source, indices, self.exact or split == "val")
            data._subsets[split] = Subset(InMemory(values, source.labels[places]), torch.arange(len(places)))
            self.count, self.seconds = self.count + len(places), self.seconds + max(gather(seconds))
        pl_module.reads_features = head_of(pl_module.backbone)

    def _all_stays(self, trainer: Trainer, model: Classifier, data: Any) -> bool:
        """Whether the options keep the backbone and the images as they are, and have each image drawn."""
        it, tuning = cast(Any, trainer), model.freezing and model.freezing.options
        keeps = tuning and tuning.freeze == "backbone" and tuning.thaw_at is None and tuning.freeze_batch_norm
        model.loss.check()
        if not keeps or not isinstance(data, ImageDataModule) or data.augmentation or model.loss.takes_images:
            return False
        changed = type(data).on_after_batch_transfer is not ImageDataModule.on_after_batch_transfer
        in_part = isinstance(it.limit_train_batches, int) or it.limit_train_batches < 1 or it.overfit_batches
        short = 0 <= trainer.max_steps < len(data.train_dataloader())
        return all(isinstance(callback, _HARMLESS) for callback in self.own) and not (changed or in_part or short)

    def describe(self) -> str:
        """How many, and where they came from, in one line."""
        how = f"computed once in {self.seconds:.1f} s" if self.seconds else "read from the cache"
        return f"of {self.count:,} images: {how}" if self.count else ""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Have images handed out again."""
        if self._images:
            cast(Any, pl_module).reads_features = ""
            datamodule_of(trainer)._subsets.update(self._images)

    on_exception = teardown
