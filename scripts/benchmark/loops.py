"""The loops whose steps are compared: `vision_zoo fit` with everything on, Lightning's with nothing on, a bare one."""

import contextlib
import functools
import io
import itertools
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmark.tutorials import ON_CPU, System, datamodule, network

PACKAGES = ("vision_zoo", "lightning", "torch", "torchmetrics", "rich", "tensorboard")  # that a step may pass in
SAMPLED_EVERY = 0.0002  # seconds


def operations(system: System) -> float:
    """Millions of the operations in a step's products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        network(system)(torch.rand(system.batch, *system.shape)).sum().backward()
    return counter.get_total_flops() / 1e6


def in_process(
    root: str, system: System, steps: int, kind: str, samples: Counter[str] | None = None
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
        LOOPS[kind](root, system, steps, lambda: marks.append((time.perf_counter(), inside)))
    (began, before), (ended, after), counted_ = marks[skip], marks[-1], len(marks) - 1 - skip
    whole = 1000 * (ended - began) / counted_
    return whole, whole - 1000 * (after - before) / counted_


class _Terminal(io.StringIO):
    """Has the progress bar drawn, into nothing."""

    def isatty(self) -> bool:
        """True, so that the bar is drawn."""
        return True


Mark = Callable[[], None]  # called at the start of each step


def full_loop(root: str, system: System, steps: int, mark: Mark) -> None:
    """`vision_zoo fit` with everything on, and its bar drawn."""
    from vision_zoo.__main__ import main
    from vision_zoo.classifier import Classifier
    from vision_zoo.training import performance
    from vision_zoo.training.speed_trial import Way

    original = Classifier.training_step

    @functools.wraps(original)  # Lightning looks at its parameters
    def training_step(self: Classifier, *batch: Any) -> Tensor:
        mark()
        return original(self, *batch)

    words = [
        "fit", "--config", system.config, "--data.root", root, "--data.val_split", "0",
        "--trainer.max_epochs", "1", "--trainer.limit_train_batches", str(steps), "--test_after_fit", "false",
        *ON_CPU,
    ]  # fmt: skip
    words += ["--trainer.val_check_interval", "null"] if "fashion" in system.config else []
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(_Terminal()),
        patch.object(Classifier, "training_step", training_step),
        patch.object(performance, "fastest", lambda *_, **__: (Way(bf16(system), channels_last=True), {})),
    ):
        code = main(words)
    assert code == 0, f"vision_zoo {' '.join(words)} ended with {code}"


class Bare(pl.LightningModule):
    """The network with its loss and its optimizer, as `fit` trains it, and nothing else."""

    def __init__(self, system: System, mark: Mark) -> None:
        super().__init__()
        self.mark = mark
        self.model = network(system).to(memory_format=torch.channels_last)
        self.scale, self.shift = (1 / 127.5, -1.0) if system.data == "CIFAR10" else (1 / 255, 0.0)
        self.optimizer = getattr(torch.optim, system.optimizer)(self.model.parameters(), lr=system.lr, fused=True)
        self.optimizer._accelerator_graph_capture_health_check = lambda: None  # as fit does

    def training_step(self, batch: tuple[Tensor, Tensor], _: int = 0) -> Tensor:
        """Mean cross entropy of uint8 images (B, C, H, W) and labels (B,)."""
        self.mark()
        images, labels = batch
        images = (images * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(self.model(images).float(), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return self.optimizer


class Batches(pl.LightningDataModule):
    """A loader alone would spare Lightning the question whose hooks to call."""

    def __init__(self, system: System, root: str) -> None:
        super().__init__()
        self.data = datamodule(system, root)
        self.data.setup("fit")

    def train_dataloader(self) -> Any:
        """The batches that `fit` takes."""
        return self.data.train_dataloader()


def bf16(system: System) -> bool:
    """Whether the loops compute in bfloat16 here, all alike: section k says what `fit` would choose."""
    from vision_zoo.training.performance import has_fast_bf16

    return has_fast_bf16(torch.device("cpu")) and system.batch >= 32


def lightning_loop(root: str, system: System, steps: int, mark: Mark) -> None:
    """Lightning's loop with everything switched off."""
    from vision_zoo.training.performance import TrainingPrecision

    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    off: dict[str, Any] = dict.fromkeys(names, False)
    plugins = [TrainingPrecision("cpu")] if bf16(system) else []
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=steps, accelerator="cpu", plugins=plugins, **off)
    trainer.fit(Bare(system, mark), datamodule=Batches(system, root))


def bare_loop(root: str, system: System, steps: int, mark: Mark) -> None:
    """A loop of ten lines."""
    module, in_bf16 = Bare(system, mark), bf16(system)
    for batch in itertools.islice(Batches(system, root).train_dataloader(), steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16, cache_enabled=False):
            loss = module.training_step(batch)
        module.optimizer.zero_grad()
        loss.backward()
        module.optimizer.step()


LOOPS = {"full": full_loop, "lightning": lightning_loop, "bare": bare_loop}
