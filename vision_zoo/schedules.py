"""Learning rate schedules that span the run: a warm-up, then a fall to its last step."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vision_zoo.errors import ConfigError
from vision_zoo.specs import class_and_arguments, options_of

Schedule = Callable[..., LRScheduler | ReduceLROnPlateau]


class OneCycleLR(lr_scheduler.OneCycleLR):
    """torch's one cycle, up to the optimizer's learning rate and down to almost zero (Smith and Topin 2017).

    https://arxiv.org/abs/1708.07120. A parameter group that a callback adds on the way keeps its own learning rate.

    Args:
        optimizer: its learning rates are the peak.
        max_lr: another peak: one number, of the group that learns fastest, or one for each group.
        total_steps: length in steps; if left out, that of the run.
        warmup: steps until the peak, or below 1 a fraction of all steps; if left out, pct_start counts.
        pct_start: fraction of the steps until the peak.
        cycle_momentum: move the momentum (for Adam, beta1) against the learning rate, where the optimizer has one.

    Raises:
        ValueError: if torch's own schedule cannot take these values, or warmup is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float] | None = None,
        total_steps: int | None = None,
        warmup: float | None = None,
        pct_start: float = 0.3,
        cycle_momentum: bool = True,
        **options: Any,
    ) -> None:
        rates = [group["lr"] for group in optimizer.param_groups]
        peak = rates if max_lr is None else max_lr
        if not isinstance(peak, list):
            peak = [peak * share for share in _shares(rates)]
        steps = total_steps or (options.get("epochs") or 0) * (options.get("steps_per_epoch") or 0)
        if warmup and steps:
            # torch reaches the peak a step before this fraction, and divides by zero where that is the first one.
            pct_start = min(_warmup_steps(warmup, steps) + 1, steps - 0.5) / steps
        elif warmup is not None:
            pct_start = 0.0
        cycle_momentum = cycle_momentum and not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
        super().__init__(optimizer, peak, total_steps, pct_start=pct_start, cycle_momentum=cycle_momentum, **options)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at the present step; momentum moves along."""
        late = [group for group in self.optimizer.param_groups if "max_lr" not in group]
        for group in late:  # torch asks each group for its course
            momentum = group["betas"][0] if "betas" in group else group.get("momentum")
            group.update(dict.fromkeys(("initial_lr", "max_lr", "min_lr"), group["lr"]))
            group.update(dict.fromkeys(("max_momentum", "base_momentum"), momentum))
        rates = super().get_lr()
        for group in late:
            del group["max_lr"]
        return rates


class CosineAnnealingLR(lr_scheduler.CosineAnnealingLR):
    """A linear warm-up to the optimizer's learning rate, then half a cosine down (Loshchilov and Hutter 2017).

    https://arxiv.org/abs/1608.03983. A parameter group that a callback adds on the way keeps its own learning rate.

    Args:
        optimizer: its learning rates are the peak.
        T_max: length in epochs; if left out, that of the run, and the learning rate moves with every step.
        eta_min: learning rate at the end.
        warmup: steps (with T_max, epochs) until the peak, or below 1 a fraction of the length.
        last_epoch: where to begin, as in torch.

    Raises:
        ValueError: if there is no length, or warmup is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int | None = None,  # noqa: N803  # torch's name
        eta_min: float = 0.0,
        warmup: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not T_max:
            raise ValueError("CosineAnnealingLR needs T_max where nothing else tells the length of the run")
        self.warmup = min(_warmup_steps(warmup, T_max), float(T_max))
        super().__init__(optimizer, T_max, eta_min, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at the present step, from the step alone."""
        step, fall = self.last_epoch - self.warmup, max(self.T_max - self.warmup, 1)
        rise = min(1 + step / (self.warmup + 1), 1.0)  # step 0 of n: 1 / (n + 1)
        share = (1 + math.cos(math.pi * max(step, 0) / fall)) / 2
        rates = [(group["lr"], group.get("initial_lr")) for group in self.optimizer.param_groups]  # now and at the peak
        return [lr if peak is None else rise * (self.eta_min + (peak - self.eta_min) * share) for lr, peak in rates]


class LinearDecayLR(CosineAnnealingLR):
    """A linear warm-up to the optimizer's learning rate, then a line down to 0 at the end of the run.

    A parameter group with "until", a share of the run in (0, 1], is at 0 from there on, on a line that ends there.

    Args:
        optimizer: its learning rates are the peak.
        total_steps: length in steps; if left out, that of the run.
        warmup: steps until the peak, or below 1 a fraction of the length.
        last_epoch: where to begin, as in torch.

    Raises:
        ValueError: if there is no length, or warmup is negative.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, warmup: float = 0.0, last_epoch: int = -1
    ) -> None:
        if not total_steps:
            raise ValueError("LinearDecayLR needs total_steps where nothing else tells the length of the run")
        self.total_steps = total_steps
        super().__init__(optimizer, total_steps, warmup=warmup, last_epoch=last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at the present step, from the step alone."""
        step, rise = self.last_epoch, min((self.last_epoch + 1) / (self.warmup + 1), 1.0)
        rates: list[float | Tensor] = []
        for group in self.optimizer.param_groups:
            end = group.get("until", 1.0) * self.T_max
            left = min(max(end - step, 0.0) / max(end - self.warmup, 1.0), 1.0)
            rates.append(rise * left * group["initial_lr"] if "initial_lr" in group else group["lr"])
        return rates


def _shares(rates: list[float]) -> list[float]:
    """Each rate as a share of the largest."""
    return [rate / max(rates) if max(rates) else 1.0 for rate in rates]


def set_peaks(configs: Iterable[Any], lr: float) -> None:
    """Scale the courses of Lightning's configurations of schedules that have a peak, so that it is another one."""
    for schedule in (config.scheduler for config in configs):
        if isinstance(schedule, OneCycleLR | CosineAnnealingLR):
            peak = "max_lr" if isinstance(schedule, OneCycleLR) else "initial_lr"
            groups = [group for group in schedule.optimizer.param_groups if peak in group]
            top = max(group[peak] for group in groups)
            for group, rate in product(groups, ("initial_lr", "max_lr", "min_lr")):
                if rate in group:
                    group[rate] = lr * (group[rate] / top) if top else lr


def _warmup_steps(warmup: float, total: int) -> float:
    """The length of a warm-up in steps, given as a number of steps, or below 1 as a fraction of all."""
    if warmup < 0:
        raise ValueError(f"warmup must be a fraction of the run or a number of steps, got {warmup}")
    return warmup * total if warmup < 1 else warmup


def open_length(schedule: Any, options: Mapping[str, Any]) -> str | None:
    """The option of a schedule, called with these options, for its length, if that is left to the run; else None."""
    name = next((name for name in ("total_steps", "T_max") if name in options_of(schedule)), None)
    # Configurations of old runs say 0 for "left out".
    return None if name is None or options.get(name) or options.get("epochs") else name


def build_schedule(build: Schedule, optimizer: Optimizer, steps: float) -> LRSchedulerConfigType:
    """Build a schedule for Lightning, as long as the run, whose `steps` may be infinite; a ConfigError if none fits."""
    class_, given = class_and_arguments(build)
    length = open_length(class_, given)
    if length and math.isinf(steps):
        raise ConfigError("the schedule needs an end: set --trainer.max_epochs, or its T_max or total_steps")
    scheduler = build(optimizer, **{length: int(steps)} if length else {})
    if isinstance(scheduler, lr_scheduler.OneCycleLR | LinearDecayLR) and scheduler.total_steps < steps:
        name, ends = type(scheduler).__name__, f"ends after {scheduler.total_steps:,} steps, and the run has {steps:,}"
        raise ConfigError(f"--model.scheduler {name} {ends}: leave its total_steps out, for those of the run")
    by_steps = isinstance(scheduler, lr_scheduler.OneCycleLR | LinearDecayLR | lr_scheduler.CyclicLR)
    per_step = by_steps or length is not None or bool(given.get("total_steps"))
    config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": "step" if per_step else "epoch"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config |= {"monitor": "train/loss", "strict": False}
    return config
