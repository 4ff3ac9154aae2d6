"""SIGINT and SIGTERM end a command at any moment, also one that waits or computes where Python runs no handler."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

REPEAT_SECONDS = 1.0  # a signal repeated within this time counts once: torchrun passes on a Ctrl-C that all have got
PATIENCE_SECONDS = 15.0  # that a command gets to end, once a signal asked it to or it has failed
STUCK_SECONDS = 60.0  # that a training, which saves first, gets for a single call that does not come back

at_once: list[Callable[[], None]] = []  # called where force ends the process: for those that it has started


class StoppedBySignalError(BaseException):
    """A signal of this number ends the command; like KeyboardInterrupt, nothing that copes with errors keeps it."""

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{saved}")
        self.exit_code = 128 + number


class Signals:
    """Takes over the signals that end a command: raises the first, or notes it; one that comes again later raises.

    Args:
        note: called with the name of the first one, in place of raising it.
    """

    def __init__(self, note: Callable[[str], None] | None = None) -> None:
        self.number = 0  # of the first, once there was one
        self.note, self._time = note, 0.0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int] = {}

    def start(self) -> None:
        """Take over; SLURM has a signal of its own, which comes before its SIGTERM."""
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
        if first and self.note:
            self.note(signal.Signals(number).name)
        elif first or time.monotonic() - before > REPEAT_SECONDS:
            raise StoppedBySignalError(number)


def until_stopped(command: Callable[[], int], *, own_process: bool) -> int:
    """Run a command until its end or a signal; the exit code. In a process of its own, force is used where need be."""
    signals, watch = Signals(), None
    try:
        signals.start()
        if own_process and os.name == "posix":
            watch = _Watch(signals.stop)
            watch.start()
        code = command()
    except StoppedBySignalError as error:  # while torch was imported
        if os.environ.get("LOCAL_RANK", "0") == "0":
            sys.stderr.write(f"vision_zoo: {error}\n")
        code = error.exit_code
    finally:
        signals.stop()
    if watch:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python ends, its own handler would show a traceback
        watch.end(code)
    return code


class _Watch(threading.Thread):
    """Ends the process where its main thread does not; C tells it of signals, whatever that thread does."""

    def __init__(self, in_fork: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="watch-signals")
        self._code = 0
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=in_fork)  # whose signals are its own
        os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))

    def end(self, code: int) -> None:
        """See to it that a command that failed ends, which its threads may be in the way of."""
        self._code = code
        os.write(self._writer, bytes([0] * bool(code)))

    def run(self) -> None:
        """Wait for a signal, then for the end."""
        code, asked, since, saves, place = 0, 0.0, 0.0, False, (0, 0)
        while True:
            ready = select.select([self._reader], [], [], 1.0 if code else None)[0]
            number = os.read(self._reader, 1)[0] if ready else -1
            now = time.monotonic()
            handler = getattr(signal.getsignal(number), "__self__", None) if number > 0 else None
            if code and number > 0 and now - asked > REPEAT_SECONDS:
                self._leave(128 + number)
            if number == 0 or (isinstance(handler, Signals) and not code):
                code, asked, since = self._code or 128 + number, asked or now, now
                saves = isinstance(handler, Signals) and handler.note is not None
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            if saves and (here := (id(frame), frame.f_lasti)) != place:
                place, since = here, now
            if code and now - since > (STUCK_SECONDS if saves else PATIENCE_SECONDS):
                self._leave(code)

    def _leave(self, code: int) -> None:
        for end in at_once:
            end()
        if not self._code and select.select([], [2], [], 0)[1]:  # what reads standard error may be stuck as well
            name = signal.Signals(code - 128).name
            os.write(2, f"vision_zoo: ended by {name} at once; what was saved before is kept\n".encode())
        os._exit(code)
