"""What makes training fast on the machine at hand: chosen at the start of fit, told in one line, kept on resume."""

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelPruning
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from vision_zoo.classifier import Classifier
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.trainer_facts import callbacks_of, datamodule_of, steps_of_run
from vision_zoo.training import lightning_patches as patches
from vision_zoo.training.speed_trial import Trial, Way, fastest
from vision_zoo.types import Compile

EVALUATED = 0.1  # batches of evaluation for each of training, about
# A loaded checkpoint computes in the layout that it was evaluated in, for equal figures.
PLAIN = {"channels_last": False, "evaluation_channels_last": False}


class TrainingPrecision(MixedPrecision):
    """Autocast to bfloat16 in training steps; what is evaluated is what a loaded checkpoint computes, in float32."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)
        self._autocast = self.autocast_context_manager()

    def train_step_context(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator there
        """Autocast; one context for all steps, of which none lies within another."""
        return self._autocast

    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        """Clip; without a scaler, gradients are whole also where the optimizer is fused."""
        Precision.clip_gradients(self, *args, **kwargs)

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Nothing, which is the context of all other steps: float32."""
        yield


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: AMX or AVX512-BF16, or a GPU that does."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and patches.has_cpu_bf16()


class Performance(Callback):
    """Chooses bf16 autocast, the memory layout of convolutions and the optimizer's fused form.

    A trial of a few steps decides, or float32 in the plain layout where the run is too short for one. A continued run
    keeps its stored choices, none where it made none, and a precision or layout that the user gives is not ours to
    choose.
    """

    topic = "speed"

    def __init__(
        self,
        precision_given: bool = False,
        stored: Mapping[str, Any] | None = None,
        channels_last: bool | None = None,
        compiled: bool | Compile = False,
    ) -> None:
        self.precision_given, self.stored, self.channels_last = precision_given, stored, channels_last
        self.mode = "default" if compiled is True else compiled
        # precision, channels_last and fused of training, evaluation_channels_last, how the network is compiled, if it
        # is, and the images per second of what was tried in each; from the start of training on.
        self.choices: dict[str, Any] = {}
        self._reason = self._optimizer = ""
        self._autocasts = False
        self._compiled: Callable[..., Any] | None = None  # calls the network in training
        self._seconds = 0.0  # that compiling took

    def state_dict(self) -> dict[str, Any]:
        """The choices."""
        return dict(self.choices)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose, on the first process for all of them, before the optimizer is built."""
        if stage != "fit" or not isinstance(pl_module, Classifier):
            return
        strategy, orders = trainer.strategy, self._orders(trainer, pl_module)
        steps = steps_of_run(trainer)
        answer = self._choose(trainer, pl_module, orders, steps) if trainer.is_global_zero else ({}, "")
        choices, self._reason = strategy.broadcast(answer)
        if choices["precision"] == "bf16-mixed" and type(strategy.precision_plugin) in (Precision, MixedPrecision):
            strategy.precision_plugin, self._autocasts = TrainingPrecision(strategy.root_device.type), True
        elif type(strategy.precision_plugin) is MixedPrecision and trainer.gradient_clip_val:
            choices["fused"] = False  # Lightning refuses to clip the gradients of a fused optimizer under its own
        patches.share_gradient_memory(strategy)
        patches.note_hooks_fast(Classifier)
        pl_module.fuses_optimizer = choices["fused"]
        pl_module.set_memory_format(choices["channels_last"])
        choices.pop("compiled", None)  # of the run as it began
        if self.mode and pl_module.reads_features:
            self._reason = "nothing is compiled, for the last layer alone is trained"
        elif self.mode:
            choices["compiled"] = self.mode
            self._compile(trainer, pl_module, Way(choices["precision"] == "bf16-mixed", choices["channels_last"]))
        self.choices = choices

    def _compile(self, trainer: Trainer, model: Classifier, way: Way) -> None:
        """Compile the network for training, and a copy before, on a batch of noise; what fails is a ConfigError."""
        strategy, batch = trainer.strategy, getattr(datamodule_of(trainer), "batch_size", 2)
        parts = f"{type(strategy).__name__} divides the network, and --compile needs it whole: leave one of them out"
        refuse(ConfigError, (type(strategy) not in (SingleDeviceStrategy, DDPStrategy), parts))
        options: dict[str, Any] = {"backend": "eager"} if self.mode == "eager" else {"mode": self.mode}
        rank_zero_only(print)(f"vision_zoo: torch compiles {model.network_name}", file=sys.stderr)
        began = time.monotonic()
        try:
            trial = Trial(model.backbone, (batch, *model.image_shape), model.num_classes, strategy.root_device)
            trial.network.compile(**options)
            trial.seconds(way)
        except Exception as error:  # torch has no class for what its compilers, and theirs, may raise
            reason = " ".join(str(error).partition("\n\n")[0].split())
            what = f"--compile: torch cannot compile {model.network_name} here: leave it out, or install what it needs"
            refuse(ConfigError, (True, f"{what}, for a CPU a C++ compiler such as g++, for a GPU Triton ({reason})"))
        model.backbone.compile(**options)
        compiled = cast(Callable[..., Any], patches.call_compiled(model.backbone, None))
        # CUDA graphs compute each batch into the same memory, and the metrics keep the logits of some.
        self._compiled = lambda images: compiled(images).clone()
        self._seconds = time.monotonic() - began

    def _orders(self, trainer: Trainer, model: Classifier) -> list[bool]:
        """The values of channels_last to choose from; a given one that cannot be is a ConfigError."""
        # Pruning looks at each weight as a vector.
        pruned = any(isinstance(callback, ModelPruning) for callback in callbacks_of(trainer))
        takes_it = not pruned and _steps_in_channels_last(model, trainer.strategy.root_device)
        way_out = "the optimizer needs the plain order, or ModelPruning does; leave it out"
        refuse(ConfigError, (self.channels_last and not takes_it, f"--channels_last true: {way_out}"))
        if self.channels_last is not None:
            return [self.channels_last]
        convolutions = any(isinstance(module, nn.Conv2d) for module in model.backbone.modules())
        return [False, True] if takes_it and convolutions else [False]

    def _choose(
        self, trainer: Trainer, model: Classifier, orders: list[bool], steps: float
    ) -> tuple[dict[str, Any], str]:
        """The choices, and why the precision is what it is."""
        precision, device = str(trainer.precision), trainer.strategy.root_device
        reason = "as asked" if self.precision_given else ""
        # Sharding strategies have precisions and memory layouts of their own.
        simple = type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
        if self.stored is not None:
            choices = {"precision": "32-true", **PLAIN, "fused": False, **self.stored}
            if simple and not self.precision_given:
                reason = "as the run began"
            else:
                choices["precision"] = precision
        else:
            choices = {"precision": precision, **PLAIN, "fused": simple and device.type in ("cpu", "cuda")}
            if simple and not model.reads_features:  # or nothing but a linear layer is computed
                fast, batch = has_fast_bf16(device), getattr(datamodule_of(trainer), "batch_size", 1)
                bf16 = [precision == "bf16-mixed"] if self.precision_given else [False, True][: 1 + fast]
                ways = [Way(*way) for way in itertools.product(bf16, orders)]
                found, choices["tried"] = fastest(model, batch, device, ways, steps)
                ways, steps = [Way(False, order) for order in orders], EVALUATED * steps
                evaluation, choices["tried_evaluation"] = fastest(model, batch, device, ways, steps, training=False)
                choices["channels_last"] = found.channels_last
                choices["evaluation_channels_last"] = evaluation.channels_last
                if not self.precision_given:
                    choices["precision"] = "bf16-mixed" if found.bf16 else "32-true"
                    untried = "" if choices["tried"] else "others were not tried"
                    reason = untried if fast else f"this {device.type} has no fast bf16"
        if self.channels_last is not None:
            choices["channels_last"] = self.channels_last
        return choices, reason

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of whether the optimizer is fused, and give its state the layout of the weights."""
        if self.choices:
            patches.ask_once(trainer)
            self._lay_out(pl_module, training=True)
            self.choices["fused"] = all(bool(optimizer.defaults.get("fused")) for optimizer in trainer.optimizers)
            self._optimizer = type(trainer.optimizers[0]).__name__
            for optimizer in trainer.optimizers:
                match_layouts(optimizer)
                if trainer.strategy.root_device.type == "cpu":
                    patches.ask_no_gpu(optimizer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights into the layout of evaluation; buffers are alike everywhere."""
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            # Or after a batch whose gradients are yet to be added up, each would use batch statistics of its own.
            trainer.strategy.model.require_forward_param_sync = True
        self._lay_out(pl_module, training=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back into the layout of training."""
        if trainer.state.fn == "fit":
            self._lay_out(pl_module, training=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network in the layout of evaluation."""
        self._lay_out(pl_module, training=False)

    on_test_start = on_train_end

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a loaded checkpoint compute as it was evaluated."""
        checkpoint["channels_last"] = self.choices.get("evaluation_channels_last", False)

    def _lay_out(self, model: LightningModule, *, training: bool) -> None:
        choice = "channels_last" if training else "evaluation_channels_last"
        if not isinstance(model, Classifier) or choice not in self.choices:
            return
        if model.channels_last != self.choices[choice]:
            model.set_memory_format(self.choices[choice])
        patches.call_compiled(model.backbone, self._compiled if training else None)

    def describe(self) -> str:
        """The choices in one line."""
        if not self.choices:
            return ""
        precision, order, fused = (self.choices[name] for name in ("precision", "channels_last", "fused"))
        where = " autocast in training steps" if self._autocasts else ""
        reason = f" ({self._reason})" if self._reason else ""
        last = ", channels_last" if order else ""
        last += f", compiled ({self.choices['compiled']}) in {self._seconds:.0f} s" if self._compiled else ""
        figures = ", ".join(f"{way} {speed:,.0f}" for way, speed in (self.choices.get("tried") or {}).items())
        tried = f"; tried: {figures} images/s" if figures else ""
        return f"{precision}{where}{reason}{last}, {'fused ' if fused else ''}{self._optimizer}{tried}"


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step frees for the next one.

    glibc gives large blocks back to the kernel, and each step of a convolutional network then waits for it to clear new
    pages. Other C libraries stay as they are, and so does a process whose environment says something about it
    (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES;
    https://man7.org/linux/man-pages/man3/mallopt.3.html).
    """
    chosen = os.environ.keys() & {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" and not chosen else None
    trim_threshold, mmap_threshold = -1, -3
    # Setting the one turns off that glibc adapts the other, so they go together; old glibc takes 32 MB at most.
    if mallopt is not None and (mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)):
        mallopt(trim_threshold, 2**31 - 1)


def match_layouts(optimizer: Optimizer) -> None:
    """Give each state of a weight, such as its mean gradient, the weight's order in memory.

    A fused step walks through weight, gradient and states side by side and does not look at their strides: with
    different ones it would pair the wrong elements.
    """
    for weight, states in optimizer.state.items():
        # (An optimizer of one's own may keep what belongs to no weight.)
        for name, state in states.items() if isinstance(weight, torch.Tensor) and isinstance(states, dict) else ():
            if isinstance(state, torch.Tensor) and state.shape == weight.shape and state.stride() != weight.stride():
                states[name] = torch.empty_like(weight, dtype=state.dtype).copy_(state)


def _steps_in_channels_last(model: Classifier, device: torch.device) -> bool:
    """Whether the optimizer takes a step on a weight in that order; one that calls `view` on it does not."""
    weight = nn.Parameter(torch.zeros(2, 2, 3, 3, device=device).contiguous(memory_format=torch.channels_last))
    weight.grad = torch.zeros_like(weight)
    try:
        cast(Callable[..., Any], model.optimizer)([weight]).step(lambda: torch.zeros((), device=device))
    except Exception:  # whatever somebody's own may raise; what has nothing to do with the order, training raises again
        return False
    return True
