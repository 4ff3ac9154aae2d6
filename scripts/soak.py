"""Long tests of what people rely on overnight: nothing is lost, nothing piles up, nothing hangs.

    python scripts/soak.py kill --kills 20   # kill training at random moments, resume, compare with an undisturbed run
    python scripts/soak.py kill -- --data Pack --data.path /PATH/photos.vz   # with any words of fit
    python scripts/soak.py leak --fits 200   # many short fits in one process: memory, open files, threads stay flat
    python scripts/soak.py lack --takings 30 # take away disk, memory, open files, ... from commands at random moments
    python scripts/soak.py signal --signals 30 # end every command by SIGTERM or Ctrl-C at random moments

They print a line for each kill, twenty fits, taking or signal, and end with exit code 1 where one shows a problem. The
last two need root on Linux, for small disks.
"""

import argparse
import contextlib
import gc
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from vision_zoo.__main__ import main

sys.path.insert(0, str(Path(__file__).parent))
import soak_lack  # beside this script

# Dropout, augmentation, a per-step schedule, a validation within the epoch: every source of state at once.
FIT = [
    "fit", "--model.backbone", "SimpleCNN", "--model.scheduler", "OneCycleLR", "--model.optimizer.lr", "0.003",
    "--data.batch_size", "50",
    "--data.augmentation", "[{class_path: RandomCrop, init_args: {padding: 2}}, RandomErasing]",
    "--trainer.max_epochs", "6", "--trainer.val_check_interval", "0.5", "--trainer.log_every_n_steps", "5",
    "--save_every_minutes", "0.01", "--trainer.precision", "32-true", "--channels_last", "false",  # no trial of speed
]  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a fit in a folder."""
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen([sys.executable, "-m", "vision_zoo", *FIT, *more], cwd=folder, stdout=log, stderr=log)


def newest(folder: Path) -> Path | None:
    """The newest last.ckpt below a folder."""
    found = sorted(folder.glob("runs/*/version_*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime_ns)
    return found[-1] if found else None


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested states differ, bit for bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [f"{where} (keys)"]
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where} (length)"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a} != {b}"]


def state(path: Path) -> dict[str, Any]:
    """What must be equal in two checkpoints: everything but clock times and folders."""
    checkpoint = torch.load(path, weights_only=True)
    for name in ("fit_seconds", "train_seconds"):
        checkpoint["callbacks"]["RunFolder"].pop(name)
    for name in ("vision_zoo", "datamodule_hyper_parameters"):
        checkpoint.pop(name)
    return checkpoint


def progress(folder: Path) -> int:
    """The last step that a run has written to its metrics.csv."""
    files = sorted(folder.glob("runs/*/version_*/metrics.csv"))
    lines = files[-1].read_text().splitlines()[1:] if files else []
    return int(lines[-1].split(",")[1]) if lines else 0


def wait_for(process: subprocess.Popen[bytes], folder: Path, target: float, until: float | None) -> None:
    """Wait until a run has reached a step, or a moment, or its end."""
    while process.poll() is None:
        if time.monotonic() >= until if until is not None else progress(folder) >= target:
            return
        time.sleep(0.01)


def kill(kills: int, seed: int, words: list[str]) -> int:
    """Kill and resume a fit with these words more until it has been killed often enough, then compare."""
    chance = random.Random(seed)  # repeatable, not secret
    bad = total = 0
    with tempfile.TemporaryDirectory() as name:
        calm = Path(name) / "calm"
        calm.mkdir()
        began = time.monotonic()
        code, seconds = start(calm, *words).wait(), time.monotonic() - began
        reference = newest(calm)
        if code or reference is None:
            print((calm / "log.txt").read_text())
            return 1
        total_steps = torch.load(reference, weights_only=True)["global_step"]
        print(f"undisturbed run: {seconds:.1f} s, {total_steps} steps", flush=True)
        round_ = 0
        while total < kills:
            folder = Path(name) / f"killed_{round_}"
            folder.mkdir()
            round_ += 1
            here = 0
            while True:
                process = start(folder, *words, *(["--ckpt_path", "last"] if newest(folder) else []))
                how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
                # Anywhere in what is left to train, or, one time in five, while it starts, tests or ends.
                target = chance.uniform(progress(folder), total_steps)
                until = time.monotonic() + chance.uniform(0.1, 1.0) * seconds if chance.random() < 0.2 else None
                try:
                    if here < 7 and total < kills:
                        wait_for(process, folder, target, until)
                        time.sleep(chance.uniform(0, 0.05))
                        code = process.wait(0)
                    else:
                        code = process.wait()
                    if code:
                        print((folder / "log.txt").read_text()[-3000:])
                        return 1
                    break
                except subprocess.TimeoutExpired:
                    reached = progress(folder)
                    process.send_signal(how)
                    code = process.wait()
                    here, total = here + 1, total + 1
                    last = newest(folder)
                    step = torch.load(last, weights_only=True)["global_step"] if last else None
                    expected = {signal.SIGKILL: [-9], signal.SIGTERM: [143, -15], signal.SIGINT: [130, -2]}[how]
                    if step == total_steps:  # a signal may arrive when all is done
                        expected.append(0)
                    at = f"saved at step {step}" if last else "nothing saved yet"
                    verdict = "" if code in expected else f"  UNEXPECTED exit code {code}"
                    bad += bool(verdict)
                    print(f"kill {total:2}: {how.name} at step {reached:3}, exit {code}, {at}{verdict}", flush=True)
            last = newest(folder)
            assert last is not None
            wrong = []
            for file in ("last.ckpt", "best.ckpt"):
                wrong += differences(state(reference.with_name(file)), state(last.with_name(file)), file)
            a, b = (p.parent.parent / "metrics.csv" for p in (reference, last))
            if a.read_bytes() != b.read_bytes():
                wrong.append("metrics.csv")
            bad += len(wrong)
            verdict = f"DIFFERS in {', '.join(wrong[:8])}" if wrong else "identical"
            print(f"run {round_} after {here} kills: {verdict}", flush=True)
    print(f"{total} kills, {bad} problems")
    return int(bad > 0)


def usage() -> tuple[float, int, int]:
    """Resident memory in MB, open files, threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def leak(fits: int) -> int:
    """Run many short fits in this process and watch what they leave behind."""
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"]
    arguments = ["fit", "--model.backbone", "SmallCNN", *short]
    first: tuple[float, int, int] | None = None
    now = usage()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for number in range(1, fits + 1):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                code = main(arguments)
            if code:
                print(output.getvalue())
                return 1
            if number % 20 == 0 or number == fits:
                gc.collect()
                now = usage()
                print(f"{number:4} fits: {now[0]:7.1f} MB, {now[1]:3} open files, {now[2]:2} threads", flush=True)
                if number == 40 or (first is None and number == fits):  # the first fits warm caches
                    first = now
    assert first is not None
    grown = now[0] - first[0] > 0.05 * first[0] or now[1] > first[1] or now[2] > first[2]
    print("GROWS" if grown else "flat")
    return int(grown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("kill")
    one.add_argument("--kills", type=int, default=20)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("words", nargs="*", help="words of fit, behind --")
    two = commands.add_parser("leak")
    two.add_argument("--fits", type=int, default=200)
    for name, counted in (("lack", "--takings"), ("signal", "--signals")):
        three = commands.add_parser(name)
        three.add_argument(counted, type=int, default=30)
        three.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    calls = {
        "kill": lambda: kill(given.kills, given.seed, given.words),
        "leak": lambda: leak(given.fits),
        "lack": lambda: soak_lack.lack(given.takings, given.seed),
        "signal": lambda: soak_lack.signals(given.signals, given.seed),
    }
    sys.exit(calls[given.command]())
