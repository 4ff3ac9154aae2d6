"""Several processes share the images, agree on every figure with one process, and end together."""

import contextlib
import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import QUICK
from tests.training.runs import rows, same, state, stop_at
from vision_zoo.__main__ import main
from vision_zoo.cli.main import execute
from vision_zoo.data import MNIST5k
from vision_zoo.training.processes import lost_process

ROOT = Path(__file__).parents[2]
# What a launcher, a terminal or a name service of this machine says must not matter.
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "FORCE_COLOR", "TTY_"))},
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),  # this checkout, whatever is installed
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
CPU = ["--trainer.accelerator", "cpu"]
DDP = [*CPU, "--trainer.strategy", "ddp", "--trainer.devices"]
PRIME = 997  # images in each split: no number of processes divides it

# Imported by every Python process that has it on its path: one process of a run is sent a signal at a step.
SIGNALLED = """
import os, signal
if "SIGNALLED" in os.environ:
    from vision_zoo.training.saving import Saving

    rank, name, step = os.environ["SIGNALLED"].split()
    original = Saving.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == int(step) and rank in (str(trainer.global_rank), "all"):
            print(f"signalled at {__import__('time').time()}", flush=True)
            os.kill(os.getpid(), getattr(signal, name))
        original(self, trainer, *rest)

    Saving.on_train_batch_end = on_train_batch_end
"""

# Validates or tests, and writes every figure with all its digits.
FIGURES = """
import json, sys
from pathlib import Path
from vision_zoo.cli.main import execute

figures = execute(sys.argv[2:])
(Path(sys.argv[1]) / f"{sys.argv[2]}.figures").write_text(json.dumps(figures))
"""


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, which starts others."""
    given = {"cwd": folder, "env": ENVIRONMENT | environment, "timeout": 240}
    return subprocess.run(words, **given, capture_output=True, text=True, check=False)


def vision_zoo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "vision_zoo", *words)


def signalled(folder: Path, rank: str, name: str, step: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(SIGNALLED)
    path = os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]])
    words = (sys.executable, "-m", "vision_zoo", *words, "--trainer.default_root_dir", str(folder))
    return run(folder, *words, PYTHONPATH=path, SIGNALLED=f"{rank} {name} {step}")


def script(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    return run(folder, sys.executable, str(folder / "script.py"), *words)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """A training by two processes, with every source of state at once."""
    images, labels = MNIST5k().load("train")
    file = tmp_path_factory.mktemp("images") / "digits.npz"
    train, test = slice(0, 2 * PRIME), slice(2 * PRIME, 3 * PRIME)
    arrays = {"train": train, "test": test}
    order = np.random.default_rng(0).permutation(3 * PRIME)
    pictures = {f"{name}_images": images[order[part]].numpy() for name, part in arrays.items()}
    answers = {f"{name}_labels": labels[order[part]].numpy() for name, part in arrays.items()}
    np.savez(file, **pictures, **answers)
    return [
        "fit", "--data", "ArrayFile", "--data.path", str(file), "--data.val_split", str(PRIME),
        "--data.batch_size", "32", "--data.sampler", "balanced",
        "--data.augmentation", "[{class_path: RandomCrop, init_args: {padding: 2}}]",
        "--model.backbone", "SimpleCNN", "--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.003",
        "--trainer.max_epochs", "2", "--trainer.val_check_interval", "8", "--trainer.log_every_n_steps", "3",
        *DDP, "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained_by_two(words, tmp_path_factory) -> Path:
    """The working directory of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = vision_zoo(folder, *words)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    said = " ".join(result.stdout.split())
    assert "64 images per step = 32 x 2 processes; the learning rate is used as given" in said
    assert result.stdout.count("epoch 1/2") == 1, "only the first process speaks"
    return folder


def last_of(folder: Path) -> Path:
    return folder / "runs" / "default" / "version_0" / "checkpoints" / "last.ckpt"


def assert_the_same_run(folder: Path, other: Path) -> None:
    mine, its = (last_of(f).parent.parent for f in (folder, other))
    assert (mine / "metrics.csv").read_bytes() == (its / "metrics.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        assert same(state(mine / "checkpoints" / name), state(its / "checkpoints" / name)), name


# ------------------------------------------------------------------------------------------------------- exact results


@pytest.mark.slow  # 17 s
def test_two_processes_leave_one_run(trained_by_two):
    runs = list((trained_by_two / "runs" / "default").iterdir())
    assert [path.name for path in runs] == ["version_0"]
    assert len({path.name.split(".")[-2] for path in runs[0].glob("events.out.tfevents*")}) == 1  # writing process
    assert [int(row["step"]) for row in rows(runs[0]) if row["train/accuracy"]] == [16, 32]
    state = torch.load(runs[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(state["callbacks"]["RunFolder"]["rng"]) == 2
    assert not torch.equal(*(rng["torch"] for rng in state["callbacks"]["RunFolder"]["rng"])), "both draw the same"


@pytest.mark.slow
def test_one_two_and_three_processes_agree_on_validation_and_test(trained_by_two, tmp_path, monkeypatch):
    """Half a minute."""
    checkpoint = str(last_of(trained_by_two).with_name("best.ckpt"))
    trained = last_of(trained_by_two).parent.parent  # two have validated and tested there
    for count in (3, 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        given = ["--ckpt_path", checkpoint, "--data.batch_size", "64", *CPU]
        for verb, more in (("validate", []), ("test", ["--output", str(folder)])):
            words = [str(folder), verb, *given, *more]
            if count > 1:
                words += ["--trainer.strategy", "ddp", "--trainer.devices", str(count)]
                result = script(tmp_path, FIGURES, *words)
                assert result.returncode == 0, result.stderr
            else:
                monkeypatch.setattr("sys.argv", ["script.py", *words])
                runpy.run_path(str(tmp_path / "script.py"))
    one, three = (
        {name: x for file in (tmp_path / str(n)).glob("*.figures") for name, x in json.loads(file.read_text()).items()}
        for n in (1, 3)
    )
    two = json.loads((trained / "results.json").read_text())["metrics"]
    kinds = ("accuracy", "top5_accuracy", "macro_accuracy")
    exact = {f"{split}/{kind}" for split in ("val", "test") for kind in kinds} | {"test/f1"}
    summed = {"val/loss", "test/loss"}
    assert one.keys() >= exact | summed
    for other in (two, three):
        assert {name: np.float32(other[name]) for name in exact} == {name: np.float32(one[name]) for name in exact}
        assert {name: other[name] for name in summed} == pytest.approx({name: one[name] for name in summed}, rel=1e-6)
    matrices = [(folder / "confusion_matrix.csv").read_text() for folder in (tmp_path / "1", trained, tmp_path / "3")]
    assert matrices[0] == matrices[1] == matrices[2]
    counts = [row[1:] for row in csv.reader(matrices[0].splitlines()[1:])]
    assert sum(int(number) for row in counts for number in row) == PRIME


@pytest.mark.slow
def test_processes_validate_one_network_between_accumulated_batches(words, tmp_path, monkeypatch):
    """20 seconds."""
    given = [*words[: words.index("--model.scheduler")], *DDP, "2", "--trainer.max_epochs", "1"]
    given += [
        "--trainer.accumulate_grad_batches",
        "4",
        "--trainer.val_check_interval",
        "6",
        "--test_after_fit",
        "false",
    ]
    given[given.index("SimpleCNN")] = "CNN"
    result = vision_zoo(tmp_path, *given, "--trainer.limit_train_batches", "10")
    assert result.returncode == 0, result.stderr
    (first, *_) = [row for row in rows(last_of(tmp_path).parent.parent) if row["val/loss"]]
    monkeypatch.chdir(tmp_path)
    best = last_of(tmp_path).with_name("best.ckpt")
    state_of_best = torch.load(best, weights_only=True)
    assert state_of_best["global_step"] == int(first["step"]) == 1
    metrics = execute(["validate", "--ckpt_path", str(best), *CPU])
    assert metrics["val/loss"] == pytest.approx(float(first["val/loss"]), rel=1e-5)


def test_batch_norm_joined_over_processes_on_a_cpu_is_refused_by_name(here, capsys):
    assert main(["fit", *DDP, "2", "--trainer.sync_batchnorm", "true"]) == 2
    assert "torch joins batch statistics on GPUs only" in capsys.readouterr().err
    assert not list(here.iterdir())


# ------------------------------------------------------------------------------------------------- who is started how

# Trains and validates by two processes, twice; gives up where it was started once more.
PROGRAM = """
import os, sys
from pathlib import Path
from vision_zoo.__main__ import main

with open("started", "a") as file:
    file.write("x")
if Path("started").stat().st_size > 1:
    os._exit(99)
assert main(["fit", *sys.argv[1:]]) == 0
assert main(["validate", "--ckpt_path", "best", *sys.argv[1:7]]) == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_a_program_that_calls_the_command_is_not_started_again(strategy, tmp_path):
    """20 seconds each; tests/cli/test_hazard.py counts the processes too."""
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [*CPU, "--trainer.strategy", strategy, "--trainer.devices", "2", *QUICK[1:], "--trainer.max_epochs", "1"]
    process = subprocess.Popen(
        [sys.executable, "program.py", *words],
        cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        told = process.communicate(timeout=180)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, told
    assert (tmp_path / "started").read_text() == "x"
    checkpoint = torch.load(last_of(tmp_path), weights_only=True)
    assert len(checkpoint["callbacks"]["RunFolder"]["rng"]) == 2


# ----------------------------------------------------------------------------------------------------- a lost process


@pytest.mark.slow
def test_a_lost_process_ends_the_run_with_its_reason_and_torchrun_finishes_it(words, trained_by_two, tmp_path):
    """25 seconds."""
    result = signalled(tmp_path, "1", "SIGKILL", "21", *words)
    seconds = time.time() - float(result.stdout.split("signalled at ")[1].split()[0])
    assert result.returncode == 1
    assert "process 1 of this machine" in result.stderr
    assert "ended by SIGKILL) was lost" in result.stderr
    assert "vision_zoo fit --ckpt_path last" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert seconds < 30  # less than the 40 s that a host which vanished is waited for

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = run(tmp_path, *torchrun, "-m", "vision_zoo", "fit", "--ckpt_path", "last", "--test_after_fit", "false")
    assert result.returncode == 0, result.stderr
    assert_the_same_run(tmp_path, trained_by_two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "name", "step", "code"),
    [
        ("1", "SIGTERM", "21", 143),
        ("0", "SIGKILL", "21", -9),
        ("0", "SIGTERM", "5", 143),
        ("all", "SIGINT", "10", 130),
        ("all", "SIGTERM", "30", 143),
    ],
)
def test_two_processes_stopped_in_mid_epoch_end_like_undisturbed_ones(
    rank, name, step, code, words, trained_by_two, tmp_path
):
    """Half a minute each; .ci/run runs the first."""
    result = signalled(tmp_path, rank, name, step, *words)
    assert result.returncode == code, result.stderr
    told = "was lost" if name == "SIGKILL" else "the state is saved"
    until = time.monotonic() + 60
    lock = last_of(tmp_path).parent.parent / ".lock"
    while name == "SIGKILL" and str(tmp_path) in run(tmp_path, "ps", "-eo", "args").stdout:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert result.stderr.count(told) == 1, result.stderr
    assert lock.exists() == (name == "SIGKILL")
    result = vision_zoo(tmp_path, "fit", "--ckpt_path", "last", "--test_after_fit", "false")
    assert result.returncode == 0, result.stderr
    assert_the_same_run(tmp_path, trained_by_two)


@pytest.mark.slow
def test_ctrl_c_under_torchrun_saves_once_though_it_arrives_twice(words, trained_by_two, tmp_path):
    """Half a minute. The terminal sends SIGINT to all processes, and torchrun sends its own to those it started."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (tmp_path / "sitecustomize.py").write_text(SIGNALLED.replace("os.kill(os.getpid(),", "os.kill(0,"))
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    process = subprocess.Popen(
        [*torchrun, "-m", "vision_zoo", *words],
        cwd=tmp_path, env={**ENVIRONMENT, "PYTHONPATH": path, "SIGNALLED": "0 SIGINT 21"},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    told = process.communicate(timeout=120)[1]
    assert told.count("the state is saved; continue with") == 1, told
    result = vision_zoo(tmp_path, "fit", "--ckpt_path", "last", "--test_after_fit", "false")
    assert result.returncode == 0, result.stderr
    assert_the_same_run(tmp_path, trained_by_two)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 40000ms for recv operation"), True),
        (torch.distributed.DistStoreError("Timed out after 61 seconds waiting for clients"), True),
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."), True),
        (torch.distributed.DistNetworkError("The server socket has failed to listen: EADDRINUSE"), False),
        (RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes"), False),
        (RuntimeError("the connection closed"), False),
    ],
)
def test_only_what_says_so_is_taken_for_a_lost_process(error, told):
    assert (lost_process(error) is not None) == told


# ---------------------------------------------------------------------------------------------------- signals elsewhere


def test_slurm_s_warning_before_preemption_saves_and_ends_the_run(here, monkeypatch, capsys):
    slurm = {"JOB_ID": "7", "JOB_NAME": "digits", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    quick = ["fit", "--model.backbone", "LeNet5", "--trainer.limit_train_batches", "5", "--trainer.max_epochs", "2"]
    with monkeypatch.context() as patch:
        stop_at(patch, 7, "SIGUSR1")
        assert main([*quick, *CPU]) == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1, the state is saved" in capsys.readouterr().err
    assert not list(here.glob("hpc_ckpt*")), "Lightning's own handler saved too"
    assert torch.load(last_of(here), weights_only=True)["global_step"] == 7
    assert main(["fit", "--ckpt_path", "last"]) == 0


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_an_evaluation(name, code, trained_run, here, monkeypatch):
    from vision_zoo.training.evaluation import TestArtifacts

    def on_test_batch_end(*_):
        signal.raise_signal(getattr(signal, name))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    monkeypatch.setattr(TestArtifacts, "on_test_batch_end", on_test_batch_end)
    try:
        assert main(["test", "--ckpt_path", str(trained_run), "--output", str(here / "out")]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (here / "out").exists()


# ----------------------------------------------------------------------------------------------------------- two hosts


@pytest.mark.slow
def test_two_hosts_agree_with_one_process():
    """One minute."""
    result = run(ROOT, sys.executable, str(ROOT / "scripts/two_hosts.py"))
    if result.returncode == 2 and result.stderr.startswith("two_hosts:"):
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stdout + result.stderr
