"""Seconds of a run, also over the processes that continue it."""

import time


class Stopwatch:
    """Adds up seconds."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """All of them until now."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._before = value

    def start(self) -> None:
        """Begin to count."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Count no more."""
        self._before, self._since = self.seconds, None
