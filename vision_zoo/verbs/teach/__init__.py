"""teach: from photos to a trained classifier in a minute, by a linear layer on a pretrained network's features."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.markup import escape
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from vision_zoo.backbones.fitting import head_of
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.sources import Subset
from vision_zoo.errors import ConfigError, DataError, refuse
from vision_zoo.formatting import duration
from vision_zoo.known import Known
from vision_zoo.training.callbacks import run_callbacks
from vision_zoo.training.evaluation import to_floats
from vision_zoo.training.features import fastest_way, features_of, follows_from_features
from vision_zoo.training.known import store_known
from vision_zoo.training.performance import Performance
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.training.saving import Saving, hard_link
from vision_zoo.types import Split
from vision_zoo.verbs.fit import Plan
from vision_zoo.verbs.report.facts import interval
from vision_zoo.verbs.results import write_results
from vision_zoo.verbs.teach.curve import learning_curve, what_more_brings, write_curve
from vision_zoo.verbs.teach.head import Data, Fitter, Head, cross_validate, temperature_of
from vision_zoo.verbs.teach.label_next import unlabelled_files, worth_a_label, write_next
from vision_zoo.verbs.trainer import TrainerMaker, say

_MOST_CLASSES = 50  # that are told one by one
_FOR: dict[Split, str] = {"train": "training", "val": "validation", "test": "testing"}


def teach(
    make_trainer: TrainerMaker,
    model: Classifier,
    datamodule: ImageDataModule,
    plan: Plan,
    curve: bool = True,
    unlabelled: str | None = None,
    next: int = 20,  # noqa: A002  # the option's name
    refine: bool = False,
    known: float | None = 0.95,
) -> Path:
    """Train a classifier of your own photos in a minute.

    Args:
        make_trainer: builds the trainer.
        model: the classifier, around the pretrained network.
        datamodule: the data.
        plan: the run.
        curve: draw how accuracy grows with the number of photos.
        unlabelled: folder of photos without labels, of which it names those worth one.
        next: how many of them.
        refine: go on with fine-tuning the whole network, by the recipe finetune.
        known: share of the validation photos that pass as of a known class; predict calls others none of these.
    """
    start = time.monotonic()
    share = f"--known must be a share above 0 and below 1, such as 0.95, or null, got {known}"
    drawn = "teach fits its layer to all training images at once: leave out --data.sampler"
    few = (next < 1, f"--next must be at least 1, got {next}")
    refuse(ConfigError, (datamodule.sampler is not None, drawn), few, (known is not None and not 0 < known < 1, share))
    run = RunFolder(plan.name, plan.config, events=False)
    saving, names, seed = Saving(run), model.class_names, int(plan.config["seed_everything"])
    callbacks = run_callbacks(make_trainer.own, make_trainer.bar, run=run, saving=saving)
    # Without an epoch, fit makes the run folder and all that a checkpoint holds, and trains nothing.
    trainer = make_trainer(callbacks, max_epochs=0, devices=1)
    model.to(trainer.strategy.root_device).check()  # or the work would be done first
    other = (
        f"teach fits a last linear layer, and {model.network_name} has none that alone gives the logits: take another"
    )
    refuse(ConfigError, (not follows_from_features(model, model.backbone), f"{other} --model.backbone"))
    datamodule.prepare_data()
    parts = datamodule.subsets()
    labels = {split: subset.source.labels[subset.indices] for split, subset in parts.items()}
    counts = torch.cat([*labels.values()]).bincount(minlength=len(names)).tolist()
    shown = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
    many = f"{len(names):,} classes of {min(counts):,} to {max(counts):,} images"
    say(trainer, many if len(names) > _MOST_CLASSES else escape(", ".join(shown)))
    say(trainer, ", ".join(f"{len(of):,} for {_FOR[split]}" for split, of in labels.items()))
    empty = ", ".join(name for label, name in enumerate(names) if label not in labels["train"])
    refuse(DataError, (empty, f"there is no training image of {empty}: add some; labels of arrays begin with 0"))
    files = None if unlabelled is None else unlabelled_files(unlabelled, datamodule, model.image_shape)
    train = _data(model, parts["train"])
    val = _data(model, parts["val"]) if "val" in parts else None
    absent = [name for label, name in enumerate(names) if label not in train.labels]
    refuse(DataError, (absent, f"no training image of {', '.join(absent)} can be read: add some, or remove the class"))
    strength, held_out = cross_validate(train, seed)
    head, facts = _calibrated(Fitter(train).fit(strength), held_out, train, val)
    facts["l2_strength"] = strength
    say(trainer, _in_words(facts, held_out is not None))
    with torch.no_grad():
        for name, value in (("weight", head.weight), ("bias", head.bias)):
            model.backbone.get_parameter(f"{head_of(model.backbone)}.{name}").copy_(value)
    if val is not None and known is not None:
        model.known = Known.fit(train.values, head.logits(val.values), val.values, known).to(model.device)
    model.set_memory_format(fastest_way(model, autocasts=False).channels_last)
    points = learning_curve(train, val, strength, head, seed) if curve and val is not None else []
    unsure = None if files is None else features_of(model, files)
    try:
        trainer.fit(model, datamodule=datamodule)
        metrics = _save_and_score(trainer, model, datamodule, saving, parts)
        run.fit_seconds = time.monotonic() - start
        if "test/accuracy" in metrics:
            tested, accuracy = int(model.confusion_matrix.sum()), metrics["test/accuracy"]
            facts["test_accuracy_interval"] = interval(accuracy, tested)
            low, high = (f"{100 * bound:.1f}" for bound in facts["test_accuracy_interval"])
            error = f"calibration error {100 * metrics['test/calibration_error']:.1f} %"
            error += f"; {100 * metrics['test/known']:.1f} % of them pass as known" if "test/known" in metrics else ""
            told = f"test accuracy {100 * accuracy:.1f} % of {tested:,} images, 95 % interval (Wilson)"
            say(trainer, f"{told} {low} to {high} %; {error}")
        if points:
            write_curve(points, names, run)
            say(trainer, escape(what_more_brings(points, names)))
        lacks = ["learning curve"] * curve + ['answer "none of these"'] * (known is not None) if val is None else []
        if lacks:
            why = "photos for validation are needed, and none are held out: add some of the rarest class, or say how"
            say(trainer, f"no {' and no '.join(lacks)}: {why} many with --data.val_split")
        if files is not None and unsure is not None:
            chosen = worth_a_label(head, strength, train.values, unsure.values, next)
            rows = write_next(files, unsure.places, head.logits(unsure.values), chosen, names, run)
            say(trainer, "worth a label, the first ones first:")
            say(trainer, escape("\n".join(f"  {path}  {name}? {share:.0%}" for path, name, share, _ in rows)))
        write_results(trainer, model, run, saving, Performance(), metrics, {"teach": facts})
    except BaseException:  # Ctrl-C too: a run that is not whole goes
        if run.folder is not None:
            shutil.rmtree(run.folder, ignore_errors=True)
        raise
    say(trainer, f"taught in {duration(time.monotonic() - start)}")
    say(trainer, escape(str(run.path)))
    return run.path


def _data(model: Classifier, subset: Subset) -> Data:
    """Features and labels of a split, of the files that can be read."""
    found = features_of(model, subset.source)
    kept = torch.isin(found.places, subset.indices)
    return Data(found.values[kept], subset.source.labels[found.places[kept]])


def _calibrated(head: Head, held_out: Tensor | None, train: Data, val: Data | None) -> tuple[Head, dict[str, Any]]:
    """The head with a temperature, of images that it or its like was not fitted to, and what to tell of it.

    Those are validation's, which may be few, together with those that cross-validation held out.
    """
    parts = [] if held_out is None else [(held_out, train.labels)]
    parts += [] if val is None else [(head.logits(val.values), val.labels)]
    if not parts:
        return head, {"temperature": 1.0}
    logits, labels = map(torch.cat, zip(*parts, strict=True))
    temperature = temperature_of(logits, labels)
    before, after = (
        float(multiclass_calibration_error((logits / heat).softmax(1), labels, logits.shape[1], n_bins=15))
        for heat in (1.0, temperature)
    )
    facts = {"temperature": temperature, "calibration_error_before": before, "calibration_error": after}
    return Head(head.weight / temperature, head.bias / temperature), facts


def _in_words(facts: Mapping[str, Any], chosen: bool) -> str:
    """The penalty, whether it was chosen or not, and the temperature."""
    usual = "the usual L2 penalty: a class has one training image, so that none is held out"
    strength = f"L2 penalty {facts['l2_strength']:.3g}, by cross-validation" if chosen else usual
    if "calibration_error" not in facts:
        return f"{strength}; no calibration"
    before, after = (f"{100 * facts[name]:.1f}" for name in ("calibration_error_before", "calibration_error"))
    return f"{strength}; temperature {facts['temperature']:.2f} (calibration error {before} % before, {after} % after)"


def _save_and_score(
    trainer: Trainer, model: Classifier, datamodule: ImageDataModule, saving: Saving, parts: Mapping[Split, Subset]
) -> dict[str, float]:
    """Save best.ckpt and last.ckpt, one file; score validation and test as the commands do."""
    metrics = dict[str, float]()
    for split, score in (("val", trainer.validate), ("test", trainer.test)):
        if split in parts:
            score(model, datamodule=datamodule, verbose=False)
            metrics |= {n: v for n, v in to_floats(trainer.callback_metrics).items() if n.startswith(f"{split}/")}
        if split == "val":
            saving.best_score = saving.best_epoch = None  # of no epoch
            trainer.save_checkpoint(saving.last)
            hard_link(saving.last, saving.best)
            if model.known is not None:
                store_known(model.known, saving)
    return metrics
