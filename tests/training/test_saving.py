"""Which checkpoints there are, what they hold, and what they are taken for."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch import nn

from tests.conftest import QUICK
from tests.training.runs import STATEFUL, WITH_SWA, rows, same, state
from vision_zoo.__main__ import main
from vision_zoo.checkpoints import find_checkpoint, open_checkpoint, run_folder
from vision_zoo.classifier import Classifier
from vision_zoo.errors import CheckpointError, TrainingError
from vision_zoo.files import write_file
from vision_zoo.training.saving import AtomicCheckpointIO, Saving, hard_link


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


def test_best_is_of_the_run_that_was_trained_last_even_where_it_found_none_better(here, monkeypatch):
    words = [*QUICK, "--model.scheduler", "null", "--trainer.max_epochs", "1", "--test_after_fit", "false"]
    assert main(words) == 0
    assert main(words) == 0
    monkeypatch.setattr(Saving, "_improved", lambda *_: False)
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
    words = [*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", "tests.training.test_resume.Thaw"]
    assert main([*words, "--model.backbone", "FashionCNN", "--data.image_size", "14", "--model.scheduler", "null"]) == 0
    monkeypatch.delattr("tests.training.test_resume.Thaw")
    best = here / "runs/default/version_0/checkpoints/best.ckpt"
    assert Classifier.load_from_checkpoint(best, trusted_packages=("tests",)).num_classes == 10
    assert main(["fit", "--ckpt_path", str(best), "--trusted_packages", "tests"]) == 2  # which needs it


def test_a_checkpoint_of_ones_own_callback_knows_its_epoch(here):
    keep = "{class_path: ModelCheckpoint, init_args: {filename: 'mine-{epoch}', save_top_k: -1}}"
    words = ["--trainer.max_epochs", "2", "--trainer.callbacks", f"[{keep}]"]
    assert main([*QUICK, *words]) == 0
    run = here / "runs" / "default" / "version_0"
    undisturbed, best = (run / "metrics.csv").read_bytes(), state(run / "checkpoints/best.ckpt")
    assert main(["fit", "--ckpt_path", str(run / "checkpoints/mine-epoch=0.ckpt")]) == 0
    assert (run / "metrics.csv").read_bytes() == undisturbed
    assert same(state(run / "checkpoints/best.ckpt"), best)


def test_without_validation_the_last_weights_are_the_best(here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "2", "--data.val_split", "0"]) == 0
    folder = here / "runs" / "default" / "version_0" / "checkpoints"
    assert same(state(folder / "best.ckpt"), state(folder / "last.ckpt"))
    assert "best.ckpt is last.ckpt, for there was no validation" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]


def fall_over(*_):
    raise OSError("the machine fell over")


def test_the_best_checkpoint_survives_a_crash_between_the_two(undisturbed, tmp_path, monkeypatch):
    root = ["--trainer.default_root_dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("vision_zoo.training.saving.hard_link", fall_over)
        assert main([*STATEFUL, "--data.augmentation", "null", *root]) == 1
    run = tmp_path / "runs" / "default" / "version_0"
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["callbacks"]["Saving"]
    assert best["best_score"] == pytest.approx(min(float(row["val/loss"]) for row in rows(run) if row["val/loss"]))


def test_checkpoints_without_the_rest_of_their_run_can_be_continued(here):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--model.scheduler", "null"]) == 0
    (here / "new").mkdir()
    shutil.move(here / "runs/default/version_0/checkpoints", here / "new")
    assert main(["fit", "--ckpt_path", "new", "--trainer.max_epochs", "2"]) == 0
    assert [row["epoch"] for row in rows(here / "new") if row["train/accuracy"]] == ["1"]
    assert "train/loss" in json.loads((here / "new/results.json").read_text())["metrics"]


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


def test_epochs_without_validation_are_neither_the_best_nor_watched(here):
    words = ["--model.scheduler", "ReduceLROnPlateau", "--trainer.check_val_every_n_epoch", "2"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "3"]) == 0
    validated = {int(r["epoch"]): float(r["val/loss"]) for r in rows(here / "runs/default/version_0") if r["val/loss"]}
    assert list(validated) == [1, 2]  # the second, and the last in any case
    checkpoint = torch.load(here / "runs/default/version_0/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == min(validated, key=validated.__getitem__)
    assert checkpoint["lr_schedulers"][0]["best"] == checkpoint["callbacks"]["Saving"]["best_score"]


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


def test_a_checkpoint_outside_of_its_run_is_not_continued(trained_run, here, capsys):
    shutil.copy(trained_run / "checkpoints" / "last.ckpt", "moved.ckpt")
    assert main(["fit", "--ckpt_path", "moved.ckpt"]) == 2
    assert "lies in no run folder" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "moved.ckpt", "--output", "out"]) == 0


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


@pytest.mark.parametrize("links", [True, False])
def test_two_names_of_a_checkpoint_are_replaced_one_by_one_also_without_hard_links(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.delattr("os.link")
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    best.write_bytes(b"first")
    hard_link(best, last)
    hard_link(best, last)
    assert last.read_bytes() == b"first"
    best.unlink()
    best.write_bytes(b"second")
    hard_link(best, last)
    assert last.read_bytes() == b"second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


NAMES = {  # filenames, and the files that they make
    "{epoch}-{val/accuracy:.3f}": r"epoch=0-val_accuracy=0\.\d{3}\.ckpt",
    "{step:04d}_{train/loss:.1f}": r"step=0010_train_loss=\d\.\d\.ckpt",
    "by epoch/{epoch}": r"by epoch/epoch=0\.ckpt",  # a folder that the user names
}


def test_checkpoints_named_after_metrics_lie_in_the_run_and_commands_take_them(here):
    spec = "{{class_path: ModelCheckpoint, init_args: {{filename: '{}', monitor: {}}}}}"
    monitors = ("val/loss", "train/loss", "step")  # Lightning takes no two callbacks that differ in their names alone
    callbacks = f"[{', '.join(map(spec.format, NAMES, monitors))}]"
    few = ["--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1", "--model.scheduler", "null"]
    assert main([*QUICK, *few, "--trainer.max_epochs", "1", "--trainer.callbacks", callbacks]) == 0
    run, kept = here / "runs/default/version_0", here / "runs/default/version_0/checkpoints"
    files = {path.relative_to(kept).as_posix() for path in run.rglob("*.ckpt")} - {"best.ckpt", "last.ckpt"}
    found = [next(file for file in files if re.fullmatch(pattern, file)) for pattern in NAMES.values()]
    assert len(files) == 3
    Image.new("L", (28, 28)).save("a.png")
    assert main(["predict", "--ckpt_path", str(kept / found[0]), "--images", "a.png"]) == 0
    deep = str(kept / found[2])
    assert main(["test", "--ckpt_path", deep, "--trainer.limit_test_batches", "1"]) == 0
    assert json.loads((run / "test/test.json").read_text())["checkpoint"] == "epoch=0.ckpt"
    assert main(["report", "--ckpt_path", deep]) == 0
    assert f"checkpoints/{found[2]}" in (run / "README.md").read_text()
    assert main(["fit", "--ckpt_path", deep, "--trainer.max_epochs", "2", "--test_after_fit", "false"]) == 0
    assert [row["epoch"] for row in rows(run) if row["train/accuracy"]] == ["0", "1"]
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    (kept / found[2]).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"older good checkpoint is \S+/checkpoints/"):
        open_checkpoint(str(kept / found[2]))


def test_a_metric_in_a_filename_that_there_is_not_is_refused(here, capsys):
    keep = "[{class_path: ModelCheckpoint, init_args: {filename: '{epoch}-{val_accuracy:.2f}'}}]"
    assert main([*QUICK, "--trainer.callbacks", keep]) == 2
    error = capsys.readouterr().err
    assert "its filename {epoch}-{val_accuracy:.2f} has val_accuracy, which is no metric; did you mean val/acc" in error


def test_a_file_in_a_folder_that_is_called_checkpoints_by_chance_is_of_no_run(tmp_path):
    assert run_folder(tmp_path / "checkpoints/mine/a.ckpt") is None
    assert run_folder(tmp_path / "checkpoints/a.ckpt") == tmp_path


def test_a_file_may_have_the_longest_name_that_there_is(tmp_path):
    write_file(tmp_path / ("n" * 255), b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("n" * 255, b"whole")]


class Counting(Callback):
    """Keeps a number of numpy's, as many do."""

    def state_dict(self):
        return {"best": np.float64(0.5)}


def test_a_state_that_could_not_be_read_again_is_refused_at_the_first_save(here, capsys):
    words = ["--trainer.callbacks", "tests.training.test_saving.Counting", "--trainer.max_epochs", "2"]
    assert main([*QUICK, *words]) == 1
    told = capsys.readouterr()
    assert "epoch 2/2" not in told.out
    assert "Counting has a state that no checkpoint could be continued from" in told.err
    assert "float()" in told.err
    assert not list(here.rglob("*.ckpt"))


class Lazy(nn.Module):
    """A network with a lazy layer."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, images):
        return self.layers(images)


class WithExtras(Lazy):
    """And with a state that is no tensor."""

    def get_extra_state(self):
        return {"made": "here"}


def test_networks_with_lazy_layers_are_read_and_continued_and_odd_states_are_refused(here, capsys):
    words = ["--model.backbone", "tests.training.test_saving.Lazy", "--model.scheduler", "null"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "1"]) == 0
    assert main(["validate", "--ckpt_path", "best", "--trusted_packages", "tests"]) == 0
    again = ["--ckpt_path", "last", "--trusted_packages", "tests", "--trainer.max_epochs", "2"]
    assert main(["fit", *again]) == 0
    assert main([*QUICK, *words, "--model.backbone", "tests.training.test_saving.WithExtras"]) == 2
    assert "has _extra_state among its weights, which is no tensor" in capsys.readouterr().err


@pytest.mark.parametrize("interval", ["1.0", "0.5"], ids=["the epoch's end", "a validation within the epoch"])
def test_a_checkpoint_of_ones_own_before_a_validation_is_not_continued_from(interval, here, capsys):
    """Lightning would leave that validation out (its issue 19549)."""
    often = "{class_path: ModelCheckpoint, init_args: {every_n_train_steps: 3, save_top_k: -1, filename: '{step}'}}"
    words = ["--trainer.limit_train_batches", "6", "--trainer.val_check_interval", interval, "--trainer.max_epochs"]
    assert main([*QUICK, *words, "2", "--model.scheduler", "null", "--trainer.callbacks", f"[{often}]"]) == 0
    kept = here / "runs/default/version_0/checkpoints"
    before = (kept.parent / "metrics.csv").read_bytes()
    for step in (3, 6):
        refused = interval == "0.5" or step == 6
        capsys.readouterr()
        assert main(["fit", "--ckpt_path", str(kept / f"step={step}.ckpt")]) == (2 if refused else 0)
        assert ("saved just before a validation or the end of an epoch" in capsys.readouterr().err) == refused
        assert (kept.parent / "metrics.csv").read_bytes() == before
    assert main(["test", "--ckpt_path", str(kept / "step=6.ckpt")]) == 0


@pytest.mark.parametrize("other", ["EMA", "{class_path: ModelPruning, init_args: {pruning_fn: l1_unstructured}}"])
def test_a_checkpoint_of_ones_own_after_the_last_validation_of_an_epoch_goes_on_exactly(other, here):
    keep = "{class_path: ModelCheckpoint, init_args: {monitor: val/loss, save_top_k: -1, filename: '{step}'}}"
    words = ["--trainer.limit_train_batches", "6", "--trainer.val_check_interval", "3", "--trainer.max_epochs", "3"]
    assert main([*QUICK, *words, "--model.scheduler", "null", "--trainer.callbacks", f"[{other}, {keep}]"]) == 0
    run = here / "runs/default/version_0"
    rows_before, states = (run / "metrics.csv").read_bytes(), [state(run / "checkpoints/best.ckpt")]
    assert main(["fit", "--ckpt_path", str(run / "checkpoints/step=6.ckpt")]) == 0
    assert (run / "metrics.csv").read_bytes() == rows_before
    states.append(state(run / "checkpoints/best.ckpt"))
    for each in states:  # Lightning's own names its later files step=12-v1.ckpt, beside those that are there
        del each["callbacks"][next(name for name in each["callbacks"] if name.startswith("ModelCheckpoint"))]
    assert same(*states)
