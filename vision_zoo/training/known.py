"""Fitting what tells known images from others, on a network that was trained, and keeping it in its checkpoint."""

from functools import partial

import torch
from lightning.pytorch import Trainer

from vision_zoo.checkpoints import read_torch_file
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.decode import decoding_threads
from vision_zoo.data.loaders import Loader
from vision_zoo.data.sources import Files
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.known import Known, with_features
from vision_zoo.training.features import BATCH, features_of
from vision_zoo.training.saving import AtomicCheckpointIO, Saving, hard_link


def fit_known(model: Classifier, datamodule: ImageDataModule, share: float) -> Known:
    """Fit the score on the training images, and the threshold so that a share of the validation images passes.

    The classifier is left in eval mode. The validation images are seen as `predict` sees them, to the last bit.

    Raises:
        ConfigError: if there are no validation images.
        DataError: if none of the images can be read.
    """
    source, indices = datamodule.subset("val")
    none = "a threshold for known images is fitted on validation images, and there are none: hold some out"
    refuse(ConfigError, (not len(indices), f"{none} with --data.val_split 0.1"))
    model.eval()
    threads = decoding_threads() if isinstance(source, Files) else 0
    with torch.inference_mode():
        batches = (images.to(model.device) for images, _ in Loader(source, indices, BATCH, threads))
        seen = [with_features(model.backbone, partial(model, images)) for images in batches]
    logits, features = (torch.cat(parts).float() for parts in zip(*seen, strict=True))
    of_train = features
    if features.shape[1]:
        source, indices = datamodule.subset("train")
        of_train = features_of(model, source, indices).values
    return Known.fit(of_train, logits.cpu(), features.cpu(), share)


def keep_known(trainer: Trainer, model: Classifier, datamodule: ImageDataModule, saving: Saving, share: float) -> None:
    """Fit it for the weights of best.ckpt, which the model has, and keep it in that file."""
    model.float().to(trainer.strategy.root_device)  # as predict computes
    found = fit_known(model, datamodule, share)  # on each process: one that waits for another passes for lost
    if trainer.is_global_zero:
        store_known(found, saving)
    trainer.strategy.barrier("known images")
    model.known = Known.restore(read_torch_file(saving.best)["known"], model.backbone)


def store_known(found: Known, saving: Saving) -> None:
    """Keep it in best.ckpt, and in last.ckpt where that is the same file."""
    is_last = saving.last.exists() and saving.last.samefile(saving.best)
    AtomicCheckpointIO().save_checkpoint({**read_torch_file(saving.best), "known": found.stored()}, saving.best)
    if is_last:
        hard_link(saving.best, saving.last)
