"""SIGINT, SIGTERM and, under SLURM, SIGUSR1: they end a training with its state saved."""

import contextlib
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer

from vision_zoo.errors import TrainingError

REPEAT_SECONDS = 1.0  # a signal repeated within this time counts once


class StoppedBySignalError(TrainingError):
    """The command was stopped by a signal of this number; what was saved ends the sentence."""

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{saved}")
        self.exit_code = 128 + number


def end_on_sigterm() -> None:
    """Let SIGTERM end what has nothing to save; after Lightning's handler the exit code would be 0."""

    def end(number: int, frame: FrameType | None) -> None:
        raise StoppedBySignalError(number)

    with contextlib.suppress(ValueError):  # not in the main thread: the embedding program handles the signals
        signal.signal(signal.SIGTERM, end)


class SignalWatch:
    """Notes the first signal that asks to stop; one that comes again later stops at once."""

    def __init__(self) -> None:
        self.number = 0  # of the signal, once there was one
        self._time = 0.0
        self._speaks = True
        self._old_handlers: dict[int, Any] = {}

    def start(self, speaks: bool) -> None:
        """Take over the signals; say on standard error when one was noted."""
        self._speaks = speaks
        numbers = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1"):  # Windows has none
            numbers.append(signal.SIGUSR1)
        with contextlib.suppress(ValueError):  # as above
            for number in numbers:
                self._old_handlers[number] = signal.signal(number, self._note)

    def stop(self) -> None:
        """Give the signals back."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            # torchrun passes a Ctrl-C on that the terminal sent to all processes.
            if time.monotonic() - self._time > REPEAT_SECONDS:
                raise KeyboardInterrupt
            return
        self.number, self._time = number, time.monotonic()
        if self._speaks:
            sys.stderr.write(f"\n{signal.Signals(number).name}: saving at the end of this step ...\n")


def most_urgent(wants: int, trainer: Trainer) -> int:
    """Agree over all processes: a signal's number beats -1 (time to save), which beats 0."""
    if trainer.world_size == 1:
        return wants
    value = torch.tensor(float(wants) if wants >= 0 else 0.5, device=trainer.strategy.root_device)  # one dtype for all
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return -1 if value == 0.5 else int(value)
