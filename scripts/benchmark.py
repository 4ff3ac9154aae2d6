"""What vision_zoo's speed is, against the loops that tutorials show and against a bare loop on tensors in memory.

    python scripts/benchmark.py --data_root data                  # everything, five times: hours
    python scripts/benchmark.py --data_root data --only a,b,e -n 3
    python scripts/benchmark.py --data_root data --json speed.json
    python scripts/benchmark.py --write                     # configs/speed.json into the README; --check compares

Both sides of a row run in turn, each turn beginning with another one, in one tree of processes; a row shows the
medians, their ratio and the smallest and largest ratio of a pair. Sections: m machine, a batches, b cost of a step,
c fit against the tutorials and d time to their accuracy (measured together), e augmentation, f the door, g first step,
h memory, i predict, j two processes.
"""

import argparse
import contextlib
import csv
import functools
import importlib.metadata
import io
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # in this process too, what is measured is this checkout

import reproduce  # noqa: E402  # the script beside this one, after the path to it

from vision_zoo.errors import VisionZooError  # noqa: E402  # of this checkout, after the path to it

ON_CPU = ("--trainer.accelerator", "cpu")  # as the loops that tutorials show
LEAST_AGREEING = 0.95  # of labels; JPEGs that are shrunk while they are decoded differ by some roundings
PACKAGES = ("vision_zoo", "lightning", "torch", "torchmetrics", "rich", "tensorboard")  # that a step may pass in
SAMPLED_EVERY = 0.0002  # seconds
WARM_UP = 5  # steps of the tutorial's loop before its clock starts, where some steps stand for an epoch
SHORT_TEST = 0.2  # of the test images, after training that is too short for its accuracy to say much
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


@dataclass(frozen=True)
class System:
    """One network as its tutorial trains it."""

    config: str
    data: str
    backbone: str
    batch: int
    epochs: int
    optimizer: str = "Adam"
    lr: float = 0.001
    images: int = 60_000  # of training
    steps: int | None = None  # so many steps stand for an epoch where one takes minutes; see to_accuracy too
    iterations: int | None = None  # of the tutorial, where its epochs are of more images than ours

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return (3, 32, 32) if self.data == "CIFAR10" else (1, 28, 28)


SYSTEMS = {
    "small_cnn": System("small_cnn_mnist", "MNIST", "SmallCNN", 50, 1),
    "mlp": System("mlp_mnist", "MNIST", "MLP", 100, 5, "SGD", 0.01),
    "simple_cnn": System("simple_cnn_mnist", "MNIST", "SimpleCNN", 100, 5, lr=0.01),
    "lenet5": System("lenet5_mnist", "MNIST", "LeNet5", 100, 5),
    "dnn_fashion": System("dnn_fashion_mnist", "FashionMNIST", "DNN", 100, 6, images=55_000, iterations=3000),
    "cnn_fashion": System("cnn_fashion_mnist", "FashionMNIST", "FashionCNN", 100, 6, images=55_000, iterations=3000),
    "cnn": System("cnn_mnist", "MNIST", "CNN", 128, 20, images=48_000, steps=100),
    "alexnet": System("alexnet_cifar10", "CIFAR10", "AlexNet", 32, 50, images=50_000, steps=200),
    "resnet18": System("resnet18_cifar10", "CIFAR10", "ResNet", 32, 50, images=50_000, steps=40),
}


# ------------------------------------------------------------------------------------------- the tutorials' own loops


class Pictures(Dataset[tuple[Any, int]]):
    """Images in memory, given out one by one as pictures, as torchvision's data sets do."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.labels, self.transform = images.permute(0, 2, 3, 1).numpy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def pictures(system: System, root: str, train: bool) -> Dataset[Any]:
    """The data set as tutorials build it."""
    to_tensor = torchvision.transforms.ToTensor()
    datamodule(system, root)  # its files are torchvision's
    if system.data != "CIFAR10":
        return getattr(torchvision.datasets, system.data)(root, train=train, transform=to_tensor)
    half = torchvision.transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    both = torchvision.transforms.Compose([to_tensor, half])
    try:
        return torchvision.datasets.CIFAR10(root, train=train, transform=both)
    except RuntimeError:  # files that are not the published ones byte for byte
        return Pictures(*datamodule(system, root).split_images("train" if train else "test"), both)


def tutorial(system: System, root: str, steps: int | None, seed: int) -> dict[str, float]:
    """Train for an epoch, or for some steps of it, and test, as the tutorials do."""
    torch.manual_seed(seed)
    train: Dataset[Any] = Subset(pictures(system, root, True), range(system.images))
    train_loader = DataLoader(train, batch_size=system.batch, shuffle=True)
    test = pictures(system, root, False)
    if steps:
        test = Subset(test, range(round(len(test) * SHORT_TEST)))  # type: ignore[arg-type]  # they have a length
    test_loader = DataLoader(test, batch_size=system.batch)
    model = network(system)
    criterion = nn.CrossEntropyLoss()
    optimizer = getattr(torch.optim, system.optimizer)(model.parameters(), lr=system.lr)

    seen, began = 0, time.perf_counter()
    model.train()
    for step, (images, labels) in enumerate(train_loader):
        if step == steps:
            break
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        seen += len(labels)
        if steps and step + 1 == WARM_UP:
            seen, began = 0, time.perf_counter()
    seconds = time.perf_counter() - began

    correct = total = 0
    model.eval()
    with torch.no_grad():
        for images, labels in test_loader:
            predicted = model(images).argmax(1)
            correct += int((predicted == labels).sum())
            total += len(labels)
    return {"images_per_second": seen / seconds, "accuracy": correct / total}


def network(system: System) -> nn.Module:
    """The network alone, a plain module."""
    from vision_zoo import backbones

    return getattr(backbones, system.backbone)(system.shape, 10)


def datamodule(system: System, root: str) -> Any:
    """The data as vision_zoo reads it, downloaded where it is missing."""
    from vision_zoo import data

    found = getattr(data, system.data)(root=root, batch_size=system.batch, val_split=0)
    found.prepare_data()
    return found


# -------------------------------------------------------------------------------------------------------------- rows


@dataclass
class Row:
    """One comparison; `figures` are what else has a target, by the names in MOST, in the units there."""

    section: str
    what: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    lowest: float
    highest: float
    n: int
    note: str = ""
    recipe: str = ""
    machine: str = ""
    commit: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Bench:
    """Runs both sides in turn and keeps the rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.root = str(Path(options.data_root).resolve())
        self.n = options.n or (2 if options.quick else 5)
        self.quick: bool = options.quick
        self.sections = options.only.split(",") if options.only else list(SECTIONS)
        self.systems = options.systems.split(",") if options.systems else list(SYSTEMS)
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {}
        self.console = Console()

    def row(
        self,
        section: str,
        what: str,
        ours: list[float],
        theirs: list[float],
        unit: str,
        note: str = "",
        recipe: str = "",
        figures: dict[str, float] | None = None,
        in_turn: bool = True,
    ) -> None:
        """Keep a comparison; of seconds less is better, of rates more, and a ratio above 1 is in our favour.

        Of sides that were not measured in turn, every run of the one makes a pair with every run of the other.
        """
        rate = unit.endswith("/s")
        matched = zip(ours, theirs, strict=True) if in_turn else itertools.product(ours, theirs)
        pairs = [a / b if rate else b / a for a, b in matched]
        a, b = statistics.median(ours), statistics.median(theirs)
        ratio = a / b if rate else b / a
        row = Row(
            section,
            what,
            a,
            b,
            unit,
            ratio,
            min(pairs),
            max(pairs),
            min(len(ours), len(theirs)),
            note,
            recipe,
            surroundings(),
            reproduce.commit(),
            figures or {},
        )
        self.rows.append(row)
        spread = f"{row.lowest:.2f}-{row.highest:.2f}"
        self.console.print(
            f"{section} {what}: {shown(a)} against {shown(b)} {unit}, {row.ratio:.2f}x ({spread}) {note}"
        )

    def turns(self, *sides: Callable[[int], Any]) -> list[list[Any]]:
        """Each side n times, in turn, every turn beginning with another one; it gets the number of the turn."""
        results: list[list[Any]] = [[] for _ in sides]
        for turn in range(self.n):
            for place in range(len(sides)):
                number = (turn + place) % len(sides)
                results[number].append(sides[number](turn))
        return results

    def seconds(self, call: Callable[[], object]) -> float:
        """How long a call takes."""
        began = time.perf_counter()
        call()
        return time.perf_counter() - began


def run(*words: str, folder: str | None = None, **environment: str) -> str:
    """Run a process of its own and give its output."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def child(bench: Bench, task: str, *words: str, **environment: str) -> Any:
    """Run a task of this script in a process of its own."""
    out = run(str(Path(__file__)), "--data_root", bench.root, "--task", task, *words, **environment)
    return json.loads(out.strip().splitlines()[-1])


def fit(*words: str, **environment: str) -> dict[str, Any]:
    """`vision_zoo fit` in a process and a folder of its own; gives results.json."""
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "vision_zoo", "fit", *words, *ON_CPU, folder=folder, **environment)
        return dict(json.loads(next(Path(folder).glob("runs/*/version_0/results.json")).read_text()))


# ------------------------------------------------------------------------------------------------------------ sections


def processor() -> str:
    """What this processor is called; one name may stand for several models, which their numbers tell apart."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{word} {said[name]}" for word, name in (("family", "cpu family"), ("model", "model")) if name in said]
    return ", ".join([said.get("model name", platform.machine()), *numbers])


def surroundings() -> str:
    """What rows are compared under: rows of others stay apart in the file."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning"))
    return f"{processor()}, {torch.get_num_threads()} threads, {versions}"


def machine(bench: Bench) -> None:
    """The peaks that no code can pass."""
    size = 1024 if bench.quick else 2048
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, size, size).to(dtype)
        a @ b
        best = min(bench.seconds(lambda a=a, b=b: a @ b) for _ in range(10))
        bench.facts[f"GFLOP/s of a matrix product in {str(dtype)[6:]}"] = round(2 * size**3 / best / 1e9)
    channels, images = 128, torch.randn(16 if bench.quick else 64, 128, 16, 16)
    images = images.to(memory_format=torch.channels_last).requires_grad_()
    convolution = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)

    def forward_and_backward(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = convolution(images)
        made.backward(made)

    for bf16 in (False, True):
        best = min(bench.seconds(lambda bf16=bf16: forward_and_backward(bf16)) for _ in range(10))
        operations = 3 * 2 * 9 * channels**2 * images.numel() / channels  # two products back for each one forth
        what = f"GFLOP/s of a 3x3 convolution, forward and backward, in {'bfloat16' if bf16 else 'float32'}"
        bench.facts[what] = round(operations / best / 1e9)
    source = torch.empty(64 * 2**20)
    target = torch.empty_like(source)
    best = min(bench.seconds(lambda: target.copy_(source)) for _ in range(10))
    bench.facts["GB/s of a copy (read and written)"] = round(2 * source.numel() * 4 / best / 1e9, 1)
    avx512 = "AVX512" if torch.cpu._is_avx512_bf16_supported() else "emulation"
    bench.facts["bf16 by"] = "AMX" if torch.cpu._is_amx_tile_supported() else avx512
    bench.console.print(bench.facts)


def batches(bench: Bench) -> None:
    """Batches alone, without a network."""
    system = SYSTEMS["lenet5"]
    data = datamodule(system, bench.root)
    data.setup("fit")
    loader = DataLoader(pictures(system, bench.root, True), batch_size=100, shuffle=True)
    limit = 50 if bench.quick else 600

    def theirs(_: int) -> float:
        began, seen = time.perf_counter(), 0
        for step, (images, _) in enumerate(loader):
            if step == limit:
                break
            seen += len(images)
        return seen / (time.perf_counter() - began)

    def ours(_: int) -> float:
        began = time.perf_counter()
        seen = sum(len(labels) for _, labels in data.train_dataloader())
        return seen / (time.perf_counter() - began)

    def converted(_: int) -> float:
        began, seen = time.perf_counter(), 0
        for images, _ in data.train_dataloader():
            seen += len(images.float().div_(255))
        return seen / (time.perf_counter() - began)

    note = f"theirs from {limit} of 600 batches" if limit < 600 else ""
    for name, side in (("as uint8, which the network takes", ours), ("as float32 in [0, 1], as theirs", converted)):
        side(0)
        bench.row("a", f"batches of MNIST, 100 images, {name}", *bench.turns(side, theirs), "images/s", note)


def step_cost(bench: Bench) -> None:
    """Cost of a step: fit with everything on, Lightning's loop with nothing on, and a bare loop.

    All three run in this process, so the other two also keep the memory that a step frees, which fit sets up first; and
    none asks before each step whether a GPU records a graph, as Adam does unless fit keeps it from that. Each tells,
    too, how much of a step is spent outside of the network, its backward pass and the optimizer's kernel, which are the
    same code on all sides: that difference is what a loop costs, without the noise of the arithmetic. Last, one more
    run of fit tells whose code that time passes in, and the arithmetic's speed is told beside it, for comparison with
    the peaks of this machine.
    """
    for name in bench.systems:
        system = SYSTEMS[name]
        slow = system.steps is not None
        steps = (12 if slow else 120) if bench.quick else (180 if slow else 600)
        sides = [
            lambda _, s=system, n=steps, kind=kind: in_process(bench, s, n, kind)
            for kind in ("full", "lightning", "bare")
        ]
        turns = bench.turns(*sides)
        full, lightning, bare = ([whole for whole, _ in side] for side in turns)
        rests = [[rest for _, rest in side] for side in turns]
        sides_of = {
            "a step": (full, bare), "ours of a step": (full, lightning),
            "outside": (rests[0], rests[2]), "ours outside": (rests[0], rests[1]),
        }  # fmt: skip
        figures = {what: statistics.median(a) - statistics.median(b) for what, (a, b) in sides_of.items()}
        more = {
            what: f"{figures[what]:+.2f} ({min(x - y for x, y in zip(a, b, strict=True)):+.2f} to "
            f"{max(x - y for x, y in zip(a, b, strict=True)):+.2f})"
            for what, (a, b) in sides_of.items()
        }
        rest, plain_rest = statistics.median(rests[0]), statistics.median(rests[2])
        samples: Counter[str] = Counter()
        in_process(bench, system, steps, "full", samples)
        passes = ", ".join(f"{n / samples.total() * rest:.2f} in {where}" for where, n in samples.most_common())
        speed = operations(system) / (statistics.median(bare) - plain_rest)
        note = (
            f"{more['a step']} ms, of which ours {more['ours of a step']}; outside of network and optimizer "
            f"{rest:.2f} against {plain_rest:.2f} ms, {more['outside']}, of which ours {more['ours outside']}; fit's "
            f"{rest:.2f} pass: {passes}; inside {speed:,.0f} GFLOP/s; from {steps} steps"
        )
        bench.row("b", f"{name} {system.batch}, step", full, bare, "ms", note, figures=figures)


def operations(system: System) -> float:
    """Millions of the operations in a step's products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        network(system)(torch.rand(system.batch, *system.shape)).sum().backward()
    return counter.get_total_flops() / 1e6


def in_process(
    bench: Bench, system: System, steps: int, kind: str, samples: Counter[str] | None = None
) -> tuple[float, float]:
    """One of the three loops, with the same network, batches, optimizer and precision in each.

    `samples`, where given, counts at regular moments outside of the arithmetic whose code runs, by package; a compiled
    function of torch's counts for the package whose line calls it.

    Returns:
        ms per step, and how many of them outside of the network, its backward pass and the optimizer's kernel.
    """
    from vision_zoo import backbones

    inside = 0.0  # seconds so far
    within = False  # the arithmetic

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside, within
            within, began = True, time.perf_counter()
            given = call(*args, **kwargs)
            inside += time.perf_counter() - began
            within = False
            return given

        return watched

    marks: list[tuple[float, float]] = []  # the start of each step: clock, and seconds inside before it
    skip = min(60, steps // 3)  # past the first logged step, which imports and opens what later ones use

    def sample(_: int, frame: FrameType | None) -> None:
        if samples is None or within or not skip < len(marks) < steps or (frame and frame.f_globals is globals()):
            return
        while frame and (package := frame.f_globals.get("__name__", "").partition(".")[0]) not in PACKAGES:
            frame = frame.f_back
        if frame:
            samples[package] += 1

    arithmetic = ((getattr(backbones, system.backbone), "forward"), (Tensor, "backward"))
    with contextlib.ExitStack() as stack:
        for owner, name in (*arithmetic, (torch, f"_fused_{system.optimizer.lower()}_")):
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        if samples is not None:
            stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, sample))
            signal.setitimer(signal.ITIMER_REAL, SAMPLED_EVERY, SAMPLED_EVERY)
            stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        loop(bench, system, steps, kind, lambda: marks.append((time.perf_counter(), inside)))
    (began, before), (ended, after), counted_ = marks[skip], marks[-1], len(marks) - 1 - skip
    whole = 1000 * (ended - began) / counted_
    return whole, whole - 1000 * (after - before) / counted_


class _Terminal(io.StringIO):
    """Has the progress bar drawn, into nothing."""

    def isatty(self) -> bool:
        """Said to be a terminal."""
        return True


def loop(bench: Bench, system: System, steps: int, kind: str, mark: Callable[[], None]) -> None:
    """Train for some steps and mark the start of each."""
    import lightning.pytorch as pl

    from vision_zoo.__main__ import main
    from vision_zoo.classifier import Classifier
    from vision_zoo.training.performance import SMALLEST_BF16_BATCH, TrainingPrecision, has_fast_bf16

    bf16 = has_fast_bf16(torch.device("cpu")) and system.batch >= SMALLEST_BF16_BATCH
    if kind == "full":
        original = Classifier.training_step

        @functools.wraps(original)  # Lightning looks at its parameters
        def training_step(self: Classifier, *batch: Any) -> Tensor:
            mark()
            return original(self, *batch)

        words = [
            "fit", "--config", system.config, "--data.root", bench.root, "--data.val_split", "0",
            "--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(steps), "--test_after_fit", "false",
            *ON_CPU,
        ]  # fmt: skip
        words += ["--trainer.val_check_interval", "null"] if "fashion" in system.config else []
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(_Terminal()),
            patch.object(Classifier, "training_step", training_step),
        ):
            code = main(words)
        assert code == 0, f"vision_zoo {' '.join(words)} ended with {code}"
        return

    data = datamodule(system, bench.root)
    data.setup("fit")
    scale, shift = (1 / 127.5, -1.0) if system.data == "CIFAR10" else (1 / 255, 0.0)
    model = network(system).to(memory_format=torch.channels_last)
    optimizer = getattr(torch.optim, system.optimizer)(model.parameters(), lr=system.lr, fused=True)
    optimizer._accelerator_graph_capture_health_check = lambda: None

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        images = (images * scale + shift).contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(model(images).float(), labels)

    if kind == "bare":
        for step, (images, labels) in enumerate(data.train_dataloader()):
            mark()
            if step == steps - 1:
                break
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
                loss = loss_of(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return

    class Bare(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            mark()
            return loss_of(*batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    class Batches(pl.LightningDataModule):  # a loader alone would spare Lightning the question whose hooks to call
        def train_dataloader(self) -> Any:
            return data.train_dataloader()

    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    plugins = [TrainingPrecision("cpu")] if bf16 else []
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=steps, accelerator="cpu", plugins=plugins, **off)
    trainer.fit(Bare(), datamodule=Batches())


def against_tutorials(bench: Bench) -> None:
    """Against the tutorial's own loop: fit as shipped (section c) and fit to the published accuracy (section d)."""
    for name in bench.systems:
        system = SYSTEMS[name]
        limit = (60 if system.steps is None else max(system.steps // 4, 5)) if bench.quick else system.steps
        words = ["--config", system.config, "--data.root", bench.root, "--trainer.max_epochs", "1"]
        if limit:
            words += ["--trainer.limit_train_batches", str(limit), "--trainer.limit_val_batches", "1"]
            words += ["--trainer.limit_test_batches", str(SHORT_TEST)]
            words += ["--trainer.val_check_interval", str(limit)] if "fashion" in name else []
        fast = ["--config", f"{system.config}_fast", "--data.root", bench.root]
        fast += ["--trainer.limit_train_batches", "20", "--trainer.max_epochs", "1"] if bench.quick else []

        trains = "d" in bench.sections and (system.steps is None or bench.quick)
        loops, shipped, trained = bench.turns(
            lambda seed, name=name, limit=limit: child(bench, "tutorial", name, str(limit or 0), str(seed)),
            lambda seed, words=words: fit(*words, *seeds(seed)) if "c" in bench.sections else None,
            lambda seed, words=fast, trains=trains: fit(*words, *seeds(seed)) if trains else None,
        )
        if "c" in bench.sections:
            as_shipped(bench, system, name, limit, shipped, loops)
        if "d" in bench.sections:
            to_accuracy(bench, system, name, limit, trained if trains else None, loops)


def seeds(seed: int) -> list[str]:
    """The options of a run with another start and another order of the images, as the tutorial's loop has them."""
    return ["--seed_everything", str(seed), "--data.seed", str(seed)]


Results = list[dict[str, Any]]


def as_shipped(bench: Bench, system: System, name: str, limit: int | None, shipped: Results, loops: Results) -> None:
    """Images per second, and whether both learn the same."""
    mine = [100 * r["metrics"]["test/accuracy"] for r in shipped]
    plain = [100 * r["accuracy"] for r in loops]
    allowed = max(max(mine) - min(mine), max(plain) - min(plain))
    gap = statistics.median(mine) - statistics.median(plain)
    same = "accuracy within the seeds' spread" if gap >= -allowed else "ACCURACY LOST" if len(mine) > 1 else "one run"
    same = "too short to compare accuracy" if limit and gap >= -allowed else same
    note = f"{same}: {statistics.median(mine):.2f} ({min(mine):.2f}-{max(mine):.2f}) against "
    note += f"{statistics.median(plain):.2f} ({min(plain):.2f}-{max(plain):.2f}) % after "
    note += f"{limit} steps" if limit else "one epoch"
    rates = [r["train_images_per_second"] for r in shipped], [r["images_per_second"] for r in loops]
    bench.row("c", f"{name} {system.batch}, training", *rates, "images/s", note, system.config)


def to_accuracy(
    bench: Bench, system: System, name: str, limit: int | None, trained: Results | None, loops: Results
) -> None:
    """Seconds to the published accuracy; the tutorial's from one of its epochs.

    Where training takes minutes, ours are of the runs that reproduce.py has made, which the note tells.
    """
    config = f"{system.config}_fast"
    groups = reproduce.groups_of(reproduce.Project(ROOT))
    group = next((g for g in groups if (g.recipe, g.options) == (config, "")), None)
    threads = torch.get_num_threads()
    here = f"{processor().partition(', family')[0]}, {threads} thread{'s' * (threads > 1)}"  # as results.json has it
    if trained is not None:
        seconds = [r["fit_seconds"] for r in trained]
        reached = [100 * r["metrics"]["test/accuracy"] for r in trained]
        copy = "JPEG copy" in (trained[0]["data"]["note"] or "")
        whose = ""
    elif group is not None and group.all("hardware") == here:
        seconds = [float(row["fit_seconds"]) for row in group.rows]
        reached = [100 * float(row["test/accuracy"]) for row in group.rows]
        copy = "JPEG copy" in group.data
        whose = f"; ours from configs/results.csv, on {here} (no model recorded), "
        whose += f"commit {group.all('commit')}, not in turn"
    else:
        bench.console.print(f"d {name}: not measured yet on {here}; run: python scripts/reproduce.py {config}")
        return
    fast = (ROOT / "configs" / f"{config}.yaml").read_text()
    published = float(fast.split("Published: ")[1].split(" %")[0]) - (reproduce.JPEG_COST if copy else 0)
    full = -(-system.images // system.batch)
    enough = "reached" if statistics.median(reached) >= published else "NOT REACHED"
    note = f"{enough} by the median: {statistics.median(reached):.2f} ({min(reached):.2f}-{max(reached):.2f}) %; "
    note += "theirs: "
    times = system.iterations / full if system.iterations else system.epochs
    if copy:
        whose += f"; {reproduce.JPEG_COST:g} points below the published figure, allowed to the JPEG copy of the images"
    note += f"{times:.3g} times " + (f"an epoch as {limit} of its {full} steps tell" if limit else "its epoch")
    theirs = [system.images / r["images_per_second"] * times for r in loops]
    what, in_turn = f"{name}, to {published:.2f} %", trained is not None
    bench.row("d", what, seconds, theirs, "s", note + whose, system.config, in_turn=in_turn)


def augmentation(bench: Bench) -> None:
    """Flip and crop of a batch against the same transforms image by image."""
    from vision_zoo.transforms import RandomCrop, RandomHorizontalFlip, apply_transforms

    in_process(bench, SYSTEMS["simple_cnn"], 120, "full")  # so that this process's memory lies as where one trains
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    ours_ = [RandomHorizontalFlip(), RandomCrop(padding=4)]
    theirs_ = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4)])

    def fifty_batches() -> None:
        for _ in range(50):  # each is let go of before the next, as in training
            apply_transforms(ours_, images)

    fifty_batches()
    ours, theirs = bench.turns(
        lambda _: bench.seconds(fifty_batches) / 50,
        lambda _: bench.seconds(lambda: torch.stack([theirs_(image) for image in images])),
    )
    model = network(SYSTEMS["resnet18"]).train()
    batch = images[:32] if bench.quick else images[:128]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch.float() / 255).float().square().mean()
        loss.backward()

    step()
    share = 100 * statistics.median(ours) / (bench.seconds(step) * 512 / len(batch))
    note = f"{share:.2f} % of a bf16 ResNet-18 step"
    bench.row("e", "flip + crop, 512x3x32x32", ours, theirs, "s", note, figures={"share of a step": share})


def door(bench: Bench) -> None:
    """Commands that need no torch."""
    with tempfile.TemporaryDirectory() as folder:  # without past runs, which list would read
        for word in ("--help", "--version", "list"):
            sides = bench.turns(
                lambda _, word=word: bench.seconds(lambda: run("-m", "vision_zoo", word, folder=folder)),
                lambda _: bench.seconds(lambda: run("-c", "import torch", folder=folder)),
            )
            bench.row("f", f"vision_zoo {word} against import torch", *sides, "s")


FIRST_STEP = """
import os
from torch.optim.optimizer import register_optimizer_step_post_hook
def leave(optimizer, *_):
    if len(optimizer.param_groups[0]["params"]) > 1:  # fit tries the optimizer on one weight before
        os._exit(0)
register_optimizer_step_post_hook(leave)
from vision_zoo.__main__ import main
raise SystemExit(main(["fit", "--trainer.accelerator", "cpu"]))
"""


def first_step(bench: Bench) -> None:
    """From the start of the process to the first step of the optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        sides = bench.turns(
            lambda _: bench.seconds(lambda: run("-c", FIRST_STEP, folder=folder)),
            # Both leave without the interpreter's clearing up.
            lambda _: bench.seconds(lambda: run("-c", "import os, lightning.pytorch.cli; os._exit(0)")),
        )
    bench.row("g", "fit on MNIST5k to its first step against import lightning.pytorch.cli", *sides, "s")


def memory(bench: Bench) -> None:
    """Peak of fit above its libraries, against that of the bare loop."""
    for name in ("mlp", "cnn"):
        steps = "20" if bench.quick or name == "cnn" else "0"
        sides = bench.turns(
            lambda _, name=name, steps=steps: child(bench, "memory", name, steps, "fit"),
            lambda _, name=name, steps=steps: child(bench, "memory", name, steps, "bare"),
        )
        more = statistics.median(sides[0]) - statistics.median(sides[1])
        note = f"{more:+.0f} MB; allowed +100 MB"
        bench.row("h", f"{name}, memory of fit", *sides, "MB", note, figures={"more memory": more})


def memory_of(system: System, root: str, steps: int, kind: str) -> float:
    """Peak memory of this process above what it holds with its libraries imported, MB."""
    import vision_zoo.backbones
    import vision_zoo.data

    if kind == "fit":
        import vision_zoo.cli.main  # noqa: F401  # its import is what is measured
    from vision_zoo.__main__ import main

    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    if kind == "fit":
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            words = ["--trainer.max_epochs", "1", *ON_CPU]
            words += ["--trainer.limit_train_batches", str(steps)] if steps else []
            with contextlib.redirect_stdout(io.StringIO()):
                assert main(["fit", "--config", system.config, "--data.root", root, *words]) == 0
    else:
        train = getattr(torchvision.datasets, system.data)(root, train=True)
        images, labels = train.data.unsqueeze(1), train.targets
        model = network(system)
        optimizer = getattr(torch.optim, system.optimizer)(model.parameters(), lr=system.lr)
        for step, batch in enumerate(torch.randperm(len(images)).split(system.batch)):
            if steps and step == steps:
                break
            loss = F.cross_entropy(model(images[batch] / 255), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            test = getattr(torchvision.datasets, system.data)(root, train=False)
            for batch in test.data.unsqueeze(1).split(system.batch):
                model(batch / 255)
    # Not getrusage, whose peak a process takes over from the one that started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e6 - before


def predict(bench: Bench) -> None:
    """A folder of JPEGs through the command, against a loop of one picture at a time."""
    count = 200 if bench.quick else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = ["--trainer.max_epochs", "1", "--test_after_fit", "false"]
        run("-m", "vision_zoo", "fit", *short, *ON_CPU, folder=name)
        checkpoint = str(next(folder.glob("runs/*/*/checkpoints/best.ckpt")))
        for side in (32, 500):
            target = folder / f"jpeg{side}"
            target.mkdir()
            files = [io.BytesIO() for _ in range(50)]
            for file, noise in zip(files, _noises(len(files), side), strict=True):
                Image.fromarray(noise).save(file, "jpeg", quality=90)
            for number in range(count):
                (target / f"{number:05}.jpg").write_bytes(files[number % len(files)].getvalue())
            words = ["predict", "--ckpt_path", checkpoint, "--images", str(target), "--output", f"{name}/p.csv"]
            words += ON_CPU
            whole: tuple[list[float], list[float]] = ([], [])

            def ours(words: list[str] = words, whole: list[float] = whole[0]) -> float:
                began = time.perf_counter()
                said = run("-m", "vision_zoo", *words)
                whole.append(time.perf_counter() - began)
                return float(said.split(" pictures in ")[1].split(" s ")[0])

            labels: list[str] = []  # of the loop, the same in every turn

            def theirs(target: Path = target, whole: list[float] = whole[1], labels: list[str] = labels) -> float:
                began = time.perf_counter()
                seconds, labels[:] = child(bench, "predict", checkpoint, str(target))
                whole.append(time.perf_counter() - began)
                return float(seconds)

            sides = bench.turns(lambda _, ours=ours: ours(), lambda _, theirs=theirs: theirs())
            a, b = (statistics.median(times) for times in whole)
            with Path(name, "p.csv").open(newline="") as file:
                same = [row["label"] == label for row, label in zip(csv.DictReader(file), labels, strict=True)]
            agree = sum(same) / len(same)
            note = f"without start-up on both sides; with it {a:.1f} against {b:.1f} s, {b / a:.2f}x; the same label "
            note += f"of {len(set(labels))} for {100 * agree:.1f} % of the pictures"
            note += ", ACCURACY LOST" if agree < LEAST_AGREEING else ""
            bench.row("i", f"predict {count:,} JPEGs of {side} px", *sides, "s", note)


def _noises(count: int, side: int) -> Iterator[Any]:
    coarse = torch.randint(0, 256, (count, 3, 8, 8)).float()
    return iter(F.interpolate(coarse, size=(side, side), mode="bilinear").byte().permute(0, 2, 3, 1).numpy())


def predict_one_by_one(checkpoint: str, folder: str) -> tuple[float, list[str]]:
    """Seconds and labels of what somebody writes by hand: open, resize, normalise, one forward pass each."""
    from vision_zoo.classifier import Classifier

    model = Classifier.load_from_checkpoint(checkpoint)
    network_ = model.backbone.eval()
    to_tensor, resize = torchvision.transforms.ToTensor(), torchvision.transforms.Resize((28, 28))
    normalise = torchvision.transforms.Normalize(model.hparams["mean"], model.hparams["std"])
    prepare = torchvision.transforms.Compose([resize, to_tensor, normalise])
    paths = sorted(Path(folder).iterdir())
    labels, began = [], time.perf_counter()
    with torch.no_grad():
        for path in paths:
            image = Image.open(path).convert("L")
            labels.append(model.class_names[int(network_(prepare(image).unsqueeze(0)).argmax(1))])
    return time.perf_counter() - began, labels


def two_processes(bench: Bench) -> None:
    """Two processes of one thread against one of two threads."""
    steps = 6 if bench.quick else 40
    words = ["--config", "resnet18_cifar10", "--data.root", bench.root, "--trainer.max_epochs", "1"]
    words += ["--test_after_fit", "false"]

    def images(limit: int, *more: str, threads: int) -> float:
        result = fit(*words, "--trainer.limit_train_batches", str(limit), *more, OMP_NUM_THREADS=str(threads))
        return float(result["train_images_per_second"])

    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    sides = bench.turns(lambda _: images(steps, *ddp, threads=1), lambda _: images(2 * steps, threads=2))
    bench.row("j", "resnet18, two processes", *sides, "images/s", f"from {2 * steps} steps")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "m": machine, "a": batches, "b": step_cost, "c": against_tutorials, "d": against_tutorials, "e": augmentation,
    "f": door, "g": first_step, "h": memory, "i": predict, "j": two_processes,
}  # fmt: skip
TITLES = {
    "a": "batches alone, as float32 like theirs, against torchvision's data, ToTensor and a DataLoader without workers",
    "b": "a step of fit with everything on, against a bare loop on tensors in memory",
    "c": "training as shipped, without validation and saving, against the tutorial's loop, which is float32 and has a "
    "DataLoader without workers",
    "d": "time of training, without start-up, to the published accuracy with `configs/<recipe>_fast.yaml` (another "
    "schedule, batch size, optimizer and augmentation, bf16, in ResNet-18 smaller images at first), against the epoch "
    "of the tutorial's loop times its epochs",
    "e": "augmentation of a batch, against torchvision's v2 image by image",
    "f": "commands that need no torch, against `import torch`",
    "g": "from the start of the process to the first step, against `import lightning.pytorch.cli`",
    "h": "peak memory above the imported libraries, against a bare loop in float32",
    "i": "predict on 10,000 pictures (50 different ones), without start-up, against PIL and one forward pass each",
    "j": "two processes of one thread, with batches of 32 each, against one of two threads with batches of 32",
}
TARGETS = {
    "a": ">= 100x", "b": "<= 0.55 ms, ours <= 0.15 ms; >= 0.75x to 0.98x by network",
    "c": ">= 2.2x geometric mean with AMX", "d": ">= 8x, none < 3x", "e": ">= 15x, < 5 %",
    "f": ">= 2x", "g": ">= 0.8x", "h": "<= +100 MB", "i": ">= 5x, >= 1.8x", "j": ">= 0.9x",
}  # fmt: skip
LEAST = {"a": 100, "d": 3, "e": 15, "f": 2, "g": 0.8, "j": 0.9}  # ratio of every row of a section
LEAST_OF_STEP = {  # in section b, where each may take 0.55 ms more than the bare loop, too
    "small_cnn": 0.8, "mlp": 0.75, "simple_cnn": 0.95, "lenet5": 0.9, "cnn_fashion": 0.95, "cnn": 0.97,
    "alexnet": 0.98, "resnet18": 0.98,
}  # fmt: skip
MOST = {  # of a row's figures, by section; of b, for the whole step and for what passes outside of the arithmetic
    "b": {
        "a step": (0.55, "ms"), "ours of a step": (0.15, "ms"),
        "outside": (0.55, "ms"), "ours outside": (0.15, "ms"),
    },
    "e": {"share of a step": (5, "%")},
    "h": {"more memory": (100, "MB")},
}  # fmt: skip
LEAST_WITH_AMX = 1.35, 2.2  # in section c: each, and their mean
LEAST_MEAN = 8  # in section d
LONG_STEP = 15  # ms
RESNET_EPOCHS = 15  # in which ResNet-18 by its tutorial's protocol passed its figure: resnet18_cifar10_15_epochs


def missed(row: Row, amx: bool = False) -> dict[str, str]:
    """The figures of a row that miss their targets, by their names; section c has some only on CPUs with AMX."""
    least = {"b": LEAST_OF_STEP.get(row.what.split()[0], 0), "i": 5 if "32 px" in row.what else 1.8} | LEAST
    least["c"] = LEAST_WITH_AMX[0] if amx else 0
    short = {"ratio": f"{row.ratio:.2f}x"} if row.ratio < least.get(row.section, 0) else {}
    for what, (most, unit) in MOST.get(row.section, {}).items():
        if row.figures[what] > most:
            short[what] = f"{row.figures[what]:+.2f} {unit}"
    return short | {word.lower(): "" for word in ("NOT REACHED", "ACCURACY LOST") if word in row.note}


def all_missed(rows: list[Row], with_amx: set[str]) -> str:
    """What the rows of a section miss, figure by figure."""
    short: dict[str, list[str]] = {}
    for row in rows:
        for figure, value in missed(row, row.machine in with_amx).items():
            short.setdefault(figure, []).append(f"{row.what.partition(',')[0]} {value}".strip())
    return "; ".join(f"{figure}: {', '.join(found)}" for figure, found in short.items())


def missed_mean(section: str, ratios: list[float], amx: bool) -> list[str]:
    """The mean of a section, if it misses its target."""
    least = {"c": LEAST_WITH_AMX[1] if amx else 0, "d": LEAST_MEAN}.get(section, 0)
    return ["the mean"] if statistics.geometric_mean(ratios) < least else []


def task(name: str, root: str, words: list[str]) -> Any:
    """What a child process does."""
    if name == "tutorial":
        return tutorial(SYSTEMS[words[0]], root, int(words[1]) or None, int(words[2]))
    if name == "memory":
        return memory_of(SYSTEMS[words[0]], root, int(words[1]), words[2])
    return predict_one_by_one(*words)


def shown(figure: float) -> str:
    """Four digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.4g}"


def counted(rows: list[Row], section: str) -> list[float]:
    """The ratios that a section's mean is of.

    The targets of c and d were set for the networks but dnn_fashion; of a, batches as uint8 spare what theirs do.
    """
    left_out = {"a": "uint8", "c": "dnn_fashion", "d": "dnn_fashion"}.get(section)
    return [r.ratio for r in rows if r.section == section and not (left_out and left_out in r.what)]


def means(rows: list[Row]) -> list[str]:
    """The geometric means of the sections with one row for each system."""
    found = {section: counted(rows, section) for section in "cd"}
    return [
        f"{section}: geometric mean {statistics.geometric_mean(r):.2f}x, lowest {min(r):.2f}x of {len(r)}"
        for section, r in found.items()
        if r
    ]


def show(bench: Bench) -> None:
    """The table for the terminal; the notes stand in the lines above it, where they have room."""
    table = Table("", "what", "ours", "theirs", "", "ratio", "spread", "n", "target")
    for r in bench.rows:
        spread = f"{r.lowest:.2f}-{r.highest:.2f}"
        figures = (shown(r.ours), shown(r.theirs), r.unit, f"{r.ratio:.2f}x", spread, str(r.n))
        table.add_row(r.section, r.what, *figures, TARGETS[r.section])
    bench.console.print(table, *means(bench.rows), sep="\n")


def merge(path: Path, bench: Bench) -> None:
    """Put the rows into a file, in place of older ones of the same name."""
    old = json.loads(path.read_text()) if path.exists() else {"machines": {}, "rows": []}
    # The rows of a recipe, whose name holds a target that may change, are found by the recipe.
    rows = {(row["section"], row["recipe"] or row["what"]): row for row in old["rows"]}
    rows |= {(row.section, row.recipe or row.what): asdict(row) for row in bench.rows}
    ordered = sorted(rows.values(), key=lambda row: row["section"])
    machines = old["machines"] | {surroundings(): bench.facts}
    machines = {name: facts for name, facts in machines.items() if any(row["machine"] == name for row in ordered)}
    path.write_text(json.dumps({"machines": machines, "rows": ordered}, indent=2) + "\n")


def in_words(rows: list[Row]) -> list[str]:
    """What the rows say in short, and what they leave out; nothing while a section or a network is missing."""
    found = {section: [row for row in rows if row.section == section] for section in "bcdfg"}
    if not all(found.values()) or min(len(found[section]) for section in "bcd") < len(SYSTEMS):
        return []
    c, d = counted(rows, "c"), counted(rows, "d")
    pace = statistics.geometric_mean(counted(rows, "b"))
    # Lightning's own cost: what of a row's difference is not ours; by the length of the bare loop's step.
    costs = sorted((row.theirs, row.figures["outside"] - row.figures["ours outside"]) for row in found["b"])
    least, long = costs[0], [cost for step, cost in costs if step > LONG_STEP]
    ours, torch_alone = found["g"][0].ours, statistics.median(row.theirs for row in found["f"])
    by_name = {row.what.partition(",")[0]: row for row in found["d"]}
    with_start = {name: (r.theirs + torch_alone) / (r.ours + ours) for name, r in by_name.items() if r.theirs < 60}
    told = ", ".join(f"{name} {ratio:.1f}x for {by_name[name].ratio:.1f}x" for name, ratio in with_start.items())
    share = RESNET_EPOCHS / SYSTEMS["resnet18"].epochs
    fewer, mean = by_name["resnet18"].ratio * share, statistics.geometric_mean(d) * share ** (1 / len(d))
    return [
        f"`fit` trains these networks {statistics.geometric_mean(c):.2g} times as fast as the loops of their tutorials "
        f"({min(c):.2g} to {max(c):.2g} times), and its steps run at {pace:.2f} of the speed of a bare loop.",
        "",
        f"- Of b: Lightning's loop alone costs {least[1]:.2f} ms where a step takes {least[0]:.1f} ms, but "
        f"{min(long):.2f} to {max(long):.2f} ms where it takes more than {LONG_STEP} ms, presumably since the "
        "arithmetic in between takes its code out of the caches.",
        f"- Of d: it counts the seconds of training. With the start of both programs, {ours:.1f} s (g) and, of torch "
        f"alone, {torch_alone:.1f} s (f), the shortest would be {told}.",
        f"- Of d: on the JPEG copy of CIFAR-10 its figures are {reproduce.JPEG_COST:g} points below the published "
        f"ones; and where the tutorial's ResNet-18 is given the {RESNET_EPOCHS} epochs in which a run of ours by its "
        f"protocol passed that figure, in place of its {SYSTEMS['resnet18'].epochs}, its "
        f"{by_name['resnet18'].ratio:.1f}x are {fewer:.1f}x, and the mean is {mean:.1f}x.",
    ]


def readme(root: Path) -> str:
    """README.md with the table of configs/speed.json between its marks."""
    said = json.loads((root / "configs" / "speed.json").read_text())
    rows = [Row(**row) for row in said["rows"]]
    lines = [*in_words(rows), "", "| | | ratio | target | falls short |", "|---|---|---|---|---|"]
    letters = {name: "ABCDEFGH"[place] for place, name in enumerate(said["machines"])}
    details = ["| | vision_zoo | compared with | | ratio | n | on, commit | |", "|---|---|---|---|---|---|---|---|"]
    amx = {name for name, facts in said["machines"].items() if facts.get("bf16 by") == "AMX"}
    for section, title in TITLES.items():
        mine = [row for row in rows if row.section == section]
        if not mine:
            continue
        ratios = counted(rows, section)
        whole = f"**{statistics.geometric_mean(ratios):.3g}x**"
        if len(ratios) > 1:
            whole += f", the mean of {len(ratios)} from {min(ratios):.3g}x to {max(ratios):.3g}x"
        means_missed = missed_mean(section, ratios, all(r.machine in amx for r in mine))
        short = "; ".join([*filter(None, [all_missed(mine, amx)]), *means_missed])
        if section == "c" and not any(r.machine in amx for r in mine):
            short = "no target on this processor"
        lines.append(f"| **{section}** | {title} | {whole} | {TARGETS[section]} | {short} |")
        details.append(f"| **{section}** {title} | | | | | | | |")
        for r in mine:
            ratio = f"**{r.ratio:.2f}x** ({r.lowest:.2f}-{r.highest:.2f})"
            figures = f"{shown(r.ours)} | {shown(r.theirs)} | {r.unit} | {ratio} | {r.n}"
            at = r.commit[:7] + "+" * r.commit.endswith("+")
            details.append(f"| {r.what} | {figures} | {letters[r.machine]}, {at} | {r.note} |")
    about = "Means are geometric; those of c and d leave out dnn_fashion, for which no target was set. Measured on:"
    lines += ["", about, ""]
    for name, facts in said["machines"].items():
        sections = ", ".join(dict.fromkeys(row.section for row in rows if row.machine == name))
        peaks = ", ".join(f"{what} {value}" for what, value in facts.items())
        lines.append(f"- {letters[name]} (rows of {sections}): {name}; {peaks}")
    lines.append("")
    lines += ["<details><summary>Every figure</summary>", "", *details, "", "</details>"]
    before, _, rest = (root / "README.md").read_text().partition(BEGIN)
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default="data", help="folder with MNIST, FashionMNIST, cifar-10-batches-py")
    parser.add_argument("--only", help="sections, such as a,b,e")
    parser.add_argument("--systems", help=f"networks of sections b, c and d; all are {','.join(SYSTEMS)}")
    parser.add_argument("-n", type=int, help="runs of each side; 5, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that everything runs")
    parser.add_argument("--json", type=Path, help="file for the rows; those of the same name are replaced")
    parser.add_argument("--write", action="store_true", help="write the README's table from configs/speed.json")
    parser.add_argument("--check", action="store_true", help="exit code 1 where the README's table is another")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json and options.quick:
        parser.error("--json keeps what was measured in full: leave out --quick")
    if options.task:
        print(json.dumps(task(options.task, options.data_root, options.words)))
        return 0
    if options.write or options.check:
        path, wanted = ROOT / "README.md", readme(ROOT)
        wrong = path.read_text() != wanted
        if options.write:
            path.write_text(wanted)
        elif wrong:
            print("README.md is out of date; run: python scripts/benchmark.py --write", file=sys.stderr)
        return int(wrong and options.check)
    bench = Bench(options)
    if unknown := [s for s in bench.sections if s not in SECTIONS] + [s for s in bench.systems if s not in SYSTEMS]:
        parser.error(f"there is no {', '.join(unknown)}")
    for measure in dict.fromkeys(SECTIONS[section] for section in ["m", *bench.sections]):
        try:
            measure(bench)
        except VisionZooError as error:  # such as images that are not there
            parser.error(str(error))
        if options.json:  # at once, for the next one may take hours
            merge(options.json, bench)
    show(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
