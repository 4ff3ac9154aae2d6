"""The command line: what is refused with which words."""

import pytest
import torch

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


@pytest.mark.parametrize(
    ("call", "words", "code"),
    [(torch.optim.SGD, ([torch.zeros(1)], -1), 2), (torch.mm, (torch.zeros(2), torch.zeros(3)), 1)],
    ids=["raised", "failed"],
)
def test_what_a_library_raises_on_purpose_is_the_user_s_to_mend(call, words, code):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        call(*words)
    message, found = explain(caught.value)
    assert found == code
    assert ("internal error" in message) == (code == 1)


@pytest.mark.parametrize(("started", "devices"), [("1", "2"), ("2", "1")])
def test_slurm_that_starts_other_processes_than_the_options_say_is_refused(started, devices, here, capsys, monkeypatch):
    slurm = {"JOB_ID": "7", "JOB_NAME": "digits", "NTASKS_PER_NODE": "2", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in {**slurm, "NTASKS": started, "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    error = refused(capsys, *QUICK, "--trainer.accelerator", "cpu", "--trainer.devices", devices)
    assert f"SLURM started {started} processes in all, and the options ask for {devices}" in error
    assert not (here / "runs").exists()


def test_hosts_that_cannot_find_each_other_are_refused(here, capsys, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    error = refused(capsys, *QUICK, "--trainer.accelerator", "cpu", "--trainer.num_nodes", "2")
    assert "--trainer.num_nodes 2: no MASTER_ADDR, MASTER_PORT, NODE_RANK in the environment" in error


def test_all_options_are_explained_on_request(capsys):
    assert main(["fit", "--help_all"]) == 0
    text = capsys.readouterr().out
    assert "--model.loss" in text
    assert "of the training batches" in text
