"""Every logger, profiler and strategy of lightning."""

import importlib.util
import json
from collections.abc import Callable

from tests.lightning_rows.options import OWN, plain, reported, trained_alike
from tests.lightning_rows.trial import Row, Trial


def logger(name: str, **options: str) -> tuple[str, ...]:
    """The words that log with one logger, or with two of which this is the second."""
    more = [f"--trainer.logger.{key}={value}" for key, value in options.items()]
    return ("--trainer.logger", name, *more)


def needs(package: str, words: tuple[str, ...] | str, then: Row | None = None) -> Row:
    """A row for a class of another package: without it, one line names it."""
    if then is not None and importlib.util.find_spec(package) is not None:
        return then
    return Row(words, says(package), code=2)


def says(word: str) -> Callable[[Trial], bool]:
    """Whether all that was said is one line that names something, before any work."""

    def one_line(trial: Trial) -> bool:
        lines = trial.text.strip().splitlines()
        said = len(lines) == 1 and lines[0].startswith("vision_zoo: ") and word in lines[0]
        return said and not list(trial.here.glob("r*"))

    return one_line


def a_strategy(name: str, **options: object) -> str:
    """The word that chooses a strategy by its class."""
    path = name if "." in name else f"lightning.pytorch.strategies.{name}"
    return json.dumps({"class_path": path, "init_args": options})


LISTED = (
    "[{class_path: CSVLogger, init_args: {save_dir: a}}, {class_path: TensorBoardLogger, init_args: {save_dir: b}}]"
)
LOGGERS: dict[str, Row] = {
    "Logger": Row(
        logger(f"{OWN}.LineLogger"), lambda t: "val/loss" in (t.here / "lines.txt").read_text() and trained_alike(t)
    ),
    "CSVLogger": Row(
        logger("CSVLogger", save_dir="a"),
        lambda t: (
            "val/loss" in (t.here / "a/lightning_logs/version_0/metrics.csv").read_text() and t.rows == plain(t).rows
        ),
    ),
    "TensorBoardLogger": Row(
        ("--trainer.logger", LISTED),
        lambda t: (
            (t.here / "a/lightning_logs/version_0/metrics.csv").exists()
            and bool(list(t.here.glob("b/lightning_logs/version_0/events*")))
            and not list(t.run.glob("events*"))
        ),
    ),
    "MLFlowLogger": needs(
        "mlflow",
        logger("MLFlowLogger", save_dir="mlruns"),
        Row(logger("MLFlowLogger", save_dir="mlruns"), lambda t: bool(list(t.here.glob("mlruns/*")))),
    ),
    "WandbLogger": needs(
        "wandb",
        logger("WandbLogger", offline="true"),
        Row(logger("WandbLogger", offline="true"), lambda t: bool(list(t.here.glob("wandb/offline-*")))),
    ),
    "CometLogger": needs("comet", logger("CometLogger")),
    "LitLogger": Row(logger("LitLogger"), says("LitLogger"), code=2),  # no subclass of lightning's own Logger
}


def profile(name: str, **options: str) -> tuple[str, ...]:
    """The words that use a profiler."""
    return ("--trainer.profiler", name, *(f"--trainer.profiler.{key}={value}" for key, value in options.items()))


PROFILERS: dict[str, Row] = {
    "Profiler": Row(profile(f"{OWN}.Counter"), lambda t: int((t.here / "count.txt").read_text()) > 50),
    "SimpleProfiler": Row(
        profile("SimpleProfiler", dirpath=".", filename="time"),
        lambda t: any("run_training_epoch" in path.read_text() for path in t.here.glob("fit-time*.txt")),
    ),
    "SimpleProfiler, in the run": Row(
        profile("SimpleProfiler", filename="time"), lambda t: bool(list(t.run.glob("fit-time*.txt")))
    ),
    "AdvancedProfiler": Row(profile("AdvancedProfiler"), reported),
    "PyTorchProfiler": Row(
        profile("PyTorchProfiler", dirpath=".", filename="ops"),
        lambda t: any("aten::" in path.read_text() for path in t.here.glob("fit-ops*.txt")),
    ),
    "PassThroughProfiler": Row(profile("PassThroughProfiler"), trained_alike),
    "XLAProfiler": needs("torch_xla", profile("XLAProfiler")),
}

# What runs in this process, or is for other devices than CPUs, or needs another package, which one line says.
STRATEGIES: dict[str, Row] = {
    "single_device": Row("--trainer.strategy single_device", trained_alike),
    "SingleDeviceStrategy": Row(
        ("--trainer.strategy", a_strategy("SingleDeviceStrategy", device="cpu")), trained_alike
    ),
    "Strategy": Row(("--trainer.strategy", a_strategy(f"{OWN}.OwnDevice")), trained_alike),
    **{
        name: Row(("--trainer.strategy", a_strategy(name) if name[0].isupper() else name), says(word), code=2)
        for name, word in {
            "single_xla": "device",  # of which lightning gives it none
            "single_tpu": "device",
            "xla": "torch_xla",
            "xla_debug": "torch_xla",
            "fsdp": "GPU",
            "fsdp_cpu_offload": "GPU",
            "FSDPStrategy": "GPU",
            "ModelParallelStrategy": "ModelParallelStrategy",
            "deepspeed": "DeepSpeed",
            "deepspeed_stage_1": "DeepSpeed",
            "deepspeed_stage_2": "DeepSpeed",
            "deepspeed_stage_2_offload": "DeepSpeed",
            "deepspeed_stage_3": "DeepSpeed",
            "deepspeed_stage_3_offload": "DeepSpeed",
            "deepspeed_stage_3_offload_nvme": "DeepSpeed",
            "DeepSpeedStrategy": "DeepSpeed",
        }.items()
    },
}

# What starts processes: how it does, and how many are tried (see test_strategies.py).
PROCESSES: dict[str, tuple[str, int]] = {
    "ddp": ("popen", 2),
    "ddp_find_unused_parameters_false": ("popen", 1),
    "ddp_find_unused_parameters_true": ("popen", 1),
    "DDPStrategy": ("popen", 1),
    "ParallelStrategy": ("popen", 1),
    "ddp_spawn": ("spawn", 2),
    "ddp_spawn_find_unused_parameters_false": ("spawn", 1),
    "ddp_spawn_find_unused_parameters_true": ("spawn", 1),
    "ddp_fork": ("fork", 2),
    "ddp_fork_find_unused_parameters_false": ("fork", 1),
    "ddp_fork_find_unused_parameters_true": ("fork", 1),
    "ddp_notebook": ("fork", 2),
    "ddp_notebook_find_unused_parameters_false": ("fork", 1),
    "ddp_notebook_find_unused_parameters_true": ("fork", 1),
}
