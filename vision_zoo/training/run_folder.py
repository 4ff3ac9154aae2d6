"""The folder of one training run: its configuration, metrics and checkpoints, written so that nothing is lost."""

import contextlib
import csv
import functools
import io
import math
import os
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

import numpy as np
import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vision_zoo.checkpoints import Checkpoint as OpenedCheckpoint
from vision_zoo.checkpoints import read_checkpoint
from vision_zoo.data.loaders import Loader
from vision_zoo.errors import CheckpointError, ConfigError, TrainingError, diverged
from vision_zoo.files import flush, lock_file, new_file, write_file
from vision_zoo.trainer_facts import gather, steps_after, validates
from vision_zoo.training.processes import expect_answers
from vision_zoo.training.progress import Console
from vision_zoo.trust import foreign_packages, trusting

CHECKPOINT_VERSION = 1
REPEAT_SECONDS = 1.0  # a signal repeated within this time counts once
EVENTS_FLUSHED_SECONDS = 10  # what TensorBoard may lag behind; metrics.csv never does
# What the end of training leaves, and another end replaces.
RESULTS = (
    "results.json", "curves.png", "test.json", "per_class.csv", "confusion_matrix.csv", "confusion_matrix.png",
    "mistakes.png",
)  # fmt: skip
STEP_METRICS = ("train/loss_step", "lr")  # of single steps: a later row must not repeat them


class StoppedBySignalError(TrainingError):
    """The command was stopped by a signal; training with its state saved."""

    def __init__(self, number: int, run: "Run | None" = None) -> None:
        saved = ""
        if run:
            words = f"--ckpt_path {shlex.quote(str(run.path))}{trusting(foreign_packages(run.config))}"
            saved = f", the state is saved; continue with: vision_zoo fit {words}"
        super().__init__(f"stopped by {signal.Signals(number).name}{saved}")
        self.exit_code = 128 + number


def end_on_sigterm() -> None:
    """Let SIGTERM end an evaluation, which has nothing to save; after Lightning's handler the exit code would be 0."""

    def end(number: int, frame: FrameType | None) -> None:
        raise StoppedBySignalError(number)

    with contextlib.suppress(ValueError):  # not in the main thread: the embedding program handles the signals
        signal.signal(signal.SIGTERM, end)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are complete or not there, and are read without running anything in them.

    Args:
        opened: the checkpoint that the command has read and vetted, so that it is not read again to be restored.
        trusted_packages: further packages whose classes other checkpoints may name.
    """

    def __init__(self, opened: OpenedCheckpoint | None = None, trusted_packages: Sequence[str] = ()) -> None:
        super().__init__()
        self.opened = opened
        self.trusted_packages = trusted_packages

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it, flush it to the disk, then let it take the place of an earlier one."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
            kept = f"; the previous {path.name} is kept" if path.exists() else ""
            raise TrainingError(f"the checkpoint {path} could not be written: {error}{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of the checkpoint that the command has opened, or of another one, vetted as that was."""
        opened, self.opened = self.opened, None  # once: a run that goes on changes the tensors that it is given
        if opened is not None and opened.path.samefile(path):
            return opened.content
        return read_checkpoint(path, trusted_packages=self.trusted_packages)


def link(source: Path, path: Path) -> None:
    """Hard-link a checkpoint under a second name; replacing one later leaves the other."""
    if path.exists() and path.samefile(source):
        return  # POSIX' rename would leave the temporary name as well
    try:
        with new_file(path) as temporary:
            os.link(source, temporary)
    except OSError:  # a file system without hard links
        AtomicCheckpointIO().save_checkpoint(torch.load(source, weights_only=True), path)


class EventFiles(TensorBoardLogger):
    """TensorBoard's event files alone: config.yaml already holds what hparams.yaml would."""

    def save(self) -> None:
        """Nothing: the writer's thread flushes, and waiting for it at a logged step took longer than a small step."""


class Run(Checkpoint):
    """Owns ``runs/<name>/version_<n>``: config.yaml, metrics.csv, TensorBoard events, best.ckpt and last.ckpt.

    A run that was stopped at any point and resumes from last.ckpt ends with the same weights, optimizer, random states
    and metrics.csv as one that was never stopped: checkpoints hold the position in the data, random states of every
    process and the number of rows written.

    Args:
        name: of the configuration; names the folder.
        config: the whole configuration as plain data, kept in config.yaml and in every checkpoint.
        folder: of the run to continue; None starts a new version.
        events: whether TensorBoard's event files are written, where there is no other logger.

    Attributes:
        save_every_minutes: minutes between saves of last.ckpt within an epoch.
        guests: callbacks of the user's own that were given no folder: they save beside us, unless a logger has one.
    """

    save_every_minutes = 10.0
    guests: Sequence[ModelCheckpoint] = ()

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        folder: Path | None = None,
        events: bool = True,
    ) -> None:
        self.name = name
        self.config = config
        self.folder = folder
        self.events = events
        self.best_score: float | None = None
        self.best_epoch: int | None = None
        self.rows = 0
        self.fit_seconds = 0.0
        self.train_seconds = 0.0
        self.images_seen = 0
        self.trained = False  # in this process
        self._rng: list[dict[str, Any]] | None = None
        self._lock: TextIO | None = None
        self._columns: list[str] = []
        self._made_here = False
        self._signal = 0
        self._signalled = 0.0
        self._speaks = True
        self._old_handlers: dict[int, Any] = {}
        self._validated = self._ended_within = self._ends_after_step = False
        self._clock = self._train_clock = self._last_save = 0.0

    # ------------------------------------------------------------------------------------------------------- paths

    @property
    def path(self) -> Path:
        """Folder of the run."""
        if self.folder is None:
            raise RuntimeError("the run has no folder before training starts")
        return self.folder

    @property
    def last(self) -> Path:
        """The state to continue from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The weights of the lowest validation loss; without validation, the last ones."""
        return self.path / "checkpoints" / "best.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder on the first process, tell the others, and open the loggers there."""
        if stage != "fit":
            return
        error = ""
        if trainer.is_global_zero:
            try:
                self._open(Path(trainer.default_root_dir))
            except OSError as failure:
                error = f"the run folder below {Path(trainer.default_root_dir).resolve()} cannot be written: {failure}"
        folder, error = trainer.strategy.broadcast((str(self.folder), error))
        if error:
            raise ConfigError(f"{error}. Choose another place with --trainer.default_root_dir")
        self.folder = Path(folder)
        for callback in self.guests:
            # It was set up before us. Where no logger told it the folder, it chose one that all runs would share.
            shared = Path(trainer.default_root_dir, "checkpoints")
            if Path(callback.dirpath or shared) == shared:
                callback.dirpath = str(self.path / "checkpoints")
        # From now on before the user's own, so that what they save knows of the row and of the best so far. (Lightning
        # goes through the old list while it sets up.)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # which Lightning sets from outside
        order = sorted(
            callbacks, key=lambda c: isinstance(c, Checkpoint) + (isinstance(c, Checkpoint) and c is not self)
        )
        trainer.callbacks = order  # type: ignore[attr-defined]  # the same
        # Lightning takes every run with max_steps for one that stopped within an epoch, and would end that epoch again.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]  # no option for it
        self._validate_the_end(trainer)
        if self.events and not trainer.loggers:
            trainer.loggers = [EventFiles(self.path, name="", version="", flush_secs=EVENTS_FLUSHED_SECONDS)]

    def _validate_the_end(self, trainer: Trainer) -> None:
        # Whatever check_val_every_n_epoch and val_check_interval say: the weights that a run ends with may be the best.
        loop = trainer.fit_loop.epoch_loop
        due_epoch, due_now = loop._should_check_val_epoch, loop._should_check_val_fx

        def is_last(epoch: int) -> bool:
            return trainer.enable_validation and epoch + 1 == trainer.max_epochs

        @functools.cache  # Lightning asks after every step
        def is_due(epoch: int) -> bool:
            return due_epoch() or is_last(epoch)

        def validates_epoch() -> bool:
            stops = trainer.should_stop and trainer.enable_validation and trainer.fit_loop._can_stop_early
            return stops or is_due(trainer.current_epoch)

        def validates_now(data_fetcher: Any) -> bool:
            due = due_now(data_fetcher)
            if getattr(trainer, "_val_check_time_interval", None) is not None:  # each process has a clock
                due = trainer.strategy.broadcast(due)
            return due or (loop.batch_progress.is_last_batch and is_last(trainer.current_epoch))

        loop._should_check_val_epoch = validates_epoch  # type: ignore[method-assign]  # no option
        loop._should_check_val_fx = validates_now  # type: ignore[method-assign]  # no option

    def _open(self, root: Path) -> None:
        if self.folder is None:
            runs = root.resolve() / "runs" / self.name
            runs.mkdir(parents=True, exist_ok=True)
            taken = [int(p.name[8:]) for p in runs.glob("version_*") if p.name[8:].isdigit()]
            number = max(taken, default=-1) + 1
            while True:  # another process may take the number first
                try:
                    (runs / f"version_{number}").mkdir()
                    break
                except FileExistsError:
                    number += 1
            self.folder = runs / f"version_{number}"
            self._made_here = True
        self._lock = lock_file(self.folder / ".lock", wait=False)
        if self._lock is None:
            raise ConfigError(
                f"{self.folder} is in use by another process: wait for it to end, or start a new run without "
                "--ckpt_path"
            )
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        for leftover in (self.folder / "checkpoints").glob(".*.tmp"):
            leftover.unlink()
        if not (self.folder / "config.yaml").exists():  # as of a checkpoint that was taken out of its run
            self._write_config()

    def _write_config(self) -> None:
        text = yaml.safe_dump(dict(self.config), sort_keys=False, allow_unicode=True)
        write_file(self.path / "config.yaml", text.encode())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the folder."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the folder, which somebody may want to continue; one in which nothing was trained goes."""
        self._release()
        if self._made_here and not self.images_seen and trainer.is_global_zero:
            shutil.rmtree(self.path)
            with contextlib.suppress(OSError):  # where there are other runs
                self.path.parent.rmdir()
                self.path.parent.parent.rmdir()

    def _release(self) -> None:
        self._restore_handlers()
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)  # while it is ours
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------------------------------ state of the callback

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs besides Lightning's own state: random states, rows written, the best so far."""
        now = time.monotonic()
        return {
            "rows": self.rows,
            "columns": list(self._columns),
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "fit_seconds": self.fit_seconds + now - self._clock,
            "train_seconds": self.train_seconds + now - self._train_clock,
            "images_seen": self.images_seen,
            "rng": gather(_random_states()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the run that is continued."""
        self.rows = state_dict["rows"]
        self._columns = state_dict["columns"]
        self.best_score = state_dict["best_score"]
        self.best_epoch = state_dict["best_epoch"]
        self.fit_seconds = state_dict["fit_seconds"]
        self.train_seconds = state_dict["train_seconds"]
        self.images_seen = state_dict["images_seen"]
        self._rng = state_dict["rng"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint describe its whole run."""
        # The file that the weights began with is of this machine, and of no use to whoever has the trained ones.
        model = {name: value for name, value in self.config["model"].items() if name != "weights"}
        config = {**self.config, "model": model}
        checkpoint["vision_zoo"] = {"version": CHECKPOINT_VERSION, "name": self.name, "config": config}

    # -------------------------------------------------------------------------------------------------------- training

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a run ended that stopped early."""
        if any(callback.stopping_reason.value for callback in trainer.early_stopping_callbacks):
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore random states, cut metrics.csv to what the checkpoint knows, and take over the signals."""
        if self._rng is not None:
            if len(self._rng) != trainer.world_size:
                raise CheckpointError(
                    f"the run was trained by {len(self._rng)} processes and cannot resume exactly with "
                    f"{trainer.world_size}: set --trainer.devices and --trainer.num_nodes as before"
                )
            _restore_random_states(self._rng[trainer.global_rank])
        else:
            # Each process draws its own augmentations and dropout masks.
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        loop = trainer.fit_loop
        if loop._combined_loader is not None:
            for loader, position in zip(
                loop._combined_loader.flattened, loop._combined_loader_states_to_load, strict=False
            ):
                if isinstance(loader, Loader):
                    loader.check_state(position)
        # A schedule that asks for the number of steps sets the data up before the loops are restored, and then
        # Lightning does not return to the loaders' position.
        trainer.fit_loop._load_combined_loader_states()
        if loop.restarted_mid_epoch:
            # Lightning begins no epoch then, and these three do that in this hook.
            for callback in trainer.callbacks:  # type: ignore[attr-defined]  # which Lightning sets from outside
                if isinstance(callback, (Console, GradientAccumulationScheduler, StochasticWeightAveraging)):
                    callback.on_train_epoch_start(trainer, pl_module)
        if not trainer.strategy.broadcast(self.best.exists()):  # the run is gone but for its last.ckpt
            self.best_score = self.best_epoch = None
        if trainer.is_global_zero:
            self._cut_metrics()
            if not self._made_here:  # only now is it sure that the run resumes under this configuration
                self._write_config()
            for name in RESULTS:  # of an earlier end, which the run has left
                (self.path / name).unlink(missing_ok=True)
            for logger in trainer.loggers:
                if isinstance(logger, EventFiles):
                    _ = logger.experiment  # opens the file now: the first steps need not wait for TensorBoard
        expect_answers(trainer)
        self.trained = True
        self._speaks = trainer.is_global_zero
        self._clock = self._train_clock = self._last_save = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGUSR1,) if "SLURM_JOB_ID" in os.environ else ())):
            try:
                self._old_handlers[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not in the main thread: the embedding program handles the signals
                break

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            # Asked twice: stop now. But torchrun passes a Ctrl-C on that the terminal sent to all processes.
            if time.monotonic() - self._signalled > REPEAT_SECONDS:
                raise KeyboardInterrupt
            return
        self._signal, self._signalled = number, time.monotonic()
        if self._speaks:
            sys.stderr.write(f"\n{signal.Signals(number).name}: saving at the end of this step ...\n")

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the step's metrics; save when the time has come or somebody asks to stop."""
        self.images_seen += len(batch[1]) * trainer.world_size
        step = trainer.global_step
        accumulating = not steps_after(trainer, batch_idx)
        if step == trainer.max_steps and not accumulating:
            trainer.should_stop = True  # Lightning validates then, which it does not for the last of max_steps
        logs = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logs and not accumulating and "train/loss_step" in trainer.callback_metrics:
            self._write_row(trainer, [name for name in STEP_METRICS if name in trainer.callback_metrics])
        wants = self._wants(trainer)
        if accumulating:
            self._end_after_step(trainer)
            return
        trainer.should_stop |= self._ends_after_step
        self._ends_after_step = False
        if not (wants or trainer.should_stop) or self._validation_follows(trainer, batch_idx):
            return
        if self._ends_within_epoch(trainer) or wants:
            self._save(trainer, self.last)
            self._stop(wants)

    def _wants(self, trainer: Trainer) -> int:
        due = time.monotonic() - self._last_save >= 60 * self.save_every_minutes
        return _most_urgent(self._signal or (-1 if due else 0), trainer)

    def _end_after_step(self, trainer: Trainer) -> None:
        # A run that ended between two steps would lose the gradients that it accumulated.
        self._ends_after_step |= trainer.should_stop
        trainer.should_stop = False

    def _ends_within_epoch(self, trainer: Trainer) -> bool:
        # By its time or steps. Lightning then ends the epoch as if it were done, and a continued run would leave the
        # rest of it out: so the state is saved before.
        loop = trainer.fit_loop
        ends = trainer.global_step == trainer.max_steps or (trainer.should_stop and loop._can_stop_early)
        self._ended_within = ends and not loop.epoch_loop._num_ready_batches_reached()
        return self._ended_within

    def _validation_follows(self, trainer: Trainer, batch_idx: int) -> bool:
        # Lightning resumes from a save between a batch and its validation without that validation.
        if batch_idx + 1 >= trainer.num_training_batches:
            return True
        if not validates(trainer) or not trainer.fit_loop.epoch_loop._should_check_val_epoch():
            return False
        if trainer.should_stop and trainer.fit_loop._can_stop_early:
            return True
        interval = trainer.val_check_batch
        if interval is None or interval == float("inf"):
            return False
        done = batch_idx + 1
        if trainer.check_val_every_n_epoch is None:
            done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return bool(done % interval == 0)

    def _stop(self, number: int) -> None:
        if number > 0:
            raise StoppedBySignalError(number, self)

    def _count_training(self) -> None:
        now = time.monotonic()
        self.train_seconds += now - self._train_clock
        self._train_clock = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        if not trainer.sanity_checking:
            self._count_training()
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            # Or after a batch whose gradients are yet to be added up, each would use batch statistics of its own.
            trainer.strategy.model.require_forward_param_sync = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far; within an epoch, at once."""
        if trainer.sanity_checking:
            return
        self._train_clock = time.monotonic()
        self._validated = True
        last_batch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not last_batch:
            self._write_row(trainer, [name for name in trainer.callback_metrics if name.startswith("val/")])
            if self._improved(trainer):
                self._save(trainer, self.best)
            self._validated = False
            if isinstance(trainer.progress_bar_callback, Console):
                trainer.progress_bar_callback.validation_line(trainer, self.best_score)
            if not steps_after(trainer, trainer.fit_loop.epoch_loop.batch_idx):
                self._end_after_step(trainer)
                return
            wants = self._wants(trainer)  # no step that a validation follows looks at it
            if self._ends_within_epoch(trainer) or wants:
                self._save(trainer, self.last)
                self._stop(wants)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row, then save: the row is part of what the checkpoint knows."""
        self._count_training()
        self._write_row(
            trainer,
            [
                name
                for name in trainer.callback_metrics
                if name not in STEP_METRICS and (self._validated or not name.startswith("val/"))
            ],
        )
        # (A run that was validated at first and is no more keeps the best of then.)
        improved = self._improved(trainer) if self._validated else not validates(trainer) and self.best_epoch is None
        lowest = self.best_score if self._validated else None
        self._validated = False
        if not self._ended_within:  # which is saved
            # The best first: what dies between the two does this epoch again.
            self._save(trainer, self.best if improved else self.last)
            if improved and trainer.is_global_zero:
                link(self.best, self.last)
        if isinstance(trainer.progress_bar_callback, Console):  # after saving: the reader of a pipe may have gone
            trainer.progress_bar_callback.epoch_line(trainer, lowest)
        if not self._ended_within:
            self._train_clock = self._last_save = time.monotonic()
        self._stop(_most_urgent(self._signal, trainer))

    def _improved(self, trainer: Trainer) -> bool:
        loss = float(trainer.callback_metrics["val/loss"])
        if not math.isfinite(loss):
            raise diverged(f"the validation loss is {loss}", trainer.global_step, trainer.current_epoch)
        if self.best_score is None or loss < self.best_score:
            self.best_score, self.best_epoch = loss, trainer.current_epoch
            return True
        return False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock, give the signals back."""
        self.fit_seconds += time.monotonic() - self._clock
        self._restore_handlers()

    def _save(self, trainer: Trainer, path: Path) -> None:
        for name, parameter in trainer.lightning_module.named_parameters():
            if not parameter.isfinite().all():
                what = f"the weights {name.removeprefix('backbone.')} are not finite"
                raise diverged(what, trainer.global_step, trainer.current_epoch)
        if trainer.is_global_zero and (self.path / "metrics.csv").exists():
            flush(self.path / "metrics.csv")  # the checkpoint counts on its rows
        trainer.save_checkpoint(path)
        if path == self.last:
            self._last_save = time.monotonic()

    # --------------------------------------------------------------------------------------------------- metrics.csv

    def _write_row(self, trainer: Trainer, names: Any) -> None:
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        for name in names:
            value = trainer.callback_metrics[name]
            # numpy prints a float32 with as many digits as it has, so that the file reads back exactly.
            row[name] = str(value.detach().cpu().numpy()) if isinstance(value, Tensor) else value
        file = self.path / "metrics.csv"
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            old = list(csv.DictReader(io.StringIO(file.read_text()))) if file.exists() else []
            write_file(file, _to_csv(self._columns, old, header=True))
        with file.open("ab") as stream:
            stream.write(_to_csv(self._columns, [row], header=False))
        self.rows += 1

    def _cut_metrics(self) -> None:
        file = self.path / "metrics.csv"
        if not file.exists():  # the checkpoint was taken out of its run
            self.rows, self._columns = 0, []
            return
        if self.rows == 0:
            file.unlink()
            return
        rows = list(csv.DictReader(io.StringIO(file.read_text())))[: self.rows]
        if len(rows) < self.rows:
            raise CheckpointError(f"{file} has {len(rows)} rows, the checkpoint was saved after {self.rows}")
        write_file(file, _to_csv(self._columns, rows, header=True))


def _to_csv(columns: list[str], rows: list[dict[str, Any]], *, header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


# ------------------------------------------------------------------------------------------------- several processes


def _random_states() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],  # of the process's own device
        "python": (version, list(internal), gauss),
        "numpy": (str(name), torch.tensor(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][min(torch.cuda.current_device(), len(states["cuda"]) - 1)])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))


def _most_urgent(wants: int, trainer: Trainer) -> int:
    """Agree over all processes: a signal number beats -1 (time to save) beats 0."""
    if trainer.world_size == 1:
        return wants
    value = torch.tensor(float(wants) if wants >= 0 else 0.5, device=trainer.strategy.root_device)  # one dtype for all
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return -1 if value == 0.5 else int(value)
