"""Strategies that start processes: every one trains what it should, from the command line and from a program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.lightning_rows.plugs import PROCESSES, a_strategy
from tests.lightning_rows.trial import BASE, same
from tests.training.test_processes import ENVIRONMENT

CLASSES = {
    "DDPStrategy": a_strategy("DDPStrategy"),
    "ParallelStrategy": a_strategy("tests.lightning_rows.own.OwnParallel"),
}
CPU = ("--trainer.accelerator", "cpu")

# Runs commands one after another in one program, as a notebook would.
PROGRAM = """
import json, sys
from vision_zoo.__main__ import main

if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        print("exit code", main(words), flush=True)
"""


def words_of(name: str, devices: int) -> list[str]:
    strategy = CLASSES.get(name, name)
    return [
        *BASE, *CPU, "--trainer.devices", str(devices), "--trainer.strategy", strategy,
        "--trainer.default_root_dir", name,
    ]  # fmt: skip


def run_all(folder: Path, names: list[str]) -> None:
    """Train with each strategy, one after another in one program."""
    tiny.write_npz(folder / "data.npz", 40, 20, (8, 8))
    (folder / "program.py").write_text(PROGRAM)
    commands = [words_of(name, PROCESSES[name][1]) for name in names]
    done = subprocess.run(
        [sys.executable, "program.py", json.dumps(commands)],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert codes == ["exit code 0"] * len(names), f"{dict(zip(names, codes, strict=False))}\n{done.stderr}"


def last_of(root: Path) -> dict:
    (run,) = root.glob("runs/*/version_*")
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """The checkpoint of the same training in one process without a strategy."""
    folder = tmp_path_factory.mktemp("alone")
    tiny.write_npz(folder / "data.npz", 40, 20, (8, 8))
    words = [sys.executable, "-m", "vision_zoo", *BASE, *CPU]
    subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, check=True, timeout=120)
    return last_of(folder)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> dict:
    """The checkpoint of the same training by two processes that the command starts."""
    folder = tmp_path_factory.mktemp("two")
    tiny.write_npz(folder / "data.npz", 40, 20, (8, 8))
    words = [sys.executable, "-m", "vision_zoo", *words_of("ddp", 2)]
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return last_of(folder / "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["popen", "spawn", "fork"])
def test_every_strategy_trains_what_its_number_of_processes_trains(kind, tmp_path, alone, by_two):
    """20 seconds each; .ci/run runs them."""
    names = [name for name, (how, count) in PROCESSES.items() if how == kind and (how, count) != ("popen", 2)]
    run_all(tmp_path, names)
    for name in names:
        expected = by_two if PROCESSES[name][1] == 2 else alone
        assert same(last_of(tmp_path / name)["state_dict"], expected["state_dict"]), name


@pytest.mark.slow
def test_two_nodes_are_one_run(tmp_path, by_two):
    """10 seconds; .ci/run runs it. Both on this machine: what a cluster tells each in its environment."""
    tiny.write_npz(tmp_path / "data.npz", 40, 20, (8, 8))
    words = [sys.executable, "-m", "vision_zoo", *words_of("ddp", 1), "--trainer.num_nodes", "2"]
    nodes = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + hash(tmp_path) % 2000)}
    started = [
        subprocess.Popen(
            words, cwd=tmp_path, env={**ENVIRONMENT, **nodes, "NODE_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert same(last_of(tmp_path / "ddp")["state_dict"], by_two["state_dict"])
