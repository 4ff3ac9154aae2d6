"""One run of the command on tiny data, and what it did: figures, files, weights, and what the hooks of training saw."""

import csv
import functools
import gc
import io
import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import lightning.pytorch as pl
import torch
import yaml

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier

# Four steps an epoch of a two-layer network on 30 images of 8 x 8; plain SGD, so that every change of a gradient shows.
BASE = (
    "fit", "--model.backbone", "MLP", "--model.backbone.hidden", "8", "--model.optimizer", "SGD",
    "--model.optimizer.lr", "0.1", "--model.scheduler", "null", "--data", "ArrayFile", "--data.path", "data.npz",
    "--data.batch_size", "8", "--data.val_split", "10", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1",
    "--test_after_fit", "false",
)  # fmt: skip
STEPS = 4  # of an epoch


class Seen:
    """What the hooks of training saw."""

    def __init__(self) -> None:
        self.trainers: list[pl.Trainer] = []
        self.batches: list[tuple[int, list[int]]] = []  # epoch and labels
        self.starts: list[dict[str, torch.Tensor]] = []  # weights when an epoch begins
        self.weights: list[dict[str, torch.Tensor]] = []  # after each step of the optimizer
        self.validations: list[bool] = []  # whether it was a sanity check
        self.loaders = 0  # times that the training images were asked for
        self.inference: set[bool] = set()  # while it tests
        self.benchmark = self.deterministic = False


class Trial:
    """A finished run.

    Args:
        here: working directory.
        words: of the command, after `BASE` for a fit.
        other: gives the trial of other words, run once for all who ask.
    """

    def __init__(self, here: Path, words: tuple[str, ...], other: "Callable[..., Trial]") -> None:
        self.here, self.words, self.other = here, words, other
        self.seen = Seen()
        self.code, self.text = -1, ""

    def main(self, *words: str, crash: int = 0, stop: int = 0) -> int:
        """Run a command here; its output is added to `text`.

        Args:
            words: the whole command.
            crash: step after which training fails with an error that nothing handles.
            stop: step after which the process gets SIGTERM.
        """
        out = io.StringIO()
        log = logging.StreamHandler(out)
        flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        with ExitStack() as stack:
            for context in (chdir(self.here), redirect_stdout(out), redirect_stderr(out), mock.patch.dict(os.environ)):
                stack.enter_context(context)
            for patch in watch(self.seen, crash, stop):
                stack.enter_context(patch)
            logging.getLogger("lightning.pytorch").addHandler(log)
            try:
                code = main(list(words))
            finally:
                logging.getLogger("lightning.pytorch").removeHandler(log)
                torch.use_deterministic_algorithms(flags[0])
                torch.backends.cudnn.benchmark = flags[1]
        self.text += out.getvalue()
        return code

    @property
    def trainer(self) -> pl.Trainer:
        """The trainer of the last fit."""
        return self.seen.trainers[-1]

    @property
    def run(self) -> Path:
        """The only run folder."""
        (run,) = self.here.glob("**/runs/*/version_*")
        return run

    @property
    def rows(self) -> list[dict[str, str]]:
        """Of metrics.csv."""
        with (self.run / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def results(self) -> dict[str, Any]:
        """Of results.json."""
        return json.loads((self.run / "results.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        """Of config.yaml."""
        return yaml.safe_load((self.run / "config.yaml").read_text())

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        """A checkpoint of the run."""
        return torch.load(self.run / "checkpoints" / f"{name}.ckpt", weights_only=True)

    def saved(self, name: str = "last") -> dict[str, torch.Tensor]:
        """The weights of a checkpoint."""
        return self.checkpoint(name)["state_dict"]

    def events(self) -> str:
        """The names and values in TensorBoard's event files, as bytes that read as text."""
        return "".join(path.read_bytes().decode("latin1") for path in self.here.rglob("events.out.tfevents*"))

    def resumed_exactly(self, stop: int) -> bool:
        """Whether a run that was stopped after a step and resumed ends like this one."""
        again = Trial(self.here.with_name(f"{self.here.name}-stopped-{stop}"), self.words, self.other)
        again.here.mkdir()
        tiny.write_npz(again.here / "data.npz", 40, 20, (8, 8))
        assert again.main(*BASE, *self.words, stop=stop) == 128 + signal.SIGTERM, again.text
        assert again.main("fit", "--ckpt_path", "last", "--test_after_fit", "false") == 0, again.text
        (run,) = again.here.glob("runs/*/version_*")
        (ours,) = self.here.glob("runs/*/version_*")
        kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "loops")
        for name in ("best.ckpt", "last.ckpt"):
            one, two = (torch.load(r / "checkpoints" / name, weights_only=True) for r in (ours, run))
            for key in kept:
                assert same(one.get(key), two.get(key)), f"{key} of {name} differs after a resume from step {stop}"
        return (run / "metrics.csv").read_bytes() == (ours / "metrics.csv").read_bytes()


class Row(NamedTuple):
    """An entry of Lightning's: the words that use it, and what must be true afterwards."""

    words: str | tuple[str, ...]
    holds: Callable[[Trial], bool]
    code: int = 0
    patch: Callable[[], Any] | None = None  # a context that the run needs
    crash: int = 0  # step after which training fails


def try_out(folder: Path, row: Row, other: Callable[..., Trial]) -> Trial:
    """Run a row's words in a folder of its own."""
    words = tuple(row.words.split()) if isinstance(row.words, str) else row.words
    trial = Trial(folder, words, other)
    tiny.write_npz(folder / "data.npz", 40, 20, (8, 8))
    with row.patch() if row.patch else ExitStack():
        trial.code = trial.main(*BASE, *words, crash=row.crash)
    if row.code:
        gc.collect()  # or what failed half-built is finalised, with an error, in the middle of another test
    return trial


def watch(seen: Seen, crash: int, stop: int) -> list[Any]:
    """Patches of the hooks, which take notes."""

    def weights(model: Classifier) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    def fit(trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        seen.trainers.append(trainer)

    def training_step(model: Classifier, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            seen.starts.append(weights(model))
        seen.batches.append((model.current_epoch, batch[1].tolist()))
        seen.benchmark |= torch.backends.cudnn.benchmark
        seen.deterministic |= torch.are_deterministic_algorithms_enabled()
        if stop and model.global_step + 1 == stop:
            signal.raise_signal(signal.SIGTERM)
        if crash and model.global_step == crash:
            raise OSError(5, "the machine fell over")

    def validation_step(model: Classifier, batch: Any, batch_idx: int) -> None:
        seen.validations.append(bool(model.trainer.sanity_checking))

    def test_step(*_: Any) -> None:
        seen.inference.add(torch.is_inference_mode_enabled())

    def loaders(*_: Any) -> None:
        seen.loaders += 1

    def step(model: Classifier, *_: Any, **__: Any) -> None:
        seen.weights.append(weights(model))

    from vision_zoo.data.base import ImageDataModule

    return [
        before(pl.Trainer, "fit", fit),
        before(Classifier, "training_step", training_step),
        before(Classifier, "validation_step", validation_step),
        before(Classifier, "test_step", test_step),
        before(ImageDataModule, "train_dataloader", loaders),
        before(Classifier, "optimizer_step", step, after=True),
    ]


def before(kind: type, name: str, note: Callable[..., None], after: bool = False) -> Any:
    """A patch by which a method takes a note first, or last."""
    original = getattr(kind, name)

    @functools.wraps(original)
    def noted(*args: Any, **kwargs: Any) -> Any:
        if not after:
            note(*args, **kwargs)
        result = original(*args, **kwargs)
        if after:
            note(*args, **kwargs)
        return result

    return mock.patch.object(kind, name, noted)


def same(a: Any, b: Any) -> bool:
    """Whether two states are the same bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights agree, but for rounding."""
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


def mean(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of some sets of weights."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
