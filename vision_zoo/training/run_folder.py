"""The folder of one training run: its configuration and metrics, written so that nothing is lost."""

import contextlib
import copy
import itertools
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from filelock import BaseFileLock
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from vision_zoo.data.loaders import OTHER_IMAGES
from vision_zoo.errors import CheckpointError, ConfigError, DataError, TrainingError, lack, refuse
from vision_zoo.files import flush, lock_file, release, write_file
from vision_zoo.metrics import ScoredModule
from vision_zoo.trainer_facts import callbacks_of, gather, steps_after
from vision_zoo.training import lightning_patches as patches
from vision_zoo.training.made_with import made_with
from vision_zoo.training.metrics_file import EventFiles, MetricsFile
from vision_zoo.training.processes import expect_answers
from vision_zoo.training.random_states import random_states, restore_random_states

CHECKPOINT_VERSION = 1
EVENTS_FLUSHED_SECONDS = 10  # what TensorBoard may lag behind; metrics.csv never does
# What the end of training leaves, and another end replaces.
RESULTS = (
    "results.json", "curves.png", "test.json", "per_class.csv", "confusion_matrix.csv", "confusion_matrix.png",
    "mistakes.png",
)  # fmt: skip
STEP_METRICS = ("train/loss_step", "lr")  # of single steps: a later row must not repeat them


class RunFolder(Callback):
    """Owns ``runs/<name>/version_<n>``: config.yaml, metrics.csv and TensorBoard's events.

    It comes first in the trainer's list, so that callbacks after it find the loggers. What it adds to a checkpoint lets
    a run that was stopped at any point end with the same weights, optimizer, random states and metrics.csv as one that
    was never stopped: the random states of every process, the number of rows written, the position in the data.

    Args:
        name: of the configuration; names the folder.
        config: the whole configuration as plain data, kept in config.yaml and in every checkpoint.
        folder: of the run to continue; None starts a new version.
        events: whether TensorBoard's event files are written, where there is no other logger.
    """

    def __init__(self, name: str, config: Mapping[str, Any], folder: Path | None = None, events: bool = True) -> None:
        self.name, self.config = name, copy.deepcopy(dict(config))
        self.folder, self.resumes = folder, folder is not None
        self.events = events
        self.trained = False  # whether there was anything to train
        self.validated: dict[str, Any] = {}  # metrics of the validation that ended this epoch, if there was one
        self.images_seen = 0  # of training, by all processes, in all parts of the run
        self.metrics = MetricsFile()
        # Of training, validation and saving, and of training alone; until the last checkpoint or the end.
        self.fit_seconds = self.train_seconds = self._ticked = 0.0
        self._trains = False
        self._rng: list[dict[str, Any]] = []
        self._lock: BaseFileLock | None = None
        self._made_here = False
        self._made_with: dict[str, Any] = {}
        self._ended_epoch: tuple[int, int] | None = None  # (epoch, step) of the row that is still to be written

    @property
    def path(self) -> Path:
        """The folder."""
        assert self.folder is not None, "the run has no folder before training starts"
        return self.folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder on the first process, tell the others, and open the loggers there."""
        if stage != "fit":
            return
        error, root = "", Path(trainer.default_root_dir).resolve()
        if trainer.is_global_zero:
            try:
                self._open(root)
            except OSError as failure:
                refuse(TrainingError, (what := lack(failure), what))
                error = f"the run folder below {root} cannot be written: {failure}"
        folder, error = trainer.strategy.broadcast((str(self.folder), error))
        if error:
            raise ConfigError(f"{error}. Choose another place with --trainer.default_root_dir")
        self.folder = Path(folder)
        if trainer.is_global_zero:
            self._made_with = made_with(trainer)
        patches.complete_epochs(trainer)
        if self.events and not trainer.loggers:
            trainer.loggers = [EventFiles(self.path, name="", version="", flush_secs=EVENTS_FLUSHED_SECONDS)]
        profiler = vars(trainer)["profiler"]
        if str(profiler.dirpath) == trainer.default_root_dir:  # which it took for want of one
            profiler.dirpath = str(self.path)
        for callback in callbacks_of(trainer) if not trainer.loggers else ():
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.path / "checkpoints")  # else a folder that all runs share

    def _open(self, root: Path) -> None:
        if self.folder is None:
            runs = root / "runs" / self.name
            runs.mkdir(parents=True, exist_ok=True)
            taken = [int(p.name[8:]) for p in runs.glob("version_*") if p.name[8:].isdigit()]
            for number in itertools.count(max(taken, default=-1) + 1):
                with contextlib.suppress(FileExistsError):  # another process took the number first
                    (runs / f"version_{number}").mkdir()
                    break
            self.folder, self._made_here = runs / f"version_{number}", True
        self._lock = lock_file(self.folder / ".lock", wait=False)
        if self._lock is None:
            way_out = "wait for it to end, or start a new run without --ckpt_path"
            raise ConfigError(f"{self.folder} is in use by another process: {way_out}")
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        for leftover in (self.folder / "checkpoints").glob(".*.tmp"):
            leftover.unlink()
        if not (self.folder / "config.yaml").exists():  # as of a checkpoint that was taken out of its run
            self._write_config()

    def _write_config(self) -> None:
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        write_file(self.path / "config.yaml", text.encode())

    def teardown(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Release the lock."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the lock; a folder in which nothing was trained goes."""
        self.teardown(trainer)
        if self._made_here and not self.images_seen and trainer.is_global_zero:
            shutil.rmtree(self.path)
            with contextlib.suppress(OSError):  # where there are other runs
                self.path.parent.rmdir()
                self.path.parent.parent.rmdir()

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs besides Lightning's own state."""
        self._tick(self._trains)
        return {
            "rows": self.metrics.rows,
            "columns": list(self.metrics.columns),
            "fit_seconds": self.fit_seconds,
            "train_seconds": self.train_seconds,
            "images_seen": self.images_seen,
            "validated": self.validated,
            "rng": gather(random_states()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the run that is continued."""
        if self.resumes:  # not a trial before training, which goes back to where it began
            self.metrics.rows, self.metrics.columns = state_dict["rows"], state_dict["columns"]
            self.fit_seconds, self.train_seconds = state_dict["fit_seconds"], state_dict["train_seconds"]
            self.images_seen, self._rng = state_dict["images_seen"], state_dict["rng"]
            self.validated = state_dict.get("validated", {})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe its whole run; its rows are on the disk before it is."""
        # The file that the weights began with is of this machine, and of no use to who has the trained ones.
        model = {name: value for name, value in self.config["model"].items() if name != "weights"}
        config = {**self.config, "model": model}
        about = {"version": CHECKPOINT_VERSION, "name": self.name, "config": config}
        checkpoint["vision_zoo"] = {**about, "made_with": self._made_with}
        if trainer.is_global_zero and (self.path / "metrics.csv").exists():
            flush(self.path / "metrics.csv")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell of other images than the run began with."""
        before, error = (checkpoint.get("vision_zoo", {}).get("made_with") or {}).get("data") or {}, ""
        for split, marks in self._made_with.get("data", {}).items():  # on the first process
            changed = [name for name, mark in marks.items() if before.get(split, {}).get(name, mark) != mark]
            other = f"{' and '.join(changed)} of the {split} images are not those that the run began with"
            if split == "train" and {"labels", "images"} & {*changed}:
                error = other * ("images" not in changed)  # of another number the loader tells
            elif changed and (changed != ["names"] or "pixels" not in marks):  # a file of many may have a new name
                warnings.warn(other, stacklevel=1)
        if error := trainer.strategy.broadcast(error):
            raise DataError(f"{error}{OTHER_IMAGES}")

    def change_option(self, value: Any, *place: str) -> None:
        """Change an option of a run that has not begun, at the place that the keys lead to."""
        section = self.config
        for key in place[:-1]:
            section = section.setdefault(key, {})
        section[place[-1]] = value
        if self._lock is not None:  # on the first process
            self._write_config()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a run ended that stopped early."""
        if any(callback.stopping_reason.value for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return to where a continued run stopped, and clear what an earlier end left."""
        if self.resumes:
            self._resume(trainer)
        else:
            # Each process draws its own augmentations and dropout masks.
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        if trainer.is_global_zero:
            self.metrics.cut(self.path / "metrics.csv")
            if not self._made_here:  # only now is it sure that the run resumes under this configuration
                self._write_config()
            for name in RESULTS:
                (self.path / name).unlink(missing_ok=True)
            for logger in trainer.loggers:
                if isinstance(logger, EventFiles):
                    _ = logger.experiment  # opens the file now: the first steps need not wait for TensorBoard
                else:  # without the loggers' own options, which may be secret
                    trainer_options = {k: v for k, v in (self.config.get("trainer") or {}).items() if k != "logger"}
                    logger.log_hyperparams(copy.deepcopy({**self.config, "trainer": trainer_options}))
        expect_answers(trainer)
        self.trained = self._trains = True
        self._ticked = time.monotonic()

    def _resume(self, trainer: Trainer) -> None:
        if len(self._rng) != trainer.world_size:
            before = f"was trained by {len(self._rng)} processes and cannot resume exactly with {trainer.world_size}"
            raise CheckpointError(f"the run {before}: set --trainer.devices and --trainer.num_nodes as before")
        restore_random_states(self._rng[trainer.global_rank])
        patches.load_positions(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training."""
        self.write_epoch(trainer)
        self._tick(trains=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the step's metrics."""
        self.images_seen += len(batch[1]) * trainer.world_size
        if not steps_after(trainer, batch_idx):
            return
        step = trainer.global_step
        trainer.should_stop |= step == trainer.max_steps  # Lightning validates then, and not after the last step
        if step % cast(Any, trainer).log_every_n_steps == 0 and "train/loss_step" in trainer.callback_metrics:
            self._write(trainer, [name for name in STEP_METRICS if name in trainer.callback_metrics])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        if not trainer.sanity_checking:
            self._tick(trains=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Within an epoch, write the metrics; at its end, they belong to the epoch's row."""
        if trainer.sanity_checking:
            return
        self._tick(trains=True)
        values = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self.validated = values if ends_epoch else {}
        if not ends_epoch:
            self._write(trainer, values)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training, and log the epoch's metrics for the callbacks after this one."""
        self._tick(trains=False)
        if isinstance(pl_module, ScoredModule):
            pl_module.log_epoch()
            if not self.validated.keys() <= trainer.callback_metrics.keys():  # by a run that goes on from then
                pl_module.log_dict(self.validated)
        self._ended_epoch = trainer.current_epoch, trainer.global_step

    def write_epoch(self, trainer: Trainer) -> None:
        """Write the row of the epoch that has ended, once.

        Callbacks after this one may log more at the end of an epoch. So Saving, which comes later, asks for the row
        before it saves; without it, the next hook does.
        """
        if self._ended_epoch is not None:
            kept = [name for name in trainer.callback_metrics if self.validated or not name.startswith("val/")]
            self._write(trainer, [name for name in kept if name not in STEP_METRICS], self._ended_epoch)
            self._ended_epoch, self.validated = None, {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clocks."""
        self.write_epoch(trainer)
        self._tick(trains=False)

    def _tick(self, trains: bool) -> None:
        """Count the seconds since the last tick, and note whether those until the next one are of training."""
        now = time.monotonic()
        if self.trained:
            self.fit_seconds += now - self._ticked
            self.train_seconds += now - self._ticked if self._trains else 0.0
        self._ticked, self._trains = now, trains

    def _write(self, trainer: Trainer, names: Iterable[str], when: tuple[int, int] | None = None) -> None:
        if trainer.is_global_zero:
            epoch, step = when or (trainer.current_epoch, trainer.global_step)
            values = {name: trainer.callback_metrics[name] for name in names}
            self.metrics.append(self.path / "metrics.csv", {"epoch": epoch, "step": step, **values})
