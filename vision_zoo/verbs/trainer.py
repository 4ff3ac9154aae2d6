"""A plain lightning.Trainer from the options of the command line and the callbacks of a command."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar as AnyProgressBar
from lightning.pytorch.plugins import AsyncCheckpointIO, CheckpointIO, environments
from rich.console import Console

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.optimizers.building import UNFIT
from vision_zoo.specs import listed
from vision_zoo.training.lightning_patches import NoProfiler, resume_only_what_is_named
from vision_zoo.training.processes import start_by_command
from vision_zoo.training.progress import ProgressBar
from vision_zoo.training.saving import AtomicCheckpointIO

env: Any = environments  # which does not export them by its types
LAUNCHERS = (env.TorchElasticEnvironment, env.SLURMEnvironment, env.LSFEnvironment, env.MPIEnvironment)


@dataclass(frozen=True)
class TrainerMaker:
    """Builds the trainer of a command."""

    options: Mapping[str, Any]  # of the trainer, as the command line gave them
    checkpoint_io: AtomicCheckpointIO = field(default_factory=AtomicCheckpointIO)  # writes and reads its checkpoints
    words: Sequence[str] = ()  # the command line, which further processes are started with

    @property
    def own(self) -> list[Callback]:
        """The user's callbacks."""
        return listed(self.options.get("callbacks"))

    def has(self, kind: type) -> bool:
        """Whether the user names a callback of a kind."""
        return any(isinstance(callback, kind) for callback in self.own)

    @property
    def bare(self) -> bool:
        """Whether the run leaves nothing behind, as Lightning has it for fast_dev_run and barebones."""
        return bool(self.options.get("fast_dev_run") or self.options.get("barebones"))

    @property
    def bar(self) -> list[Callback]:
        """Our progress bar, where the user has no other."""
        drawn = self.options.get("enable_progress_bar") is not False  # it prints the epochs' lines in any case
        return [] if self.has(AnyProgressBar) else [ProgressBar(drawn)]

    def __call__(self, callbacks: Sequence[Callback], **options: Any) -> Trainer:
        """Build the trainer with these callbacks, the user's among them, and options in place of the command line's.

        Raises:
            ConfigError: if Lightning refuses the options.
        """
        if self.options.get("barebones"):
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        else:
            if self.options.get("profiler") is None:
                options["profiler"] = NoProfiler()
            options["enable_progress_bar"] = True  # with false Lightning would refuse our callback
        if self.options.get("logger") in (None, True):
            options["logger"] = False  # RunFolder opens TensorBoard's file in its folder; Lightning would, elsewhere
        if self.options.get("enable_model_summary") is None:
            options["enable_model_summary"] = False  # fit prints one of its own
        options |= {"callbacks": list(callbacks), "plugins": self._plugins()}
        try:
            trainer = Trainer(**{**self.options, **options})
        except (*UNFIT, MisconfigurationException) as error:  # a KeyError is of a launcher's variables
            reason = f"no {error} in the environment" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ConfigError(f"these --trainer options do not work here: {reason}") from error
        check_processes(trainer, options["plugins"])
        start_by_command(trainer, self.words)
        resume_only_what_is_named(trainer)
        return trainer

    def _plugins(self) -> list[Any]:
        """The user's plugins, and safe checkpoints: within a plugin that wraps others, in place of none."""
        plugins = listed(self.options.get("plugins"))
        for plugin in plugins:
            if isinstance(plugin, AsyncCheckpointIO):
                plugin.checkpoint_io = self.checkpoint_io
        theirs = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        return plugins if theirs else [*plugins, self.checkpoint_io]


def check_processes(trainer: Trainer, plugins: Sequence[Any]) -> None:
    """Refuse other processes than a launcher has started: they would wait, or each train a network of its own."""
    given = [plugin for plugin in plugins if isinstance(plugin, env.ClusterEnvironment)]
    given += listed(getattr(trainer.strategy, "cluster_environment", None))
    cluster = next(iter(given), None) or next((kind() for kind in LAUNCHERS if kind.detect()), None)
    wanted, nodes = trainer.num_devices * trainer.num_nodes, trainer.num_nodes
    launched = isinstance(cluster, LAUNCHERS)
    started = cluster.world_size() if cluster is not None and launched else wanted
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    told = f"{type(cluster).__name__.removesuffix('Environment')} started {started} processes in all, and the options "
    told += f"ask for {wanted}: say as many with --trainer.devices, processes of one host, and --trainer.num_nodes (on "
    lacks = f"--trainer.num_nodes {nodes}: no {', '.join(missing)} in the environment, which tell hosts of each other"
    refuse(
        ConfigError,
        (started != wanted, f"{told}CPUs also --trainer.strategy ddp), or start as many"),
        (nodes > 1 and not launched and missing, f"{lacks}: set them on each, or start by torchrun or srun"),
    )


def determinism(options: Mapping[str, Any], exact: bool) -> dict[str, Any]:
    """Options that make runs on a GPU the same bit for bit, or let it choose faster algorithms; the given go first."""
    if options.get("deterministic") is not None or not torch.cuda.is_available():
        return {}
    benchmark = {} if options.get("benchmark") is not None else {"benchmark": not exact}
    return {"deterministic": "warn" if exact else False, **benchmark}


def say(trainer: Trainer, *what: Any) -> None:
    """Print on the first process, above our progress bar where there is one."""
    if trainer.is_global_zero:
        bar = trainer.progress_bar_callback
        (bar if isinstance(bar, ProgressBar) else Console(highlight=False, soft_wrap=True)).print(*what)
