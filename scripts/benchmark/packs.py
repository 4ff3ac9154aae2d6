"""Section n: training on a pack that is read from the disk, against the same images in memory."""

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.benchmark.bench import Bench, run
from scripts.benchmark.tutorials import ON_CPU

RESNET = ["--model.backbone", "Torchvision", "--model.backbone.name", "resnet18"]
SIDE, IMAGES = 128, 40_000  # 2 GB
NETWORKS = {"LeNet5": (["--model.backbone", "LeNet5"], 300), "ResNet-18": (RESNET, 40)}  # and steps of 64 images


def packs(bench: Bench) -> None:
    """Pieces of the flowers' photos, as an array in memory and as a memory-mapped pack."""
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), 640 if bench.quick else IMAGES
        for part, images in (("few", 640), ("all", count)):
            write_photos(Path(bench.root) / "flowers5", folder / f"{part}.npz", images)
            run("-m", "vision_zoo", "pack", f"{part}.npz", "--output", f"{part}.vz", folder=name)
        for network, (words, steps) in NETWORKS.items():
            shown = {}
            for part in ("few", "all"):
                shown[part] = train(folder, "Pack", f"{part}.vz", words, steps)[1]
            sides = bench.turns(
                lambda _, w=words, s=steps: train(folder, "Pack", "all.vz", w, s)[0],
                lambda _, w=words, s=steps: train(folder, "ArrayFile", "all.npz", w, s)[0],
            )
            figures = {"more memory": shown["all"] - shown["few"]}
            bench.row("n", f"{network}, {count:,} photos", *sides, "images/s", f"{steps} steps", figures=figures)


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


def train(folder: Path, kind: str, path: str, network: list[str], steps: int) -> tuple[float, float]:
    """Images per second of a fit, and the most memory in MB that it had of its own, without mapped files."""
    with tempfile.TemporaryDirectory(dir=folder) as run_folder:
        words = ["--data", kind, "--data.path", str(folder / path), "--data.batch_size", "64", "--data.val_split", "64"]
        words += [*network, "--trainer.max_steps", str(steps), "--trainer.precision", "32-true"]
        words += [
            "--trainer.max_epochs",
            "1",
            "--test_after_fit",
            "false",
            "--data.mean",
            "[0.5]",
            "--data.std",
            "[0.5]",
        ]
        words += ["--trainer.callbacks", "scripts.benchmark.leave.Memory"]
        run("-m", "vision_zoo", "fit", *words, *ON_CPU, folder=run_folder)
        results = json.loads(next(Path(run_folder).glob("runs/*/*/results.json")).read_text())
        most = max(float(line) for line in (Path(run_folder) / "memory.txt").read_text().split())
        return float(results["train_images_per_second"]), most
