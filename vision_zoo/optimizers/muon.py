"""Muon for matrices and convolutions, with a second optimizer for all other weights, as one object."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from vision_zoo.errors import ConfigError, refuse
from vision_zoo.optimizers.around import Closure, Companion, class_of


class _WithoutBfloat16(TorchFunctionMode):
    """Has torch's Muon keep the precision of the weights, where it asks for bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = torch.clone if func is torch.Tensor.bfloat16 else func  # a copy, for it is divided in place
        return func(*args, **(kwargs or {}))


class MuonWith(Optimizer):
    """torch's Muon (Jordan et al. 2024) for matrices and filters; another optimizer for norms, biases and the head.

    https://kellerjordan.github.io/posts/muon/. The filters of a convolution are taken as one matrix (out, rest).
    Embeddings, and what has a single row, such as a class token, go with the norms. A schedule moves the rates of both.

    Args:
        params: weights, or groups of them with options of their own; "muon" False in a group leaves it to the other.
        lr: learning rate of Muon.
        momentum: of Muon, in [0, 1).
        nesterov: look ahead by the momentum.
        ns_steps: Newton-Schulz steps that make an update orthogonal.
        weight_decay: of Muon, decoupled: a step shrinks a matrix by lr times this.
        adjust_lr_fn: how the rate depends on a matrix's shape: original, match_rms_adamw or spectral_unclamped, as of
            torch.optim.Muon.
        normalize: before each step, scale each matrix to the norm sqrt(number of its rows), as airbench94 does
            (https://github.com/KellerJordan/cifar10-airbench).
        other: name of a class of torch.optim for the other weights.
        other_options: its options, such as {lr: 0.05, momentum: 0.85, nesterov: true}; by default its own.

    Raises:
        ConfigError: if this torch has no Muon (2.9 has), or `other` is unknown.
        TypeError: if the other optimizer has no such option.
        ValueError: if an option is out of its range.
    """

    companion = Companion
    parts_head = True  # the head and embeddings are groups of their own, marked so: see groups.py

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.01,
        adjust_lr_fn: str | None = None,
        normalize: bool = False,
        other: str = "AdamW",
        other_options: dict[str, Any] | None = None,
    ) -> None:
        muon: Any = getattr(torch.optim, "Muon", None)
        too_old = f"--model.optimizer MuonWith needs torch 2.9, and this is {torch.__version__}"
        refuse(ConfigError, (muon is None, too_old))
        refuse(ValueError, (not 0 <= momentum < 1, f"momentum must be in [0, 1), got {momentum:g}"))
        stand_in = [nn.Parameter(torch.zeros(1, 1))]
        self.normalize = normalize
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        self._muon: Optimizer = muon(stand_in, **options, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn)
        self._other = class_of("other", other)(stand_in, **(other_options or {}))
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of weights, as one of Muon's and one of the other's."""
        weights = param_group["params"]
        weights = [weights] if isinstance(weights, torch.Tensor) else list(weights)
        may = param_group.get("muon", True)
        for muon, part in ((True, self._muon), (False, self._other)):
            chosen = [weight for weight in weights if (may and weight.ndim > 1 and len(weight) > 1) == muon]
            if chosen:
                super().add_param_group({**part.defaults, **param_group, "params": chosen, "muon": muon})

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """Make one step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._other.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._other.state = self.state
        self._other.step()
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        pairs = []
        for weight in group["params"]:
            if weight.grad is None:
                continue
            if self.normalize:
                weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-12))
            matrix = nn.Parameter(weight.detach().flatten(1))  # (out, rest): a view, or of channels_last a copy
            matrix.grad = weight.grad.flatten(1)
            self._muon.state[matrix] = self.state[weight]
            pairs.append((weight, matrix))
        self._muon.param_groups = [{**group, "params": [matrix for _, matrix in pairs]}]
        # A processor without bfloat16 multiplies it 20 times slower than float32.
        with _WithoutBfloat16() if all(matrix.is_cpu for _, matrix in pairs) else nullcontext():
            self._muon.step()
        self._muon.state.clear()
        for weight, matrix in pairs:
            if matrix.data_ptr() != weight.data_ptr():
                weight.copy_(matrix.view(weight.shape))
