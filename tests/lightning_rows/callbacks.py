"""Every callback of lightning."""

import json
from contextlib import ExitStack
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.lightning_rows.options import OUR_SUMMARY, OWN, TWO_EPOCHS, column, plain, trained_alike
from tests.lightning_rows.trial import STEPS, Row, Trial, close, mean, same
from vision_zoo.classifier import Classifier

FOUR_EPOCHS = ("--trainer.max_epochs", "4")


def callback(name: str, more: str = "", **options: object) -> tuple[str, ...]:
    """The words that add a callback with its options."""
    choice = json.dumps([{"class_path": name, "init_args": options}])
    return ("--trainer.callbacks", choice, *more.split())


def trains_the_head_first(trial: Trial) -> bool:
    """Frozen in the first epoch of four steps, thawed after it."""
    begin, later = trial.seen.starts[0], trial.seen.weights[STEPS - 1]
    frozen = {name for name in begin if torch.equal(begin[name], later[name])}
    moved = {name for name in begin if not torch.equal(later[name], trial.seen.weights[-1][name])}
    return frozen == {name for name in begin if ".head." not in name} and moved == begin.keys()


def found_rate(trial: Trial) -> bool:
    """The rate stands in the folder, in the configuration, and was trained with."""
    found = json.loads((trial.run / "lr_finder.json").read_text())
    rate = trial.config["model"]["optimizer"]["init_args"]["lr"]
    used = [float(row["lr"]) for row in trial.rows if row.get("lr")]
    assert used == pytest.approx([rate] * 30), "another rate was trained with"
    return rate in found.values() and rate != 0.1 and (trial.run / "lr_finder.png").stat().st_size > 0


def found_size(trial: Trial) -> bool:
    size = trial.config["data"]["init_args"]["batch_size"]
    return size == trial.trainer.datamodule.batch_size == len(trial.seen.batches[-2][1]) and size in (4, 8, 16)


def pruned(trial: Trial) -> bool:
    """The best checkpoint holds plain weights, half of them zero, and gives a plain classifier."""
    model = Classifier.load_from_checkpoint(trial.run / "checkpoints/best.ckpt")
    matrices = [value for name, value in model.backbone.named_parameters() if name.endswith("weight")]
    zeros = sum(int((value == 0).sum()) for value in matrices) / sum(value.numel() for value in matrices)
    return 0.4 < zeros < 0.9 and trial.saved().keys() == plain(trial).saved().keys()


def averaged(trial: Trial, expected: dict[str, torch.Tensor]) -> bool:
    """Whether best and last hold the average, which is better than what it is of, and a resumed run ends alike."""
    assert close(trial.saved("last"), expected), "last.ckpt does not hold the average"
    assert close(trial.saved("best"), expected), "best.ckpt does not hold the average"
    return trial.resumed_exactly(stop=2) and trial.resumed_exactly(stop=10)


def average_of_moving(trial: Trial) -> dict[str, torch.Tensor]:
    """Half of the average so far and half of the weights, from the weights after the sixth step on."""
    average = trial.seen.weights[5]
    for weights in trial.seen.weights[6:]:
        average = {name: 0.5 * average[name] + 0.5 * weights[name] for name in average}
    return average


def replaces_our_summary(trial: Trial) -> bool:
    return "Trainable params" in trial.text and OUR_SUMMARY not in trial.text


def saves_beside_and_is_ignored(trial: Trial) -> bool:
    """The file of a crash is there, and a run that is continued is as if it were not."""
    assert (trial.here / "keep/on_exception.ckpt").exists(), "no file was saved at the crash"
    assert trial.checkpoint()["global_step"] == STEPS
    assert trial.main("fit", "--ckpt_path", "last", "--test_after_fit", "false") == 0, trial.text
    return trained_alike(trial, *TWO_EPOCHS)


def with_psutil() -> ExitStack:
    """As where psutil is installed."""
    stack = ExitStack()
    used = SimpleNamespace(percent=12.5)
    module = SimpleNamespace(virtual_memory=lambda: used, swap_memory=lambda: used, cpu_percent=lambda: 50.0)
    stack.enter_context(mock.patch.dict("sys.modules", psutil=module))
    for place in ("accelerators.cpu", "callbacks.device_stats_monitor"):
        stack.enter_context(mock.patch(f"lightning.pytorch.{place}._PSUTIL_AVAILABLE", True))
    return stack


CALLBACKS: dict[str, Row] = {
    "BackboneFinetuning": Row(
        (*callback("BackboneFinetuning", unfreeze_backbone_at_epoch=1), "--trainer.max_epochs", "3"),
        lambda t: trains_the_head_first(t) and t.resumed_exactly(stop=6) and t.resumed_exactly(stop=9),
    ),
    "BaseFinetuning": Row(
        f"--trainer.callbacks {OWN}.FreezeFeatures",
        lambda t: (
            torch.equal(t.seen.starts[0]["backbone.features.0.weight"], t.saved()["backbone.features.0.weight"])
            and not torch.equal(t.seen.starts[0]["backbone.head.weight"], t.saved()["backbone.head.weight"])
        ),
    ),
    "BasePredictionWriter": Row(callback(f"{OWN}.Writer", write_interval="epoch"), trained_alike),
    "BatchSizeFinder": Row(
        callback("BatchSizeFinder", init_val=4, steps_per_trial=1, max_trials=1, max_val=16), found_size
    ),
    "Callback": Row(f"--trainer.callbacks {OWN}.Note", lambda t: (t.here / "note").exists()),
    "Checkpoint": Row(
        f"--trainer.callbacks {OWN}.OwnCheckpoint",
        lambda t: same(torch.load(t.here / "own.ckpt", weights_only=True)["state_dict"], t.saved()),
    ),
    "DeviceStatsMonitor": Row(
        "--trainer.callbacks DeviceStatsMonitor", lambda t: "cpu_vm_percent" in t.events(), patch=with_psutil
    ),
    "EarlyStopping": Row(
        callback("EarlyStopping", "--trainer.max_epochs 3", monitor="val/loss", stopping_threshold=1000.0),
        lambda t: t.results["epochs"] == 1,
    ),
    "EMAWeightAveraging": Row(
        (*callback("EMAWeightAveraging", decay=0.5, update_starting_at_step=5), *FOUR_EPOCHS),
        lambda t: averaged(t, average_of_moving(t)),
    ),
    "GradientAccumulationScheduler": Row(
        (
            "--trainer.callbacks",
            "[{class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 2}}}]",
            *TWO_EPOCHS,
        ),
        lambda t: t.trainer.global_step == STEPS + STEPS // 2,
    ),
    "LambdaCallback": Row(
        callback("LambdaCallback", on_train_start=f"{OWN}.touch", on_train_batch_end=f"{OWN}.count"),
        lambda t: (t.here / "touched").exists() and (t.here / "counted").stat().st_size == STEPS,
    ),
    "LearningRateFinder": Row(
        callback("LearningRateFinder", "--data.batch_size 1", min_lr=1e-4, num_training_steps=25), found_rate
    ),
    "LearningRateMonitor": Row("--trainer.callbacks LearningRateMonitor", lambda t: "lr-SGD" in t.events()),
    "ModelCheckpoint": Row(
        callback("ModelCheckpoint", monitor="val/loss", filename="mine"),
        lambda t: same(t.saved("mine"), t.saved("best")) and trained_alike(t),
    ),
    "ModelPruning": Row(
        callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False), pruned
    ),
    "ModelSummary": Row("--trainer.callbacks ModelSummary", replaces_our_summary),
    "OnExceptionCheckpoint": Row(
        callback("OnExceptionCheckpoint", " ".join(TWO_EPOCHS), dirpath="keep"),
        saves_beside_and_is_ignored,
        code=1,
        crash=6,
    ),
    "ProgressBar": Row(
        "--trainer.callbacks ProgressBar",
        lambda t: type(t.trainer.progress_bar_callback).__module__.startswith("lightning") and trained_alike(t),
    ),
    "RichModelSummary": Row("--trainer.callbacks RichModelSummary", replaces_our_summary),
    "RichProgressBar": Row(
        "--trainer.callbacks RichProgressBar",
        lambda t: type(t.trainer.progress_bar_callback).__name__ == "RichProgressBar" and trained_alike(t),
    ),
    "SpikeDetection": Row(
        callback("SpikeDetection", rtol=1000.0), lambda t: trained_alike(t) and column(t, "val/loss") == [STEPS]
    ),
    "SpikeDetection, a spike": Row(
        callback("SpikeDetection", "--model.optimizer.lr 1000", rtol=1.0),
        lambda t: "spike detected in batch" in t.text.lower() and bool(list(t.here.rglob("skip_batches.json"))),
        code=1,
    ),
    "StochasticWeightAveraging": Row(
        (*callback("StochasticWeightAveraging", swa_lrs=0.5, swa_epoch_start=2, annealing_epochs=1), *FOUR_EPOCHS),
        lambda t: averaged(t, mean(t.seen.starts[1:4])),
    ),
    "ThroughputMonitor": Row(
        callback("ThroughputMonitor", " ".join(TWO_EPOCHS), batch_size_fn=f"{OWN}.images_of", window_size=2),
        lambda t: "samples_per_sec" in t.events(),
    ),
    "Timer": Row(
        callback("Timer", duration="00:00:01:00"), lambda t: "time_elapsed" in t.checkpoint()["callbacks"]["Timer"]
    ),
    "TQDMProgressBar": Row(
        "--trainer.callbacks TQDMProgressBar",
        lambda t: type(t.trainer.progress_bar_callback).__name__ == "TQDMProgressBar" and "it/s" in t.text,
    ),
    "WeightAveraging": Row((*callback("WeightAveraging"), *FOUR_EPOCHS), lambda t: averaged(t, mean(t.seen.weights))),
}
