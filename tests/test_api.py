"""vision_zoo from Python: five functions."""

import inspect
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import vision_zoo
from tests import tiny
from vision_zoo.classifier import Classifier
from vision_zoo.errors import CheckpointError, ConfigError

QUICK = {"model.backbone": "LeNet5", "trainer": {"max_epochs": 1, "limit_train_batches": 2, "limit_test_batches": 1}}


def test_the_package_is_imported_without_torch():
    code = "import sys, vision_zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_network_is_trained_tested_loaded_and_used(here):
    run = vision_zoo.fit(**QUICK)
    assert run.path == here / "runs" / "default" / "version_0"
    assert run.metrics["test/accuracy"] == run.results["metrics"]["test/accuracy"]
    assert vision_zoo.runs() == [run]

    model = vision_zoo.load(run.path)
    assert not model.training
    assert model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)

    metrics = vision_zoo.test(run.path, trainer={"limit_test_batches": 1})
    assert metrics["test/accuracy"] == run.metrics["test/accuracy"]

    tiny.write_image_folder(here / "scans", count=2, size=(28, 28))
    rows = vision_zoo.predict(run.path, [here / "scans"], top_k=2)
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert len(rows) == 4
    assert rows[0].keys() == {"path", "label", "probability", "label_2", "probability_2"}
    assert 0 <= rows[0]["probability_2"] <= rows[0]["probability"] <= 1


def test_runs_are_told_by_their_age_and_taken_for_paths_and_a_path_for_images(here):
    runs = [vision_zoo.fit(**QUICK), vision_zoo.fit(**QUICK)]
    assert vision_zoo.test(runs[0], trainer={"limit_test_batches": 1}) is not None  # leaves files in its folder
    assert vision_zoo.runs() == runs
    vision_zoo.load(runs[0], trusted_packages="mynet")
    tiny.write_image_folder(here / "scans", count=2, size=(28, 28))
    several = vision_zoo.predict(runs[0], iter(sorted((here / "scans").glob("*"))))
    assert vision_zoo.predict(runs[0], here / "scans") == vision_zoo.predict(runs[0], f"{here}/scans") == several


def test_a_call_is_as_quiet_as_the_command_and_leaves_the_program_s_own_ways(here, caplog, monkeypatch):
    logger = logging.getLogger("lightning.fabric")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    before = (warnings.formatwarning, threading.excepthook, [*warnings.filters])
    vision_zoo.fit(**QUICK)
    assert [record.message for record in caplog.records] == []  # such as "Seed set to 0"
    assert logger.level == logging.DEBUG
    assert (warnings.formatwarning, threading.excepthook, [*warnings.filters]) == before


def test_what_is_wrong_with_the_arguments_is_an_error_of_ours(here):
    with pytest.raises(
        ConfigError, match=r"there is no option --trainr\.max_epochs; did you mean --trainer\.max_epochs"
    ):
        vision_zoo.fit(trainr={"max_epochs": 1})
    with pytest.raises(ConfigError, match=r"--trainer\.max_epochs: got 'many', expected a whole number"):
        vision_zoo.fit(trainer={"max_epochs": "many"})


def test_ctrl_c_ends_a_test_as_it_ends_python_and_works_again(here, monkeypatch):
    run = vision_zoo.fit(**QUICK)
    monkeypatch.setattr(Classifier, "test_step", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            vision_zoo.test(run)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_program_trains_by_two_processes_and_by_one_in_turn(here):
    """Half a minute."""
    code = f"""
import vision_zoo
if __name__ == "__main__":
    for devices in (2, 1, 2):
        print(vision_zoo.fit(**{QUICK!r}, **{{"trainer.accelerator": "cpu", "trainer.devices": devices}}).path.name)
"""
    (here / "program.py").write_text(code)
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"version_0", "version_1", "version_2"} <= {*done.stdout.split()}


def test_a_smoke_test_leaves_nothing(here):
    assert vision_zoo.fit("lenet5_mnist", data="MNIST5k", trainer={"fast_dev_run": True}) is None
    assert vision_zoo.runs() == []
    assert list(here.iterdir()) == []


def test_what_is_wrong_is_an_exception_with_the_way_out(here):
    with pytest.raises(ConfigError, match="there is no such file or shipped recipe; did you mean lenet5_mnist"):
        vision_zoo.fit("lenet5_mnst")
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        vision_zoo.load("best")


def test_options_may_be_numbers_of_numpy_and_paths(here):
    options = {"trainer.max_epochs": np.int64(3), "a": [Path("x"), np.float32(0.5)], "b": ["é", None, True], "c": {}}
    words = vision_zoo.api._words(options)
    assert words == ["--trainer.max_epochs=3", '--a=["x", 0.5]', '--b=["é", null, true]']


@pytest.mark.slow  # two minutes
def test_the_lines_for_ray_tune_search(here):
    ray = pytest.importorskip("ray")
    documented = inspect.getdoc(vision_zoo.fit)
    lines = textwrap.dedent(documented[documented.index("::\n\n") + 4 :])
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    try:
        found = {}
        exec(lines.replace("num_samples=4", "num_samples=2"), found)
    finally:
        ray.shutdown()
    assert found["best"].metrics["val/accuracy"] > 0.5
    assert "test/accuracy" not in found["best"].metrics
    assert 1e-4 <= found["best"].config["model.optimizer.lr"] <= 1e-1
