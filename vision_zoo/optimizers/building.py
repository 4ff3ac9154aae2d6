"""Building an optimizer, and trying it before any work."""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.optimizers.sam import OneBatchPerStep
from vision_zoo.optimizers.schedule_free import AtAverage
from vision_zoo.schedules import Schedule, build_schedule
from vision_zoo.specs import class_and_arguments, options_of
from vision_zoo.trust import not_plain

Build = Callable[..., Optimizer]
Weights = Iterable[nn.Parameter] | Iterable[dict[str, Any]]  # groups are those of `weight_groups`
TRIAL_STEPS = 1000  # of a run whose length is not known yet
UNFIT = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)  # of options


def build_optimizer(build: Build | None, parameters: Weights, fused: bool) -> Optimizer:
    """Build an optimizer; if `fused` and its options leave that open, one that updates all weights by one call."""
    if build is None:
        raise ConfigError("training needs an optimizer: set --model.optimizer, for example to torch.optim.Adam")
    weights = list(parameters)
    class_, given = class_and_arguments(build)
    free = all(given.get(name) is None for name in ("fused", "foreach")) and not given.get("differentiable")
    if fused and free and "fused" in options_of(class_):
        with suppress(RuntimeError):  # a weight of a type or on a device that torch has no fused step for
            return _built(build, weights, fused=True)
    return _built(build, weights)


def _built(build: Build, weights: list[Any], **options: Any) -> Optimizer:
    """Build an optimizer, and give each group with an "lr_share" that share of the learning rate."""
    copied = [dict(weight) if isinstance(weight, dict) else weight for weight in weights]  # torch adds options to them
    optimizer = build(copied, **options)
    for group in optimizer.param_groups:
        share = group.pop("lr_share", 1.0)
        no_rate = "--model.finetune: this optimizer has no lr that could differ by layer; set its layer_decay to 1"
        refuse(ConfigError, (share != 1 and "lr" not in group, no_rate))
        if share != 1:
            group["lr"] *= share
    return optimizer


def companions(build: Build | None) -> list[Callback]:
    """The callbacks that an optimizer needs in a run: of ours, and of whatever has train() and eval()."""
    class_, _ = class_and_arguments(build)
    averages = AtAverage if hasattr(class_, "train") and hasattr(class_, "eval") else None
    companion = OneBatchPerStep if class_ is torch.optim.LBFGS else getattr(class_, "companion", averages)
    return [companion()] if companion else []


def learning_rate(build: Build | None) -> float:
    """The learning rate of an optimizer's options; an AttributeError where there is none."""
    class_, options = class_and_arguments(build)
    rate = options.get("lr", options_of(class_).get("lr") if class_ else None)
    if not isinstance(rate, (int, float)):
        raise AttributeError("the optimizer has no option lr with a number")
    return float(rate)


def check_optimizer(build: Build | None, schedule: Schedule | None, parameters: Weights) -> None:
    """Build optimizer and schedule for a trial; values that teach nothing, or cannot be saved, are a ConfigError."""
    try:
        optimizer = build_optimizer(build, parameters, fused=False)
        rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
        useless = next((rate for rate in rates if not math.isfinite(rate) or rate < 0 or max(rates) == 0), None)
        if useless is None and class_and_arguments(build)[0].__module__.startswith(("torch.", "vision_zoo.")):
            _try_steps(build)
    except UNFIT as error:
        raise ConfigError(f"--model.optimizer cannot be used so: {str(error) or type(error).__name__}") from error
    if useless is not None:
        lr = f"--model.optimizer.lr is {useless:g}"
        raise ConfigError(f"{lr}, so that nothing would be learned: set it to a positive number, such as 0.001")
    refuse(ConfigError, (why := not_plain(optimizer), f"--model.optimizer {why}"))
    if schedule is not None:
        free = any(isinstance(callback, AtAverage) for callback in companions(build))
        refuse(ConfigError, (free, f"{type(optimizer).__name__} needs no schedule: set --model.scheduler null"))
        _check_schedule(schedule, optimizer)


def _try_steps(build: Build | None) -> None:
    """Make two steps, for some optimizers look at their options in a step only; wild ones are a ValueError."""
    weights = nn.Parameter(torch.ones(2, 2))
    gradient = weights.grad = torch.eye(2, 1).expand(2, 2).clone()  # some of it zero, as of unused neurons
    trial = build_optimizer(build, [weights], fused=False)
    for _ in range(2):
        trial.step(lambda: float(gradient.mul_(0.5).sum()))
    most = float(weights.detach().abs().max())
    wild = f"in two steps it takes weights from 1 to {most:g}: set its numbers nearer to their defaults"
    refuse(ValueError, (not most < 1e9, wild))


def _check_schedule(build: Schedule, optimizer: Optimizer) -> None:
    _, given = class_and_arguments(build)
    steps = given.get("total_steps") or (given.get("epochs") or 0) * (given.get("steps_per_epoch") or 0) or TRIAL_STEPS
    try:
        with warnings.catch_warnings(action="ignore"):  # of a schedule that moves before the optimizer does
            scheduler = build_schedule(build, optimizer, steps)["scheduler"]
            if not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step()
    except UNFIT as error:
        raise ConfigError(f"--model.scheduler cannot be used so: {error}") from error
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) and scheduler.mode == "max":
        raise ConfigError("--model.scheduler.mode max: it watches the loss, which is better the lower it is: say min")
    refuse(ConfigError, (why := not_plain(scheduler), f"--model.scheduler {why}"))
