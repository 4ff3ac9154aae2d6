"""The command line over a trained run: what its checkpoint says, and what words and files change."""

import csv
import json
from numbers import Real
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests import tiny
from tests.cli.runs import config_of, fit, newest, refused
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.classifier import Classifier
from vision_zoo.data import MNIST, MNIST5k
from vision_zoo.errors import ConfigError
from vision_zoo.transforms import views


def test_test_needs_nothing_but_the_run_folder(trained_run, here, capsys):
    assert main(["test", "--ckpt_path", str(trained_run), "--output", "out"]) == 0
    tested = json.loads(Path("out/test.json").read_text())
    fitted = json.loads((trained_run / "results.json").read_text())["metrics"]
    about = {"checkpoint": "best.ckpt", "step": 20, "data": "MNIST5k", "images": str(trained_run.parents[2] / "data")}
    assert tested == {name: value for name, value in fitted.items() if name.startswith("test/")} | about
    assert {p.name for p in Path("out").iterdir()} >= {"confusion_matrix.png", "confusion_matrix.csv", "per_class.csv"}
    assert f"{100 * tested['test/accuracy']:.2f} %" in capsys.readouterr().out


def test_the_figures_of_a_test_are_those_that_a_count_by_hand_gives(trained_run, here):
    assert main(["test", "--ckpt_path", str(trained_run), "--output", "out"]) == 0
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    images, labels = MNIST5k().split_images("test")
    with torch.no_grad():
        shares = model(images).softmax(1)
    said = shares.argmax(1)
    counts = [[int(((labels == t) & (said == p)).sum()) for p in range(10)] for t in range(10)]
    with Path("out/confusion_matrix.csv").open(newline="") as file:
        assert [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]] == counts
    with Path("out/per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    f1 = []
    for k, row in enumerate(rows):
        hits, predicted, actual = counts[k][k], sum(line[k] for line in counts), sum(counts[k])
        assert int(row["images"]) == actual
        assert float(row["precision"]) == pytest.approx(hits / max(predicted, 1))
        assert float(row["recall"]) == pytest.approx(hits / actual)
        f1.append(2 * hits / (predicted + actual))
        assert float(row["f1"]) == pytest.approx(f1[-1])
    figures = json.loads(Path("out/test.json").read_text())
    top5 = (shares.topk(5).indices == labels[:, None]).any(1).float().mean()
    confidence, right = shares.max(1).values, (said == labels).float()
    bins = (confidence * 15).long().clamp(max=14)
    error = sum(abs(float((confidence - right)[bins == b].sum())) for b in range(15)) / len(labels)
    assert figures["test/accuracy"] == pytest.approx(float(right.mean()))
    assert figures["test/f1"] == pytest.approx(sum(f1) / 10, abs=1e-6)
    assert figures["test/top5_accuracy"] == pytest.approx(float(top5))
    assert figures["test/loss"] == pytest.approx(float(-shares.log()[range(len(labels)), labels].mean()), rel=1e-5)
    assert figures["test/calibration_error"] == pytest.approx(error, abs=1e-5)


def test_best_and_last_of_the_newest_run_are_found(trained_run, here, monkeypatch, capsys):
    monkeypatch.chdir(trained_run.parents[2])
    for name in ("best", "last"):
        assert main(["validate", "--ckpt_path", name]) == 0
    assert main(["test", "--ckpt_path", str(trained_run / "checkpoints" / "last.ckpt"), "--output", str(here)]) == 0


@pytest.mark.slow  # 3 s
def test_the_newest_run_is_the_last_that_trained_and_a_configuration_picks_its_own(here, capsys):
    for name in ("old", "new"):
        Path(f"{name}.yaml").write_text("model: {backbone: LeNet5}\ndata: MNIST5k\n")
        assert fit("--config", f"{name}.yaml") == 0
    capsys.readouterr()
    for verb in ("best", "last"):
        assert main(["report", "--ckpt_path", verb]) == 0
        assert capsys.readouterr().out.startswith(str(here / "runs/new/version_0"))
    assert fit("--config", "old.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert json.loads((here / "runs/old/version_0/results.json").read_text())["epochs"] == 2
    assert json.loads((here / "runs/new/version_0/results.json").read_text())["epochs"] == 1


def test_a_printed_configuration_is_one(here, capsys):
    assert fit("--model.backbone", "LeNet5", "--data.batch_size", "37", "--print_config") == 0
    printed = capsys.readouterr().out
    assert not (here / "runs").exists()
    Path("printed.yaml").write_text(printed)
    assert main(["fit", "--config", "printed.yaml"]) == 0
    assert config_of(newest(here, "printed"))["data"]["init_args"]["batch_size"] == 37


def test_what_the_command_line_changed_against_the_checkpoint_is_printed(trained_run, here, capsys):
    assert main(["test", "--ckpt_path", str(trained_run), "--data.batch_size", "7", "--output", "out"]) == 0
    assert "changed against the checkpoint: --data.batch_size: 64 -> 7" in capsys.readouterr().err


def test_the_configuration_of_a_run_serves_other_commands(trained_run, here, capsys):
    config = ["--config", str(trained_run / "config.yaml")]
    assert main(["summary", *config]) == 0
    assert main(["show", *config]) == 0
    assert main(["test", "--ckpt_path", str(trained_run), *config, "--output", "out"]) == 0
    assert main(["summary", *config, "--deterministic", "true"]) == 2
    assert "there is no option --deterministic" in capsys.readouterr().err


def test_another_mean_is_said_to_be_of_no_effect_on_a_trained_network(trained_run, here, capsys):
    words = ["validate", "--ckpt_path", str(trained_run)]
    assert main(words) == 0
    before = capsys.readouterr().out
    assert main([*words, "--data.mean", "[0.9]"]) == 0
    shown = capsys.readouterr()
    assert shown.out == before
    assert "--data.mean: None -> [0.9], ignored: the network keeps its own" in shown.err


@pytest.mark.slow  # 3 s
def test_cutting_the_parts_anew_is_said_to_mix_trained_and_scored_images(here, trained_run, capsys):
    tiny.write_image_folder(here / "pictures", count=30)
    words = ["--data", "ImageFolder", "--data.root", "pictures", "--data.image_size", "28", "--data.channels", "1"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "1", "--test_after_fit", "false"]) == 0
    warning = "images that the network was trained with may be among those that are scored"
    for verb, option, value in (("test", "test_split", "0.5"), ("test", "seed", "1"), ("validate", "val_split", "0.5")):
        capsys.readouterr()
        assert main([verb, "--ckpt_path", "best", f"--data.{option}", value]) == 0
        assert f"--data.{option}: {warning}" in capsys.readouterr().err
    tiny.write_image_folder(here / "others", count=4)
    assert main(["test", "--ckpt_path", "best", "--data.root", "others", "--data.test_split", "1.0"]) == 0
    told = capsys.readouterr()
    assert "--data.test_split: unless these are other images, some that the network was trained with" in told.err
    assert "on the part that --data.test_split cuts out" not in told.out
    with (here / "runs/default/version_0/test/per_class.csv").open(newline="") as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["4", "4"]
    assert main(["test", "--ckpt_path", "best", "--data.val_split", "0.5"]) == 0
    assert main(["test", "--ckpt_path", str(trained_run), "--data.seed", "1", "--output", "out"]) == 0
    assert warning not in capsys.readouterr().err


@pytest.mark.parametrize(
    "transform",
    [
        "{class_path: RandomRotation, init_args: {degrees: 10}}",
        "{class_path: RandomApply, init_args: {transforms: [{class_path: torchvision.transforms.v2.RandomAffine, "
        "init_args: {degrees: 7.5}}]}}",
    ],
)
def test_an_augmentation_of_torchvision_is_the_same_in_a_later_run(transform, here):
    words = [*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main([*words, "--data.augmentation", f"[{transform}]"]) == 0
    run = here / "runs" / "default" / "version_0"
    assert main(["validate", "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--config", str(run / "config.yaml"), "--test_after_fit", "false"]) == 0
    again = here / "runs" / "default" / "version_1"
    assert config_of(again) == config_of(run)
    assert (again / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


class Unwritable(nn.Module):
    """A transform with an option that no file can hold."""

    def __init__(self, turn: Real = 1.0) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


@pytest.mark.parametrize(
    ("words", "peak"),
    [
        ([], 0.002),  # the recipe's
        (["--model.optimizer.lr", "1e-4"], 1e-4),
        (["--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"], 0.1),
        (["--model.optimizer", "{class_path: SGD, init_args: {lr: 0.1}}"], 0.1),
        (["--model.optimizer.lr", "0.1", "--model.scheduler.max_lr", "0.3"], 0.3),
        (["--model.optimizer", "SGD"], 0.001),  # torch's
        (["--config", "own.yaml"], 0.07),
        (["--config", "cnn_mnist5k", "--config", "other.yaml"], 0.05),
        (["--config", "cnn_mnist5k", "--config", "same.yaml"], 0.002),
        (["--config", "cnn_mnist5k", "--config", "peak.yaml"], 0.4),
    ],
)
def test_a_learning_rate_is_the_peak_of_a_one_cycle_schedule(words, peak, here, monkeypatch):
    Path("own.yaml").write_text(
        "model: {backbone: LeNet5, optimizer: {class_path: SGD, init_args: {lr: 0.07}}, scheduler: OneCycleLR}\n"
        "data: MNIST5k\n"
    )
    Path("other.yaml").write_text("model: {optimizer: {class_path: SGD, init_args: {lr: 0.05}}}\n")
    Path("same.yaml").write_text("model: {optimizer: {class_path: Adam, init_args: {weight_decay: 0.1}}}\n")
    Path("peak.yaml").write_text("model: {optimizer: SGD, scheduler: {init_args: {max_lr: 0.4}}}\n")
    peaks = []

    def check(self):
        optimizer = self.optimizer(self.parameters())
        self.scheduler(optimizer, total_steps=10)
        peaks.append(optimizer.param_groups[0]["max_lr"])
        raise ConfigError("seen")

    monkeypatch.setattr("vision_zoo.classifier.Classifier.check_optimizer", check)
    assert main(["fit", *words]) == 2
    assert peaks == [peak]


def test_a_folder_that_the_embedded_images_do_not_use_is_told(here, capsys):
    assert main(["summary", "--data.root", "photos"]) == 0
    assert "--data.root is not used" in capsys.readouterr().err


def test_an_option_that_no_file_can_hold_is_refused_before_training(here, capsys):
    assert (
        main([*QUICK, "--data.augmentation", f"[{{class_path: {__name__}.Unwritable, init_args: {{turn: 2}}}}]"]) == 2
    )
    assert "turn" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_file_beats_the_checkpoint_and_the_command_line_the_file(trained_run, here, capsys):
    Path("more.yaml").write_text("data: {class_path: MNIST5k, init_args: {batch_size: 9, num_workers: 0}}\n")
    words = ["test", "--ckpt_path", str(trained_run), "--config", "more.yaml", "--output", "out"]
    assert main(words) == 0
    assert "--data.batch_size: 64 -> 9" in capsys.readouterr().err
    assert main([*words, "--data.batch_size", "11"]) == 0
    assert "--data.batch_size: 64 -> 11" in capsys.readouterr().err


def test_preprocessing_is_the_checkpoints_own(trained_run, here, data_root):
    """Another data set has another mean; the network goes on with the one it was trained with."""
    words = ["--data", "MNIST", "--data.mean", "[0.9]", "--data.root", str(data_root), "--output", "out"]
    assert main(["test", "--ckpt_path", str(trained_run), *words]) == 0
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    data = MNIST(root=str(data_root))
    images, labels = data.split_images("test")
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    assert json.loads(Path("out/test.json").read_text())["test/accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("kind", "count"), [("flip", 2), ("shift", 5), ("flip+shift", 10), ("diagonal", 3), ("flip+diagonal", 6)]
)
def test_test_time_augmentation_averages_views_and_says_so(kind, count, trained_run, here, capsys):
    assert main(["test", "--ckpt_path", str(trained_run), "--tta", kind, "--output", "out"]) == 0
    figures = json.loads(Path("out/test.json").read_text())
    assert figures["test_time_augmentation"] == kind
    assert f"with test-time augmentation: {kind}" in capsys.readouterr().out
    model = Classifier.load_from_checkpoint(trained_run / "checkpoints" / "best.ckpt")
    images, labels = MNIST5k().split_images("test")
    seen = views(images, kind)
    assert len(seen) == count
    assert torch.equal(seen[0][0], images)
    assert sum(weight for _, weight in seen) == pytest.approx(1)
    with torch.no_grad():
        mean = sum(weight * model(view).softmax(1) for view, weight in seen)
    assert figures["test/accuracy"] == pytest.approx((mean.argmax(1) == labels).float().mean().item())


@pytest.mark.slow  # 5 s
def test_the_test_that_ends_a_fit_averages_views_too(here, capsys):
    words = ["--model.scheduler", "null", "--trainer.max_epochs", "1", "--tta", "flip"]
    assert main([*QUICK, *words]) == 0
    assert "tested with test-time augmentation: flip" in capsys.readouterr().out
    run = here / "runs" / "default" / "version_0"
    stored = json.loads((run / "results.json").read_text())
    assert stored["test_time_augmentation"] == "flip"
    assert json.loads((run / "test.json").read_text())["test_time_augmentation"] == "flip"
    config = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run)]
    for words in (["--ckpt_path", str(run)], config):
        assert main(["test", *words, "--output", "out"]) == 0
        figures = json.loads(Path("out/test.json").read_text())
        assert figures["test_time_augmentation"] == "flip"
        assert figures["test/loss"] == stored["metrics"]["test/loss"]
    assert main(["test", "--ckpt_path", str(run), "--tta", "none", "--output", "plain"]) == 0
    assert json.loads(Path("plain/test.json").read_text())["test/loss"] != figures["test/loss"]
    assert main(["validate", *config]) == 0  # which has no such option
    assert main(["report", "--ckpt_path", str(run)]) == 0
    assert "flip: predictions averaged over views" in (run / "README.md").read_text()
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "2"]) == 0
    assert json.loads((run / "results.json").read_text())["test_time_augmentation"] == "flip"


def test_another_data_set_that_does_not_fit_the_checkpoint_is_refused(trained_run, here, data_root, capsys):
    message = refused(
        capsys, "test", "--ckpt_path", str(trained_run), "--data", "CIFAR10", "--data.root", str(data_root)
    )
    assert "takes images of shape (1, 28, 28), CIFAR10 has (3, 32, 32)" in message


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_state_dict_starts_a_network_and_leaves_no_path_in_the_checkpoint(save, here):
    own = LeNet5((1, 28, 28), 10)
    save(own.state_dict(), "own.weights")
    words = ("--model.backbone", "LeNet5", "--model.weights", "own.weights", "--model.optimizer.lr", "1e-30")
    assert fit(*words, "--model.scheduler", "null") == 0
    checkpoint = torch.load(newest(here) / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.equal(checkpoint["state_dict"]["backbone.head.2.weight"], own.state_dict()["head.2.weight"])
    assert "own.weights" not in str(checkpoint)


def test_weights_are_taken_from_a_run_folder(trained_run, here):
    assert fit("--model.backbone", "LeNet5", "--model.weights", str(trained_run), "--model.optimizer.lr", "1e-30") == 0
    ours, its = (
        torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for run in (newest(here), trained_run)
    )
    assert torch.equal(ours["backbone.head.2.weight"], its["backbone.head.2.weight"])
