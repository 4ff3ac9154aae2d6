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

from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.cli.messages import explain
from vision_zoo.data import sources
from vision_zoo.errors import DataError, lack
from vision_zoo.training.saving import Saving

ROOT = Path(__file__).parents[1]
# Commands that stand for what a real one may be at when a signal comes.
PROGRAM = '''
import ctypes, sys, threading, time
from vision_zoo import stopping
if sys.argv[1] == "imports":  # the others would empty the file while it is read
    open(sys.argv[2] + "/ends_here.py", "w").write("""try:
    print("begun", flush=True)
    __import__("time").sleep(60)
except BaseException:
    raise RuntimeError("half a module") from None
""")
sys.path.append(sys.argv[2])
stopping.PATIENCE_SECONDS, stopping.STUCK_SECONDS = 1.5, 2.5
training = stopping.Signals(notes=True)

def begun():
    print("begun", flush=True)

def waits():
    begun()
    threading.Event().wait(60)

def waits_in_c():
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    begun()
    library.pthread_mutex_lock(mutex)

def swallows():
    while True:
        try:
            begun()
            time.sleep(60)
        except BaseException:
            pass

def trains():
    training.start()
    begun()
    until = time.monotonic() + 3.5
    while not training.number or time.monotonic() < until:
        time.sleep(0.05)
    training.stop()
    raise stopping.StoppedBySignalError(training.number, ", the state is saved")

def trains_and_waits_in_c():
    training.start()
    waits_in_c()

def imports():
    import ends_here

sys.exit(stopping.until_stopped(globals()[sys.argv[1]], own_process=True))
'''
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
STOPPED, FORCED = "stopped by {}\n", "ended at once by {}\n"
ENDS = {  # command, signals, exit code, what it says
    ("waits", "SIGTERM"): (143, STOPPED),
    ("waits", "SIGINT"): (130, STOPPED),
    ("waits_in_c", "SIGTERM"): (143, FORCED),
    ("waits_in_c", "SIGINT SIGINT"): (130, FORCED),
    ("swallows", "SIGINT"): (130, FORCED),
    ("trains", "SIGTERM"): (143, "stopped by {}, the state is saved"),
    ("trains", "SIGINT SIGINT"): (130, " by {}\n"),
    ("trains_and_waits_in_c", "SIGTERM"): (143, FORCED),
    ("imports", "SIGINT"): (130, STOPPED),
}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_ends_whatever_a_command_is_at_and_a_second_one_at_once(tmp_path):
    """Four seconds: all at the same time."""

    def start(name: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", PROGRAM, name, str(tmp_path)]
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
            code, told = ENDS[name, names]
            error = process.communicate(timeout=20)[1]
            assert (process.returncode, told.format(names.split(" ")[0]) in error) == (code, True), (name, names, error)
            assert "Traceback" not in error
        assert time.monotonic() - began < 10
    finally:
        for process in running.values():
            process.kill()


def test_a_signal_after_the_last_step_s_look_is_not_lost(here, monkeypatch, capsys):
    original = Saving.on_train_end

    def on_train_end(self, *arguments):
        signal.raise_signal(signal.SIGTERM)
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Saving, "on_train_end", on_train_end)
        assert main([*QUICK, *SHORT]) == 143
    assert "stopped by SIGTERM, the state is saved" in capsys.readouterr().err
    assert not list(here.rglob("test.json"))


@pytest.mark.parametrize("when", ["setup", "on_fit_start", "on_sanity_check_start", "on_test_start"])
def test_a_signal_outside_of_the_training_steps_ends_fit(when, here, monkeypatch, capsys):
    monkeypatch.setattr(
        "vision_zoo.training.run_folder.RunFolder." + when, lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    words = [*QUICK, *SHORT, "--trainer.num_sanity_val_steps", "1", "--test_after_fit", "true"]
    before = signal.getsignal(signal.SIGTERM)
    assert main(words) == 143
    assert capsys.readouterr().err == "vision_zoo: stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(here.rglob(".lock"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a.png"), "no more files can be opened"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "files may not grow"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads or processes"),
        (RuntimeError("can't start new thread"), "no more threads or processes can be started"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
        (SystemError("error return without exception set"), "there is not enough memory"),
        (RuntimeError("std::bad_alloc"), "there is not enough memory"),
    ],
)
def test_what_the_machine_lacks_is_told_with_exit_code_1_though_it_made_an_input_unreadable(error, told):
    wrapped = DataError("images.npz is broken: delete it")
    wrapped.__cause__ = error
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for each in (error, wrapped) if not isinstance(error, SystemError) else (error,):
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))  # a MemoryError is the file's where there is
        try:
            message, code = explain(each)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert (told in message, code) == (True, 1), message


def test_a_process_that_is_allowed_too_little_memory_ends_before_openblas_waits_for_it(here):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (150_000 * 1024,) * 2)

    words = [sys.executable, "-m", "vision_zoo", "summary"]
    done = subprocess.run(words, preexec_fn=limit, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "there is not enough memory" in done.stderr) == (1, True), done.stderr


def test_a_file_that_asks_for_impossible_memory_is_broken_itself():
    assert not lack(MemoryError(), reading=True)
    assert not lack(OSError("cannot identify image file"), reading=True)


def test_words_of_a_path_are_no_lack():
    assert not lack(OSError("cannot identify image file '/with space left/open files/a.png'"))
    assert "the disk is full" in lack(OSError("no space left on device: '/tmp/a.png'"))


@pytest.mark.parametrize("threads", ["0", "2"])
def test_too_few_open_files_end_a_training_and_leave_no_image_out(threads, here, monkeypatch, capsys):
    tiny.write_image_folder(here / "images", count=20)

    def decode(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(sources, "decode", decode)
    words = [
        "--data",
        "ImageFolder",
        "--data.root",
        "images",
        "--data.in_memory",
        "false",
        "--data.num_workers",
        threads,
    ]
    assert main([*QUICK, *words, "--data.image_size", "28", "--data.strict", "false"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no more files can be opened: raise the limit (ulimit -n)" in error
