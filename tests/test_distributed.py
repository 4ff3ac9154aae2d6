"""Several processes on one machine: they share the images, and agree on every figure with one process."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
DDP = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices"]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own: the launcher starts the others by running its words again."""
    command = [sys.executable, "-m", "vision_zoo", *words]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )


def figures(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory) -> Path:
    """997 images in all, a number that no process count divides."""
    folder = tmp_path_factory.mktemp("ddp")
    words = [
        "--model.backbone",
        "LeNet5",
        "--data.val_split",
        "997",
        "--trainer.max_epochs",
        "2",
        "--data.batch_size",
        "101",
    ]
    result = run(folder, "fit", *words, *DDP, "2", "--trainer.limit_train_batches", "8")
    assert result.returncode == 0, result.stderr
    assert "= 101 x 2 processes" in result.stdout
    assert result.stdout.count("epoch 1/2") == 1, "only the first process speaks"
    return folder


def test_two_processes_leave_one_run(trained_by_two):
    runs = list((trained_by_two / "runs" / "default").iterdir())
    assert [path.name for path in runs] == ["version_0"]
    with (runs[0] / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/accuracy"]]
    assert [int(row["step"]) for row in rows] == [8, 16]
    state = torch.load(runs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(state["callbacks"]["Run"]["rng"]) == 2
    assert not torch.equal(*(rng["torch"] for rng in state["callbacks"]["Run"]["rng"])), "both draw the same"


def test_one_two_and_three_processes_agree(trained_by_two, tmp_path):
    for count in (1, 2, 3):
        words = ["--output", str(tmp_path / str(count)), "--data.batch_size", "64"]
        devices = [*DDP, str(count)] if count > 1 else ["--trainer.accelerator", "cpu"]
        result = run(trained_by_two, "test", "--ckpt_path", "best", *words, *devices)
        assert result.returncode == 0, result.stderr
    one, *others = (figures(tmp_path / str(count) / "test.json") for count in (1, 2, 3))
    for other in others:
        for exact in ("test/accuracy", "test/top5_accuracy", "test/f1"):
            assert other[exact] == one[exact]
        for close in ("test/loss", "test/nll"):
            assert other[close] == pytest.approx(one[close], rel=1e-6)
    matrices = [(tmp_path / str(count) / "confusion_matrix.csv").read_text() for count in (1, 2, 3)]
    assert matrices[0] == matrices[1] == matrices[2]
