"""What the terminal shows of a run."""

import re

import pytest
import torch

from tests.conftest import QUICK
from tests.training.runs import rows
from vision_zoo.__main__ import main


@pytest.mark.slow  # 3 s
def test_what_keeps_a_run_from_going_on_is_named(here, capsys):
    for number, option in enumerate(("max_steps", "max_epochs")):
        assert main([*QUICK, f"--trainer.{option}", "2", "--model.scheduler", "null"]) == 0
        assert main(["fit", "--ckpt_path", str(here / f"runs/default/version_{number}")]) == 0
        assert f"nothing was left to train: raise --trainer.{option} to continue" in capsys.readouterr().out


def test_fit_says_why_it_stopped_early(here, capsys):
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/loss, stopping_threshold: 100}}"
    assert main([*QUICK, "--trainer.max_epochs", "3", "--trainer.callbacks", f"[{stopping}]"]) == 0
    *_, reason, trained, _ = capsys.readouterr().out.strip().splitlines()
    assert reason.startswith("Stopping threshold reached: val/loss = ")
    assert trained.startswith("trained 1 epoch in")


def test_fit_says_what_it_does_and_prints_the_run_folder_last(here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "1"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    assert lines[-1] == str(here / "runs" / "default" / "version_0")
    for words in ("61,706 parameters", "3,500 train, 500 val", "Adam", "CrossEntropy", "val/accuracy", "epoch 1/1"):
        assert words in captured.out
    for noise in ("Tip", "litlogger", "GPU available", "Warning", "HINT"):
        assert noise not in captured.out + captured.err


@pytest.mark.parametrize(
    ("val_split", "watched"), [("500", "by val/loss, at the end of an epoch"), ("0", "by train/loss, every epoch")]
)
def test_fit_says_which_metric_a_schedule_watches(val_split, watched, here, capsys):
    words = ["--model.scheduler", "ReduceLROnPlateau", "--data.val_split", val_split, "--trainer.max_epochs", "1"]
    assert main([*QUICK, *words]) == 0
    assert f"ReduceLROnPlateau, {watched}" in capsys.readouterr().out


def test_a_terminal_shows_a_bar_unless_told_not_to(here, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("vision_zoo.training.progress.REFRESH_SECONDS", 0)
    for words, bar in ((), True), (("--trainer.enable_progress_bar", "false"), False):
        assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false", *words]) == 0
        out = capsys.readouterr().out
        assert ("5/10" in out) == bar
        assert "train/accuracy" in out


@pytest.mark.parametrize(("width", "bar"), [(130, 30), (40, 4)])
def test_the_bar_stays_in_one_line_and_leaves_its_words_the_room(width, bar, here, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("vision_zoo.training.progress.REFRESH_SECONDS", 0)
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    drawn = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in re.split(r"[\r\n]", capsys.readouterr().out)]
    lines = [part for part in drawn if re.match(r"epoch 1/1 +[━╸╺]", part) and " 10/10 " in part]
    assert lines
    assert all(len(line) <= width for line in lines)
    assert {len(re.findall("[━╸╺]", line)) for line in lines} == {bar}


def test_an_epoch_is_saved_before_its_line_is_printed(here, monkeypatch):
    def gone(*_):
        raise BrokenPipeError  # such as of: vision_zoo fit | head

    monkeypatch.setattr("vision_zoo.training.progress.ProgressBar._line", gone)
    assert main([*QUICK, "--trainer.max_epochs", "2"]) == 1
    checkpoints = here / "runs" / "default" / "version_0" / "checkpoints"
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 10


@pytest.mark.parametrize("every", [2, 5])
def test_the_last_epoch_is_validated_however_seldom_the_others_are(every, here, capsys):
    words = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", str(every)]
    assert main([*QUICK, *words, "--test_after_fit", "false"]) == 0
    validated = [int(row["epoch"]) for row in rows(here / "runs/default/version_0") if row["val/loss"]]
    assert validated == ([1, 2] if every == 2 else [2])
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r" *epoch \d/3", line)]
    assert [i for i, line in enumerate(lines) if "val/loss" in line] == validated  # none shows an earlier one's
