"""The command line: what is refused with which words."""

import pytest

from tests import tiny
from tests.cli.runs import config_of, fit, newest, refused
from tests.conftest import QUICK
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.cli.messages import explain


def test_memory_that_python_itself_lacks_is_told_too():
    message, code = explain(MemoryError())  # which has no text
    assert (message, code) == (
        "there is not enough memory: set --data.batch_size or --data.image_size lower, or take a smaller network "
        "(MemoryError)",
        1,
    )


def test_the_images_of_a_step_are_told_factor_by_factor(here, capsys):
    assert fit("--data.batch_size", "16", "--trainer.accumulate_grad_batches", "2") == 0
    assert "32 images per step = 16 x 2 batches; the learning" in " ".join(capsys.readouterr().out.split())


def test_pictures_for_a_network_of_gray_ones_are_refused_with_both_options(trained_run, here, capsys):
    tiny.write_image_folder(here / "pictures")
    words = ["--data", "ImageFolder", "--data.root", "pictures", "--data.test_split", "1.0"]
    message = refused(capsys, "test", "--ckpt_path", str(trained_run), *words)
    assert "set --data.channels 1 --data.image_size 28" in message
    turned = ["--data.channels", "1", "--data.image_size", "28"]
    message = refused(capsys, "test", "--ckpt_path", str(trained_run), *words, *turned)
    assert "knows 10 classes, ImageFolder has 2 in " in message
    assert message.rstrip().endswith("choose another --data.root")


def test_a_bug_is_called_a_bug(here, capsys, monkeypatch):
    original = LeNet5.forward

    def broken(self, images):
        return self.nothing_of_the_kind if self.training else original(self, images)

    monkeypatch.setattr(LeNet5, "forward", broken)
    error = refused(capsys, "fit", "--model.backbone", "LeNet5", code=1)
    assert "internal error, AttributeError" in error
    monkeypatch.setenv("VISION_ZOO_DEBUG", "1")
    with pytest.raises(AttributeError):
        main([*QUICK])


def test_a_saved_configuration_is_a_configuration(trained_run, here):
    assert fit("--config", str(trained_run / "config.yaml")) == 0
    ours, again = config_of(trained_run), config_of(newest(here))  # named after the run that it is of
    assert ours["model"] == again["model"]
    assert ours["data"]["class_path"] == again["data"]["class_path"]


def test_processes_that_a_launcher_started_are_to_be_counted_in_words(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = ValueError("You set `devices=1` in Lightning, but the product does not match the world size (2)")
    message, code = explain(error)
    assert code == 2
    assert message.startswith("the launcher started 2 processes in all: say so with --trainer.devices")


def test_all_options_are_explained_on_request(capsys):
    assert main(["fit", "--help_all"]) == 0
    text = capsys.readouterr().out
    assert "--model.label_smoothing" in text
    assert "of the training loss" in text
