"""How a run ends: by its epochs, steps or time, and how it goes on when it is given more."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Timer

from tests.conftest import QUICK
from tests.training.runs import PLAIN, STATEFUL, rows, same, state, stop_at
from vision_zoo.__main__ import main


def test_a_run_that_stopped_early_has_ended(here, capsys):
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/loss, stopping_threshold: 100}}"
    assert main([*QUICK, "--trainer.max_epochs", "3", "--trainer.callbacks", f"[{stopping}]"]) == 0
    run = here / "runs/default/version_0"
    before = [(run / "checkpoints/last.ckpt").read_bytes(), (run / "metrics.csv").read_bytes()]
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert "nothing was left to train: the run had stopped early" in capsys.readouterr().out
    assert before == [(run / "checkpoints/last.ckpt").read_bytes(), (run / "metrics.csv").read_bytes()]
    assert json.loads((run / "results.json").read_text())["epochs"] == 1


@pytest.mark.slow  # 2 s
def test_a_run_whose_schedule_has_ended_names_the_command_that_trains_on(trained_run, here, capsys):
    run = shutil.copytree(trained_run, here / "runs/default/version_0")
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    told = re.search(
        r"its schedule ends here; .* vision_zoo (fit --config \S+ --model.weights \S+)", capsys.readouterr().out
    )
    assert told
    assert main([*told[1].split(), "--trainer.max_epochs", "1"]) == 0
    began, again = (yaml.safe_load((here / f"runs/default/version_{n}/config.yaml").read_text()) for n in (0, 1))
    assert {**again["model"], "weights": None} == {**began["model"], "weights": None}
    assert again["data"] == began["data"]


def test_a_run_that_ends_by_its_steps_is_validated_at_its_end(here, capsys):
    assert main(["fit", "--model.backbone", "LeNet5", "--trainer.max_steps", "5", "--model.scheduler", "null"]) == 0
    *_, trained, folder = capsys.readouterr().out.strip().splitlines()
    assert trained.startswith("trained 5 steps in")
    assert trained.endswith("best.ckpt is of the lowest validation loss, epoch 1")
    assert [row["step"] for row in rows(Path(folder)) if row["val/loss"]] == ["5"]


@pytest.mark.parametrize(
    ("words", "validated"),
    [
        (["--trainer.max_steps", "7", "--trainer.check_val_every_n_epoch", "3"], ["7"]),
        (["--trainer.max_epochs", "2", "--trainer.val_check_interval", "3"], ["3", "8", "10"]),
        (["--trainer.max_epochs", "2", "--trainer.val_check_interval", "0.8"], ["4", "9", "10"]),
        (
            ["--trainer.max_epochs=2", "--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"],
            ["4", "8", "10"],
        ),
    ],
)
def test_the_weights_that_a_run_ends_with_are_validated(words, validated, here):
    batches = ["--trainer.limit_train_batches", "5", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]
    assert main(["fit", "--model.backbone", "LeNet5", "--model.scheduler", "null", *batches, *words]) == 0
    run = here / "runs/default/version_0"
    assert [row["step"] for row in rows(run) if row["val/loss"]] == validated
    before = (run / "metrics.csv").read_text()
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert (run / "metrics.csv").read_text() == before


@pytest.mark.slow  # 4 s
@pytest.mark.parametrize("step", [15, 26])
def test_a_run_that_ends_by_its_steps_goes_on_exactly_after_a_crash(step, tmp_path, monkeypatch):
    words = [*STATEFUL, "--trainer.max_steps", "30"]
    for name in ("undisturbed", "crashed"):
        root = ["--trainer.default_root_dir", str(tmp_path / name)]
        with monkeypatch.context() as patch:
            if name == "crashed":
                stop_at(patch, step, "crash")
            assert main([*words, *root]) == (1 if name == "crashed" else 0)
    assert main(["fit", "--ckpt_path", str(tmp_path / "crashed/runs/default/version_0")]) == 0
    undisturbed, crashed = (tmp_path / name / "runs/default/version_0" for name in ("undisturbed", "crashed"))
    assert (crashed / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    assert same(state(crashed / "checkpoints/last.ckpt"), state(undisturbed / "checkpoints/last.ckpt"))


def time_is_up_after(monkeypatch, batches: int) -> None:
    """Let --trainer.max_time run out after so many batches."""
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 0.0)
    original = Timer.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batches:
            monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 3601.0)
        original(self, trainer, *rest)

    monkeypatch.setattr(Timer, "on_train_batch_end", on_train_batch_end)


@pytest.mark.slow  # 6 s
@pytest.mark.parametrize("step", [15, 18, 24], ids=["within_an_epoch", "before_a_validation", "at_an_epochs_end"])
def test_a_run_whose_time_was_up_goes_on_exactly(step, undisturbed, tmp_path, monkeypatch, capsys):
    root = ["--trainer.default_root_dir", str(tmp_path)]
    run = tmp_path / "runs" / "default" / "version_0"
    with monkeypatch.context() as patch:
        time_is_up_after(patch, step)
        assert main([*STATEFUL, *root, "--trainer.max_time", "00:01:00:00"]) == 0
        assert "trained 2 epochs in" in capsys.readouterr().out
        assert main(["fit", "--ckpt_path", str(run)]) == 0
        assert "nothing was left to train: its time was up; raise --trainer.max_time" in capsys.readouterr().out
        assert json.loads((run / "results.json").read_text())["epochs"] == 2
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_time", "00:02:00:00"]) == 0
    # Where its time was up, the run was validated once more.
    stopped = [row for row in rows(run) if row["step"] != "15"]
    assert stopped == [row for row in rows(undisturbed) if row["step"] != "15"]
    once, twice = (state(path / "checkpoints" / "last.ckpt") for path in (undisturbed, run))
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert same(once[name], twice[name]), name
    assert same(once["callbacks"]["RunFolder"]["rng"], twice["callbacks"]["RunFolder"]["rng"])


def test_a_run_whose_time_is_up_between_steps_ends_after_the_step(tmp_path, monkeypatch):
    words = [*STATEFUL, "--trainer.accumulate_grad_batches", "4", "--trainer.val_check_interval", "null"]
    for name in ("undisturbed", "stopped"):
        root = ["--trainer.default_root_dir", str(tmp_path / name), "--trainer.max_time", "00:01:00:00"]
        with monkeypatch.context() as patch:
            time_is_up_after(patch, 14 if name == "stopped" else -1)
            assert main([*words, *root]) == 0
    run = tmp_path / "stopped/runs/default/version_0"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_time", "00:02:00:00"]) == 0
    undisturbed = tmp_path / "undisturbed/runs/default/version_0"
    once, twice = (state(path / "checkpoints" / "last.ckpt") for path in (undisturbed, run))
    assert same(once["state_dict"], twice["state_dict"])
    assert same(once["optimizer_states"], twice["optimizer_states"])


def continued(root: Path, words: list[str], more: list[str]) -> tuple[dict, dict]:
    """The last states of a run that was told to end sooner and of the same after it went on."""
    assert main([*PLAIN, *words, *more, "--trainer.default_root_dir", str(root / "undisturbed")]) == 0
    states = [state(root / "undisturbed/runs/default/version_0/checkpoints/last.ckpt")]
    run = root / "stopped/runs/default/version_0"
    assert main(["fit", "--ckpt_path", str(run), "--test_after_fit", "false", *more]) == 0
    states.append(state(run / "checkpoints/last.ckpt"))
    return states[0], states[1]


def test_without_validation_images_a_run_goes_on_from_the_step_it_ended_at(tmp_path):
    words = ["--data.val_split", "0"]
    root = ["--trainer.default_root_dir", str(tmp_path / "stopped")]
    assert main([*PLAIN, *words, *root, "--trainer.max_steps", "9"]) == 0
    once, twice = continued(tmp_path, words, ["--trainer.max_steps", "15"])
    for name in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert same(once[name], twice[name]), name


def test_without_validation_images_a_signal_is_heeded_at_the_end_of_its_step(tmp_path, monkeypatch):
    words = ["--data.val_split", "0", "--trainer.val_check_interval", "1"]
    stop_at(monkeypatch, 3, "SIGTERM")
    assert main([*PLAIN, *words, "--trainer.default_root_dir", str(tmp_path)]) == 128 + signal.SIGTERM
    assert state(tmp_path / "runs/default/version_0/checkpoints/last.ckpt")["global_step"] == 3


def test_a_run_that_ended_before_the_least_of_its_epochs_goes_on_from_its_step(tmp_path):
    words = ["--trainer.min_epochs", "3"]
    root = ["--trainer.default_root_dir", str(tmp_path / "stopped")]
    assert main([*PLAIN, *words, *root, "--trainer.max_steps", "9"]) == 0
    once, twice = continued(tmp_path, words, ["--trainer.max_steps", "-1"])
    for name in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert same(once[name], twice[name]), name


def test_a_schedule_that_watches_the_validation_goes_on_within_an_epoch(tmp_path, monkeypatch):
    words = ["--model.scheduler", "ReduceLROnPlateau", "--model.scheduler.patience", "0"]
    words += ["--model.scheduler.threshold", "0.5", "--trainer.val_check_interval", "4"]
    with monkeypatch.context() as patch:
        stop_at(patch, 5, "SIGTERM")  # after the epoch's validation
        stopped = [*PLAIN, *words, "--trainer.default_root_dir", str(tmp_path / "stopped")]
        assert main(stopped) == 128 + signal.SIGTERM
    once, twice = continued(tmp_path, words, [])
    assert same(once["lr_schedulers"], twice["lr_schedulers"])
    assert once["lr_schedulers"][0]["_last_lr"][0] < 0.002  # it moved
    assert same(once["state_dict"], twice["state_dict"])


def test_a_schedule_that_watches_the_validation_does_not_watch_the_sanity_check(here):
    words = ["--model.scheduler", "ReduceLROnPlateau", "--trainer.num_sanity_val_steps", "1"]
    assert main([*PLAIN, *words, "--trainer.check_val_every_n_epoch", "2"]) == 0


def test_a_run_that_stops_early_between_two_steps_loses_no_gradients(tmp_path):
    words = ["--trainer.accumulate_grad_batches", "4", "--trainer.val_check_interval", "3"]
    words += ["--trainer.limit_train_batches", "12", "--trainer.max_epochs", "2"]
    stopping = "[{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 1, min_delta: 10}}]"
    root = ["--trainer.default_root_dir", str(tmp_path / "stopped")]
    assert main([*PLAIN, *words, *root, "--trainer.callbacks", stopping]) == 0
    last = tmp_path / "stopped/runs/default/version_0/checkpoints/last.ckpt"
    assert state(last)["global_step"] == 2  # it was told to stop at the sixth batch, before the second step
    once, twice = continued(tmp_path, words, ["--trainer.callbacks", "null"])
    assert same(once["state_dict"], twice["state_dict"])
    assert same(once["optimizer_states"], twice["optimizer_states"])


def test_a_timer_is_kept_in_the_configuration(here):
    timer = "[{class_path: Timer, init_args: {duration: '00:01:00:00'}}]"
    assert main([*PLAIN, "--trainer.max_epochs", "1", "--trainer.callbacks", timer]) == 0
    config = yaml.safe_load((here / "runs/default/version_0/config.yaml").read_text())
    assert config["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"
    assert main(["fit", "--config", str(here / "runs/default/version_0/config.yaml")]) == 0


@pytest.mark.slow  # 6 s
def test_a_run_whose_steps_are_given_is_not_ended_by_a_number_of_epochs_that_is_not(here):
    Path("own.yaml").write_text("model: {backbone: SmallCNN}\ndata: MNIST5k\ntrainer: {max_steps: 23}")
    words = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]
    assert main(["fit", "--config", "own.yaml", *words]) == 0
    assert torch.load("runs/own/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 23
    assert main(["fit", "--trainer.max_steps", "13", *words]) == 0
    assert torch.load("runs/default/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 13
    assert main(["fit", "--trainer.max_steps", "13", "--trainer.max_epochs", "2", *words]) == 0
    assert torch.load("runs/default/version_1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_schedule_ends_with_the_run_where_the_batches_of_a_step_change(here):
    accumulate = "{class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 4}}}"
    words = ["--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.01", "--trainer.max_epochs", "3"]
    words += ["--trainer.limit_train_batches", "6", "--trainer.callbacks", f"[{accumulate}]"]
    assert main([*QUICK, *words]) == 0
    last = torch.load("runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == last["lr_schedulers"][0]["total_steps"] == 6 + 2 + 2
