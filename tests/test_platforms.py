"""Devices that lack something: a simulation of those without float64, as Apple's GPUs are."""

import json

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.conftest import QUICK
from tests.test_classifier import classifier, trainer
from vision_zoo.__main__ import main
from vision_zoo.data import MNIST5k
from vision_zoo.training.evaluation import TestArtifacts


class NoFloat64(TorchDispatchMode):
    """Refuses to make, convert to, or compute with float64, wherever a tensor lies."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                raise TypeError(f"the device doesn't support float64 ({func})")
        return result


def on_host(function):
    def apart(*args):
        with _disable_current_modes():
            return function(*args)

    return apart


def test_the_simulated_device_refuses_float64():
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.zeros(1).double()


def test_fit_and_test_run_on_a_device_without_float64(here, monkeypatch):
    # Figures are drawn on the host, where every type is.
    monkeypatch.setattr(TestArtifacts, "on_test_end", on_host(TestArtifacts.on_test_end))
    expected = main([*QUICK, "--trainer.max_epochs", "1"])
    with NoFloat64():
        assert main([*QUICK, "--trainer.max_epochs", "1"]) == expected == 0
        assert main(["test", "--ckpt_path", "best", "--output", "out"]) == 0
    runs = [here / f"runs/default/version_{number}/results.json" for number in (0, 1)]
    with_it, without = (json.loads(path.read_text())["metrics"] for path in runs)
    assert with_it == without


def test_a_plain_trainer_does_too():
    model = classifier()
    with NoFloat64():
        run = trainer(max_epochs=1, limit_train_batches=3, limit_val_batches=2, limit_test_batches=2)
        run.fit(model.to("cpu"), MNIST5k())
        run.test(model, MNIST5k(), verbose=False)
    assert run.callback_metrics["test/loss"] > 0
