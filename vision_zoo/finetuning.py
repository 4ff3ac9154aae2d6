"""Fine-tuning of a pretrained network: what is frozen until which step, and how fast each layer learns."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from vision_zoo.backbones.fitting import BATCH_NORMS, head_of
from vision_zoo.errors import ConfigError, did_you_mean, refuse
from vision_zoo.specs import options_of
from vision_zoo.trainer_facts import callbacks_of

_SEQUENCES = (nn.Sequential, nn.ModuleList)


class FineTuning:
    """Trains the head alone at first, then all layers, those near the input slowly; no weight decay on vectors.

    What is frozen depends on the step alone, so that a run that goes on freezes as one that was never stopped. A layer
    that is frozen computes as in evaluation: its dropout is off, and its batch statistics stay.

    Args:
        freeze: backbone for all but the last linear layer; the name of a layer, for all up to it; a number of the first
            stages; null for nothing.
        thaw_at: when all is trained from: a fraction of the run's steps, in (0, 1), or a number of steps; null for
            never.
        layer_decay: learning rate of a layer as a share of that of the next one towards the head, in (0, 1].
        freeze_batch_norm: batch normalisation is frozen with its layer; false trains it, and counts its statistics,
            from the start.

    Raises:
        ConfigError: if a value is out of its range.
    """

    def __init__(
        self,
        freeze: int | str | None = "backbone",
        thaw_at: int | float | None = 0.2,
        layer_decay: float = 0.8,
        freeze_batch_norm: bool = True,
    ) -> None:
        # Nothing else is kept: a checkpoint describes it by these.
        self.freeze, self.thaw_at = freeze, thaw_at
        self.layer_decay, self.freeze_batch_norm = layer_decay, freeze_batch_norm
        fraction = isinstance(thaw_at, float) and not 0 < thaw_at < 1
        few = isinstance(thaw_at, int) and thaw_at < 1
        thaw = f"--model.finetune.thaw_at must be a fraction in (0, 1) or a number of steps from 1 on, got {thaw_at}"
        refuse(
            ConfigError,
            (fraction or few, f"{thaw}; null keeps frozen what is, and --model.finetune.freeze null freezes nothing"),
            (not 0 < layer_decay <= 1, f"--model.finetune.layer_decay must be in (0, 1], got {layer_decay}"),
        )

    def thaw_step(self, steps: float) -> float:
        """How many steps of a run of so many, maybe infinite, come before all is trained; 0 if nothing is frozen."""
        if self.freeze is None:
            return 0
        if self.thaw_at is None:
            return math.inf
        share = isinstance(self.thaw_at, float)
        never = f"--model.finetune.thaw_at {self.thaw_at} is not within the run, which has {steps:,} steps"
        refuse(
            ConfigError,
            (share and math.isinf(steps), "--model.finetune.thaw_at is a fraction of a run without an end: set "
             "--trainer.max_epochs, or a number of steps"),
            (not share and self.thaw_at >= steps, f"{never}: set it lower, or null for a network that stays frozen"),
        )  # fmt: skip
        return max(1, round(self.thaw_at * steps)) if share else self.thaw_at

    def frozen(self, network: nn.Module) -> set[str]:
        """Names of the weights that are frozen at first; a layer that the network does not have is a ConfigError."""
        names, freeze, option = [name for name, _ in network.named_parameters()], self.freeze, "--model.finetune.freeze"
        if freeze is None:
            return set()
        if freeze == "backbone":
            found = [name for name in names if not name.startswith(f"{head_of(network)}.")]
        elif isinstance(freeze, int):
            stages = layers_of(network, coarse=True)
            starts = ", ".join(stage[0].rpartition(".")[0] or stage[0] for stage in stages)
            there_are = f"this network has {len(stages)} stages, which begin with {starts}"
            many = f"{option} must be a number from 1 to {len(stages) - 1}, got {freeze}: {there_are}"
            refuse(ConfigError, (not 1 <= freeze < len(stages), many))
            found = [name for stage in stages[:freeze] for name in stage]
        else:
            # Adapters of libraries keep theirs as "network".
            paths = {
                name.removeprefix("network."): name
                for name, m in network.named_modules()
                if next(m.parameters(), None) is not None
            }
            shown = [name for name in paths if name.count(".") < 2 and name]
            hint = did_you_mean(freeze, paths) or f". There are backbone, {', '.join(shown)}"
            refuse(ConfigError, (freeze not in paths, f"{option} {freeze}: there is no layer of this name{hint}"))
            last = max(i for i, name in enumerate(names) if name.startswith(f"{paths[freeze]}."))
            found = names[: last + 1]
        refuse(ConfigError, (len(found) == len(names), f"{option} {freeze}: nothing would be left to train"))
        return set(found)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """All weights in groups for an optimizer, the head first: with "lr_share", of its learning rate."""
        weights, groups = dict(network.named_parameters()), []
        self.frozen(network)  # which says what is wrong
        for depth, names in enumerate(reversed(layers_of(network))):
            layer = [weights[name] for name in names]
            for decays in (True, False):
                chosen = [weight for weight in layer if (weight.ndim > 1) == decays]
                no_decay = {} if decays else {"weight_decay": 0.0}
                groups += [{"params": chosen, "lr_share": self.layer_decay**depth, **no_decay}] if chosen else []
        return groups

    def describe(self, steps: float) -> str:
        """What happens in a run of so many steps, in one line."""
        thaw, what = self.thaw_step(steps), f"{self.freeze} stages" if isinstance(self.freeze, int) else self.freeze
        until = "for the whole run" if math.isinf(thaw) else f"for the first {thaw:,} of {steps:,} steps"
        frozen = f"{'up to ' * (isinstance(what, str) and what == self.freeze != 'backbone')}{what} frozen {until}"
        return f"{frozen if thaw else 'nothing frozen'}; rate of a layer {self.layer_decay:g} of the next one's"


class Freezing(Callback):
    """Freezes and thaws a network as `FineTuning` says, before the step that it counts from."""

    def __init__(self, options: FineTuning, network: nn.Module) -> None:
        self.options, self.network = options, network
        self.thaw_step = math.inf  # set when the length of the run is known
        # Some networks have weights that are never trained.
        self._own = {name for name, weight in network.named_parameters() if weight.requires_grad}
        self._frozen: bool | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what would freeze other weights, or lies in pieces."""
        other = next((type(c).__name__ for c in callbacks_of(trainer) if isinstance(c, BaseFinetuning)), "")
        whole, kind = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy), type(trainer.strategy).__name__
        pieces = f"--model.finetune does not work with {kind}, which shards the network: use ddp, or one device"
        twice = f"--model.finetune and --trainer.callbacks {other} would both freeze the network: leave one out"
        refuse(ConfigError, (stage == "fit" and other, twice), (stage == "fit" and not whole, pieces))

    def warn_of_random_weights(self, name: str) -> None:
        """Say that what is frozen was never trained; a class of the user's own may load weights by itself."""
        kind = type(self.network)
        if kind.__module__.startswith("vision_zoo.") and self.options.freeze is not None:
            start = "--model.backbone.weights DEFAULT, or " * ("weights" in options_of(kind))
            start += "--model.weights to a checkpoint of its kind"
            rank_zero_warn(f"--model.finetune freezes {name}, whose weights are random: set {start}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at everything anew, for validation and other callbacks change what is in which mode."""
        self._frozen = None

    on_train_epoch_start = on_validation_end = on_train_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze or thaw, if that changes with this step."""
        if self._frozen != (frozen := trainer.global_step < self.thaw_step):
            self._frozen = frozen
            changed = self._freeze(self.options.frozen(self.network) if frozen else set())
            if changed and isinstance(strategy := trainer.strategy, DDPStrategy):
                # It waits for the gradients of all weights that were to be trained when it was made.
                strategy.model = strategy.lightning_module
                strategy.configure_ddp()

    def _freeze(self, names: set[str]) -> bool:
        """Freeze these weights and thaw all others; whether that changes what is trained."""
        weights = {weight: name for name, weight in self.network.named_parameters()}
        frozen, changed = {weight for weight, name in weights.items() if name in names}, False
        before = bool(names)  # before the first layer that is trained
        for module in self.network.modules():
            inside, direct = set(module.parameters()), set(module.parameters(recurse=False))
            before = before and direct <= frozen
            norm = isinstance(module, BATCH_NORMS)
            trains = norm and not self.options.freeze_batch_norm
            # An average of weights has its batch statistics counted anew, with momentum None.
            counts = trains or (norm and module.momentum is None)
            module.training = counts or not (inside <= frozen if inside else before)
            for weight in direct:
                trained = weights[weight] in self._own and (trains or weight not in frozen)
                changed = changed or weight.requires_grad != trained
                weight.requires_grad = trained
        return changed


def layers_of(network: nn.Module, coarse: bool = False) -> list[list[str]]:
    """Names of the weights of each layer, from the input to the head: blocks where the network has them.

    They are those that timm knows of its networks, or the modules that make up the network; a norm belongs to the layer
    before it. Of others, a stage of blocks counts as one where `coarse`.
    """
    for prefix, module in network.named_modules():
        if hasattr(module, "group_matcher") and set(module.parameters()) == set(network.parameters()):
            from timm.models import group_parameters  # noqa: PLC0415  # an extra

            found = group_parameters(module, module.group_matcher(coarse=coarse))
            return [[f"{prefix}.{name}".lstrip(".") for name in found[index]] for index in sorted(found)]
    layers: list[list[str]] = []
    last = ""
    for name, _ in network.named_parameters():
        layer = _layer(network, name.split(".")[:-1], coarse)
        if layer not in ("", last) and _has_matrix(network.get_submodule(layer)):
            layers += [[]] if last or not layers else []  # what comes before the first, such as a token, belongs to it
            last = layer
        layers = layers or [[]]
        layers[-1].append(name)
    return layers


def _layer(network: nn.Module, path: list[str], coarse: bool) -> str:
    """The first module on the way to a weight that is not made of layers; "" for a weight beside such layers."""
    module, is_all, in_sequence = network, True, False
    for depth, word in enumerate([*path, ""]):
        parts, is_sequence = [*filter(_has_matrix, module.children())], isinstance(module, _SEQUENCES)
        splits = is_sequence and (not coarse or any(isinstance(part, _SEQUENCES) for part in parts))
        wraps = not is_sequence and not in_sequence and len(parts) == 1
        if not is_all and not splits and not wraps:
            return ".".join(path[:depth])
        is_all, in_sequence = is_all and len(parts) == 1, in_sequence or is_sequence
        module = module.get_submodule(word)
    return ""


def _has_matrix(module: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in module.parameters())
