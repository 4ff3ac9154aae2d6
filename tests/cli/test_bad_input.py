"""The catalogue of bad input: each case is refused with one message that says what, where and the way out.

Every case runs the real command line. It must end with exit code 2, or 1 where the fault shows only while training, say
one thing, show no traceback, and leave the working directory as it was.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests import tiny
from tests.cli.bad_checkpoints import CHECKPOINTS, HELD, OFFER, broken
from tests.cli.bad_configs import CONFIGS
from tests.cli.bad_data import DATA
from tests.cli.bad_options import OPTIONS
from tests.cli.cases import FIT, FOLDER, refuse, tree
from vision_zoo.__main__ import main
from vision_zoo.backbones import LeNet5
from vision_zoo.training.run_folder import RunFolder

CATALOGUE = [*DATA, *OPTIONS, *CONFIGS, *CHECKPOINTS]


@pytest.mark.parametrize("case", CATALOGUE, ids=[case.name for case in CATALOGUE])
def test_bad_input_is_refused_with_one_message_and_changes_nothing(case, here, capsys, request):
    if any("run" in word for word in case.words) or case.name in ("truncated",):
        shutil.copytree(request.getfixturevalue("trained_run"), here / "run")
        capsys.readouterr()
    case.prepare(here)
    before = tree(here)
    refuse(capsys, case.words, case.message)
    assert tree(here) == before
    HELD.clear()


def test_the_catalogue_is_long_enough_and_names_its_cases_apart():
    assert len({case.name for case in CATALOGUE}) == len(CATALOGUE) >= 60


# ------------------------------------------------------------------------------------------------ what works after all


def test_a_batch_larger_than_the_data_is_one_batch(here):
    tiny.write_mnist(here / "data", 40, 20)
    words = [*FIT, "--data", "MNIST", "--data.batch_size", "100000", "--data.val_split", "10"]
    assert main([*words, "--model.scheduler", "null"]) == 0


def test_class_folders_may_be_named_in_any_script(here):
    tiny.write_image_folder(here / "pictures", ("ねこ", "Äpfel", "собака", "कुत्ता", "قط", "a b'c\"d"))
    assert main([*FOLDER, "--data.val_split", "6", "--test_after_fit", "false"]) == 0
    names = torch.load(here / "runs/default/version_0/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert set(names["class_names"]) == {"ねこ", "Äpfel", "собака", "कुत्ता", "قط", "a b'c\"d"}


# ------------------------------------------------------------------------------------- what shows only while training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.log_every_n_steps", "2"], r"the training loss is (nan|inf) at step \d+ \(epoch [01]\)"),
        (
            ["--trainer.log_every_n_steps", "50"],
            r"(loss is (nan|inf)|are not finite) (at|after) step \d+ \(epoch [01]\)",
        ),
        (["--data.val_split", "0"], r"(loss is (nan|inf)|are not finite) (at|after) step \d+ \(epoch [01]\)"),
    ],
    ids=["at once", "at the epoch's end", "without validation"],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    words, message, here, capsys, monkeypatch
):
    original = LeNet5.forward

    def forward(self, images):
        # From the second epoch on, the loss explodes.
        return original(self, images) * (1e38 if self.training and self.steps > 10 else 1)

    monkeypatch.setattr(LeNet5, "steps", 0, raising=False)
    monkeypatch.setattr(LeNet5, "forward", forward)
    monkeypatch.setattr("vision_zoo.training.run_folder.RunFolder.on_train_batch_end", counted(LeNet5), raising=True)
    command = [*FIT[:3], "--trainer.limit_train_batches", "8", "--trainer.max_epochs", "3", "--model.scheduler", "null"]
    error = refuse(capsys, (*command, *words), message, code=1)
    assert "What was saved before is kept" in error
    last = torch.load(here / "runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert not list((here / "runs").rglob("*.tmp"))


def counted(network: type) -> Callable[..., None]:
    original = RunFolder.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        network.steps = trainer.global_step
        original(self, trainer, *rest)

    return on_train_batch_end


def test_an_absurd_learning_rate_ends_with_a_message_and_leaves_no_bad_checkpoint(here, capsys):
    words = (
        "fit",
        "--model.backbone",
        "MLP",
        "--model.optimizer",
        "SGD",
        "--model.optimizer.lr",
        "1e8",
        "--model.scheduler",
        "null",
    )
    refuse(capsys, (*words, "--trainer.limit_train_batches", "8"), r"not finite|loss is (nan|inf)", code=1)
    for path in (here / "runs").rglob("*.ckpt"):
        values = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in values)


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(here, capsys, monkeypatch):
    original, saved = torch.save, []

    def fills_up(state, file):
        if isinstance(file, Path):  # on the disk
            saved.append(1)
            if len(saved) > 1:
                full()
        original(state, file)

    monkeypatch.setattr("torch.save", fills_up)
    words = (*FIT[:3], "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4", "--model.scheduler", "null")
    refuse(capsys, words, r"best\.ckpt could not be written: .*No space left .*the previous best\.ckpt is kept", code=1)
    last = torch.load(here / "runs/default/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert not list((here / "runs").rglob("*.tmp"))


def test_a_disk_that_is_full_from_the_start_is_named(here, capsys, monkeypatch):
    monkeypatch.setattr("os.fsync", full)
    refuse(capsys, FIT, r"config\.yaml could not be written: No space left on device", code=1)
    assert not list((here / "runs").rglob("*.tmp"))


def test_predictions_onto_a_full_disk_are_named(here, capsys, trained_run, monkeypatch):
    Image.new("L", (28, 28)).save("a.png")
    monkeypatch.setattr("os.fsync", full)
    words = ("predict", "--ckpt_path", str(trained_run), "--images", "a.png", "--output", "table.csv")
    refuse(capsys, words, r"table\.csv could not be written: No space left on device", code=1)
    assert [path.name for path in here.glob("*.*")] == ["a.png"]


def test_a_checkpoint_that_was_offered_continues_the_run(here, capsys, trained_run):
    shutil.copytree(trained_run, here / "run")
    broken("last.ckpt", 5000)(here)
    error = refuse(capsys, ("test", "--ckpt_path", "run/checkpoints/last.ckpt"), OFFER)
    offered = re.search(r"--ckpt_path (\S+)$", error.strip())[1]
    assert main(["validate", "--ckpt_path", offered]) == 0
