"""When one of several processes is lost, the others end within a minute, and say why."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from os import _exit as exit_at_once
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Trainer

from vision_zoo.errors import TrainingError, missing
from vision_zoo.training import lightning_patches as patches

# A process that stays silent this long is taken for lost: a host that vanished closes no connection.
SILENCE = timedelta(seconds=40)
# A process whose partner was lost gets this long to notice by itself, seconds; one that computes on a GPU never does.
GRACE = 20.0

_LAUNCHER = "VISION_ZOO_LAUNCHER"  # the process that started this one
_OURS: set[str] = set()  # environment variables that the group of processes adds
_LOST = re.compile(r"connection (was likely )?(closed|reset|refused)|timed? ?out|broken pipe|socket closed", re.I)


class LostProcessError(TrainingError):
    """Another process of the run has ended or cannot be reached any more."""

    def __init__(self, which: str) -> None:
        resume = "Resume it from its last checkpoint with: vision_zoo fit --ckpt_path last"
        super().__init__(f"{which} was lost, which ends the run on all processes. {resume}")


def lost_process(error: BaseException) -> LostProcessError | None:
    """What to tell about an error of torch.distributed, or None if it says nothing about a lost process."""
    if isinstance(error, LostProcessError):
        return error
    ours = isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    found = _LOST.search(str(error)) if ours else None
    return LostProcessError(f"a process of the run ({found[0].lower()})") if found else None


def reported_elsewhere(error: BaseException) -> bool:
    """Whether the process that launched this one tells the same."""
    return lost_process(error) is not None and _launcher_lives() is True


def _launcher_lives() -> bool | None:
    launcher = os.environ.get(_LAUNCHER)
    return None if launcher is None else os.getppid() == int(launcher)


def expect_answers(trainer: Trainer) -> None:
    """From now on, wait for other processes no longer than ``SILENCE``, unless the strategy has a timeout of its own.

    Before training starts, Lightning's half an hour stays: hosts need not be started at the same moment.
    """
    if trainer.world_size > 1:
        patches.set_timeout(trainer.strategy, SILENCE)


def most_urgent(wants: int, trainer: Trainer) -> int:
    """Agree over all processes: a signal's number beats -1 (time to save), which beats 0."""
    if trainer.world_size == 1:
        return wants
    value = torch.tensor(float(wants) if wants >= 0 else 0.5, device=trainer.strategy.root_device)  # one dtype for all
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return -1 if value == 0.5 else int(value)


def start_by_command(trainer: Trainer, words: Sequence[str]) -> None:
    """Let a trainer start its processes as ``python -m vision_zoo`` with the words of the call, and notice their end.

    Lightning would run the words of *this* process again, which may be a program that calls ours, or fork or spawn it,
    where what such processes learn stays in them. torchrun and SLURM start the processes by themselves.
    """
    patches.leave_signals(trainer)
    strategy: Any = trainer.strategy
    if type(strategy.launcher) in (patches.SubprocessScriptLauncher, patches.MultiProcessingLauncher):
        command = [sys.executable, "-m", "vision_zoo", *words]
        launcher = Launcher(strategy.cluster_environment, strategy.num_processes, strategy.num_nodes, command)
        patches.replace_launcher(strategy, launcher)


def leave_processes() -> None:
    """Leave the group of processes after a command, so that this program may run another one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in _OURS:
        os.environ.pop(name, None)
    _OURS.clear()


class Launcher(patches.SubprocessScriptLauncher):
    """Starts the processes of this machine and ends them together; Lightning's kills the first one too, wordlessly."""

    def __init__(self, cluster: ClusterEnvironment, processes: int, nodes: int, command: Sequence[str]) -> None:
        super().__init__(cluster, processes, nodes)
        self._command = command
        self._watched = False

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other processes, then call the function in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        try:
            if not self.procs and not self.cluster_environment.creates_processes_externally:
                self._start()
            patches.set_num_threads(num_processes=self.num_processes)
            if not self._watched and (self.procs or os.environ.get(_LAUNCHER)):
                self._watched = True
                threading.Thread(target=self._watch, daemon=True, name="watch-processes").start()
            return function(*args, **kwargs)
        except BaseException as error:
            loss = lost_process(error)
            # Where the others are ending by themselves, their exit codes tell more than the error here.
            ended = self._first_ended(patience=5 if loss or getattr(error, "exit_code", 0) > 128 else 0)
            self._end_children()
            if loss and ended:
                raise LostProcessError(ended) from error
            raise

    def _start(self) -> None:
        cluster = self.cluster_environment
        _OURS.update({"MASTER_ADDR", "MASTER_PORT"} - os.environ.keys())
        environment = {
            **os.environ,
            "MASTER_ADDR": cluster.main_address,
            "MASTER_PORT": str(cluster.main_port),
            "NODE_RANK": str(cluster.node_rank()),
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # they find the classes that this process found
            _LAUNCHER: str(os.getpid()),
        }
        for rank in range(1, self.num_processes):
            process = subprocess.Popen(self._command, env={**environment, "LOCAL_RANK": str(rank)})  # noqa: S603  # ours
            self.procs.append(process)

    def _watch(self) -> None:
        ended: str = ""
        while not ended:
            if not torch.distributed.is_initialized() and "open files" in missing():  # C waits for others in vain
                ended = "a process that can open no more files (ulimit -n)"
            elif self.procs:
                ended = self._first_ended()
                if all(process.poll() == 0 for process in self.procs):
                    return
            elif not _launcher_lives():
                ended = "the first process of this machine"
            time.sleep(0.5)
        time.sleep(GRACE)
        sys.stderr.write(f"vision_zoo: {LostProcessError(ended)}\n")
        self._end_children()
        exit_at_once(1)

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
