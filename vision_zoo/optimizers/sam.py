"""Sharpness-aware minimisation around another optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from vision_zoo.errors import refuse
from vision_zoo.optimizers.around import Around, Closure, Companion, class_of
from vision_zoo.optimizers.muon import MuonWith
from vision_zoo.trainer_facts import callbacks_of


class OneBatchPerStep(Companion):
    """Refuses what would have the second gradient of a batch, of SAM and LBFGS, lie on top of others."""

    def problems(self, trainer: Trainer) -> list[tuple[object, str]]:
        """Conditions and messages."""
        scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks_of(trainer))
        accumulates = scheduled or trainer.accumulate_grad_batches > 1
        summed = (
            "--model.optimizer: SAM and LBFGS compute a batch's gradient anew, and do not work with accumulated ones"
        )
        scaled = "--model.optimizer: SAM and LBFGS do not work with precision 16-mixed, which scales gradients"
        return [
            *super().problems(trainer),
            (accumulates, f"{summed}: leave that out, and set --data.batch_size higher"),
            (trainer.precision == "16-mixed", f"{scaled}: set bf16-mixed or 32-true"),
        ]


class SAM(Around):
    """Steps by the gradient at the point nearby where the loss is highest (Foret et al. 2021).

    https://arxiv.org/abs/2010.01412. Each step takes two passes of its batch, both of which count for batch
    statistics; metrics count the first. Over several processes, the point is that of the mean gradient.

    Args:
        params: weights, or groups of them with options of their own.
        lr: learning rate of the base.
        rho: how far away the point is: the norm of the difference of all weights, in (0, 1000).
        adaptive: measure the difference in shares of each weight (ASAM, Kwon et al. 2021); rho is then 10 times larger.
        base: name of the class that makes the step, of torch.optim or MuonWith.
        base_options: its options besides lr, such as {momentum: 0.9, weight_decay: 0.0005}.

    Raises:
        ConfigError: if `base` is unknown.
        TypeError: if the base has no such option.
        ValueError: if an option is out of its range.
    """

    companion = OneBatchPerStep

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        rho: float = 0.05,
        adaptive: bool = False,
        base: str = "SGD",
        base_options: dict[str, Any] | None = None,
    ) -> None:
        refuse(ValueError, (not 0 < rho < 1000, f"rho must be above 0 and below 1000, got {rho:g}"))
        self.rho, self.adaptive = rho, adaptive
        super().__init__(class_of("base", base, MuonWith)(params, **{"lr": lr, **(base_options or {})}))

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """Climb to the point nearby, and step by its gradient; the closure computes loss and gradient of a batch.

        Raises:
            TypeError: without a closure.
        """
        if closure is None:
            raise TypeError("SAM needs a closure, which computes loss and gradient anew")
        with torch.enable_grad():
            loss = closure()
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        before = [weight.clone() for weight in weights]
        climbs = [weight.grad * (weight.abs() if self.adaptive else 1) for weight in weights]
        norm = torch.stack([climb.norm() for climb in climbs]).norm() if climbs else 1
        for weight, climb in zip(weights, climbs, strict=True):
            weight.add_(climb * (weight.abs() if self.adaptive else 1) * (self.rho / (norm + 1e-12)))
        with torch.enable_grad():
            closure()
        for weight, kept in zip(weights, before, strict=True):
            weight.copy_(kept)
        self.share().step()
        return loss
