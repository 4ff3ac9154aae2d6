"""Section n: training on a pack in little memory, against the same images in memory; o: against peers' streams.

The limit of memory is what the same training on a small pack takes, and a tenth of the pack's size; see `limited`.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from scripts.benchmark.bench import ROOT, Bench, run
from scripts.benchmark.tutorials import ON_CPU

RESNET = ["--model.backbone", "Torchvision", "--model.backbone.name", "resnet18"]
SIDE, IMAGES, FEW, BATCH = 128, 40_000, 5_000, 64  # 2 GB; mean and std are of 4,096 images of both
NETWORKS = {"LeNet5": (["--model.backbone", "LeNet5"], 60), "ResNet-18": (RESNET, 16)}  # and steps
FITS = 3  # on a small pack, which tell what a training takes
PEER = Path(__file__).with_name("peer_streams.py")
PEER_IMAGES, PEER_STEPS, PEERS = 8_000, 60, ("webdataset", "litdata")
LAST = "runs/*/*/checkpoints/last.ckpt"
GROUPS = {"v1": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), "v2": ("/sys/fs/cgroup", "memory.max")}


class Trained(NamedTuple):
    """What a fit took."""

    speed: float  # images/s
    own: int  # most bytes of memory that were the process's own; pages of mapped files do not count
    data: int  # most bytes that RLIMIT_DATA counts: what may be written to, used or not
    by: str = "no limit"


def packs(bench: Bench) -> None:
    """Pieces of the flowers' photos, as an array in memory and as a memory-mapped pack."""
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), 640 if bench.quick else IMAGES
        for part, images in (("few", min(FEW, count)), ("all", count)):
            write_photos(Path(bench.root) / "flowers5", folder / f"{part}.npz", images)
            run("-m", "vision_zoo", "pack", f"{part}.npz", "--output", f"{part}.vz", folder=name)
        tenth = max((folder / "all.vz").stat().st_size // 10, 2**26)
        for network, (words, steps) in NETWORKS.items():
            # The most of some, for a training's own memory varies by hundreds of MB.
            few = max((train(folder, "Pack", "few.vz", words, steps) for _ in range(FITS)), key=lambda each: each.own)
            mine, theirs = bench.turns(
                lambda _, w=words, s=steps, f=few: train(folder, "Pack", "all.vz", w, s, (f, tenth)),
                lambda _, w=words, s=steps: train(folder, "ArrayFile", "all.npz", w, s),
            )
            figures = {"more memory": (max(each.own for each in mine) - few.own) / 1e6}
            speeds, notes = [[each.speed for each in side] for side in (mine, theirs)], (f"{steps} steps", mine[0].by)
            bench.row("n", f"{network}, {count:,} photos", *speeds, "images/s", *notes, figures=figures)


def write_photos(photos: Path, target: Path, count: int) -> None:
    """Random pieces of photos, brought to 128 x 128 pixels, with their classes."""
    files = sorted(photos.glob("*/*.jpg"))
    classes = sorted({file.parent.name for file in files})
    rng = np.random.default_rng(0)
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    opened = [Image.open(file).convert("RGB") for file in files]
    places = rng.integers(len(files), size=count)
    for n, place in enumerate(places):
        side = rng.integers(SIDE // 2, SIDE + 1)
        left, top = rng.integers(SIDE - side + 1, size=2)
        images[n] = opened[place].resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    labels = np.array([classes.index(files[place].parent.name) for place in places])
    np.savez(target, images=images, labels=labels)


def fit(kind: str, path: Path, network: list[str], steps: int) -> list[str]:
    """The words of a fit in float32, of so many steps."""
    words = ["fit", "--data", kind, "--data.path", str(path), "--data.batch_size", str(BATCH), "--data.val_split", "64"]
    words += [*network, "--trainer.max_steps", str(steps), "--trainer.precision", "32-true", *ON_CPU]
    return [*words, "--trainer.max_epochs", "1", "--test_after_fit", "false"]


def train(
    folder: Path, kind: str, path: str, network: list[str], steps: int, limit: tuple[Trained, int] | None = None
) -> Trained:
    """A fit; a limit is what a smaller one took, and how many bytes it may take more."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        enter, by = stack.enter_context(limited(*limit)) if limit else ("true", "no limit")
        words = ["-m", "vision_zoo", *fit(kind, folder / path, network, steps)]
        log, seen = stack.enter_context((place / "log.txt").open("wb")), {"RssAnon": [0], "VmData": [0]}
        started = ["sh", "-c", f'{enter} && exec "$0" "$@"', sys.executable, *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(started, cwd=place, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            for name, values in seen.items():
                values += [1024 * int(value) for value in re.findall(rf"{name}:\s+(\d+)", status)]
            time.sleep(0.02)
        if process.returncode:
            end = (place / "log.txt").read_text()[-2000:]
            raise SystemExit(f"{' '.join(words)} ended with {process.returncode}, {by}:\n{end}")
        results = json.loads(next(place.glob("runs/*/*/results.json")).read_text())
        return Trained(float(results["train_images_per_second"]), *(max(values) for values in seen.values()), by)


@contextlib.contextmanager
def limited(few: Trained, more: int) -> Iterator[tuple[str, str]]:
    """A command by which a shell limits the memory of what it becomes, and the limit in words.

    A cgroup counts what is the process's own and the pages of files that it is the first to read; where none can be
    made, RLIMIT_DATA counts what may be written to, and no mapped files.
    """
    for version, (root, file) in GROUPS.items():
        group = Path(root) / f"vision_zoo_{os.getpid()}"
        with contextlib.suppress(OSError):  # it is not there, or another user's
            group.mkdir()
        try:
            if os.access(group / file, os.W_OK):
                (group / file).write_text(str(few.own + more))
                yield f"echo $$ > {group}/cgroup.procs", f"{(few.own + more) / 1e6:,.0f} MB by cgroup {version}"
                return
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
    yield f"ulimit -d {(few.data + more) // 1024}", f"{(few.data + more) / 1e6:,.0f} MB by RLIMIT_DATA"


def streams(bench: Bench) -> None:
    """The same network on the same photos by webdataset and litdata, and what a kill in mid-epoch does to each."""
    if not bench.peers:
        bench.console.print("o: left out, for it needs --peers with the Python of an environment that has both of them")
        return
    count, steps = (640, 8) if bench.quick else (PEER_IMAGES, PEER_STEPS)
    network = NETWORKS["LeNet5"][0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(Path(bench.root) / "flowers5", folder / "a.npz", count)
        run("-m", "vision_zoo", "pack", "a.npz", "--output", "a.vz", folder=name)
        kept = resumes(folder, fit("Pack", folder / "a.vz", network, steps))
        for peer in PEERS:
            job = {"peer": peer, "images": str(folder / "a.npz"), "folder": str(folder / peer), "steps": steps}
            ask(bench.peers, {**job, "task": "write"})
            for workers in (0, 1):
                mine, theirs = bench.turns(
                    lambda _: train(folder, "Pack", "a.vz", network, steps).speed,
                    lambda _, j=job, w=workers: ask(bench.peers, {**j, "task": "speed", "workers": w}),
                )
                said = ask(bench.peers, {**job, "task": "resume", "workers": workers})
                notes = f"{steps} steps", f"ours {kept}, theirs {said}"
                bench.row("o", f"LeNet5, {peer}, workers: {workers}", mine, theirs, "images/s", *notes)


def ask(python: str, job: dict[str, Any]) -> Any:
    """What peer_streams.py answers."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        run(str(PEER), "job.json", folder=folder, python=python)
        return json.loads((Path(folder) / "answer.json").read_text())


def resumes(folder: Path, words: list[str]) -> str:
    """Whether a fit that is killed in mid-epoch ends with the weights of one that is not."""
    weights = list[dict[str, torch.Tensor]]()
    for killed in (False, True):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            command = ["-m", "vision_zoo", *words, "--save_every_minutes", "0.0001"]
            if killed:
                environment, log = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.DEVNULL
                process = subprocess.Popen(
                    [sys.executable, *command], cwd=name, env=environment, stdout=log, stderr=log
                )
                while process.poll() is None and not [*Path(name).glob(LAST)]:
                    time.sleep(0.01)
                process.kill()
                assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
                command += ["--ckpt_path", "last"]
            run(*command, folder=name)
            weights.append(torch.load(next(Path(name).glob(LAST)), weights_only=True)["state_dict"])
    return "the same" if all(torch.equal(value, weights[1][key]) for key, value in weights[0].items()) else "other"
