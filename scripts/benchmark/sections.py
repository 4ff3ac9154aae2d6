"""The sections of the benchmark but for c and d, which are in training.py."""

import csv
import io
import itertools
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from scripts.benchmark.bench import Bench, fit, run, seconds
from scripts.benchmark.champion import against_port
from scripts.benchmark.loops import in_process, operations
from scripts.benchmark.packs import packs, streams
from scripts.benchmark.pretrained import few_photos
from scripts.benchmark.training import against_tutorials
from scripts.benchmark.tutorials import ON_CPU, SYSTEMS, datamodule, network, tutorial_data

# Networks of torchvision whose speed is chosen in section k, with batches of 64 images of 96 px.
OTHERS = (
    *("mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0", "squeezenet1_1", "resnet18", "regnet_y_400mf"),
    *("convnext_tiny", "vit_b_16"),
)
STEPS_OF_RUN = 3000  # of the run that the trial in section k is for
LEAST_AGREEING = 0.95  # of labels; JPEGs that are shrunk while they are decoded differ by some roundings


def machine(bench: Bench) -> None:
    """The peaks that no code can pass."""
    size = 1024 if bench.quick else 2048
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, size, size).to(dtype)
        a @ b
        best = min(seconds(lambda a=a, b=b: a @ b) for _ in range(10))
        bench.facts[f"GFLOP/s of a matrix product in {str(dtype)[6:]}"] = round(2 * size**3 / best / 1e9)
    channels, images = 128, torch.randn(16 if bench.quick else 64, 128, 16, 16)
    images = images.to(memory_format=torch.channels_last).requires_grad_()
    convolution = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)

    def forward_and_backward(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = convolution(images)
        made.backward(made)

    for bf16 in (False, True):
        best = min(seconds(lambda bf16=bf16: forward_and_backward(bf16)) for _ in range(10))
        count = 3 * 2 * 9 * channels**2 * images.numel() / channels  # two products back for each one forth
        what = f"GFLOP/s of a 3x3 convolution, forward and backward, in {'bfloat16' if bf16 else 'float32'}"
        bench.facts[what] = round(count / best / 1e9)
    source = torch.empty(64 * 2**20)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source)) for _ in range(10))
    bench.facts["GB/s of a copy (read and written)"] = round(2 * source.numel() * 4 / best / 1e9, 1)
    avx512 = "AVX512" if torch.cpu._is_avx512_bf16_supported() else "emulation"
    bench.facts["bf16 by"] = "AMX" if torch.cpu._is_amx_tile_supported() else avx512
    bench.console.print(bench.facts)


def batches(bench: Bench) -> None:
    """Batches alone, without a network."""
    system = SYSTEMS["lenet5"]
    data = datamodule(system, bench.root)
    data.setup("fit")
    loader = DataLoader(tutorial_data(system, bench.root, True), batch_size=100, shuffle=True)
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

    for name, side in (("as uint8, which the network takes", ours), ("as float32 in [0, 1], as theirs", converted)):
        side(0)
        bench.row("a", f"batches of MNIST, 100 images, {name}", *bench.turns(side, theirs), "images/s")


def step_cost(bench: Bench) -> None:
    """Cost of a step: fit with everything on, Lightning's loop with nothing on, and a bare loop.

    All three run in this process, so the other two also keep the memory that a step frees, which fit sets up first; and
    none asks before each step whether a GPU records a graph, as Adam does unless fit keeps it from that. Each measures,
    too, how much of a step is spent outside of the network, its backward pass and the optimizer's kernel, which are the
    same code on all sides: that difference is what a loop costs, without the noise of the arithmetic. Last, one more
    run of fit finds whose code that time passes in. The arithmetic's speed is for comparison with the machine's peaks.
    """
    for name in bench.systems:
        system = SYSTEMS[name]
        slow = system.steps is not None
        steps = (12 if slow else 120) if bench.quick else (180 if slow else 600)
        turns = bench.turns(
            *(
                lambda _, s=system, n=steps, kind=kind: in_process(bench.root, s, n, kind)
                for kind in ("full", "lightning", "bare")
            )
        )
        full, lightning, bare = ([whole for whole, _ in side] for side in turns)
        rests = [statistics.median(rest for _, rest in side) for side in turns]
        middle = [statistics.median(side) for side in (full, lightning, bare)]
        figures = {
            "a step": middle[0] - middle[2], "ours of a step": middle[0] - middle[1],
            "outside": rests[0] - rests[2], "ours outside": rests[0] - rests[1],
        }  # fmt: skip
        samples: Counter[str] = Counter()
        in_process(bench.root, system, steps, "full", samples)
        figures |= {f"in {where}": n / samples.total() * rests[0] for where, n in samples.most_common()}
        figures |= {"GFLOP/s inside": operations(system) / (middle[2] - rests[2]), "steps": steps}
        bench.row("b", f"{name} {system.batch}, step", full, bare, "ms", figures=figures)


def augmentation(bench: Bench) -> None:
    """Each transform of a batch against torchvision's of the same name and options, image by image.

    Theirs of MixUp and CutMix get an image and its partner, so that each image has a draw of its own, as ours do.
    """
    from vision_zoo import transforms as ours_of

    in_process(bench.root, SYSTEMS["simple_cnn"], 120, "full")  # so that memory lies as where one trains
    images, labels = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (512,))
    pairs = [(images[[i, i - 1]].float(), labels[[i, i - 1]]) for i in range(512)]
    crop = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=4)])
    sides: list[tuple[str, list[nn.Module], Any]] = [
        ("flip + crop", [ours_of.RandomHorizontalFlip(), ours_of.RandomCrop(padding=4)], crop),
        ("AlternatingFlip", [ours_of.AlternatingFlip()], v2.RandomHorizontalFlip()),
        ("RandomResizedCrop", [ours_of.RandomResizedCrop()], v2.RandomResizedCrop(32)),
        ("RandAugment", [ours_of.RandAugment()], v2.RandAugment()),
        ("TrivialAugmentWide", [ours_of.TrivialAugmentWide()], v2.TrivialAugmentWide()),
        ("ColorJitter", [ours_of.ColorJitter(0.4, 0.4, 0.4, 0.1)], v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
        ("GaussianBlur", [ours_of.GaussianBlur(3)], v2.GaussianBlur(3)),
        ("RandomGrayscale", [ours_of.RandomGrayscale()], v2.RandomGrayscale()),
        ("MixUp", [ours_of.MixUp()], v2.MixUp(num_classes=10)),
        ("CutMix", [ours_of.CutMix()], v2.CutMix(num_classes=10)),
    ]
    model = network(SYSTEMS["resnet18"]).train()
    batch = images[:32] if bench.quick else images[:128]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch.float() / 255).float().square().mean()
        loss.backward()

    step()
    of_step = seconds(step) * 512 / len(batch)
    for name, transforms, theirs_ in sides:

        def fifty_batches(transforms: list[nn.Module] = transforms) -> None:
            for _ in range(50):  # each is let go of before the next, as in training
                ours_of.apply_transforms(transforms, images, labels, 10)

        def one_by_one(name: str = name, theirs_: Any = theirs_) -> object:
            return [theirs_(*pair) for pair in pairs] if "Mix" in name else torch.stack([theirs_(x) for x in images])

        fifty_batches()
        ours, theirs = bench.turns(lambda _: seconds(fifty_batches) / 50, lambda _: seconds(one_by_one))
        share = 100 * statistics.median(ours) / of_step
        bench.row("e", f"{name}, 512x3x32x32", ours, theirs, "s", figures={"share of a step": share})


def door(bench: Bench) -> None:
    """Commands that need no torch."""
    with tempfile.TemporaryDirectory() as folder:  # without past runs, which list would read
        for word in ("--help", "--version", "list"):
            sides = bench.turns(
                lambda _, word=word: seconds(lambda: run("-m", "vision_zoo", word, folder=folder)),
                lambda _: seconds(lambda: run("-c", "import torch", folder=folder)),
            )
            bench.row("f", f"vision_zoo {word} against import torch", *sides, "s")


def first_step(bench: Bench) -> None:
    """From the start of the process to the first step of the optimizer; both sides leave without clearing up."""
    words = ("-m", "vision_zoo", "fit", *ON_CPU, "--trainer.callbacks", "scripts.benchmark.leave.Leave")
    with tempfile.TemporaryDirectory() as folder:
        sides = bench.turns(
            lambda _: seconds(lambda: run(*words, folder=folder)),
            lambda _: seconds(lambda: run("-c", "import os, lightning.pytorch.cli; os._exit(0)")),
        )
    bench.row("g", "fit on MNIST5k to its first step against import lightning.pytorch.cli", *sides, "s")


def memory(bench: Bench) -> None:
    """Peak of fit above its libraries, against that of the bare loop."""
    for name in ("mlp", "cnn"):
        steps = "20" if bench.quick or name == "cnn" else "0"
        sides = bench.turns(
            lambda _, name=name, steps=steps: bench.child("memory", name, steps, "fit"),
            lambda _, name=name, steps=steps: bench.child("memory", name, steps, "bare"),
        )
        more = statistics.median(sides[0]) - statistics.median(sides[1])
        bench.row("h", f"{name}, memory of fit", *sides, "MB", figures={"more memory": more})


def predict(bench: Bench) -> None:
    """A folder of JPEGs through the command, against a loop of one image at a time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short = ["--trainer.max_epochs", "1", "--test_after_fit", "false"]
        run("-m", "vision_zoo", "fit", *short, *ON_CPU, folder=name)
        checkpoint = str(next(folder.glob("runs/*/*/checkpoints/best.ckpt")))
        for side in (32, 500):
            predict_jpegs(bench, folder, checkpoint, side)


def predict_jpegs(bench: Bench, folder: Path, checkpoint: str, side: int) -> None:
    """The row of JPEGs of one size: seconds without start-up, as the command and the loop print them."""
    target, count = folder / f"jpeg{side}", 200 if bench.quick else 10_000
    target.mkdir()
    coarse = torch.randint(0, 256, (50, 3, 8, 8)).float()
    noises = F.interpolate(coarse, size=(side, side), mode="bilinear").byte().permute(0, 2, 3, 1).numpy()
    files = [io.BytesIO() for _ in noises]
    for file, noise in zip(files, noises, strict=True):
        Image.fromarray(noise).save(file, "jpeg", quality=90)
    for number in range(count):
        (target / f"{number:05}.jpg").write_bytes(files[number % len(files)].getvalue())
    table = folder / "p.csv"
    words = ["predict", "--ckpt_path", checkpoint, "--images", str(target), "--output", str(table), *ON_CPU]
    whole: tuple[list[float], list[float]] = ([], [])
    labels: list[str] = []  # of the loop, the same in every turn

    def ours(_: int) -> float:
        began = time.perf_counter()
        said = run("-m", "vision_zoo", *words)
        whole[0].append(time.perf_counter() - began)
        return float(re.search(r" in ([\d.]+) s\b", said)[1])

    def theirs(_: int) -> float:
        began = time.perf_counter()
        taken, labels[:] = bench.child("predict", checkpoint, str(target))
        whole[1].append(time.perf_counter() - began)
        return float(taken)

    sides = bench.turns(ours, theirs)
    a, b = (statistics.median(times) for times in whole)
    with table.open(newline="") as file:
        same = [row["label"] == label for row, label in zip(csv.DictReader(file), labels, strict=True)]
    agree = sum(same) / len(same)
    bench.row(
        *("i", f"predict {count:,} JPEGs of {side} px", *sides, "s"),
        "without start-up on both sides",
        f"with it {a:.1f} against {b:.1f} s, {b / a:.2f}x",
        f"the same label of {len(set(labels))} for {100 * agree:.1f} % of the images"
        + ", ACCURACY LOST" * (agree < LEAST_AGREEING),
    )


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


def speed_choice(bench: Bench) -> None:
    """The speed of training steps that fit's trial chooses, against that of the best way of all."""
    from vision_zoo import backbones
    from vision_zoo.classifier import Classifier
    from vision_zoo.training.performance import has_fast_bf16
    from vision_zoo.training.speed_trial import Trial, Way, fastest

    cpu = torch.device("cpu")
    networks: list[tuple[str, Any, int, tuple[int, int, int]]] = [
        *((name, getattr(backbones, s.backbone), s.batch, s.shape) for name, s in SYSTEMS.items()),
        *((name, partial(backbones.Torchvision, name=name, weights=None), 64, (3, 96, 96)) for name in OTHERS),
    ]
    for name, backbone, batch, shape in networks:
        model = Classifier(backbone, shape, [str(number) for number in range(10)])
        orders = (False, True) if any(isinstance(module, nn.Conv2d) for module in model.modules()) else (False,)
        ways = [Way(*way) for way in itertools.product([False, True][: 1 + has_fast_bf16(cpu)], orders)]
        trial = Trial(model.backbone, (batch, *shape), model.num_classes, cpu)
        chosen: list[float] = []
        best: list[float] = []
        names: Counter[str] = Counter()
        for _ in range(bench.n):
            way, _ = fastest(model, batch, cpu, ways, STEPS_OF_RUN)
            names[str(way)] += 1
            count = max(1, round(0.1 / trial.seconds(way)))
            times: dict[Way, list[float]] = {way: [] for way in ways}
            for _ in range(2 if bench.quick else 7):
                for each, taken in times.items():
                    taken.append(trial.seconds(each, count))
            speeds = {each: batch / statistics.median(taken) for each, taken in times.items()}
            chosen.append(speeds[way])
            best.append(max(speeds.values()))
        bench.row("k", f"{name} {batch}", chosen, best, "images/s", ", ".join(names))


SECTIONS: dict[str, Callable[[Bench], Any]] = {
    "m": machine, "a": batches, "b": step_cost, "c": against_tutorials, "d": against_tutorials, "e": augmentation,
    "f": door, "g": first_step, "h": memory, "i": predict, "j": two_processes,
    "k": speed_choice,
    "l": few_photos, "n": packs, "o": streams, "p": against_port,
}  # fmt: skip
