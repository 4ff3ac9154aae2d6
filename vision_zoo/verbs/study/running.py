"""Trials in processes of their own, which begin with torch imported, each with its log."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any, cast

import torch

from vision_zoo.checkpoints import open_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.data.described import described_data
from vision_zoo.data.fetch import alone
from vision_zoo.data.loaders import Loader
from vision_zoo.stopping import Signals, StoppedBySignalError, until_stopped
from vision_zoo.training.evaluation import write_matrix
from vision_zoo.verbs.predict import device_of
from vision_zoo.verbs.study.plan import Trial

MATRIX = "validation_matrix.csv"  # of a fold, in its run folder: rows are true classes, columns predicted ones
TESTED = "test/test.json"
PRUNED = -1000  # no exit code
Command = Callable[[Sequence[str]], int]


def run_of(trial: Trial) -> tuple[Path | None, bool]:
    """A trial's run, if there is one with a checkpoint, and whether it has ended."""
    for sign in ("results.json", "checkpoints/last.ckpt"):
        for run in sorted(trial.folder.glob("runs/*/version_*")):
            if (run / sign).is_file():
                return run, sign == "results.json"
    return None, False


def is_done(trial: Trial, tests: bool) -> bool:
    """Whether nothing is left to do."""
    run, ended = run_of(trial)
    wanted = [MATRIX] * bool(trial.fold) + [TESTED] * tests
    return run is not None and ended and all((run / name).is_file() for name in wanted)


def start_method() -> str:
    """How processes begin: as a copy of one that has imported torch, where there is that."""
    return next(x for x in ("forkserver", "spawn") if x in multiprocessing.get_all_start_methods())


def run_trials(
    trials: Sequence[Trial],
    command: Command,
    rest: tuple[Any, ...],
    jobs: int,
    told: Callable[[Trial, Any], bool],
    watch: Callable[[Trial], bool] = lambda _: False,
) -> None:
    """Run so many trials at once; `told` hears of each when it begins (None) and when it ends (its exit code).

    No more are begun once it answers that others are of no use.

    A trial that `watch` gives up, asked twice a second, saves and ends, with PRUNED in place of its exit code.

    Raises:
        StoppedBySignalError: after Ctrl-C or SIGTERM, when the processes have saved and ended.
    """
    context: Any = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        context.set_forkserver_preload([__name__, command.__module__])
    threads = max(1, torch.get_num_threads() // jobs) if jobs > 1 and "OMP_NUM_THREADS" not in os.environ else None
    waiting, running, sent = deque(trials), dict[Any, tuple[Any, Trial]](), 0
    given_up = set[Trial]()
    signals = Signals(notes=True)  # the processes need time to save
    signals.start(speaks=False)
    try:
        while running or (waiting and not signals.number):
            try:
                while waiting and len(running) < jobs and not signals.number:
                    process = context.Process(target=_work, args=(command, waiting[0], threads, *rest))
                    process.start()
                    running[process.sentinel] = process, waiting.popleft()
                    told(running[process.sentinel][1], None)
                for sentinel in connection.wait([*running], timeout=0.5):
                    process, trial = running.pop(sentinel)
                    process.join()
                    code = PRUNED if trial in given_up and process.exitcode else process.exitcode
                    if code == 255 and signals.number:  # whoever would tell has had the signal too
                        code = 128 + signals.number
                    if told(trial, code):
                        waiting.clear()
                for process, trial in running.values():
                    if trial not in given_up and watch(trial):
                        given_up.add(trial)
                        process.terminate()
            except StoppedBySignalError:  # a second one
                sent = 0
            if signals.number and not sent:
                sent = signals.number
                for process, _ in running.values():
                    os.kill(process.pid, sent)
    finally:
        signals.stop()
    if signals.number:
        raise StoppedBySignalError(signals.number, "; the same command goes on with this study")


def _work(command: Command, trial: Trial, threads: int | None, *rest: Any) -> None:
    """What a process does: its exit code is that of the command which ended it."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    log = (trial.folder / "log.txt").open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    sys.stdout = sys.stderr = log  # the program that was copied may have put something else in their place
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of further processes
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv[1:] = trial.words
    sys.exit(until_stopped(partial(_do, command, trial, *rest), own_process=True))


def _end_with_parent() -> None:
    """End as by SIGTERM, saving, where the study was killed, for nobody would hear of this trial."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _do(command: Command, trial: Trial, tests: bool, trusted: Sequence[str]) -> int:
    with alone(trial.folder):  # of a study that was killed, a process may still save
        (run, ended), code = run_of(trial), 0
        if run is None:  # what ended before its first checkpoint
            shutil.rmtree(trial.folder / "runs", ignore_errors=True)
        if not ended:
            code = command([*trial.words, *([f"--ckpt_path={run}"] if run else [])])
            run, ended = run_of(trial)
        if code or run is None or not ended:
            return code
        if trial.fold and not (run / MATRIX).is_file():
            count_validation(run, trusted)
        if tests and not (run / TESTED).is_file():
            return command(["test", f"--ckpt_path={run}", *(f"--trusted_packages={name}" for name in trusted)])
        return 0


def count_validation(run: Path, trusted: Sequence[str]) -> None:
    """Count a fold's validation images by true and predicted class, of its best checkpoint, into its run folder."""
    content = open_checkpoint(str(run), trusted)
    model, data = Classifier.from_checkpoint(content.content), described_data(content.data, ask=True)
    assert data is not None, "the checkpoint of a fold describes its data"
    data.value_range = model.value_range
    model, loader = model.to(device_of("auto")), cast(Loader, data.val_dataloader())
    matrix = torch.zeros(2 * [len(model.class_names)], dtype=torch.int64)
    with torch.inference_mode():
        for images, labels in loader:
            predicted = model(images.to(model.device)).argmax(1).cpu()
            matrix.index_put_((labels, predicted), torch.tensor(1), accumulate=True)
    write_matrix(run / MATRIX, model.class_names, matrix.tolist())
