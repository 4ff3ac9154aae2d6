"""The folder of a run: what it leaves there, and who may use it."""

import fcntl
import json
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests import tiny
from tests.conftest import QUICK
from tests.training.runs import STATEFUL, rows, same, state, stop_at
from vision_zoo import files
from vision_zoo.__main__ import main
from vision_zoo.files import lock_file
from vision_zoo.training.run_folder import RunFolder


def test_a_run_leaves_everything_that_the_contract_names(trained_run):
    present = {p.name for p in trained_run.iterdir()}
    assert present >= {
        "config.yaml", "metrics.csv", "checkpoints", "results.json", "curves.png", "confusion_matrix.png",
        "mistakes.png", "per_class.csv",
    }  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in present)
    assert {p.name for p in (trained_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    for picture in ("curves.png", "confusion_matrix.png", "mistakes.png"):
        with Image.open(trained_run / picture) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20, f"{picture} is empty"


def test_results_hold_what_the_contract_names(trained_run):
    results = json.loads((trained_run / "results.json").read_text())
    assert results["config"] == "default"
    assert results["parameters"] == 61_706
    assert results["epochs"] == 2
    assert results["seed"] == 0
    assert results["fit_seconds"] > 0
    assert results["train_images_per_second"] > 0
    assert results["precision"]
    assert results["device"].startswith("cpu")
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"val/loss", "val/accuracy", "test/loss", "test/accuracy", "test/top5_accuracy"} <= results["metrics"].keys()


def test_the_validation_figures_of_results_are_those_of_the_best_checkpoint(trained_run):
    results = json.loads((trained_run / "results.json").read_text())
    best = min(float(row["val/loss"]) for row in rows(trained_run) if row["val/loss"])
    assert results["metrics"]["val/loss"] == best
    checkpoint = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["Saving"]["best_score"] == pytest.approx(best)


def test_metrics_hold_a_row_for_each_epoch_and_no_times(trained_run):
    epochs = [row for row in rows(trained_run) if row["train/accuracy"]]
    assert [int(row["epoch"]) for row in epochs] == [0, 1]
    assert [int(row["step"]) for row in epochs] == [10, 20]
    assert not [name for name in epochs[0] if "time" in name or "second" in name]


def test_the_configuration_in_the_run_is_the_one_in_the_checkpoint(trained_run):
    checkpoint = torch.load(trained_run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["vision_zoo"]["config"] == yaml.safe_load((trained_run / "config.yaml").read_text())
    assert checkpoint["hyper_parameters"]["class_names"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("no", ["false", "False"])
def test_without_logger_no_event_files_are_written_and_metrics_still_are(no, here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.logger", no]) == 0
    run = here / "runs" / "default" / "version_0"
    assert not list(run.glob("events*"))
    assert rows(run)


def test_the_report_of_a_profiler_is_shown(here, caplog):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.profiler", "simple"]) == 0
    assert "Profiler Report" in caplog.text


def test_one_callback_needs_no_list(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", "LearningRateMonitor"]) == 0


def test_the_logged_loss_of_accumulated_gradients_is_of_whole_steps(here):
    counts = ["--trainer.accumulate_grad_batches", "4", "--trainer.log_every_n_steps", "1", "--data.batch_size", "8"]
    assert main([*QUICK[:3], "--trainer.limit_train_batches", "8", *counts, "--trainer.max_epochs", "1"]) == 0
    steps = [float(row["train/loss_step"]) for row in rows(here / "runs/default/version_0") if row["train/loss_step"]]
    [epoch] = [float(row["train/loss"]) for row in rows(here / "runs/default/version_0") if row["train/loss"]]
    assert len(steps) == 2
    assert sum(steps) / 2 == pytest.approx(epoch, rel=1e-6)


def test_a_finished_run_keeps_its_figures_when_it_is_continued(here):
    assert main([*QUICK, "--trainer.max_epochs", "1"]) == 0
    results = here / "runs" / "default" / "version_0" / "results.json"
    before = json.loads(results.read_text())["metrics"]
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert json.loads(results.read_text())["metrics"] == before


@pytest.mark.slow  # 6 s
def test_a_run_keeps_in_its_configuration_the_weights_it_began_with(here, trained_run):
    assert main(["export", "--ckpt_path", str(trained_run), "--format", "state_dict", "--output", "w.pt"]) == 0
    quick = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"]
    assert main(["fit", "--model.backbone", "LeNet5", "--model.weights", "w.pt", *quick]) == 0
    run = here / "runs" / "default" / "version_0"
    assert main(["fit", "--config", str(run / "config.yaml")]) == 0
    again = here / "runs" / "default" / "version_1"
    assert rows(again) == rows(run)
    (here / "w.pt").unlink()  # a checkpoint has weights of its own
    assert main(["test", "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--model.backbone", "LeNet5", "--model.weights", "w.pt", *quick, "--ckpt_path", str(run)]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["weights"] == str(here / "w.pt")


@pytest.mark.slow  # 3 s
def test_images_of_classes_under_other_names_are_refused(here, capsys):
    for folder, names in (("a", ("apple", "leaf")), ("b", ("leaf", "rose"))):
        for shade, name in enumerate(names):
            (here / folder / name).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (28, 28), (100 * shade, number, 0)).save(here / folder / name / f"{number}.png")
    assert (
        main(
            [
                *QUICK,
                "--data",
                "ImageFolder",
                "--data.root",
                "a",
                "--model.scheduler",
                "null",
                "--trainer.max_epochs",
                "1",
            ]
        )
        == 0
    )
    for words in (["test", "--ckpt_path", "best"], ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]):
        assert main([*words, "--data.root", "b"]) == 2
        assert "it has 'leaf' where the checkpoint knows 'apple'" in capsys.readouterr().err


def test_known_data_of_other_classes_are_refused(here, capsys):
    tiny.write_cifar10(here, train=100, test=20)
    tiny.write_stl10(here, train=100, test=20)
    words = ["--data.root", ".", "--data.image_size", "32", "--data"]
    assert main([*QUICK, *words, "CIFAR10", "--data.val_split", "0.1", "--trainer.max_epochs", "1"]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "best", *words, "STL10"]) == 2
    assert (
        "the classes of STL10 are not those of the checkpoint: it has 'bird' where the checkpoint knows 'automobile'. "
        "Choose another --data"
    ) in capsys.readouterr().err


def test_digits_of_a_known_data_set_are_names(here, capsys):
    tiny.write_fashion_mnist(here)
    words = ["--data", "FashionMNIST", "--data.root", ".", "--data.val_split", "0.1", "--trainer.max_epochs", "1"]
    assert main([*QUICK, *words]) == 0
    assert main(["test", "--ckpt_path", "best", "--data", "MNIST5k"]) == 2
    assert "it has '0' where the checkpoint knows 'T-Shirt'" in capsys.readouterr().err
    arrays = {"images": np.zeros((40, 28, 28), np.uint8), "labels": np.arange(40) % 10}
    np.savez(here / "a.npz", **arrays)  # whose numbers stand for any names
    assert (
        main(["test", "--ckpt_path", "best", "--data", "ArrayFile", "--data.path", "a.npz", "--data.test_split", "1.0"])
        == 0
    )


def test_numbered_classes_in_another_order_are_refused(here, capsys):
    tiny.write_image_folder(here / "folders", tuple(map(str, range(11))), count=2)  # sorted as text: 0, 1, 10, 2
    arrays = {"images": np.zeros((44, 28, 28, 3), np.uint8), "labels": np.arange(44) % 11}
    np.savez(here / "a.npz", **arrays)
    words = ["--data", "ArrayFile", "--data.path", "a.npz", "--data.val_split", "0.25", "--trainer.max_epochs", "1"]
    assert main([*QUICK, *words, "--data.test_split", "0", "--test_after_fit", "false"]) == 0
    words = ["--data", "ImageFolder", "--data.root", "folders", "--data.image_size", "28", "--data.test_split", "1.0"]
    assert main(["test", "--ckpt_path", "last", *words]) == 2
    assert "it has '10' where the checkpoint knows '2'" in capsys.readouterr().err


def test_two_runs_of_one_configuration_and_seed_are_the_same_bit_for_bit(undisturbed, tmp_path):
    assert main([*STATEFUL, "--trainer.default_root_dir", str(tmp_path)]) == 0
    again = tmp_path / "runs" / "default" / "version_0"
    assert (again / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    assert same(state(again / "checkpoints/last.ckpt"), state(undisturbed / "checkpoints/last.ckpt"))


def test_outputs_that_wait_to_be_counted_are_counted_in_between(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("vision_zoo.metrics.MOST_PENDING", 1)  # in place of keeping those of many steps
    assert main([*STATEFUL, "--trainer.default_root_dir", str(tmp_path)]) == 0
    again = tmp_path / "runs" / "default" / "version_0"
    assert (again / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()


def test_another_seed_is_another_run(undisturbed, tmp_path):
    assert main([*STATEFUL, "--trainer.default_root_dir", str(tmp_path), "--seed_everything", "1"]) == 0
    again = tmp_path / "runs" / "default" / "version_0"
    assert (again / "metrics.csv").read_bytes() != (undisturbed / "metrics.csv").read_bytes()


class FailingSGD(torch.optim.SGD):
    """It cannot make its first step."""

    def step(self, closure=None):
        raise RuntimeError("no step")


def test_a_run_that_made_no_step_leaves_nothing(here, capsys):
    assert main([*QUICK, "--model.scheduler", "null", "--model.optimizer", f"{__name__}.FailingSGD"]) == 1
    assert "no step" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.slow  # 3 s
def test_a_run_that_does_not_go_on_keeps_its_configuration(here):
    quick = [*QUICK, "--model.scheduler", "null"]
    assert main([*quick, "--trainer.max_epochs", "3"]) == 0
    run = here / "runs/default/version_0"
    before = (run / "config.yaml").read_bytes()
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "2"]) == 0  # nothing is left to train
    assert (
        main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "5", "--trainer.limit_val_batches", "1e-4"]) == 2
    )
    assert (run / "config.yaml").read_bytes() == before
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "4"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_a_run_folder_is_locked_by_one_process_at_a_time(here, monkeypatch):
    """Also by one that opened the lock's file just before its owner removed it."""
    path = here / ".lock"
    held = lock_file(path, wait=False)
    assert held is not None
    assert lock_file(path, wait=False) is None
    original = fcntl.flock

    def flock(file, how):
        monkeypatch.setattr(fcntl, "flock", original)
        path.unlink()  # the owner goes between our opening of the file and our lock
        held.release()
        original(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    ours = lock_file(path, wait=False)
    assert ours is not None
    assert lock_file(path, wait=False) is None


def test_who_waits_for_another_process_says_so(here, monkeypatch, capsys):
    held = lock_file(here / ".lock", wait=False)
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lock_file, here / ".lock", wait=True)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        held.release()
        assert waiting.result(10) is not None
    assert capsys.readouterr().err == f"vision_zoo: waiting for another process, which has taken {here / '.lock'}\n"


def test_a_file_system_without_locks_can_be_trained_on(here, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "results.json"])
def test_a_run_does_not_go_on_in_a_folder_of_other_things(name, here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--model.scheduler", "null"]) == 0
    shutil.move(here / "runs/default/version_0/checkpoints", here)
    (here / name).write_text("model: {backbone: mine}")
    assert main(["fit", "--ckpt_path", ".", "--trainer.max_epochs", "2"]) == 2
    assert f"last.ckpt does not belong to {here / name}, which a run resumed there" in capsys.readouterr().err
    assert (here / name).read_text() == "model: {backbone: mine}"


def test_what_changes_in_how_a_run_goes_on_is_told(here, capsys):
    Path("own.yaml").write_text("model: {backbone: SmallCNN}\ndata: MNIST5k\ntrainer: {max_epochs: 3}")
    words = ["fit", "--config", "own.yaml", "--trainer.limit_train_batches", "2", "--test_after_fit", "false"]
    assert main([*words, "--trainer.max_epochs", "2", "--trainer.gradient_clip_val", "1"]) == 0
    capsys.readouterr()
    assert main([*words, "--ckpt_path", "last"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "changed" in line]
    assert told == ["changed against the checkpoint: --trainer.max_epochs: 2 -> 3"]


def test_the_results_of_an_earlier_end_go_when_a_run_goes_on(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--model.scheduler", "null"]) == 0
    words = ["--trainer.max_epochs", "2", "--test_after_fit", "false"]
    assert main(["fit", "--ckpt_path", "last", *words]) == 0
    run = here / "runs/default/version_0"
    assert json.loads((run / "results.json").read_text())["epochs"] == 2
    for name in ("test.json", "per_class.csv", "confusion_matrix.png", "mistakes.png"):
        assert not (run / name).exists()


def test_the_speed_of_a_run_that_was_stopped_counts_all_of_its_time(here, monkeypatch):
    step_seconds = 0.05
    original = RunFolder.on_train_batch_start
    monkeypatch.setattr(
        RunFolder,
        "on_train_batch_start",
        lambda *given, **named: (time.sleep(step_seconds), original(*given, **named))[1],
    )
    with monkeypatch.context() as patch:
        stop_at(patch, 8, "SIGTERM")
        assert main([*QUICK, "--trainer.max_epochs", "1"]) == 128 + signal.SIGTERM
    assert main(["fit", "--ckpt_path", "last"]) == 0
    results = json.loads((here / "runs/default/version_0/results.json").read_text())
    assert 0 < results["train_images_per_second"] < 64 / step_seconds


def test_a_folder_in_use_is_refused(trained_run, here, capsys, tmp_path):
    with (trained_run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["fit", "--ckpt_path", str(trained_run)]) == 2
    (trained_run / ".lock").unlink()
    assert "is in use by another process" in capsys.readouterr().err
