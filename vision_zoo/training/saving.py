"""The checkpoints of a run: the best, the last, and when they are saved."""

import math
import os
import pickle
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging

from vision_zoo.checkpoints import Checkpoint, read_checkpoint
from vision_zoo.errors import CheckpointError, TrainingError, diverged, refuse
from vision_zoo.files import new_file
from vision_zoo.stopping import Signals, StoppedBySignalError
from vision_zoo.trainer_facts import callbacks_of, steps_after, validates
from vision_zoo.training import lightning_patches as patches
from vision_zoo.training.processes import most_urgent
from vision_zoo.training.run_folder import RunFolder
from vision_zoo.trust import foreign_packages, not_plain, trusting


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are complete or not there, and are read without running anything in them."""

    def __init__(self, opened: Checkpoint | None = None, trusted_packages: Sequence[str] = ()) -> None:
        self.opened = opened  # the checkpoint of the command, which is not read again
        self.trusted_packages = tuple(trusted_packages)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it, flush it to the disk, then let it take the place of an earlier one."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as temporary:
                torch.save(checkpoint, temporary)
                torch.load(temporary, "cpu", weights_only=True, mmap=True)  # as it will be read
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
            kept = f"; the previous {path.name} is kept" if path.exists() else ""
            raise TrainingError(f"the checkpoint {path} could not be written: {error}{kept}") from error
        except (pickle.PickleError, AttributeError, TypeError) as error:
            states = checkpoint.get("callbacks", {}).items()
            found = [f"{name.partition('{')[0]} {why}" for name, state in states if (why := not_plain(state))]
            raise TrainingError("; ".join(found) or f"the checkpoint {not_plain(checkpoint)}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint and vet what it names; that of the command was read and vetted before."""
        opened, self.opened = self.opened, None  # once: a run that goes on changes the tensors that it is given
        if opened is not None and opened.path.samefile(path):
            return opened.content
        return read_checkpoint(path, trusted_packages=self.trusted_packages)


def hard_link(source: Path, path: Path) -> None:
    """Give a checkpoint a second name; replacing one later leaves the other. Copies where there are no hard links."""
    if path.exists() and path.samefile(source):
        return  # POSIX' rename would leave the temporary name as well
    with new_file(path) as temporary:
        try:
            os.link(source, temporary)
        except (OSError, AttributeError):  # of the file system, of the platform
            shutil.copyfile(source, temporary)


class Saving(CheckpointCallback):
    """Saves best.ckpt and last.ckpt of a run, and ends it with its state saved when a signal asks for that.

    It comes before other checkpoint callbacks, so that what they save knows of the best so far. Within an epoch,
    last.ckpt is saved every so many minutes.
    """

    def __init__(self, run: RunFolder, save_every_minutes: float = 10.0) -> None:
        self.run, self.save_every_minutes = run, save_every_minutes
        self.best_score: float | None = None  # the lowest validation loss so far
        self.best_epoch: int | None = None  # None where nothing was validated
        self._signals = Signals(notes=True)
        self._ended_within = self._ends_after_step = self._before_validation = False
        self._last_save = 0.0

    @property
    def last(self) -> Path:
        """The state to continue from."""
        return self.run.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The weights of the lowest validation loss; without validation, the last ones."""
        return self.run.path / "checkpoints" / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and whether the step's validation, or the epoch's end, is still to come."""
        best = {"best_score": self.best_score, "best_epoch": self.best_epoch}
        return {**best, "before_validation": self._before_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best of the run that is continued; a CheckpointError where Lightning would leave some out."""
        skips = "this checkpoint was saved just before a validation or the end of an epoch, which would be left out"
        refuse(CheckpointError, (state_dict.get("before_validation"), f"{skips}: continue from last.ckpt or another"))
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals."""
        if not trainer.strategy.broadcast(self.best.exists()):  # the run is gone but for its last.ckpt
            self.best_score = self.best_epoch = None
        # Lightning begins no epoch of a run that goes on within one, which these two wait for.
        for callback in callbacks_of(trainer) if trainer.fit_loop.restarted_mid_epoch else ():
            if isinstance(callback, (GradientAccumulationScheduler, StochasticWeightAveraging)):
                callback.on_train_epoch_start(trainer, pl_module)
        self._last_save = time.monotonic()
        self._signals.start(speaks=trainer.is_global_zero)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when the time has come, or a signal asks to stop."""
        wants = self._wants(trainer)
        ends = self._steps(trainer, batch_idx) and (wants or trainer.should_stop)
        self._before_validation = self._validation_follows(trainer, batch_idx)
        if ends and not self._before_validation:
            self._save_within_epoch(trainer, wants)

    def _wants(self, trainer: Trainer) -> int:
        due = time.monotonic() - self._last_save >= 60 * self.save_every_minutes
        return most_urgent(self._signals.number or (-1 if due else 0), trainer)

    def _steps(self, trainer: Trainer, batch_idx: int) -> bool:
        # A run that ended between two steps would lose the gradients that it accumulated.
        stops, steps = trainer.should_stop or self._ends_after_step, steps_after(trainer, batch_idx)
        trainer.should_stop, self._ends_after_step = stops and steps, stops and not steps
        return steps

    def _save_within_epoch(self, trainer: Trainer, wants: int) -> None:
        # Lightning takes the epoch that a run ends in for done, of which a continued run would leave the rest out.
        ends = trainer.global_step == trainer.max_steps or (trainer.should_stop and patches.can_stop(trainer))
        self._ended_within = ends and not patches.epoch_is_complete(trainer)
        if self._ended_within or wants:
            self._save(trainer, self.last)
            self._stop(wants)

    def _validation_follows(self, trainer: Trainer, batch_idx: int) -> bool:
        # Lightning resumes from a save between a batch and its validation without that validation.
        if batch_idx + 1 >= trainer.num_training_batches:
            return True
        if not validates(trainer) or not patches.validates_this_epoch(trainer):
            return False
        in_all = trainer.check_val_every_n_epoch is None
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1 if in_all else batch_idx + 1
        due = done % (trainer.val_check_batch or math.inf) == 0  # never, where the interval is infinite
        return due or (trainer.should_stop and patches.can_stop(trainer))

    def _stop(self, number: int) -> None:
        if number > 0:
            words = f"--ckpt_path {shlex.quote(str(self.run.path))}{trusting(foreign_packages(self.run.config))}"
            raise StoppedBySignalError(number, f", the state is saved; continue with: vision_zoo fit {words}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far; at the end of an epoch, `on_train_epoch_end` does."""
        self._before_validation = False
        if trainer.sanity_checking or self.run.validated:
            return
        if self._improved(trainer):
            self._save(trainer, self.best)
        if self._steps(trainer, trainer.fit_loop.epoch_loop.batch_idx):
            self._save_within_epoch(trainer, self._wants(trainer))  # no step that a validation follows looks at it

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the epoch's row written, then save: the row is part of what the checkpoint knows."""
        validated, self._before_validation = bool(self.run.validated), False
        self.run.write_epoch(trainer)
        # (A run that was validated at first and is no more keeps the best of then.)
        improved = self._improved(trainer) if validated else not validates(trainer) and self.best_epoch is None
        if not self._ended_within:  # which is saved
            # The best first: what dies between the two does this epoch again.
            self._save(trainer, self.best if improved else self.last)
            if improved and not isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
                self._save(trainer, self.last)  # the other may still be being written
            elif improved and trainer.is_global_zero:
                hard_link(self.best, self.last)
            self._last_save = time.monotonic()
        self._stop(most_urgent(self._signals.number, trainer))

    def _improved(self, trainer: Trainer) -> bool:
        loss = float(trainer.callback_metrics["val/loss"])
        if not math.isfinite(loss):
            raise diverged(f"the validation loss is {loss}", trainer.global_step, trainer.current_epoch)
        improved = self.best_score is None or loss < self.best_score
        if improved:
            self.best_score, self.best_epoch = loss, trainer.current_epoch
        return improved

    def _save(self, trainer: Trainer, path: Path) -> None:
        for name, parameter in trainer.lightning_module.named_parameters():
            if not parameter.isfinite().all():
                what = f"the weights {name.removeprefix('backbone.')} are not finite"
                raise diverged(what, trainer.global_step, trainer.current_epoch)
        trainer.save_checkpoint(path)
        if path == self.last:
            self._last_save = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back, and end for one that came after the last step had looked."""
        self._signals.stop()
        self._stop(most_urgent(self._signals.number, trainer))

    def on_exception(self, *_: Any) -> None:
        """Give the signals back."""
        self._signals.stop()
