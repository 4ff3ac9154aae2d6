"""A run that was stopped goes on exactly where it stopped."""

import re

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning

from tests import tiny
from tests.conftest import QUICK
from tests.training.runs import STATEFUL, WITH_SWA, rows, same, state, stop_at
from vision_zoo.__main__ import main


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


def called(name: str, options: str = "{}") -> list[str]:
    return ["--trainer.callbacks", f"[{{class_path: {name}, init_args: {options}}}]"]


def by(name: str, *words: str) -> list[str]:
    return ["--model.optimizer", name, *words]


TUNED = ["--model.finetune", "FineTuning", "--model.finetune.thaw_at", "0.4"]
PAIRS = ["--trainer.accumulate_grad_batches", "2"]
SWA = called("StochasticWeightAveraging", "{swa_lrs: 0.01, swa_epoch_start: 2}")
MUON = by("MuonWith", "--model.optimizer.normalize", "true", "--channels_last", "true")
WITH_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@pytest.mark.parametrize(
    ("more", "how", "step"),
    [
        (called("tests.training.test_resume.Thaw"), "SIGTERM", 13),
        (called("tests.training.test_resume.Thaw"), "crash", 20),
        (called("GradientAccumulationScheduler", "{scheduling: {0: 1, 2: 2}}"), "SIGTERM", 14),
        pytest.param(SWA, "SIGTERM", 15, marks=WITH_SWA),
        (called("EMA"), "SIGTERM", 14),
        *(
            pytest.param(more, how, step, marks=[pytest.mark.slow, *marks])
            for more, how, step, *marks in (
                (called("EMA"), "crash", 20),
                (MUON, "SIGTERM", 14, WITH_MUON),
                ([*MUON, *TUNED], "crash", 14, WITH_MUON),
                (by("SAM", "--model.optimizer.base_options.momentum", "0.9"), "SIGTERM", 14),
                (
                    by("SAM", "--model.optimizer.base", "MuonWith", "--trainer.precision", "bf16-mixed"),
                    "crash",
                    14,
                    WITH_MUON,
                ),
                (by("AdamWScheduleFree"), "SIGTERM", 14),
                ([*by("SGDScheduleFree"), *TUNED], "crash", 14),
                ([*TUNED, *called("EMA")], "SIGTERM", 9),
                ([*TUNED, *SWA], "SIGTERM", 14, WITH_SWA),
                ([*TUNED, *PAIRS], "SIGTERM", 7),
                ([*TUNED, *PAIRS, *called("EMA")], "SIGTERM", 7),
                ([*TUNED, *PAIRS, *SWA], "SIGTERM", 8, WITH_SWA),
            )
        ),
    ],
)
def test_what_changes_over_the_epochs_survives_a_stop(more, how, step, tmp_path, monkeypatch):
    """Two seconds for each of the slow ones."""
    words = [
        "fit", "--model.backbone", "FashionCNN", "--model.scheduler", "null", "--data.batch_size", "32",
        "--data.image_size", "14",
        "--trainer.max_epochs", "4", "--trainer.limit_train_batches", "6", "--trainer.limit_val_batches", "2",
        *more, "--test_after_fit", "false", "--trainer.default_root_dir",
    ]  # fmt: skip
    assert main([*words, str(tmp_path / "one")]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step, how)
        assert main([*words, str(tmp_path / "two")]) == (1 if how == "crash" else 143)
    one, two = (tmp_path / name / "runs/default/version_0" for name in ("one", "two"))
    assert main(["fit", "--ckpt_path", str(two), "--trusted_packages", "tests"]) == 0
    assert (two / "metrics.csv").read_bytes() == (one / "metrics.csv").read_bytes()
    assert same(state(two / "checkpoints/last.ckpt"), state(one / "checkpoints/last.ckpt"))


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


@pytest.mark.parametrize("memory", ["true", "false"])
def test_a_run_does_not_go_on_with_as_many_other_images(memory, here, capsys):
    root = tiny.write_image_folder(here / "in", count=20)
    words = ["--data", "ImageFolder", "--data.root", "in", "--data.image_size", "32", "--model.scheduler", "null"]
    words += ["--data.in_memory", memory, "--data.val_split", "0", "--test_after_fit", "false"]
    assert main([*QUICK, *words, "--trainer.max_epochs", "1"]) == 0
    first = min(root.glob("cat/*"))
    first = first.rename(first.with_name("zzz.png"))
    again = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    changed = "pixels" if memory == "true" else "names"  # another version of PIL may decode otherwise, and roots move
    with pytest.warns(UserWarning, match=f"{changed} of the train images are not those that the run began with"):
        assert main(again) == 0
    first.rename(root / "dog" / "zzz.png")
    assert main([*again[:-1], "3"]) == 2
    told = "of the train images are not those that the run began with, so that it cannot resume exactly"
    assert re.search(rf"labels and {changed} {told}", capsys.readouterr().err)


@pytest.mark.filterwarnings("error:.*that the run began with")
def test_a_run_goes_on_with_the_same_images_elsewhere(here):
    tiny.write_image_folder(here / "in", count=20)
    assert main(["pack", "in", "--image_size", "32", "--output", "a.vz"]) == 0
    ways = {"in": ["ImageFolder", "--data.root", "in", "--data.image_size", "32", "--data.in_memory", "false"]}
    ways["a.vz"] = ["Pack", "--data.path", "a.vz", "--data.in_memory", "false"]
    words = [*QUICK, "--model.scheduler", "null", "--test_after_fit", "false", "--trainer.max_epochs"]
    for number, (place, data) in enumerate(ways.items()):
        assert main([*words, "1", "--data", *data]) == 0
        (here / place).rename(here / f"moved-{place}")
        again = ["fit", "--ckpt_path", f"runs/default/version_{number}", data[1], f"moved-{place}"]
        assert main([*again, "--trainer.max_epochs", "2"]) == 0


@pytest.mark.slow  # 3 s
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
