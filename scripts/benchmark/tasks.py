"""What is measured in a process of its own: loops written by hand, peak memory, prediction one image at a time."""

import contextlib
import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from scripts.benchmark.champion import port
from scripts.benchmark.tutorials import ON_CPU, SYSTEMS, System, network, tutorial


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


def predict_one_by_one(checkpoint: str, folder: str) -> tuple[float, list[str]]:
    """Seconds and labels of a loop written by hand: open, resize, normalise, one forward pass per image."""
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


def task(name: str, root: str, words: list[str]) -> Any:
    """What a child process does."""
    if name == "tutorial":
        return tutorial(SYSTEMS[words[0]], root, int(words[1]) or None, int(words[2]))
    if name == "port":
        return port(root, *map(int, words))
    if name == "memory":
        return memory_of(SYSTEMS[words[0]], root, int(words[1]), words[2])
    return predict_one_by_one(*words)
