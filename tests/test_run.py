"""A run: what it leaves, how it is stopped, and that it goes on exactly where it stopped."""

import csv
import fcntl
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import BaseFinetuning, Timer
from PIL import Image
from torch.optim.swa_utils import SWALR

from tests import tiny
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.checkpoints import find_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.errors import TrainingError
from vision_zoo.files import lock_file, write_file
from vision_zoo.training import Run
from vision_zoo.training.run_folder import AtomicCheckpointIO

# Every source of state at once: dropout, augmentation, a per-step schedule, validation within the epoch, momentum.
WITH_SWA = pytest.mark.skipif("state_dict" not in vars(SWALR), reason="torch saves the state of SWALR as code")
STATEFUL = [
    "fit", "--model.backbone", "SimpleCNN", "--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.003",
    "--data.batch_size", "32", "--data.image_size", "14", "--trainer.limit_val_batches", "2",
    "--data.augmentation", "[{class_path: RandomCrop, init_args: {padding: 2}}, RandomErasing]",
    "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "12", "--trainer.val_check_interval", "6",
    "--trainer.log_every_n_steps", "4", "--test_after_fit", "false",
    "--trainer.callbacks", "[{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 10}}]",
]  # fmt: skip


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(path: Path) -> dict:
    checkpoint = torch.load(path, weights_only=True)
    for name in ("fit_seconds", "train_seconds"):
        checkpoint["callbacks"]["Run"].pop(name)
    for name in ("vision_zoo", "datamodule_hyper_parameters"):
        checkpoint.pop(name)
    return checkpoint


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def stop_at(monkeypatch, step: int, how: str) -> None:
    """Stop training after a step: by a signal that is handled, or by a crash that nothing handles."""
    original = Run.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == step:
            if how == "crash":
                raise OSError("the machine fell over")
            signal.raise_signal(getattr(signal, how))
        original(self, trainer, *rest)

    monkeypatch.setattr(Run, "on_train_batch_end", on_train_batch_end)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    assert main([*STATEFUL, "--trainer.default_root_dir", str(root)]) == 0
    return root / "runs" / "default" / "version_0"


# ------------------------------------------------------------------------------------------------------------- results


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
    assert checkpoint["callbacks"]["Run"]["best_score"] == pytest.approx(best)


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


def test_checkpoints_of_a_callback_of_ones_own_are_kept_with_the_run(here):
    best = "{class_path: ModelCheckpoint, init_args: {monitor: val/accuracy, mode: max, filename: most_accurate}}"
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", f"[{best}]"]) == 0
    kept = here / "runs" / "default" / "version_0" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["best.ckpt", "last.ckpt", "most_accurate.ckpt"]
    assert [path.name for path in here.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    "callback",
    [
        "EMAWeightAveraging",
        pytest.param("{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01}}", marks=WITH_SWA),
    ],
)
def test_weights_can_be_averaged_by_callbacks_of_lightning(callback, here):
    words = ["--model.backbone", "FashionCNN", "--data.image_size", "14", "--trainer.callbacks", f"[{callback}]"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "2"]) == 0
    assert json.loads((here / "runs/default/version_0/results.json").read_text())["epochs"] == 2
    best = torch.load(here / "runs/default/version_0/checkpoints/best.ckpt", weights_only=True)
    if callback == "EMAWeightAveraging":  # the averaged ones are those that are tested
        key = "backbone.features.0.weight"
        assert not torch.equal(best["state_dict"][key], best["current_model_state"][key])


def test_a_callback_may_watch_the_step(here):
    newest = (
        "{class_path: ModelCheckpoint, init_args: {monitor: step, mode: max, every_n_train_steps: 5, save_top_k: 2}}"
    )
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", f"[{newest}]"]) == 0
    assert len(list((here / "runs/default/version_0/checkpoints").iterdir())) == 4


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


def test_what_keeps_a_run_from_going_on_is_named(here, capsys):
    for number, option in enumerate(("max_steps", "max_epochs")):
        assert main([*QUICK, f"--trainer.{option}", "2", "--model.scheduler", "null"]) == 0
        assert main(["fit", "--ckpt_path", str(here / f"runs/default/version_{number}")]) == 0
        assert f"nothing was left to train: raise --trainer.{option} to continue" in capsys.readouterr().out


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


def test_best_is_of_the_run_that_was_trained_last_even_where_it_found_none_better(here, monkeypatch):
    words = [*QUICK, "--model.scheduler", "null", "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main(words) == 0
    assert main(words) == 0
    monkeypatch.setattr(Run, "_improved", lambda *_: False)
    assert main(["fit", "--ckpt_path", str(here / "runs/default/version_0"), "--trainer.max_epochs", "2"]) == 0
    for name in ("best", "last"):
        assert find_checkpoint(name, here, name).parents[1].name == "version_0"


def test_a_newest_run_that_has_no_checkpoint_yet_is_not_taken_for_an_older_one(trained_run, here, capsys):
    shutil.copytree(trained_run, here / "runs/default/version_0")
    (here / "runs/default/version_1/checkpoints").mkdir(parents=True)
    assert main(["test", "--ckpt_path", "best"]) == 2
    assert "the newest run, " in (error := capsys.readouterr().err)
    assert "version_1, has no best.ckpt yet" in error


def test_a_checkpoint_is_used_without_the_callbacks_it_was_trained_with(here, monkeypatch):
    words = [*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", "tests.test_run.Thaw"]
    assert main([*words, "--model.backbone", "FashionCNN", "--data.image_size", "14", "--model.scheduler", "null"]) == 0
    monkeypatch.delattr("tests.test_run.Thaw")
    best = here / "runs/default/version_0/checkpoints/best.ckpt"
    assert Classifier.load_from_checkpoint(best, trusted_packages=("tests",)).num_classes == 10
    assert main(["fit", "--ckpt_path", str(best), "--trusted_packages", "tests"]) == 2  # which needs it


def test_fit_says_why_it_stopped_early(here, capsys):
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/loss, stopping_threshold: 100}}"
    assert main([*QUICK, "--trainer.max_epochs", "3", "--trainer.callbacks", f"[{stopping}]"]) == 0
    *_, reason, trained, _ = capsys.readouterr().out.strip().splitlines()
    assert reason.startswith("Stopping threshold reached: val/loss = ")
    assert trained.startswith("trained 1 epoch in")


def test_the_report_of_a_profiler_is_shown(here, caplog):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.profiler", "simple"]) == 0
    assert "Profiler Report" in caplog.text


def test_one_callback_needs_no_list(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", "LearningRateMonitor"]) == 0


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
    assert main(["test", "--ckpt_path", "best", *words, "STL10"]) == 2
    assert (
        "the classes of STL10 are not those of the checkpoint: it has 'bird' where the checkpoint knows 'automobile'. "
        "Choose another --data"
    ) in capsys.readouterr().err


def test_numbered_classes_in_another_order_are_refused(here, capsys):
    tiny.write_image_folder(here / "folders", tuple(map(str, range(11))), count=2)  # sorted as text: 0, 1, 10, 2
    arrays = {"images": np.zeros((44, 28, 28, 3), np.uint8), "labels": np.arange(44) % 11}
    np.savez(here / "a.npz", **arrays)
    words = ["--data", "ArrayFile", "--data.path", "a.npz", "--data.val_split", "0.25", "--trainer.max_epochs", "1"]
    assert main([*QUICK, *words, "--data.test_split", "0", "--test_after_fit", "false"]) == 0
    words = ["--data", "ImageFolder", "--data.root", "folders", "--data.image_size", "28", "--data.test_split", "1.0"]
    assert main(["test", "--ckpt_path", "last", *words]) == 2
    assert "it has '10' where the checkpoint knows '2'" in capsys.readouterr().err


def test_fit_says_what_it_does_and_prints_the_run_folder_last(here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "1"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    assert lines[-1] == str(here / "runs" / "default" / "version_0")
    for words in ("61,706 parameters", "3,500 train, 500 val", "Adam", "cross-entropy", "val/accuracy", "epoch 1/1"):
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


def test_a_checkpoint_of_ones_own_callback_knows_its_epoch(here):
    keep = "{class_path: ModelCheckpoint, init_args: {filename: 'mine-{epoch}', save_top_k: -1}}"
    words = ["--trainer.max_epochs", "2", "--trainer.callbacks", f"[{keep}]"]
    assert main([*QUICK, *words]) == 0
    run = here / "runs" / "default" / "version_0"
    undisturbed, best = (run / "metrics.csv").read_bytes(), state(run / "checkpoints/best.ckpt")
    assert main(["fit", "--ckpt_path", str(run / "checkpoints/mine-epoch=0.ckpt")]) == 0
    assert (run / "metrics.csv").read_bytes() == undisturbed
    assert same(state(run / "checkpoints/best.ckpt"), best)


def test_an_epoch_is_saved_before_its_line_is_printed(here, monkeypatch):
    def gone(*_):
        raise BrokenPipeError  # such as of: vision_zoo fit | head

    monkeypatch.setattr("vision_zoo.training.progress.Console.epoch_line", gone)
    assert main([*QUICK, "--trainer.max_epochs", "2"]) == 1
    checkpoints = here / "runs" / "default" / "version_0" / "checkpoints"
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 10


def test_without_validation_the_last_weights_are_the_best(here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "2", "--data.val_split", "0"]) == 0
    folder = here / "runs" / "default" / "version_0" / "checkpoints"
    assert same(state(folder / "best.ckpt"), state(folder / "last.ckpt"))
    assert "best.ckpt is last.ckpt, for there was no validation" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_two_runs_of_one_configuration_and_seed_are_the_same_bit_for_bit(undisturbed, tmp_path):
    assert main([*STATEFUL, "--trainer.default_root_dir", str(tmp_path)]) == 0
    again = tmp_path / "runs" / "default" / "version_0"
    assert (again / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    assert same(state(again / "checkpoints/last.ckpt"), state(undisturbed / "checkpoints/last.ckpt"))


def test_outputs_that_wait_to_be_counted_are_counted_in_between(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("vision_zoo.classifier.MOST_PENDING", 2)  # in place of keeping those of a whole epoch
    assert main([*STATEFUL, "--trainer.default_root_dir", str(tmp_path)]) == 0
    again = tmp_path / "runs" / "default" / "version_0"
    assert (again / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()


def test_another_seed_is_another_run(undisturbed, tmp_path):
    assert main([*STATEFUL, "--trainer.default_root_dir", str(tmp_path), "--seed_everything", "1"]) == 0
    again = tmp_path / "runs" / "default" / "version_0"
    assert (again / "metrics.csv").read_bytes() != (undisturbed / "metrics.csv").read_bytes()


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("step", "how"),
    [(1, "SIGTERM"), (5, "SIGINT"), (6, "SIGTERM"), (11, "SIGINT"), (12, "SIGTERM"), (18, "SIGINT"), (36, "SIGTERM")],
)
def test_a_run_stopped_at_any_step_ends_like_one_that_was_not(step, how, undisturbed, tmp_path, monkeypatch, capsys):
    root = ["--trainer.default_root_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        stop_at(patch, step, how)
        assert main([*STATEFUL, *root]) == {"SIGTERM": 143, "SIGINT": 130}[how]
    assert "the state is saved" in capsys.readouterr().err
    assert main([*STATEFUL, *root, "--ckpt_path", "last"]) == 0
    run = tmp_path / "runs" / "default" / "version_0"
    assert not (tmp_path / "runs" / "default" / "version_1").exists()
    assert (run / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        assert same(state(run / "checkpoints" / name), state(undisturbed / "checkpoints" / name)), name


@pytest.mark.parametrize("step", [15, 30])
def test_a_run_that_crashed_goes_on_from_its_last_epoch(step, undisturbed, tmp_path, monkeypatch):
    root = ["--trainer.default_root_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        stop_at(patch, step, "crash")
        assert main([*STATEFUL, *root]) == 1
    # The run folder alone is enough to go on.
    assert main(["fit", "--ckpt_path", str(tmp_path / "runs" / "default" / "version_0")]) == 0
    run = tmp_path / "runs" / "default" / "version_0"
    assert (run / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    assert same(state(run / "checkpoints/last.ckpt"), state(undisturbed / "checkpoints/last.ckpt"))


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
    assert same(once["callbacks"]["Run"]["rng"], twice["callbacks"]["Run"]["rng"])


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


PLAIN = [
    "fit", "--model.backbone", "LeNet5", "--model.scheduler", "null", "--test_after_fit", "false",
    "--trainer.max_epochs", "4", "--trainer.limit_train_batches", "6", "--trainer.limit_val_batches", "2",
    "--trainer.log_every_n_steps", "1",
]  # fmt: skip


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


class FailingSGD(torch.optim.SGD):
    """It cannot make its first step."""

    def step(self, closure=None):
        raise RuntimeError("no step")


def test_a_run_that_made_no_step_leaves_nothing(here, capsys):
    assert main([*QUICK, "--model.scheduler", "null", "--model.optimizer", f"{__name__}.FailingSGD"]) == 1
    assert "no step" in capsys.readouterr().err
    assert not (here / "runs").exists()


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


def fall_over(*_):
    raise OSError("the machine fell over")


def test_a_run_goes_on_from_a_save_within_an_epoch(undisturbed, tmp_path, monkeypatch):
    words = [*STATEFUL, "--trainer.default_root_dir", str(tmp_path), "--save_every_minutes", "0.00001"]
    with monkeypatch.context() as patch:
        stop_at(patch, 22, "crash")
        assert main(words) == 1
    run = tmp_path / "runs" / "default" / "version_0"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 21
    assert main(["fit", "--ckpt_path", str(run)]) == 0
    assert (run / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    assert same(state(run / "checkpoints/last.ckpt"), state(undisturbed / "checkpoints/last.ckpt"))


class Thaw(BaseFinetuning):
    """Trains the head alone until the third epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone.features)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone.features, optimizer)


@pytest.mark.parametrize(
    ("callback", "how", "step"),
    [
        ("tests.test_run.Thaw", "SIGTERM", 13),
        ("tests.test_run.Thaw", "crash", 20),
        ("{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 1, 2: 2}}}", "SIGTERM", 14),
        pytest.param(
            *("{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01, swa_epoch_start: 2}}", "SIGTERM", 15),
            marks=WITH_SWA,
        ),
    ],
)
def test_what_a_callback_changes_over_the_epochs_survives_a_stop(callback, how, step, tmp_path, monkeypatch):
    words = [
        "fit", "--model.backbone", "FashionCNN", "--model.scheduler", "null", "--data.batch_size", "32",
        "--data.image_size", "14",
        "--trainer.max_epochs", "4", "--trainer.limit_train_batches", "6", "--trainer.limit_val_batches", "2",
        "--trainer.callbacks", f"[{callback}]", "--test_after_fit", "false", "--trainer.default_root_dir",
    ]  # fmt: skip
    assert main([*words, str(tmp_path / "one")]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step, how)
        assert main([*words, str(tmp_path / "two")]) == (1 if how == "crash" else 143)
    one, two = (tmp_path / name / "runs/default/version_0" for name in ("one", "two"))
    assert main(["fit", "--ckpt_path", str(two), "--trusted_packages", "tests"]) == 0
    assert (two / "metrics.csv").read_bytes() == (one / "metrics.csv").read_bytes()
    assert same(state(two / "checkpoints/last.ckpt"), state(one / "checkpoints/last.ckpt"))


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


@pytest.mark.parametrize("every", [2, 5])
def test_the_last_epoch_is_validated_however_seldom_the_others_are(every, here, capsys):
    words = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", str(every)]
    assert main([*QUICK, *words, "--test_after_fit", "false"]) == 0
    validated = [int(row["epoch"]) for row in rows(here / "runs/default/version_0") if row["val/loss"]]
    assert validated == ([1, 2] if every == 2 else [2])
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r" *epoch \d/3", line)]
    assert [i for i, line in enumerate(lines) if "val/loss" in line] == validated  # none shows an earlier one's


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


def test_a_file_system_without_locks_can_be_trained_on(here, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main([*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0


def test_the_best_checkpoint_survives_a_crash_between_the_two(undisturbed, tmp_path, monkeypatch):
    root = ["--trainer.default_root_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("vision_zoo.training.run_folder.link", fall_over)
        assert main([*STATEFUL, *root]) == 1
    run = tmp_path / "runs" / "default" / "version_0"
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["callbacks"]["Run"]
    assert best["best_score"] == min(float(row["val/loss"]) for row in rows(run) if row["val/loss"])


def test_checkpoints_without_the_rest_of_their_run_can_be_continued(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--model.scheduler", "null"]) == 0
    (here / "new").mkdir()
    shutil.move(here / "runs/default/version_0/checkpoints", here / "new")
    assert main(["fit", "--ckpt_path", "new", "--trainer.max_epochs", "2"]) == 0
    assert [row["epoch"] for row in rows(here / "new") if row["train/accuracy"]] == ["1"]
    assert "train/loss" in json.loads((here / "new/results.json").read_text())["metrics"]


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


def test_a_run_whose_steps_are_given_is_not_ended_by_a_number_of_epochs_that_is_not(here):
    Path("own.yaml").write_text("model: {backbone: SmallCNN}\ndata: MNIST5k\ntrainer: {max_steps: 23}")
    words = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]
    assert main(["fit", "--config", "own.yaml", *words]) == 0
    assert torch.load("runs/own/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 23
    assert main(["fit", "--trainer.max_steps", "13", *words]) == 0
    assert torch.load("runs/default/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 13
    assert main(["fit", "--trainer.max_steps", "13", "--trainer.max_epochs", "2", *words]) == 0
    assert torch.load("runs/default/version_1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_run_that_is_validated_no_more_keeps_its_best(here, capsys):
    words = ["--model.scheduler", "null", "--trainer.limit_train_batches", "3"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "1"]) == 0
    best = here / "runs/default/version_0/checkpoints/best.ckpt"
    before = best.read_bytes()
    assert main(["fit", "--ckpt_path", "last", "--trainer.limit_val_batches", "0", "--trainer.max_epochs", "3"]) == 0
    assert "best.ckpt is of the lowest validation loss, epoch 1" in capsys.readouterr().out
    assert best.read_bytes() == before


def test_callbacks_with_a_folder_of_their_own_save_there(here):
    keep = "{class_path: ModelCheckpoint, init_args: {dirpath: checkpoints, filename: best, monitor: train/loss}}"
    assert main([*QUICK, "--trainer.max_epochs", "2", "--trainer.callbacks", f"[{keep}]"]) == 0
    assert [path.name for path in (here / "checkpoints").iterdir()] == ["best.ckpt"]
    run = here / "runs/default/version_0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_callbacks_without_a_folder_save_where_the_users_own_logger_writes(here):
    log = "[{class_path: CSVLogger, init_args: {save_dir: logs}}]"
    words = [
        "--trainer.logger",
        log,
        "--trainer.callbacks",
        "[{class_path: ModelCheckpoint}]",
        "--test_after_fit",
        "false",
    ]
    assert main([*QUICK, "--trainer.max_epochs", "1", *words]) == 0
    (kept,) = here.glob("logs/**/*.ckpt")
    assert torch.load(kept, weights_only=True)["global_step"] == 10
    assert {path.name for path in here.glob("runs/**/*.ckpt")} == {"best.ckpt", "last.ckpt"}


def test_a_signal_is_heeded_where_a_validation_follows_every_step(here, monkeypatch):
    words = ["--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "2"]
    words += ["--trainer.limit_train_batches", "6", "--test_after_fit", "false"]
    assert main([*QUICK, *words, "--trainer.default_root_dir", "one"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3, "SIGTERM")
        assert main([*QUICK, *words, "--trainer.default_root_dir", "two"]) == 143
    one, two = (here / name / "runs/default/version_0" for name in ("one", "two"))
    assert torch.load(two / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert main(["fit", "--ckpt_path", str(two)]) == 0
    assert (two / "metrics.csv").read_bytes() == (one / "metrics.csv").read_bytes()
    assert same(state(two / "checkpoints/last.ckpt"), state(one / "checkpoints/last.ckpt"))


def test_a_schedule_ends_with_the_run_where_the_batches_of_a_step_change(here):
    accumulate = "{class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 4}}}"
    words = ["--model.scheduler", "OneCycleLR", "--model.scheduler.max_lr", "0.01", "--trainer.max_epochs", "3"]
    words += ["--trainer.limit_train_batches", "6", "--trainer.callbacks", f"[{accumulate}]"]
    assert main([*QUICK, *words]) == 0
    last = torch.load("runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == last["lr_schedulers"][0]["total_steps"] == 6 + 2 + 2


def test_a_run_does_not_go_on_with_other_images(here, capsys, monkeypatch):
    tiny.write_image_folder(here / "in", count=20)
    words = ["--data", "ImageFolder", "--data.root", "in", "--data.image_size", "32", "--model.scheduler", "null"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "1"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 1, "SIGTERM")
        assert main([*QUICK, *words, "--data.batch_size", "8", "--trainer.max_epochs", "1"]) == 143
    tiny.write_image_folder(here / "in", count=40)
    for number in (0, 1):  # stopped at the end of an epoch and within one
        run = str(here / f"runs/default/version_{number}")
        assert main(["fit", "--ckpt_path", run, "--trainer.max_epochs", "2"]) == 2
        assert re.search(r"the run was trained on \d+ images and there are \d+ now", capsys.readouterr().err)


def test_epochs_without_validation_are_neither_the_best_nor_watched(here):
    words = ["--model.scheduler", "ReduceLROnPlateau", "--trainer.check_val_every_n_epoch", "2"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "3"]) == 0
    validated = {int(r["epoch"]): float(r["val/loss"]) for r in rows(here / "runs/default/version_0") if r["val/loss"]}
    assert list(validated) == [1, 2]  # the second, and the last in any case
    checkpoint = torch.load(here / "runs/default/version_0/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == min(validated, key=validated.__getitem__)
    assert checkpoint["lr_schedulers"][0]["best"] == checkpoint["callbacks"]["Run"]["best_score"]


def test_a_run_without_validation_that_goes_on_has_its_new_last_weights_as_the_best(here):
    words = ["--model.scheduler", "null", "--data.val_split", "0", "--test_after_fit", "false"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "1"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    run = here / "runs/default/version_0"
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 20
    assert not (run / "test.json").exists()  # nor are the test images read that it was told to leave alone


def test_options_that_look_like_yaml_are_no_reason_to_refuse_a_checkpoint(here):
    keep = "[{class_path: ModelCheckpoint, init_args: {filename: '{epoch}'}}]"
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", keep]) == 0
    assert main(["test", "--ckpt_path", "best"]) == 0


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
    original = Run.on_train_batch_start
    monkeypatch.setattr(
        Run, "on_train_batch_start", lambda *given, **named: (time.sleep(step_seconds), original(*given, **named))[1]
    )
    with monkeypatch.context() as patch:
        stop_at(patch, 8, "SIGTERM")
        assert main([*QUICK, "--trainer.max_epochs", "1"]) == 128 + signal.SIGTERM
    assert main(["fit", "--ckpt_path", "last"]) == 0
    results = json.loads((here / "runs/default/version_0/results.json").read_text())
    assert 0 < results["train_images_per_second"] < 64 / step_seconds


def test_a_run_goes_on_for_longer(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--model.scheduler", "null"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert [row["epoch"] for row in rows(here / "runs/default/version_0") if row["train/accuracy"]] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.backbone", "SmallCNN"],
            "--model.backbone: vision_zoo.backbones.LeNet5 -> vision_zoo.backbones.SmallCNN",
        ),
        (["--model.optimizer.lr", "0.5"], "--model.optimizer.lr"),
        (["--data.batch_size", "5"], "--data.batch_size: 64 -> 5"),
        (["--seed_everything", "5"], "--seed_everything: 0 -> 5"),
        (["--trainer.max_epochs", "7"], "was laid out for max_epochs 2, which cannot become 7"),
        (
            ["--trainer.accumulate_grad_batches", "2"],
            "was laid out for accumulate_grad_batches 1, which cannot become 2",
        ),
    ],
)
def test_what_a_run_fixes_cannot_change_when_it_goes_on(words, message, trained_run, here, capsys):
    before = sorted((p, p.stat().st_mtime_ns) for p in trained_run.rglob("*"))
    assert main(["fit", "--ckpt_path", str(trained_run), *words]) == 2
    assert message in capsys.readouterr().err
    assert before == sorted((p, p.stat().st_mtime_ns) for p in trained_run.rglob("*"))


def test_a_checkpoint_outside_of_its_run_is_not_continued(trained_run, here, capsys):
    shutil.copy(trained_run / "checkpoints" / "last.ckpt", "moved.ckpt")
    assert main(["fit", "--ckpt_path", "moved.ckpt"]) == 2
    assert "lies in no run folder" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "moved.ckpt", "--output", "out"]) == 0


def test_a_folder_in_use_is_refused(trained_run, here, capsys, tmp_path):
    with (trained_run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["fit", "--ckpt_path", str(trained_run)]) == 2
    (trained_run / ".lock").unlink()
    assert "is in use by another process" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- whole or not


def test_a_checkpoint_is_complete_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(3)}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError, match=r"could not be written: .*No space left.*the previous last.ckpt is kept"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path)["weights"], torch.ones(3))
    with pytest.raises(TrainingError, match="No space left"):
        write_file(tmp_path / "results.json", b"{}")
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
