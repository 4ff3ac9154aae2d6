"""Every option of lightning.Trainer."""

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tests.lightning_rows.trial import STEPS, Row, Trial, close, same

OWN = "tests.lightning_rows.own"
STOPS_AT_ONCE = (
    "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss",
    "--trainer.callbacks.stopping_threshold", "1000", "--trainer.max_epochs", "3",
)  # fmt: skip
OUR_SUMMARY = "multiply-adds"
TWO_EPOCHS = ("--trainer.max_epochs", "2")


def column(trial: Trial, name: str) -> list[int]:
    """The steps at which a metric was written."""
    return [int(row["step"]) for row in trial.rows if row.get(name)]


def plain(trial: Trial) -> Trial:
    """The run without any option."""
    return trial.other()


def trained_alike(trial: Trial, *words: str) -> bool:
    """Whether the weights are those that other words train."""
    return same(trial.saved(), trial.other(*words).saved())


def reported(trial: Trial) -> bool:
    return "Profiler Report" in trial.text


def same_batches_in_each_epoch(trial: Trial) -> bool:
    epochs = [[labels for epoch, labels in trial.seen.batches if epoch == number] for number in (0, 1)]
    shuffled = [labels for epoch, labels in plain(trial).seen.batches]
    return len(epochs[0]) == 2 and epochs[0] == epochs[1] and epochs[0] != shuffled[:2]


def images_tested(trial: Trial) -> int:
    lines = (trial.run / "confusion_matrix.csv").read_text().splitlines()[1:]
    return sum(int(cell) for line in lines for cell in line.split(",")[1:])


# Each is tried alone, or beside options whose effects it cannot be confused with.
OPTIONS: dict[str, Row] = {
    "accelerator": Row("--trainer.accelerator cpu", lambda t: t.results["device"].startswith("cpu")),
    "devices": Row("--trainer.devices 1 --trainer.accelerator cpu", lambda t: t.results["devices"] == 1),
    "num_nodes": Row("--trainer.num_nodes 1", lambda t: t.trainer.num_nodes == 1 and trained_alike(t)),
    "strategy": Row(
        ("--trainer.strategy", f'{{"class_path": "{OWN}.OwnDevice"}}'),
        lambda t: type(t.trainer.strategy).__name__ == "OwnDevice",
    ),
    "precision": Row(
        "--trainer.precision bf16-mixed",
        lambda t: t.results["precision"] == "bf16-mixed" and not same(t.saved(), plain(t).saved()),
    ),
    "precision, double": Row(
        "--trainer.precision 64-true --test_after_fit true",
        lambda t: all(value.dtype == torch.float64 for value in t.saved().values()),
    ),
    "precision, half": Row(
        "--trainer.precision bf16-true --test_after_fit true",
        lambda t: all(value.dtype == torch.bfloat16 for value in t.saved().values()),
    ),
    "logger": Row("--trainer.logger false", lambda t: not t.events() and plain(t).events() and trained_alike(t)),
    "callbacks": Row(
        ("--trainer.callbacks", f"[{OWN}.Note, {{class_path: Timer, init_args: {{duration: '00:00:01:00'}}}}]"),
        lambda t: (t.here / "note").exists() and "Timer" in t.checkpoint()["callbacks"],
    ),
    "fast_dev_run": Row(
        "--trainer.fast_dev_run true --test_after_fit true",
        lambda t: t.trainer.global_step == 1 and len(t.seen.validations) == 1 and not list(t.here.rglob("runs/*/*")),
    ),
    "fast_dev_run, a number": Row(
        "--trainer.fast_dev_run 3", lambda t: t.trainer.global_step == 3 and not list(t.here.rglob("*.ckpt"))
    ),
    "max_epochs": Row(TWO_EPOCHS, lambda t: column(t, "train/accuracy") == [STEPS, 2 * STEPS]),
    "min_epochs": Row(
        (*STOPS_AT_ONCE, "--trainer.min_epochs", "2"),
        lambda t: t.results["epochs"] == 2 and t.other(*STOPS_AT_ONCE).results["epochs"] == 1,
    ),
    "min_steps": Row(
        (*STOPS_AT_ONCE, "--trainer.min_steps", "6"),
        lambda t: t.trainer.global_step >= 6 and t.other(*STOPS_AT_ONCE).trainer.global_step < 6,
    ),
    "max_steps": Row("--trainer.max_steps 3", lambda t: t.trainer.global_step == 3 == t.checkpoint()["global_step"]),
    "max_time": Row(
        "--trainer.max_time 00:00:00:01 --trainer.max_epochs 100000",
        lambda t: 0 < t.results["epochs"] < 100_000 and t.results["fit_seconds"] < 20,
    ),
    "limit_train_batches": Row("--trainer.limit_train_batches 2", lambda t: t.trainer.global_step == 2),
    "limit_val_batches": Row("--trainer.limit_val_batches 1", lambda t: len(t.seen.validations) == 1),
    "limit_test_batches": Row("--trainer.limit_test_batches 1 --test_after_fit true", lambda t: images_tested(t) == 8),
    "limit_predict_batches": Row(
        "--trainer.limit_predict_batches 1", lambda t: t.trainer.limit_predict_batches == 1 and trained_alike(t)
    ),
    "overfit_batches": Row((*TWO_EPOCHS, "--trainer.overfit_batches", "2"), same_batches_in_each_epoch),
    "val_check_interval": Row("--trainer.val_check_interval 2", lambda t: column(t, "val/loss") == [2, 4]),
    "val_check_interval, a fraction": Row(
        "--trainer.val_check_interval 0.25", lambda t: column(t, "val/loss") == [1, 2, 3, 4]
    ),
    "check_val_every_n_epoch": Row(
        "--trainer.check_val_every_n_epoch 2 --trainer.max_epochs 4",
        lambda t: column(t, "val/loss") == [2 * STEPS, 4 * STEPS],
    ),
    "num_sanity_val_steps": Row(
        "--trainer.num_sanity_val_steps 1",
        lambda t: t.seen.validations == [True, False, False] and True not in plain(t).seen.validations,
    ),
    "log_every_n_steps": Row(
        "--trainer.log_every_n_steps 2",
        lambda t: column(t, "train/loss_step") == [2, 4] and column(plain(t), "train/loss_step") == [1, 2, 3, 4],
    ),
    "enable_checkpointing": Row(
        "--trainer.enable_checkpointing false --test_after_fit true",
        lambda t: (t.run / "config.yaml").exists() and not list(t.here.rglob("*.ckpt")) and images_tested(t) == 20,
    ),
    "enable_progress_bar": Row(
        "--trainer.enable_progress_bar false", lambda t: "epoch 1/1" in t.text and "epoch 1/1" in plain(t).text
    ),
    "enable_model_summary": Row(
        "--trainer.enable_model_summary false",
        lambda t: OUR_SUMMARY not in t.text and OUR_SUMMARY in plain(t).text,
    ),
    "enable_model_summary, Lightning's": Row("--trainer.enable_model_summary true", lambda t: "arameters" in t.text),
    "accumulate_grad_batches": Row("--trainer.accumulate_grad_batches 2", lambda t: t.trainer.global_step == 2),
    "gradient_clip_val": Row(
        "--trainer.gradient_clip_val 1e-6",
        lambda t: close(t.seen.starts[0], t.seen.weights[-1]) and not close(t.saved(), plain(t).saved()),
    ),
    "gradient_clip_algorithm": Row(
        "--trainer.gradient_clip_val 0.01 --trainer.gradient_clip_algorithm value",
        lambda t: not close(t.saved(), t.other("--trainer.gradient_clip_val", "0.01").saved()),
    ),
    "deterministic": Row(
        "--trainer.deterministic true", lambda t: t.seen.deterministic and not plain(t).seen.deterministic
    ),
    "benchmark": Row("--trainer.benchmark true", lambda t: t.seen.benchmark and trained_alike(t)),
    "inference_mode": Row(
        "--trainer.inference_mode false --test_after_fit true",
        lambda t: t.seen.inference == {False} and t.other("--test_after_fit", "true").seen.inference == {True},
    ),
    "use_distributed_sampler": Row("--trainer.use_distributed_sampler false", trained_alike),
    "profiler": Row("--trainer.profiler simple", reported),
    "detect_anomaly": Row(
        "--trainer.detect_anomaly true --model.optimizer.lr 1e8 --trainer.log_every_n_steps 50",
        lambda t: "Backward0' returned nan values" in t.text and "internal error" not in t.text,
        code=1,
    ),
    "barebones": Row(
        "--trainer.barebones true --trainer.log_every_n_steps null --test_after_fit true",
        lambda t: len(t.seen.weights) == STEPS and not list(t.here.rglob("*.ckpt")),
    ),
    "plugins": Row(
        "--trainer.plugins lightning.pytorch.plugins.io.TorchCheckpointIO",
        lambda t: same(t.saved(), plain(t).saved()) and type(t.trainer.strategy.checkpoint_io) is TorchCheckpointIO,
    ),
    "plugins, a precision": Row(
        "--trainer.plugins lightning.pytorch.plugins.precision.DoublePrecision",
        lambda t: all(value.dtype == torch.float64 for value in t.saved().values()),
    ),
    "sync_batchnorm": Row("--trainer.sync_batchnorm true", trained_alike),
    "reload_dataloaders_every_n_epochs": Row(
        (*TWO_EPOCHS, "--trainer.reload_dataloaders_every_n_epochs", "1"),
        lambda t: (
            t.seen.loaders > t.other(*TWO_EPOCHS).seen.loaders
            and trained_alike(t, *TWO_EPOCHS)
            and t.seen.batches == t.other(*TWO_EPOCHS).seen.batches
        ),
    ),
    "default_root_dir": Row(
        "--trainer.default_root_dir elsewhere", lambda t: t.run == t.here / "elsewhere/runs/default/version_0"
    ),
    "enable_autolog_hparams": Row("--trainer.enable_autolog_hparams false", trained_alike),
    "model_registry": Row("--trainer.model_registry mine", trained_alike),
}
