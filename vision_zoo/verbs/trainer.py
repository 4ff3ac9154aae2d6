"""The Trainer of the command line: Lightning's own, with a method for each verb."""

import csv
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.optim.lr_scheduler import CyclicLR

from vision_zoo import __version__
from vision_zoo.classifier import Classifier
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import CheckpointError, ConfigError, did_you_mean
from vision_zoo.files import expanded, write_file
from vision_zoo.formatting import duration, metric_text
from vision_zoo.plots import plot_curves
from vision_zoo.trainer_facts import device_name
from vision_zoo.training import Performance, ProgressBar, RunFolder, Saving, TestArtifacts
from vision_zoo.training.evaluation import to_floats
from vision_zoo.training.saving import hard_link
from vision_zoo.trust import TRUSTED_PACKAGES, foreign_packages, trusting
from vision_zoo.types import TTA, Split
from vision_zoo.verbs.export import export
from vision_zoo.verbs.predict import predict_pictures
from vision_zoo.verbs.report import write_report
from vision_zoo.verbs.show import show_images
from vision_zoo.verbs.summary import layer_table


class Trainer(pl.Trainer):
    """Lightning's Trainer; the methods below are the commands, their arguments the options."""

    def callback(self, kind: type[Any]) -> Any:
        """The one callback of a kind, or None."""
        return next((c for c in self.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]

    def say(self, *what: Any) -> None:
        """Print, on the first process only."""
        console = self.callback(ProgressBar)
        if self.is_global_zero:
            (console or Console(file=sys.stdout, highlight=False, soft_wrap=True)).print(*what)

    def fit(  # type: ignore[override]
        self,
        model: Classifier,
        datamodule: ImageDataModule | None = None,
        ckpt_path: str | None = None,
        test_after_fit: bool = True,
        save_every_minutes: float = 10.0,
        deterministic: bool = True,
        channels_last: bool | None = None,
        tta: TTA = "none",
    ) -> None:
        """Train a network, test the best checkpoint, leave a run folder.

        Args:
            model: the classifier.
            datamodule: the data.
            ckpt_path: continue a run exactly where it stopped: its folder, a checkpoint, or "last" for the newest one.
            test_after_fit: test the best checkpoint when training ends.
            save_every_minutes: minutes between saves within an epoch.
            deterministic: two runs of one configuration on one machine are the same bit for bit; false lets a GPU
                choose faster algorithms that are not (a CPU has none to choose).
            channels_last: memory layout of convolutions in training; by default wherever the network has some.
            tta: test-time augmentation of the test that ends the run: average the predictions for each image and its
                mirror image (flip), its shifts by one pixel (shift), or both.
        """
        self._check_lengths(test_after_fit)
        if test_after_fit and datamodule is not None and not datamodule.has_test:
            raise ConfigError(
                f"{type(datamodule).__name__} has no test images: leave the test out with --test_after_fit false; "
                f"where they come from: vision_zoo fit --data.help {type(datamodule).__name__}"
            )
        if test_after_fit and not isinstance(self.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ConfigError(
                f"{type(self.strategy).__name__} shards the network, which can only be tested whole: set "
                "--test_after_fit false, and test the best checkpoint on one device"
            )
        if ckpt_path is not None and datamodule is not None:
            check_data(model, datamodule)
        model.check(getattr(datamodule, "batch_size", None))
        model.check_optimizer()
        if datamodule is not None:
            datamodule.check_augmentation()
            self._check_monitors(model, datamodule)
        if self.is_global_zero:
            self.say(layer_table(model, max_rows=24))
        run: RunFolder | None = self.callback(RunFolder)
        saving: Saving | None = self.callback(Saving)
        try:
            super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        except (ValueError, MisconfigurationException) as error:
            if reason := self._in_words(str(error)):
                raise ConfigError(reason) from error
            raise
        if run is None:
            return
        if not run.trained:
            model.lay_out(channels_last=False)  # which the end of training does otherwise
            self.say(f"nothing was left to train: {self._why_ended(run)}")
        # Those that were begun; unlike `current_epoch`, right also where nothing was left to train.
        epochs = int(self.fit_loop.epoch_progress.current.started)  # type: ignore[attr-defined]  # of a subclass there
        if run.trained and self.max_epochs not in (None, -1):
            epochs = min(epochs, self.max_epochs)  # averaging weights ends with one that trains nothing
        metrics = self._of_training(run) if self.is_global_zero else {}
        if saving and self.is_global_zero and (saving.best_epoch is None or not saving.best.exists()):
            # Nothing was validated.
            hard_link(saving.last, saving.best)
            saving.best_epoch = None
        if test_after_fit:
            self.strategy.barrier("best checkpoint")
            if saving is not None:
                load_weights(model, saving.best)
            model.test_time_augmentation = tta
            super().test(model, datamodule=datamodule, verbose=False)
            metrics |= {n: v for n, v in to_floats(self.callback_metrics).items() if n.startswith("test/")}
        if self.is_global_zero:
            self._finish(model, run, epochs, metrics)

    def _in_words(self, message: str) -> str:
        """What Lightning refuses when training starts, with the options that the user gave."""
        if "`val_check_interval`" in message:
            return (
                f"--trainer.val_check_interval {self.val_check_interval} is more than the batches of an epoch: set it "
                "lower, or count over epochs with --trainer.check_val_every_n_epoch null"
            )
        if "You restored a checkpoint with current_epoch" in message:
            return f"the run is beyond --trainer.max_epochs {self.max_epochs} already: set it higher to continue"
        part = self.overfit_batches  # type: ignore[attr-defined]  # which Lightning sets from outside
        if part and "You requested to check" in message:
            return f"--trainer.overfit_batches {part} is less than one batch: set it higher"
        return ""

    def _why_ended(self, run: RunFolder) -> str:
        """What keeps a run from continuing, and the way out."""
        if self.early_stopping_callback is not None and self.early_stopping_callback.stopping_reason.value:
            return "the run had stopped early; leave EarlyStopping out with --trainer.callbacks null to continue"
        in_steps = self.max_steps != -1 and self.global_step >= self.max_steps
        done = self.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        if not in_steps and (self.max_epochs == -1 or done < (self.max_epochs or 0)):
            return "its time was up; raise --trainer.max_time to continue"
        if any(c.interval == "step" and not isinstance(c.scheduler, CyclicLR) for c in self.lr_scheduler_configs):
            last = run.path / "checkpoints" / "last.ckpt"
            again = f"--config {quote(str(run.path / 'config.yaml'))} --model.weights {quote(str(last))}"
            again += trusting(foreign_packages(run.config))
            return f"its schedule ends here; to train on from its weights: vision_zoo fit {again}"
        return f"raise --trainer.{'max_steps' if in_steps else 'max_epochs'} to continue"

    def _check_lengths(self, test_after_fit: bool) -> None:
        """Refuse options that leave nothing to train on or to test, in words that name them."""
        for option in ("accumulate_grad_batches", "max_epochs", "max_steps", "limit_train_batches"):
            if getattr(self, option) == 0:
                raise ConfigError(f"--trainer.{option} is 0, so that nothing would be trained: set it to at least 1")
        if self.log_every_n_steps == 0:  # type: ignore[attr-defined]  # which Lightning sets from outside
            raise ConfigError("--trainer.log_every_n_steps is 0: metrics are counted that often; set it to at least 1")
        timer = self.callback(Timer)
        if timer is not None and timer.time_remaining() == 0:
            raise ConfigError("--trainer.max_time is 0, so that nothing would be trained: set it higher")
        if test_after_fit:
            self._check_part("test", "set it higher, or leave the test out with --test_after_fit false")

    def _check_monitors(self, model: Classifier, datamodule: ImageDataModule) -> None:
        """Refuse callbacks that wait for a metric which no run has, such as val_loss for val/loss."""
        known = ["lr", "train/loss_step", *map(str, model.train_metrics.keys())]
        validates = (datamodule.val_split or datamodule.has_val) and self.limit_val_batches
        known += map(str, model.val_metrics.keys() if validates else ())
        callbacks: list[Callback] = self.callbacks  # type: ignore[attr-defined]  # which Lightning sets from outside
        if any(type(callback).__module__.split(".")[0] not in TRUSTED_PACKAGES for callback in callbacks):
            return  # one of the user's own may log whatever it likes
        for callback in callbacks:
            wanted = getattr(callback, "monitor", None)
            if isinstance(callback, ModelCheckpoint) and wanted in ("epoch", "step"):
                continue
            if isinstance(wanted, str) and wanted not in known:
                hint = did_you_mean(wanted, known) or f". There are {', '.join(known)}"
                if wanted.startswith("val/") and not validates:
                    none = "--trainer.limit_val_batches is 0" if datamodule.val_split else "--data.val_split is 0"
                    hint = f", for nothing is validated: {none}"
                raise ConfigError(f"--trainer.callbacks {type(callback).__name__}: there is no metric {wanted}{hint}")
            better = "min" if "loss" in str(wanted) else "max"
            if wanted in known[1:] and getattr(callback, "mode", better) not in (better, "auto"):
                taken = "lowest" if better == "max" else "highest"
                raise ConfigError(
                    f"--trainer.callbacks {type(callback).__name__}: it takes the {taken} {wanted} for the best: "
                    f"set --trainer.callbacks.mode {better}"
                )

    def _check_part(self, part: Literal["val", "test"], way_out: str) -> None:
        """Refuse to score no batches."""
        if getattr(self, f"limit_{part}_batches") == 0:
            raise ConfigError(f"--trainer.limit_{part}_batches is 0, so that nothing would be scored: {way_out}")

    def _of_training(self, run: RunFolder) -> dict[str, float]:
        """The last training metrics and the validation metrics of the best checkpoint, as metrics.csv has them."""
        last: dict[str, float] = {}
        best: dict[str, float] = {}
        if (run.path / "metrics.csv").exists():
            with (run.path / "metrics.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    last |= {k: float(v) for k, v in row.items() if k.startswith("train/") and v}
                    if row.get("val/loss") and (not best or float(row["val/loss"]) < best["val/loss"]):
                        best = {k: float(v) for k, v in row.items() if k.startswith("val/") and v}
        last.pop("train/loss_step", None)
        return last | best

    def _finish(self, model: Classifier, run: RunFolder, epochs: int, metrics: dict[str, float]) -> None:
        data = self.datamodule  # type: ignore[attr-defined]
        results = {
            "config": run.name,
            "network": model.network_name,
            "data": {"name": type(data).__name__, "note": getattr(data, "note", "")},
            "parameters": sum(p.numel() for p in model.parameters()),
            "epochs": epochs,
            "fit_seconds": round(run.fit_seconds, 3),
            "train_images_per_second": round(run.images_seen / run.train_seconds, 1) if run.train_seconds else None,
            "metrics": {name: metrics[name] for name in sorted(metrics)},
            "test_time_augmentation": model.test_time_augmentation,
            "best_epoch": saving.best_epoch if (saving := self.callback(Saving)) else None,
            "seed": run.config.get("seed_everything"),
            "device": device_name(self),
            "devices": self.world_size,
            "precision": str(self.precision),
            "speed": self.callback(Performance).choices,
            "versions": versions(),
        }
        write_file(run.path / "results.json", (json.dumps(results, indent=2) + "\n").encode())
        if (run.path / "metrics.csv").exists():
            plot_curves(run.path / "metrics.csv", run.path / "curves.png", f"{run.name}: {model.network_name}")
        table = results_table(metrics)
        speed = f", {results['train_images_per_second']:,.0f} images/s" if run.train_seconds else ""
        self.say(table)
        stopping = self.early_stopping_callback
        if stopping is not None and stopping.stopping_reason_message:
            self.say(escape(stopping.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")))
        which = "; best.ckpt is last.ckpt, for there was no validation" if saving else ""
        if saving and saving.best_epoch is not None:
            which = f"; best.ckpt is of the lowest validation loss, epoch {saving.best_epoch + 1}"
        trained = f"{epochs} epoch{'s' * (epochs != 1)}"
        if self.global_step == self.max_steps:
            trained = f"{self.global_step:,} step{'s' * (self.global_step != 1)}"
        self.say(f"trained {trained} in {duration(run.fit_seconds)}{speed}{which}")
        if model.test_time_augmentation != "none":
            self.say(f"tested with test-time augmentation: {model.test_time_augmentation}")
        if words := trusting(foreign_packages(run.config)):
            self.say(f"commands that read its checkpoints need{words}, since they name code of your own")
        self.say(escape(str(run.path)))

    def validate(  # type: ignore[override]
        self, model: Classifier, datamodule: ImageDataModule | None = None, ckpt_path: str | None = None
    ) -> None:
        """Score a checkpoint on the validation images.

        Args:
            model: the classifier.
            datamodule: the data.
            ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
        """
        if ckpt_path is None:
            raise ConfigError(NO_CHECKPOINT.format("validate"))
        self._check_part("val", "set it higher")
        if datamodule is not None:
            check_data(model, datamodule)
        load_weights(model, Path(ckpt_path))
        super().validate(model, datamodule=datamodule, verbose=False)
        if datamodule is not None and not datamodule.sizes.get("val"):
            raise ConfigError(
                "there are no validation images: --data.val_split is 0, so all of them were trained with. To score the "
                "test images: vision_zoo test"
            )
        self.say(results_table(to_floats(self.callback_metrics)))

    def test(  # type: ignore[override]
        self,
        model: Classifier,
        datamodule: ImageDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        tta: TTA = "none",
    ) -> None:
        """Score a checkpoint on the test images.

        Args:
            model: the classifier.
            datamodule: the data.
            ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
            output: folder for the confusion matrix, per-class metrics and mistakes; default: "test" in the run folder.
            tta: test-time augmentation: average the predictions for each image and its mirror image (flip), its shifts
                by one pixel (shift), or both; by default as the run was tested.
        """
        if ckpt_path is None:
            raise ConfigError(NO_CHECKPOINT.format("test"))
        self._check_part("test", "set it higher")
        model.test_time_augmentation = tta
        if datamodule is not None:
            check_data(model, datamodule)
        step = load_weights(model, Path(ckpt_path))
        evaluation: TestArtifacts | None = self.callback(TestArtifacts)
        folder = expanded(output) if output else run_folder_of(Path(ckpt_path)) / "test"
        existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ConfigError(f"--output {output or folder}: {existing} is not a folder that can be written to")
        if evaluation is not None:
            evaluation.folder = folder
            evaluation.about = {"checkpoint": Path(ckpt_path).name, "step": step}
            if datamodule is not None:
                evaluation.about |= {"data": type(datamodule).__name__, "images": data_place(datamodule)}
                if datamodule.cuts_test:
                    evaluation.about |= {name: datamodule.hparams[name] for name in ("test_split", "seed")}
        super().test(model, datamodule=datamodule, verbose=False)
        self.say(results_table(to_floats(self.callback_metrics)))
        if datamodule is not None and datamodule.cuts_test and datamodule.hparams["test_split"] != 1.0:
            self.say("on the part that --data.test_split cuts out; with 1.0, all images are tested")
        if tta != "none":
            self.say(f"with test-time augmentation: {tta}")
        if evaluation is not None:
            self.say(per_class_table(model.class_names, evaluation.rows))
            if (more := len(evaluation.rows) - SHOWN_CLASSES) > 0:
                self.say(f"and {more:,} more, in per_class.csv")
        self.say(escape(str(folder.resolve())))

    def export(
        self,
        model: Classifier,
        datamodule: ImageDataModule | None = None,
        ckpt_path: str | None = None,
        format: Literal["onnx", "torch_export", "safetensors", "state_dict"] | None = None,  # noqa: A002  # the option's name
        output: str | None = None,
    ) -> None:
        """Write a checkpoint's network as one file for other programs, and compare it with the original.

        Args:
            model: the classifier.
            datamodule: the data; only looked at if its files are there.
            ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
            format: onnx and torch_export are programs that take raw uint8 images (N, C, H, W) and give logits;
                safetensors and state_dict are the weights of the backbone; by default what the ending of the output
                says (.onnx, .pt2, .safetensors, .pt, .pth), else onnx.
            output: the file to write or replace; default: the run's name, in the working directory, if it is free.
        """
        if ckpt_path is None:
            raise ConfigError(NO_CHECKPOINT.format("export"))
        load_weights(model, Path(ckpt_path))
        exported = export(model, datamodule, Path(ckpt_path), format, expanded(output) if output else None)
        self.say(escape(str(exported)))
        self.say(escape(str(exported.path)))

    def summary(
        self,
        model: Classifier,
        datamodule: ImageDataModule | None = None,
        ckpt_path: str | None = None,
        depth: int | None = None,
    ) -> None:
        """Show a network's layers: output shape, parameters, multiply-adds and memory of each.

        Args:
            model: the classifier.
            datamodule: tells the shape of the images; its files are not needed.
            ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
            depth: show blocks that are nested this deep as one row each; by default every layer.
        """
        if depth is not None and depth < 1:
            raise ConfigError(f"--depth must be at least 1, got {depth}")
        self.say(layer_table(model, depth))

    def predict(  # type: ignore[override]
        self,
        model: Classifier,
        datamodule: ImageDataModule | None = None,
        ckpt_path: str | None = None,
        images: list[str] | None = None,
        output: str | None = None,
        format: Literal["csv", "json"] | None = None,  # noqa: A002  # the option's name
        top_k: int | None = None,
        invert: bool = False,
    ) -> None:
        """Classify pictures of any size and kind.

        Args:
            model: the classifier.
            datamodule: the data; its files are not needed.
            ckpt_path: a checkpoint, a run folder (its best), or best or last of the newest run.
            images: files, folders (with the folders in them) and patterns such as 'scans/*.png'.
            output: file to write, or - for standard output; by default predictions.csv or predictions.json here.
            format: csv, or a list of objects in json; by default what the ending of the output says, else csv.
            top_k: labels for each picture, the most probable first; by default 5, or all where there are fewer.
            invert: turn dark into light first, for dark digits on white paper where training had light on black.
        """
        if ckpt_path is None:
            raise ConfigError(NO_CHECKPOINT.format("predict"))
        load_weights(model, Path(ckpt_path))
        if not self.is_global_zero:
            return
        precision = self.strategy.precision_plugin
        predict_pictures(
            precision.convert_module(model),  # type: ignore[arg-type]  # gives back what it is given
            images,
            datamodule=datamodule,
            device=self.strategy.root_device,
            context=precision.forward_context,
            output=output,
            file_format=format,
            top_k=top_k,
            invert=invert,
        )

    def show(
        self,
        datamodule: ImageDataModule,
        model: Classifier | None = None,
        ckpt_path: str | None = None,
        split: Split = "train",
        count: int = 20,
        augmented: bool = False,
        output: str | None = None,
    ) -> None:
        """Draw a grid of a data set's pictures with their labels.

        Args:
            datamodule: the data.
            model: not needed.
            ckpt_path: show the data of this checkpoint or run.
            split: which images.
            count: number of pictures, spread evenly over the split.
            augmented: show every image together with random draws of the training augmentation.
            output: PNG file to write; by default DATASET_SPLIT.png here.
        """
        if self.is_global_zero:
            for line in show_images(datamodule, split, count, augmented, output):
                self.say(escape(line))

    def report(
        self,
        model: Classifier,
        datamodule: ImageDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
    ) -> None:
        """Write report.html, one page that needs no other file, and the model card README.md of a run.

        Args:
            model: the classifier.
            datamodule: not used.
            ckpt_path: a run folder, a checkpoint in it, or best or last of the newest run.
            output: folder, or name of the HTML file; default: the run folder.
        """
        if ckpt_path is None:
            raise ConfigError(NO_CHECKPOINT.format("report"))
        if self.is_global_zero:
            step = load_weights(model, Path(ckpt_path))
            for path in write_report(model, Path(ckpt_path), step, output):
                self.say(escape(str(path)))


SHOWN_CLASSES = 100  # in the table of each class
NO_CHECKPOINT = (
    "{0} needs a trained network: --ckpt_path with a checkpoint, a run folder, or best or last for the newest run, "
    "for example: vision_zoo {0} --ckpt_path best"
)


def check_data(model: Classifier, datamodule: ImageDataModule) -> None:
    """Refuse data that the network was not built for.

    Raises:
        CheckpointError: if image shape or number of classes differ, or both have names for them, and other ones.
    """
    data, (channels, height, width) = type(datamodule).__name__, model.image_shape
    if datamodule.image_shape != model.image_shape:
        turns = "" if datamodule.image_shape[0] == channels else f"--data.channels {channels} "
        can = height == width and (not turns or "channels" in datamodule.hparams)
        way_out = f"set {turns}--data.image_size {height}" if can else "choose another --data"
        raise CheckpointError(
            f"the checkpoint's network takes images of shape {model.image_shape}, {data} has {datamodule.image_shape}: "
            f"{way_out}"
        )
    # Those of a data set whose class has no constant for them come from its files.
    from_files = not isinstance(getattr(type(datamodule), "class_names", None), tuple)
    option = "--data.path" if "path" in datamodule.hparams else "--data.root"
    if datamodule.num_classes != model.num_classes:
        odd = sorted(set(model.class_names) ^ set(datamodule.class_names))
        where = f" in {data_place(datamodule)} (only one of them has {', '.join(odd[:5])})" if from_files else ""
        ways = {
            "--data.root": ", or make an empty folder for a class of which there are no pictures to score",
            "--data.path": ", or name all classes in class_names",
        }
        way_out = ways[option] if from_files and set(datamodule.class_names) < set(model.class_names) else ""
        raise CheckpointError(
            f"the checkpoint knows {model.num_classes} classes, {data} has {datamodule.num_classes}{where}: choose "
            f"another {option if from_files else '--data'}{way_out}"
        )
    numbered = tuple(str(label) for label in range(model.num_classes))  # stands for classes without names
    names = tuple(datamodule.class_names)
    reordered = set(model.class_names) == set(names)  # such as folders 0, 1, 10, 2, which are sorted as text
    if model.class_names != names and (reordered or numbered not in (model.class_names, names)):
        known, found = next(pair for pair in zip(model.class_names, names, strict=True) if pair[0] != pair[1])
        raise CheckpointError(
            f"the classes of {data_place(datamodule) if from_files else data} are not those of the checkpoint: it has "
            f"{found!r} where the checkpoint knows {known!r}. "
            + (f"Rename them, or choose another {option}" if from_files else "Choose another --data")
        )


def data_place(datamodule: ImageDataModule) -> str:
    """The folder or file that the images come from."""
    return str(datamodule.hparams.get("path") or datamodule.root)


def load_weights(model: Classifier, path: Path) -> int:
    """Load a checkpoint's weights into a classifier that was built for them.

    Returns:
        The training step that they are of.

    Raises:
        CheckpointError: if they do not fit.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit {model.network_name}: {error}") from error
    return int(checkpoint.get("global_step", 0))


def run_folder_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint lies in, or the working directory for one that lies elsewhere."""
    checkpoint = checkpoint.resolve()
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path.cwd()


def results_table(metrics: dict[str, float]) -> Table:
    """Metrics by split."""
    splits = [split for split in ("train", "val", "test") if any(name.startswith(f"{split}/") for name in metrics)]
    names = dict.fromkeys(name.split("/", 1)[1] for name in metrics if "/" in name and not name.endswith("_step"))
    table = Table("", *splits)
    for name in names:
        cells = []
        for split in splits:
            value = metrics.get(f"{split}/{name}")
            cells.append("" if value is None else metric_text(name, value))
        table.add_row(name, *cells)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def per_class_table(class_names: tuple[str, ...], rows: list[dict[str, float]]) -> Table:
    """Precision, recall and F1 of each class, or of the first hundred."""
    table = Table("class", "precision", "recall", "F1", "images")
    for name, row in list(zip(class_names, rows, strict=True))[:SHOWN_CLASSES]:
        shares = (f"{100 * row[key]:.2f} %" for key in ("precision", "recall", "f1"))
        table.add_row(escape(name), *shares, f"{row['images']:,}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse")
    own = {"python": platform.python_version(), "vision_zoo": __version__}
    return {**own, **{package: version(package) for package in packages}}
