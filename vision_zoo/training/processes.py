"""When one of several processes is lost, the others end within a minute, and say why."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from torch.distributed.constants import default_pg_timeout

from vision_zoo.errors import ConfigError, TrainingError

# A process that stays silent this long is taken for lost: a host that vanished closes no connection.
SILENCE = timedelta(seconds=40)
# A process whose partner was lost gets this long to notice by itself, seconds; one that computes on a GPU never does.
GRACE = 20.0

_LAUNCHER = "VISION_ZOO_LAUNCHER"  # tells a launched process who launched it
_LOST = re.compile(r"connection (closed|reset|refused)|timed? ?out|broken pipe|socket closed", re.IGNORECASE)


class LostProcessError(TrainingError):
    """Another process of the run has ended or cannot be reached any more."""

    def __init__(self, which: str) -> None:
        super().__init__(
            f"{which} was lost, which ends the run on all processes. Resume it from its last checkpoint with: "
            "vision_zoo fit --ckpt_path last"
        )


def lost_process(error: BaseException) -> LostProcessError | None:
    """What to tell about an error of torch.distributed, or None if it says nothing about a lost process."""
    if isinstance(error, LostProcessError):
        return error
    ours = isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    found = _LOST.search(str(error)) if ours else None
    return LostProcessError(f"a process of the run ({found[0].lower()})") if found else None


def reported_elsewhere(error: BaseException) -> bool:
    """Whether another process tells the same: the first of the run, or the one that launched this one."""
    if getattr(error, "exit_code", 0) > 128:  # a signal, which all have agreed on
        return bool(getattr(rank_zero_only, "rank", 0))
    return lost_process(error) is not None and _launcher_lives() is True


def _launcher_lives() -> bool | None:
    launcher = os.environ.get(_LAUNCHER)
    return None if launcher is None else os.getppid() == int(launcher)


def expect_answers(trainer: Trainer) -> None:
    """From now on, wait for other processes no longer than ``SILENCE``, unless the strategy has a timeout of its own.

    Before training starts, Lightning's half an hour stays: hosts need not be started at the same moment.
    """
    if trainer.world_size > 1 and getattr(trainer.strategy, "_timeout", None) == default_pg_timeout:
        newer = getattr(torch.distributed, "set_timeout", None)
        set_timeout = newer or torch.distributed.distributed_c10d._set_pg_timeout
        set_timeout(SILENCE, torch.distributed.group.WORLD)


def watch_processes(trainer: Trainer) -> None:
    """Let a trainer that starts processes of its own notice when one ends.

    Raises:
        ConfigError: if batch norm is to be joined over processes on a CPU, where torch cannot, or if the processes are
            to be forked or spawned.
    """
    connector, strategy = trainer._accelerator_connector, trainer.strategy
    if connector._layer_sync is not None and trainer.world_size > 1 and strategy.root_device.type == "cpu":
        raise ConfigError(
            "--trainer.sync_batchnorm true: torch joins batch statistics on GPUs only, and this run is on the CPU. "
            "Leave the option out (each process then normalises its own batch), or train on GPUs"
        )
    launcher = strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        raise ConfigError(
            f"--trainer.strategy {connector._strategy_flag}: what such processes learn stays in them. Say "
            "--trainer.strategy ddp"
        )
    if type(launcher) is _SubprocessScriptLauncher:
        strategy._launcher = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher with another observer: Lightning's kills every process, the first one too, without a word.

    torchrun and SLURM launch and observe by themselves; there, only the processes' own errors are told in words.
    """

    _watched = False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other processes, then call the function in this one."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._watch()
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                loss = lost_process(error)
                # Where the others are ending by themselves, their exit codes tell more than the error here.
                ended = self._first_ended(patience=5 if loss or getattr(error, "exit_code", 0) > 128 else 0)
                self._end_children()
                if loss and ended:
                    raise LostProcessError(ended) from error
                raise

        return super().launch(watched, *args, trainer=trainer, **kwargs)

    def _call_children_scripts(self) -> None:
        os.environ[_LAUNCHER] = str(os.getpid())
        try:
            super()._call_children_scripts()
        finally:
            del os.environ[_LAUNCHER]

    def _watch(self) -> None:
        if self._watched:
            return
        self._watched = True
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver) and thread._child_processes is self.procs:
                thread._child_processes = []
        if self.procs:
            threading.Thread(target=self._watch_children, daemon=True, name="watch-processes").start()
        elif os.environ.get(_LAUNCHER):
            threading.Thread(target=_watch_launcher, daemon=True, name="watch-launcher").start()

    def _watch_children(self) -> None:
        while not (ended := self._first_ended()):
            if all(process.poll() == 0 for process in self.procs):
                return
            time.sleep(0.5)
        time.sleep(GRACE)
        sys.stderr.write(f"vision_zoo: {LostProcessError(ended)}\n")
        self._end_children()
        os._exit(1)

    def _first_ended(self, patience: float = 0) -> str:
        until = time.monotonic() + patience
        while time.monotonic() < until and any(process.poll() is None for process in self.procs):
            time.sleep(0.05)
        codes = [(process.poll() or 0, process.pid, rank) for rank, process in enumerate(self.procs, start=1)]
        code, pid, rank = min(codes, key=lambda c: (c[0] >= 0, c[0] == 0), default=(0, 0, 0))  # signals first
        if code == 0:
            return ""
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"process {rank} of this machine ({pid}, {how})"

    def _end_children(self) -> None:
        # They wait for a message from this process that will never come.
        for process in self.procs:
            process.kill()
            process.wait()


def _watch_launcher() -> None:
    while _launcher_lives():
        time.sleep(0.5)
    time.sleep(GRACE)
    sys.stderr.write(f"vision_zoo: {LostProcessError('the first process of this machine')}\n")
    os._exit(1)
