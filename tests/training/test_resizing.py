"""Training that begins with smaller images: which sizes the network sees, and what is refused."""

import signal

import pytest
import torch
from torch import Tensor, nn

from tests.training.runs import same, state, stop_at
from vision_zoo.__main__ import main
from vision_zoo.types import ImageShape

SHORT = [
    "fit", "--model.backbone", f"{__name__}.AnySize", "--model.scheduler", "null", "--data.batch_size", "8",
    "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "10", "--trainer.limit_val_batches", "1",
    "--trainer.limit_test_batches", "1", "--trainer.callbacks",
    "[{class_path: ProgressiveResizing, init_args: {initial_scale: 0.5, full_size_from: 0.8}}]",
]  # fmt: skip


class AnySize(nn.Module):
    """A network of somebody's own that takes images of any size; notes which it saw."""

    seen: list[tuple[bool, torch.Size]] = []  # noqa: RUF012  # one list for all instances is meant

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, images.shape))
        return self.head(self.conv(images).relu().mean(dim=(2, 3)))


class Shuffling(AnySize):
    """Takes sides that seven divides, and says so as torchvision's transformers do."""

    def forward(self, images: Tensor) -> Tensor:
        torch._assert(images.shape[2] % 7 == 0, "wrong image size")
        return super().forward(images)


def test_images_grow_in_four_stages_of_training_and_are_whole_elsewhere(here, capsys):
    AnySize.seen.clear()
    assert main(SHORT) == 0
    batches = [(training, shape[2]) for training, shape in AnySize.seen if shape[0] > 2]  # no trials
    assert [side for training, side in batches if training] == [14] * 4 + [18] * 4 + [21] * 4 + [24] * 4 + [28] * 4
    assert [side for training, side in batches if not training] == [28] * 3  # two validations and the test
    assert all(shape[2] == shape[3] for _, shape in AnySize.seen)
    assert "14 x 14 pixels at first, whole after 80 % of the steps" in capsys.readouterr().out


def test_steps_are_counted_where_batches_are_accumulated_from_some_epoch_on(here):
    AnySize.seen.clear()
    later = ["--trainer.callbacks+", "GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{1: 2}"]
    assert main([*SHORT, *later]) == 0  # ten steps of one batch, then five of two
    sides = [shape[2] for training, shape in AnySize.seen if training and shape[0] > 2]
    assert sides == [14] * 3 + [18] * 3 + [21] * 3 + [24] * 5 + [28] * 6


def test_a_run_goes_on_with_the_size_that_it_stopped_at(tmp_path, monkeypatch):
    folders = [tmp_path / "undisturbed", tmp_path / "stopped"]
    assert main([*SHORT, "--trainer.default_root_dir", str(folders[0])]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 7, "SIGTERM")
        assert main([*SHORT, "--trainer.default_root_dir", str(folders[1])]) == 128 + signal.SIGTERM
    run = str(folders[1] / "runs/default/version_0")
    assert main(["fit", "--ckpt_path", run, "--trusted_packages", __name__]) == 0
    once, twice = (state(folder / "runs/default/version_0/checkpoints/last.ckpt") for folder in folders)
    assert same(once["state_dict"], twice["state_dict"])
    assert same(once["optimizer_states"], twice["optimizer_states"])


def test_a_run_that_is_made_longer_goes_on_with_whole_images(here):
    assert main(SHORT) == 0
    AnySize.seen.clear()
    words = ["--trainer.max_epochs", "4", "--trusted_packages", __name__]
    assert main(["fit", "--ckpt_path", "last", *words]) == 0
    assert [shape[2] for training, shape in AnySize.seen if training] == [28] * 20


def test_a_run_that_ends_before_images_are_whole_says_so(here):
    with pytest.warns(UserWarning, match="ended before it saw whole images"):
        assert main([*SHORT, "--trainer.max_time", "00:00:00:01", "--trainer.max_epochs", "1000"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.backbone", "LeNet5"], "LeNet5 cannot take images of 14 x 14 pixels"),
        (["--model.backbone", f"{__name__}.Shuffling"], "cannot take images of 18 x 18 pixels"),
        (["--trainer.max_epochs", "-1"], "ProgressiveResizing divides the steps of the run: set --trainer.max_epochs"),
        (["--trainer.callbacks", "[{class_path: ProgressiveResizing, init_args: {initial_scale: 1}}]"], "0 and 1, got"),
        (["--trainer.callbacks", "[{class_path: ProgressiveResizing, init_args: {full_size_from: 0}}]"], "at most 1"),
    ],
)
def test_what_it_cannot_do_is_refused_before_training(words, message, here, capsys):
    assert main([*SHORT, *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (here / "runs").exists()
