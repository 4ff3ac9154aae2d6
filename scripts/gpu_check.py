"""What a GPU makes of the package, as one JSON on standard output; no network, about five minutes.

    python scripts/gpu_check.py --data_root data      # one NVIDIA GPU; airbench_cifar10 too, where CIFAR-10 is there
    python scripts/gpu_check.py --device cpu          # a dry run of the same code, smaller, three minutes on two cores

The images are made up, in the real formats. A section is "ok" where it came to its end and what it compares is alike;
times are figures alone. The exit code is 0 if all sections are ok. What the runs print goes to standard error.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # at the end: an installed package goes first

from tests import tiny  # noqa: E402  # found by the line above, like the others
from vision_zoo.__main__ import main as command  # noqa: E402
from vision_zoo.backbones import ResNet, SimpleCNN  # noqa: E402
from vision_zoo.classifier import Classifier  # noqa: E402
from vision_zoo.cli.main import execute  # noqa: E402
from vision_zoo.cli.messages import quiet  # noqa: E402
from vision_zoo.data import MNIST5k  # noqa: E402
from vision_zoo.trainer_facts import device_name  # noqa: E402
from vision_zoo.training.performance import has_fast_bf16  # noqa: E402
from vision_zoo.training.speed_trial import Way, fastest  # noqa: E402

NETWORKS = {"mlp": ("MLP", "MNIST"), "lenet5": ("LeNet5", "MNIST"), "resnet18": ("ResNet", "CIFAR10")}
Found = dict[str, Any]  # what a section has found: "ok", and figures


@dataclass
class Machine:
    """What is checked, and how large."""

    device: torch.device
    folder: Path  # for data and runs
    data_root: Path  # of the real images
    on_cpu: bool  # whether this is the dry run
    batch: int  # images of a timed step
    steps: int  # of a timed run, one epoch; the first third warms up

    def words(self, *words: str, processes: int = 1) -> list[str]:
        """A command line of fit that leaves its run in a folder of its own."""
        place = ["--trainer.accelerator", "cpu" if self.on_cpu else "gpu", "--trainer.devices", str(processes)]
        own = ["--trainer.default_root_dir", tempfile.mkdtemp(dir=self.folder)]
        return ["fit", *words, *place, *own, "--trainer.enable_progress_bar", "false"]

    def fit(self, *words: str) -> Path:
        """The folder of a run; that of all where it leaves none."""
        return execute(self.words(*words)) or self.folder

    def now(self) -> float:
        """Seconds, when the device has done all that it was given."""
        if not self.on_cpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def last(run: Path) -> Found:
    """The last checkpoint of a run."""
    return dict(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu"))


def recipes(machine: Machine) -> Found:
    """Every recipe trains a step and tests one."""
    failed, paths = {}, sorted((ROOT / "configs").glob("*.yaml"))
    places = {"MNIST5k": [], "ImageFolder": ["--data.root", str(machine.folder / "own"), "--data.image_size", "32"]}
    for path in paths:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        data = recipe["data"]
        words = ["--data.batch_size", "4" if machine.on_cpu else "64", "--trainer.fast_dev_run", "true"]
        words += ["--data.val_split", "20"] if data["init_args"].get("val_split") else []
        words += places.get(data["class_path"], ["--data.root", str(machine.folder / "tiny")])
        try:
            if "teacher" in str(recipe["model"].get("loss")):  # another small network will do
                tiny_run = ["--data", "MNIST", "--data.root", str(machine.folder / "tiny"), "--trainer.max_steps", "1"]
                words += ["--model.loss.teacher", str(machine.fit("--model.backbone", "SmallCNN", *tiny_run))]
            machine.fit("--config", str(path), *words)
        except Exception as error:  # whatever it is, the report tells it
            failed[path.stem] = f"{type(error).__name__}: {error}"
    return {"ok": not failed, "recipes": len(paths), "failed": failed}


def accuracy(machine: Machine) -> Found:
    """The default recipe: its accuracy, after six epochs 98.33 +- 0.25 %, and whether the CPU predicts the same."""
    run = machine.fit("--config", "cnn_mnist5k", "--trainer.max_epochs", "1" if machine.on_cpu else "6")
    found = json.loads((run / "results.json").read_text())
    tested, names = found["metrics"]["test/accuracy"], ("fit_seconds", "train_images_per_second", "precision", "speed")
    images, given = MNIST5k().split_images("test").images, list[torch.Tensor]()
    for place in (torch.device("cpu"), machine.device):
        model = Classifier.load_from_checkpoint(run, place)
        with torch.inference_mode():
            given.append(torch.cat([model(part.to(place)).softmax(1).cpu() for part in images.split(500)]))
    others, apart = int((given[0].argmax(1) != given[1].argmax(1)).sum()), float((given[0] - given[1]).abs().max())
    ok, figures = tested >= (0.8 if machine.on_cpu else 0.975), {name: found[name] for name in names}
    figures |= {"other_labels_than_cpu": others, "probabilities_apart": apart}
    return {"ok": ok and others == 0 and apart <= 1e-3, "accuracy": tested, **figures}


def choice(machine: Machine) -> Found:
    """The measured trial of bf16 and channels_last, images per second: of ResNet-18, in the dry run of a small CNN."""
    model = Classifier(SimpleCNN if machine.on_cpu else ResNet, (3, 32, 32), list("0123456789"))
    fast_bf16 = [False, True][: 1 + has_fast_bf16(machine.device)]
    ways = [Way(bf16, order) for bf16 in fast_bf16 for order in (False, True)]
    way, tried = fastest(model, machine.batch, machine.device, ways, 1e4)
    return {"ok": len(tried) == len(ways), "chosen": str(way), "tried": tried}


def resume(machine: Machine) -> Found:
    """A run that ended within an epoch goes on to the weights and the optimizer of one that did not."""
    words = ["--model.backbone", "CNN", "--model.scheduler", "null", "--data.augmentation", "[RandomErasing, MixUp]",
             "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "6", "--trainer.limit_val_batches", "2",
             "--test_after_fit", "false", "--trainer.deterministic", "true"]  # fmt: skip
    whole, part = last(machine.fit(*words)), machine.fit(*words, "--trainer.max_steps", "9")
    again = last(execute(["fit", "--ckpt_path", str(part), "--trainer.max_steps", "-1"]))
    for part in (lambda state: state["state_dict"], lambda state: state["optimizer_states"][0]["state"]):
        torch.testing.assert_close(part(whole), part(again), rtol=0, atol=0)
    return {"ok": whole["global_step"] == again["global_step"] == 18}


def step(machine: Machine, name: str, *words: str) -> tuple[float, Path]:
    """Milliseconds of a step of fit, in one way of computing, and the run."""
    original, began, ends, marks = Classifier.training_step, machine.steps // 3, machine.steps - 1, list[float]()

    @functools.wraps(original)  # Lightning looks at its parameters
    def training_step(self: Classifier, *batch: Any) -> torch.Tensor:
        marks.append(machine.now() if len(marks) in (began, ends) else 0.0)
        return original(self, *batch)

    backbone, data = NETWORKS[name]
    fixed = ["--model.backbone", backbone, "--data", data, "--data.root", str(machine.folder / "large"),
             "--data.val_split", "0", "--data.batch_size", str(machine.batch), "--model.scheduler", "null",
             "--trainer.max_epochs", "1", "--test_after_fit", "false", "--trainer.precision", "32-true",
             "--channels_last", "false"]  # fmt: skip
    with patch.object(Classifier, "training_step", training_step):
        run = machine.fit(*fixed, *words)
    return round(1000 * (marks[ends] - marks[began]) / (ends - began), 3), run


def bare(machine: Machine, run: Path) -> float:
    """Milliseconds of a step of a loop of ten lines with the network of a run, on as many images."""
    model, began = Classifier.load_from_checkpoint(run, machine.device).train(), 0.0
    count, optimizer = machine.batch * machine.steps, torch.optim.Adam(model.parameters(), fused=True)
    data = torch.randint(256, (count, *model.image_shape), dtype=torch.uint8), torch.randint(10, (count,))
    for number, places in enumerate(torch.randperm(count).split(machine.batch)):
        began = machine.now() if number == machine.steps // 3 else began
        images, labels = (part.index_select(0, places).to(machine.device, non_blocking=True) for part in data)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return round(1000 * (machine.now() - began) / (machine.steps - machine.steps // 3), 3)


def steps(machine: Machine) -> Found:
    """Milliseconds of a step of fit with batches from memory and from the device, and of a bare loop from memory."""
    found, same = {}, True
    for name in NETWORKS:
        (host, one), (device, other) = step(machine, name), step(machine, name, "--data.device", "true")
        same = same and all(map(torch.equal, *(last(run)["state_dict"].values() for run in (one, other))))
        found[name] = {"fit": host, "fit_device": device, "bare": bare(machine, one)}
    return {"ok": same, "batch": machine.batch, "milliseconds": found}


def compiled(machine: Machine) -> Found:
    """Milliseconds of a step of a compiled network, also by CUDA graphs; its checkpoints are as without."""
    plans = {"lenet5": ["true"]} if machine.on_cpu else {"lenet5": ["true", "reduce-overhead"], "resnet18": ["true"]}
    found, plain = dict[str, Any](), True
    for name, modes in plans.items():
        for mode in ("false", *modes):
            found.setdefault(name, {})[mode], run = step(machine, name, "--compile", mode)
            plain = plain and not any("_orig_mod" in key for key in last(run)["state_dict"])
    return {"ok": plain, "milliseconds": found}


def airbench(machine: Machine) -> Found:
    """Seconds of airbench_cifar10 on the real images."""
    if machine.on_cpu or not (machine.data_root / "cifar-10-batches-py" / "data_batch_1").is_file():
        return {"ok": True, "skipped": "it needs a GPU, and CIFAR-10's files below --data_root"}
    run = machine.fit("--config", "airbench_cifar10", "--data.root", str(machine.data_root))
    found = json.loads((run / "results.json").read_text())
    return {"ok": True, "fit_seconds": found["fit_seconds"], "accuracy": found["metrics"]["test/accuracy"]}


def devices(machine: Machine) -> Found:
    """Two processes, each with a device, which pick their own batches there."""
    if not machine.on_cpu and torch.cuda.device_count() < 2:
        return {"ok": True, "skipped": "it needs two GPUs"}
    words = machine.words("--config", "lenet5_mnist", "--data", "MNIST5k", "--trainer.max_epochs", "1",
                          "--data.device", "true", "--trainer.strategy", "ddp", processes=2)  # fmt: skip
    return {"ok": command(words) == 0}


SECTIONS = {
    "recipes": recipes, "accuracy": accuracy, "choice": choice, "resume": resume, "steps": steps, "compile": compiled,
    "airbench": airbench, "devices": devices,
}  # fmt: skip


def check(machine: Machine, name: str) -> Found:
    """One section, with its seconds and the most GPU memory that it took; an error is part of the report."""
    began = time.perf_counter()
    try:
        found = SECTIONS[name](machine)
    except Exception as error:  # whatever it is, the other sections are worth having
        found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    if not machine.on_cpu:
        found["peak_memory_mib"] = round(torch.cuda.max_memory_allocated(machine.device) / 2**20)
        torch.cuda.reset_peak_memory_stats(machine.device)
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def main() -> int:
    """Check the sections, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU here; a dry run on the CPU: --device cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, before the run that asks for it
    began, device = time.perf_counter(), torch.device("cpu" if options.device == "cpu" else "cuda:0")
    with quiet(), tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        size = (True, 16, 9) if options.device == "cpu" else (False, 512, 60)
        machine = Machine(device, Path(folder), options.data_root.resolve(), *size)
        for write in (tiny.write_mnist, tiny.write_fashion_mnist, tiny.write_cifar10):
            write(machine.folder / "tiny")  # 200 images
            write(machine.folder / "large", train=machine.batch * machine.steps, test=100)
        tiny.write_image_folder(machine.folder / "own", tuple("abcdefghij"), count=20)
        found = {name: check(machine, name) for name in options.only}
    ok, seconds = all(section["ok"] for section in found.values()), round(time.perf_counter() - began, 1)
    about = {"ok": ok, "device": device_name(device), "seconds": seconds, "torch": torch.__version__}
    print(json.dumps({**about, "sections": found}, indent=2))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
