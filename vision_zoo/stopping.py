"""SIGINT and SIGTERM end a command at any moment, also one that waits or computes where Python runs no handler."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from os import _exit as exit_at_once
from sys import _current_frames as current_frames
from types import FrameType

REPEAT_SECONDS = 1.0  # a signal repeated within this time counts once: torchrun passes on a Ctrl-C that all have got
PATIENCE_SECONDS = 15.0  # that a command gets to end, once a signal asked it to
STUCK_SECONDS = 60.0  # that a training, which saves first, gets for a single call that does not come back


class StoppedBySignalError(BaseException):
    """A signal of this number ends the command; like KeyboardInterrupt, nothing that copes with errors keeps it."""

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{saved}")
        self.exit_code = 128 + number


class Signals:
    """Takes over the signals that end a command: raises the first, or notes it; one that comes again later raises."""

    def __init__(self, *, notes: bool = False, forced: bool = False) -> None:
        self.notes, self._forced, self.number = notes, forced, 0  # of the first, once there was one
        self._speaks, self._time = True, 0.0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int] = {}

    def start(self, speaks: bool = True) -> None:
        """Take over; say on standard error when one was noted."""
        self._speaks = speaks
        slurm = "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1")  # Windows has none
        with contextlib.suppress(ValueError):  # not in the main thread: the embedding program handles them
            for number in [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if slurm else [])]:
                self._before[number] = signal.signal(number, self._handle) or signal.SIG_DFL

    def stop(self) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, before = not self.number, self._time
        self.number, self._time = self.number or number, before or time.monotonic()
        if not first and time.monotonic() - before <= REPEAT_SECONDS:
            return
        while frame is not None and self._forced:  # an import that is broken off would leave a module in halves
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                _leave(number, "stopped by")
            frame = frame.f_back
        if not first or not self.notes:
            raise StoppedBySignalError(number)
        with contextlib.suppress(RuntimeError):  # standard error is just being written to
            name = signal.Signals(number).name
            sys.stderr.write(f"\n{name}: saving at the end of this step; again: at once ...\n" * self._speaks)


def until_stopped(command: Callable[[], int], *, own_process: bool) -> int:
    """Run a command until its end or a signal; the exit code. In a process of its own, force is used where need be."""
    forced = own_process and os.name == "posix"
    signals = Signals(forced=forced)
    try:
        signals.start()
        if forced:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            os.register_at_fork(after_in_child=signals.stop)  # a fork's signals are its own
            with contextlib.suppress(RuntimeError):  # no thread can be started, which the command tells
                threading.Thread(target=_watch, args=[reader], daemon=True, name="watch-signals").start()
        code = command()
    except StoppedBySignalError as error:
        first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
        sys.stderr.write(f"vision_zoo: {error}\n" if first else "")
        code = error.exit_code
    finally:
        signals.stop()
    if forced:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python ends, its own handler would show a traceback
    return code


def _watch(reader: int) -> None:
    """End the process where its main thread does not; C tells of signals, whatever that thread does."""
    handler = None
    while not isinstance(handler, Signals):
        number = os.read(reader, 1)[0]
        handler = getattr(signal.getsignal(number), "__self__", None)
    began = since = now = time.monotonic()
    place = (0, 0)  # where the main thread is
    while now - since < (STUCK_SECONDS if handler.notes else PATIENCE_SECONDS):
        again = select.select([reader], [], [], 1.0)[0] and os.read(reader, 1)
        now, frame = time.monotonic(), current_frames()[threading.main_thread().ident or 0]
        if again and now - began > REPEAT_SECONDS:
            break
        if handler.notes and (here := (id(frame), frame.f_lasti)) != place:
            place, since = here, now
    _leave(number, "ended at once by")


def _leave(number: int, how: str) -> None:
    if select.select([], [2], [], 0)[1]:  # what reads standard error may be stuck as well
        os.write(2, f"vision_zoo: {how} {signal.Signals(number).name}\n".encode())
    exit_at_once(128 + number)
