"""Lightning's own callbacks and options in a run: what they change is in its checkpoints, and it resumes exactly."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import CPUAccelerator
from torch import nn

from tests.conftest import QUICK
from tests.training.runs import PLAIN, WITH_SWA, rows, same, state, stop_at
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier

FASHION = [*PLAIN, "--model.backbone", "FashionCNN", "--data.image_size", "14", "--data.batch_size", "32"]
SHORT = [*QUICK, "--trainer.max_epochs", "1", "--test_after_fit", "false"]


class LogsThirds(Callback):
    """Logs the number of the batch after each third one."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % 3 == 0:
            pl_module.log("mine", float(batch_idx + 1))


def run_of(root: Path) -> Path:
    return root / "runs" / "default" / "version_0"


def assert_a_stop_changes_nothing(words: list[str], root: Path, monkeypatch, *steps: int) -> Path:
    """Train undisturbed, and again with stops after some steps; gives the undisturbed run."""
    assert main([*words, "--trainer.default_root_dir", str(root / "one")]) == 0
    for number, step in enumerate(steps):
        more = ["--ckpt_path", str(run_of(root / "two"))] if number else words[1:]
        with monkeypatch.context() as patch:
            stop_at(patch, step, "SIGTERM")
            assert main(["fit", *more, "--trainer.default_root_dir", str(root / "two")]) == 143
    one, two = run_of(root / "one"), run_of(root / "two")
    assert main(["fit", "--ckpt_path", str(two)]) == 0
    assert (two / "metrics.csv").read_bytes() == (one / "metrics.csv").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        assert same(state(one / "checkpoints" / name), state(two / "checkpoints" / name)), name
    return one


def assert_checkpoints_hold_what_was_validated(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(run)
    validated = {row["step"]: float(row["val/loss"]) for row in rows(run) if row["val/loss"]}
    for name in ("best.ckpt", "last.ckpt"):
        path = run / "checkpoints" / name
        step = str(torch.load(path, weights_only=True)["global_step"])
        capsys.readouterr()
        assert main(["validate", "--ckpt_path", str(path), "--trainer.limit_val_batches", "2"]) == 0
        assert f"{validated[step]:.4f}" in capsys.readouterr().out, name


# ---------------------------------------------------------------------------------------------------- averaged, pruned


@pytest.mark.slow  # 6 s
@pytest.mark.parametrize(
    "options",
    [
        "update_starting_at_step: 9",
        pytest.param("{update_every_n_steps: 0, update_starting_at_epoch: 2}", marks=pytest.mark.slow),  # 5 s
        "{decay: 0.5, update_every_n_steps: 3}",
    ],
)
def test_an_average_that_begins_late_is_what_is_validated_and_saved(options, tmp_path, monkeypatch, capsys):
    options = options if options[0] == "{" else f"{{{options}}}"
    words = [*FASHION, "--trainer.callbacks", f"[{{class_path: EMAWeightAveraging, init_args: {options}}}]"]
    run = assert_a_stop_changes_nothing(words, tmp_path, monkeypatch, 4, 15, 20)
    assert_checkpoints_hold_what_was_validated(run, monkeypatch, capsys)
    losses = [float(row["val/loss"]) for row in rows(run) if row["val/loss"]]
    assert losses[1] < losses[0]  # not of the weights before training


@pytest.mark.slow  # 3 s
@WITH_SWA
@pytest.mark.parametrize("backbone", ["LeNet5", pytest.param("FashionCNN", marks=pytest.mark.slow)])  # 3 s
def test_a_run_with_averaged_weights_ends_with_them_whatever_the_network(backbone, tmp_path, monkeypatch, capsys):
    swa = "[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01, swa_epoch_start: 3}}]"
    words = [*FASHION, "--trainer.callbacks", swa]
    if backbone == "LeNet5":
        words = [*PLAIN, "--trainer.callbacks", swa]
    run = assert_a_stop_changes_nothing(words, tmp_path, monkeypatch, 8, 15, 22)
    assert_checkpoints_hold_what_was_validated(run, monkeypatch, capsys)
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    average = last["callbacks"]["StochasticWeightAveraging"]["average_model_state"]
    weights = [name for name in average if name.endswith("weight")]
    assert all(torch.equal(last["state_dict"][name], average[name]) for name in weights)


@pytest.mark.parametrize("words", [["--trainer.max_steps", "9"], ["--trainer.max_epochs", "-1"]])
def test_an_average_that_no_last_epoch_would_take_over_is_refused(words, here, capsys):
    swa = "[{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01, swa_epoch_start: 1}}]"
    assert main([*SHORT, "--model.scheduler", "null", "--trainer.callbacks", swa, *words]) == 2
    assert "ends with the average in the last epoch: set --trainer.max_epochs" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_an_average_without_memory_is_the_weights_in_any_precision(precision, tmp_path):
    """Of which it keeps float32, also in 64-true."""
    found = []
    for decay in ("0", "0.9", None):
        average = ["--trainer.callbacks", "EMA", "--trainer.callbacks.decay", decay] if decay else []
        place = tmp_path / str(decay)
        assert main([*SHORT, *average, "--trainer.precision", precision, "--trainer.default_root_dir", str(place)]) == 0
        weights = torch.load(run_of(place) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        found.append(torch.cat([value.double().flatten() for value in weights.values()]))
    torch.testing.assert_close(found[0], found[2], rtol=1e-6, atol=1e-7)
    assert (found[1] - found[2]).abs().max() > 1e-4


@pytest.mark.slow  # 4 s
@pytest.mark.parametrize(("permanent", "lottery"), [("true", "false"), ("false", "false"), ("true", "true")])
def test_pruned_weights_are_plain_ones_in_checkpoints_and_stay_pruned(
    permanent, lottery, tmp_path, monkeypatch, capsys
):
    options = f"{{pruning_fn: l1_unstructured, amount: 0.3, use_lottery_ticket_hypothesis: {lottery}, \
make_pruning_permanent: {permanent}}}"
    words = [*FASHION, "--trainer.callbacks", f"[{{class_path: ModelPruning, init_args: {options}}}]"]
    words[words.index("--test_after_fit") + 1] = "true"
    run = assert_a_stop_changes_nothing(words, tmp_path, monkeypatch, 8, 20)
    assert json.loads((run / "results.json").read_text())["metrics"]["test/accuracy"] > 0
    loaded = Classifier.load_from_checkpoint(run / "checkpoints/last.ckpt").state_dict()
    layers = [value for name, value in loaded.items() if name.endswith(("weight", "bias"))]
    zeros = sum(int((value == 0).sum()) for value in layers) / sum(value.numel() for value in layers)
    assert zeros == pytest.approx(1 - 0.7**4, abs=0.01)
    assert_checkpoints_hold_what_was_validated(run, monkeypatch, capsys)


# ---------------------------------------------------------------------------------------------------------- finetuning


@pytest.mark.slow  # 5 s
@pytest.mark.parametrize(
    "scheduler",
    ["OneCycleLR", *(pytest.param(s, marks=pytest.mark.slow) for s in ("null", "CosineAnnealingLR"))],  # 2 s
)
@pytest.mark.parametrize("train_bn", ["true", "false"])
def test_the_head_is_trained_first_and_the_backbone_from_its_epoch_on(scheduler, train_bn, tmp_path, monkeypatch):
    options = f"{{unfreeze_backbone_at_epoch: 2, backbone_initial_lr: 0.0002, train_bn: {train_bn}}}"
    words = [*FASHION, "--trainer.callbacks", f"[{{class_path: BackboneFinetuning, init_args: {options}}}]"]
    words[words.index("--model.scheduler") + 1] = scheduler
    words += ["--model.scheduler.max_lr", "0.002"] if scheduler == "OneCycleLR" else []
    begun: dict[int, dict[str, torch.Tensor]] = {}
    original = Classifier.on_train_epoch_end

    def note(self):
        begun.setdefault(self.current_epoch, {n: p.detach().clone() for n, p in self.backbone.named_parameters()})
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_end", note)
        run = assert_a_stop_changes_nothing(words, tmp_path, monkeypatch, 4, 14, 20)
    convolution, head = "features.0.weight", "head.3.weight"
    assert torch.equal(begun[0][convolution], begun[1][convolution])
    assert not torch.equal(begun[0][head], begun[1][head])
    assert not torch.equal(begun[1][convolution], begun[2][convolution])
    groups = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert len(groups) == 2
    if scheduler == "null":
        assert [group["lr"] for group in groups] == pytest.approx([0.002, 0.0004])


# -------------------------------------------------------------------------------------------------------------- finders


@pytest.mark.slow  # 4 s
def test_a_learning_rate_that_is_found_is_the_runs_own(tmp_path, monkeypatch):
    finder = "[{class_path: LearningRateFinder, init_args: {min_lr: 0.0001, num_training_steps: 30}}]"
    words = [*PLAIN, "--trainer.callbacks", finder]
    words[words.index("--model.scheduler") + 1] = "CosineAnnealingLR"
    run = assert_a_stop_changes_nothing(words, tmp_path, monkeypatch, 8)
    found = json.loads((run / "lr_finder.json").read_text())
    assert len(found["lr"]) == len(found["loss"])
    assert found["suggestion"] != 0.001
    assert (run / "lr_finder.png").stat().st_size > 1000
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["model"]["optimizer"]["init_args"]["lr"]
        == found["suggestion"]
    )
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["optimizer"]["init_args"]["lr"] == found["suggestion"]
    # As one that was given the rate.
    words[words.index("--trainer.callbacks") :] = ["--model.optimizer.lr", str(found["suggestion"])]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path / "given")]) == 0
    assert (run_of(tmp_path / "given") / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert not list(tmp_path.rglob(".lr_find*"))


@pytest.mark.slow  # 5 s
def test_a_batch_size_that_is_found_is_the_runs_own(tmp_path, monkeypatch):
    finder = "[{class_path: BatchSizeFinder, init_args: {max_trials: 4, steps_per_trial: 1}}]"
    words = [*PLAIN, "--trainer.precision", "32-true", "--trainer.callbacks", finder]
    run = assert_a_stop_changes_nothing(words, tmp_path, monkeypatch, 8)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["batch_size"] == 16
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"]["batch_size"] == 16
    assert checkpoint["callbacks"]["RunFolder"]["images_seen"] <= 4 * 6 * 16
    words[words.index("--trainer.callbacks") :] = ["--data.batch_size", "16"]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path / "given")]) == 0
    assert (run_of(tmp_path / "given") / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


# --------------------------------------------------------------------------------------------------------------- others


class FailingSGD(torch.optim.SGD):
    """Fails in the second epoch."""

    steps = 0

    def step(self, closure=None):
        FailingSGD.steps += 1
        if FailingSGD.steps == 9:
            raise RuntimeError("no step")
        return super().step(closure)


def test_a_checkpoint_of_an_exception_is_not_taken_for_the_last(here, monkeypatch, capsys):
    monkeypatch.setattr(FailingSGD, "steps", 0)
    keep = "[{class_path: OnExceptionCheckpoint, init_args: {dirpath: kept}}]"
    words = [*PLAIN, "--trainer.callbacks", keep, "--model.optimizer", f"{__name__}.FailingSGD"]
    assert main(words) == 1
    assert torch.load("kept/on_exception.ckpt", weights_only=True)["global_step"] > 6
    assert main([*words, "--trainer.max_epochs", "1"]) == 0  # a new run: the file is not resumed from
    assert [row["step"] for row in rows(here / "runs/default/version_1") if row["train/accuracy"]] == ["6"]


def test_device_statistics_go_where_the_run_logs(here, monkeypatch):
    monkeypatch.setattr(CPUAccelerator, "get_device_stats", lambda *_: {"memory": 1.0})  # which needs psutil
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", True)
    assert main([*SHORT, "--trainer.callbacks", "DeviceStatsMonitor", "--trainer.log_every_n_steps", "5"]) == 0
    assert list(run_of(here).glob("events.out.tfevents*"))


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_another_progress_bar_takes_the_place_of_ours(bar, here, capsys):
    assert main([*QUICK, "--trainer.max_epochs", "1", "--trainer.callbacks", bar]) == 0
    assert "epoch 1/1  train/loss" not in capsys.readouterr().out
    assert [row["step"] for row in rows(run_of(here)) if row["val/loss"]] == ["10"]


def test_a_run_without_checkpoints_keeps_its_metrics(here):
    words = ["--trainer.enable_checkpointing", "false", "--trainer.max_epochs", "2"]
    assert main([*QUICK, *words]) == 0
    assert not list(run_of(here).rglob("*.ckpt"))
    assert [row["step"] for row in rows(run_of(here)) if row["train/accuracy"] and row["val/loss"]] == ["10", "20"]
    assert "test/accuracy" in json.loads((run_of(here) / "results.json").read_text())["metrics"]


def test_a_run_logs_to_several_loggers(here):
    loggers = (
        "[{class_path: CSVLogger, init_args: {save_dir: a}}, {class_path: TensorBoardLogger, init_args: {save_dir: b}}]"
    )
    assert main([*SHORT, "--trainer.log_every_n_steps", "5", "--trainer.logger", loggers]) == 0
    (events,) = here.glob("b/**/events*")
    assert all(name in events.read_bytes() for name in (b"train/loss_step", b"lr", b"val/loss"))
    (ours,) = here.glob("a/**/version_0")
    steps = {row["step"]: row for row in rows(ours) if row["train/loss_step"]}
    own = [row for row in rows(run_of(here)) if row["train/loss_step"]]
    assert [row["step"] for row in own] == ["5", "10"]
    for row, theirs in zip(own, steps.values(), strict=True):
        assert float(theirs["train/loss_step"]) == pytest.approx(float(row["train/loss_step"]))
        assert float(theirs["lr"]) == pytest.approx(float(row["lr"]))
    config = yaml.safe_load((run_of(here) / "config.yaml").read_text())
    config["trainer"].pop("logger")  # which may hold a key
    assert yaml.safe_load((ours / "hparams.yaml").read_text()) == config


def test_what_a_callback_logs_now_and_then_reaches_the_loggers_at_their_next_step(here):
    words = [
        "--trainer.log_every_n_steps",
        "4",
        "--trainer.logger",
        "{class_path: CSVLogger, init_args: {save_dir: a}}",
    ]
    assert main([*SHORT, *words, "--trainer.callbacks+", "tests.training.test_lightning_callbacks.LogsThirds"]) == 0
    (ours,) = here.glob("a/**/version_0")
    told = [(row["step"], row["mine"]) for row in rows(ours) if row["train/loss_step"]]
    assert [value for _, value in told] == ["3.0", "6.0"]


def test_that_lightnings_csv_logger_deletes_rows_of_before_is_said(here):
    logger = "{class_path: CSVLogger, init_args: {save_dir: a, version: mine}}"
    assert main([*SHORT, "--model.scheduler", "null", "--trainer.logger", logger]) == 0
    with pytest.warns(UserWarning, match="Previous log files in this directory will be deleted"):
        assert main(["fit", "--ckpt_path", str(run_of(here)), "--trainer.max_epochs", "2"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.overfit_batches", "3"],
        ["--trainer.reload_dataloaders_every_n_epochs", "1"],
        ["--trainer.min_epochs", "3", "--trainer.max_time", "00:01:00:00"],
        ["--trainer.precision", "64-true"],
    ],
)
def test_a_run_with_options_of_the_loop_resumes_exactly(words, tmp_path, monkeypatch):
    run = assert_a_stop_changes_nothing([*PLAIN, *words], tmp_path, monkeypatch, 8)
    epochs = [row for row in rows(run) if row["train/accuracy"]]
    assert len(epochs) == 4
    if "overfit_batches" in words[0]:
        assert epochs[0]["step"] == "3"
        assert float(epochs[-1]["train/loss"]) < float(epochs[0]["train/loss"])


def test_a_classifier_of_a_run_has_no_hooks_left(here):
    """What callbacks add while it trains goes at the end, or an export would hold it."""
    pruning = "[{class_path: ModelPruning, init_args: {pruning_fn: l1_unstructured}}]"
    assert main([*SHORT, "--trainer.callbacks", pruning]) == 0
    model = Classifier.load_from_checkpoint(run_of(here) / "checkpoints/last.ckpt")
    assert not any(isinstance(module, nn.Conv2d) and hasattr(module, "weight_orig") for module in model.modules())
