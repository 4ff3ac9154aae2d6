"""A signal ends a command at any moment, a second one at once; what the machine lacks ends it with its message."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.cli.messages import explain
from vision_zoo.data import sources
from vision_zoo.errors import DataError, TrainingError, lack
from vision_zoo.training import Saving

ROOT = Path(__file__).parents[1]
# Commands that stand for what a real one may be at when a signal comes.
PROGRAM = """
import ctypes, sys, threading, time
from vision_zoo import stopping
stopping.PATIENCE_SECONDS, stopping.STUCK_SECONDS = 1.5, 2.5
training = stopping.Signals(notes=True)

def waits():
    threading.Lock().acquire() and threading.Event().wait(60)

def waits_in_c():
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)

def swallows():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

def trains():
    training.start()
    until = time.monotonic() + 3.5
    while not training.number or time.monotonic() < until:
        time.sleep(0.05)
    training.stop()
    raise stopping.StoppedBySignalError(training.number, ", the state is saved")

def trains_and_waits_in_c():
    training.start()
    waits_in_c()

def fails_beside_a_thread():
    threading.Thread(target=time.sleep, args=[60]).start()
    return 1

def command():
    print("begun", flush=True)
    return globals()[sys.argv[1]]()

sys.exit(stopping.until_stopped(command, own_process=True))
"""
STOPPED, FORCED = "stopped by {}\n", "ended by {} at once"
ENDS = {  # command, signals, exit code, what it says, seconds
    ("waits", "SIGTERM"): (143, STOPPED, 0.0),
    ("waits", "SIGINT"): (130, STOPPED, 0.0),
    ("waits_in_c", "SIGTERM"): (143, FORCED, 1.5),
    ("waits_in_c", "SIGINT SIGINT"): (130, FORCED, 1.2),
    ("swallows", "SIGINT"): (130, FORCED, 1.5),
    ("trains", "SIGTERM"): (143, "stopped by {}, the state is saved", 3.5),
    ("trains", "SIGINT SIGINT"): (130, FORCED, 1.2),
    ("trains_and_waits_in_c", "SIGTERM"): (143, FORCED, 2.5),
    ("fails_beside_a_thread", ""): (1, "", 1.5),
}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_ends_whatever_a_command_is_at_and_a_second_one_at_once():
    """Four seconds: all at the same time."""

    def start(name: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROGRAM, name]
        return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    running = {case: start(case[0]) for case in ENDS}
    try:
        for process in running.values():
            process.stdout.read(6)
        time.sleep(0.1)
        began = time.monotonic()
        for which in (0, 1):
            time.sleep(1.2 * which)
            for (_, names), process in running.items():
                if len(numbers := names.split()) > which:
                    process.send_signal(getattr(signal, numbers[which]))
        for (name, names), process in running.items():
            code, told, _ = ENDS[name, names]
            error = process.communicate(timeout=20)[1]
            assert (process.returncode, told.format(names.split(" ")[0]) in error) == (code, True), (name, names, error)
            assert "Traceback" not in error
        assert time.monotonic() - began < 10
    finally:
        for process in running.values():
            process.kill()
