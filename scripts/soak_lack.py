"""Takes from commands at random moments what they need, or sends them signals; `soak.py lack` and `signal` run it."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

USER = "54321"
IN_TIME = 30.0  # seconds
CHANCE = random.Random()  # repeatable, not secret
ZOO = [sys.executable, "-m", "vision_zoo"]
FIT = ["fit", "--model.backbone", "SimpleCNN", "--model.scheduler", "null", "--trainer.log_every_n_steps", "5",
       "--save_every_minutes", "0.02", "--trainer.max_epochs"]  # fmt: skip
FILES = ["--data", "ImageFolder", "--data.root", "../images", "--data.in_memory", "false", "--data.num_workers", "2",
         "--data.image_size", "32"]  # fmt: skip
RUN = ["--ckpt_path", "runs/default/version_0"]
COMMANDS = {
    "fit": [*FIT, "4", "--data.batch_size", "50"],
    "fit files": [*FIT, "3", *FILES, "--data.batch_size", "16"],
    "fit two processes": [*FIT, "3", "--trainer.devices", "2", "--trainer.accelerator", "cpu",
                          "--trainer.strategy", "ddp"],
    "continue": ["fit", *RUN, "--trainer.max_epochs", "3"],
    "test": ["test", *RUN, "--output", "tested"],
    "predict": ["predict", *RUN, "--images", "../images/a", "--output", "table.csv"],
    "export": ["export", *RUN, "--output", "model.pt2"],
    "report": ["report", *RUN, "--output", "report.html"],
    "show": ["show", *FILES, "--output", "show.png"],
    "summary": ["summary", "--model.backbone", "SmallCNN"],
    "list": ["list", "runs"],
    "download": ["fit", "--data", "MNIST", "--data.root", "nothing"],  # from a server that never answers
}  # fmt: skip


class Taking:
    """A command in a folder of its own, a small disk."""

    def __init__(self, base: Path, name: str, proxy: str, *, limited: bool) -> None:
        self.name, self.folder = name, base / "work"
        self.folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=777", "none", self.folder], check=True)
        if "runs/default/version_0" in COMMANDS[name] or name == "list":
            shutil.copytree(base / "trained", self.folder, dirs_exist_ok=True)
            self.folder.chmod(0o777)
        self.before = self.files()
        # Another user's processes are limited; it reads what root may.
        caps = "+dac_override,+dac_read_search"
        user = ["setpriv", "--reuid", USER, "--clear-groups", "--inh-caps", caps, "--ambient-caps", caps]
        own = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"'
        words = [*(user if limited else []), *ZOO, *COMMANDS[name]]
        proxies = {"http_proxy": proxy, "https_proxy": proxy} if name == "download" else {}
        self.log = (base / "log.txt").open("w+b")
        self.process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", own, "sh", *words], cwd=self.folder, stdout=self.log, stderr=self.log,
            env={**os.environ, **proxies, "HOME": str(base), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait(self, seconds: float) -> int | None:
        """Wait for its end; the exit code, None where it has not ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll()

    def files(self) -> dict[str, tuple[int, int]]:
        """The files of the folder with size and time."""
        found = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(p.relative_to(self.folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}

    def problems(self, code: int | None, took: float, allowed: tuple[int, ...], *, lines: int = 1) -> list[str]:
        """What is wrong with how the command ended."""
        self.log.seek(0)
        told = self.log.read().decode(errors="replace")
        said = [
            line
            for line in told.splitlines()
            if line.startswith(("vision_zoo: ", "OpenBLAS error: ", "libgomp: ")) and "by itself" not in line
        ]
        wrong = [f"code {code} after {took:.0f} s"] if code not in allowed else []
        wrong += ["traceback"] if "Traceback" in told or "Exception ignored" in told else []
        wrong += ["called a bug"] if "internal error" in told else []
        wrong += [f"{len(said)} messages"] if code == 1 and len(said) != lines else []
        wrong += [f"half written: {name}" for name in self.half_written(code, told)]
        return [*wrong, told[-1500:]] if wrong else []

    def half_written(self, code: int | None, told: str) -> Iterator[str]:
        """Files that are not whole, and outputs of a command that failed before it told their place."""
        for name in self.files().keys() - self.before.keys():
            path = self.folder / name
            try:
                if path.suffix == ".ckpt":
                    torch.load(path, weights_only=True)
                elif path.suffix == ".json":
                    json.loads(path.read_text())
                elif path.name == "metrics.csv":
                    rows = path.read_text().split("\n")
                    if len({row.count(",") for row in rows[:-1]}) > 1 or rows[-1]:
                        yield name
                elif code and f"{path}\n" not in told and name in ("table.csv", "model.pt2", "report.html", "show.png"):
                    yield f"{name} of a command that failed"
                elif path.suffix == ".tmp" and code in (0, 1):
                    yield name
            except Exception as error:  # whatever a reader says of half a file
                yield f"{name} ({error})"

    def resumes(self) -> bool:
        """Whether a run that left a checkpoint goes on to its end."""
        (self.folder / "filler").unlink(missing_ok=True)
        if not list(self.folder.glob("runs/*/version_*/checkpoints/last.ckpt")):
            return True
        self.log.truncate(0)
        again = [*ZOO, "fit", "--ckpt_path", "last"]
        return subprocess.call(again, cwd=self.folder, stdout=self.log, stderr=self.log, timeout=180) == 0

    def close(self) -> None:
        """Leave nothing."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        time.sleep(0.2)
        subprocess.run(["umount", "-l", self.folder], check=True)


class Trial(NamedTuple):
    """What is done to a command."""

    command: str
    kind: str
    act: Callable[[Taking], None]
    codes: Callable[[float], tuple[int, ...]]  # that are right, by the part of the command that was done
    seconds: float = 0.0  # in which it must end; 0 stands for the usual ones and those that it takes when undisturbed


def fill(path: Path) -> None:
    """Leave no room on a small file system."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def limit(what: int, value: Callable[[int], int]) -> Callable[[Taking], None]:
    """A limit of the running process."""

    def take(taking: Taking) -> None:
        number = value(taking.process.pid)
        resource.prlimit(taking.process.pid, what, (number, number))

    return take


def address_space(pid: int) -> int:
    """Bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def no_threads(taking: Taking) -> None:
    """No thread or process more; the limits of another user's process are set by that user."""
    as_user = ["setpriv", "--reuid", USER, "--clear-groups"]
    subprocess.run([*as_user, "prlimit", f"--pid={taking.process.pid}", "--nproc=1"], check=True)


KINDS: dict[str, Callable[[Taking], None]] = {
    "open files": limit(resource.RLIMIT_NOFILE, lambda _: CHANCE.randint(3, 40)),
    "threads": no_threads,
    "memory": limit(resource.RLIMIT_AS, lambda pid: address_space(pid) + CHANCE.randint(0, 2**27)),
    "size of files": limit(resource.RLIMIT_FSIZE, lambda _: CHANCE.randint(0, 10**5)),
    "disk": lambda taking: fill(taking.folder / "filler"),
    "shared memory": lambda taking: fill(Path("/proc", str(taking.process.pid), "root", "dev", "shm", "filler")),
}


@contextlib.contextmanager
def prepared() -> Iterator[tuple[Path, str, dict[str, float]]]:
    """A folder with images and a trained run, a server that never answers, and the seconds of each command."""
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as silent:
        base = Path(name)
        for label, kind in enumerate("ab"):
            (base / "images" / kind).mkdir(parents=True)
            for number in range(150):
                colour = (label * 60 + 20, number, 100)
                Image.new("RGB", (200, 150), colour).save(base / "images" / kind / f"{number}.jpg")
        (base / "trained").mkdir()
        subprocess.run([*ZOO, *FIT, "1"], cwd=base / "trained", check=True, capture_output=True)
        base.chmod(0o755)
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        seconds = {"download": 8.0}
        for command in COMMANDS.keys() - seconds.keys():
            taking, began = Taking(base, command, proxy, limited=False), time.monotonic()
            try:
                if wrong := taking.problems(taking.process.wait(180), 0, (0,)):
                    sys.exit(f"{command}: {wrong}")
                seconds[command] = time.monotonic() - began
            finally:
                taking.close()
        yield base, proxy, seconds


def lack(takings: int, seed: int) -> int:
    """Take things away at random moments of random commands; the exit code."""
    commands = [command for command in COMMANDS if command != "download"]

    def choose(number: int) -> Trial:
        kind = list(KINDS)[number % len(KINDS)]
        return Trial(CHANCE.choice(commands), kind, KINDS[kind], lambda _: (0, 1))

    return trials(takings, seed, choose)


def signals(count: int, seed: int) -> int:
    """Send signals at random moments of every command, some of them twice; the exit code."""

    def choose(number: int) -> Trial:
        how, twice = CHANCE.choice([signal.SIGTERM, signal.SIGINT]), CHANCE.random() < 0.3

        def send(taking: Taking) -> None:
            taking.process.send_signal(how)
            if twice:
                taking.wait(1.2)
                taking.process.send_signal(how)

        command, name = list(COMMANDS)[number % len(COMMANDS)], f"{how.name}{' twice' * twice}"
        ends = (128 + how, -how)  # and 0 where all was done
        done = 0.0 if command == "list" else 0.7  # which is over as soon as Python has started
        return Trial(command, name, send, lambda part: (*ends, 0) if part > done else ends, 4 if twice else IN_TIME)

    return trials(count, seed, choose)


def trials(count: int, seed: int, choose: Callable[[int], Trial]) -> int:
    """Try so many and print a line for each; the exit code."""
    CHANCE.seed(seed)
    bad = number = 0
    with prepared() as (base, proxy, seconds):
        while number < count:
            trial, part = choose(number), CHANCE.random()
            command = trial.command
            # Not while Python itself starts.
            began, moment = time.monotonic(), max(min(1.0, seconds[command] / 2), part * seconds[command])
            taking = Taking(base, command, proxy, limited=trial.kind == "threads")
            try:
                if taking.wait(moment) is not None:  # it was faster than before
                    seconds[command] = time.monotonic() - began
                    continue
                trial.act(taking)
                began = time.monotonic()
                code = taking.wait(trial.seconds or IN_TIME + 2 * seconds[command])
                took = time.monotonic() - began
                wrong = taking.problems(code, took, trial.codes(part))
                if code and command.startswith(("fit", "continue")) and not taking.resumes():
                    wrong += taking.problems(-1, 0, ())
            finally:
                taking.close()
            bad, number = bad + bool(wrong), number + 1
            what = f"{trial.kind} at {moment:.1f} s of {command}: exit {code} {took:.1f} s later"
            print(f"{number:3}: {what}, {' '.join(wrong) or 'right'}", flush=True)
    print(f"{count} takings or signals, {bad} problems")
    return int(bad > 0)
