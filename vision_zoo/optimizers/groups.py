"""The weights of a network in groups, as an optimizer takes them."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vision_zoo.backbones.fitting import head_of
from vision_zoo.finetuning import Freezing
from vision_zoo.specs import class_and_arguments

Group = dict[str, Any]
Weights = list[nn.Parameter] | list[Group]


def weight_groups(
    network: nn.Module, build: Callable[..., Optimizer] | None, tuning: Freezing | None, decay_vectors: bool
) -> Weights:
    """The weights of a network, in groups where anything asks for such.

    They are those of fine-tuning, or else of the network's own method ``parameter_groups()``, which gives dictionaries
    with "params" and options of the optimizer, such as "weight_decay"; "lr_share", a factor of the learning rate;
    "until", the share of the run after which LinearDecayLR leaves it at 0; "muon" False, see `MuonWith`.
    """
    own: Callable[[], list[Group]] | None = getattr(network, "parameter_groups", None)
    groups = tuning.options.groups(network) if tuning else own() if own else [{"params": list(network.parameters())}]
    if not decay_vectors:
        vectors = [weight for weight in network.parameters() if weight.ndim < 2]
        groups = _parted(groups, vectors, {"weight_decay": 0.0})
    class_, options = class_and_arguments(build)
    if getattr(class_, "parts_head", False) or options.get("base") == "MuonWith":
        tables = [m for m in network.modules() if isinstance(m, nn.Embedding)]
        apart = [network.get_submodule(head_of(network)), *tables]
        groups = _parted(groups, [weight for module in apart for weight in module.parameters()], {"muon": False})
    return groups if len(groups) > 1 or groups[0].keys() != {"params"} else groups[0]["params"]


def _parted(groups: Iterable[Group], apart: list[nn.Parameter], options: Group) -> list[Group]:
    """The groups, with some weights in groups of their own, which have these options where they had none."""
    marked, parted = set(apart), []
    for group in groups:
        weights = list(group["params"])
        rest, some = ([weight for weight in weights if (weight in marked) == is_in] for is_in in (False, True))
        parted += [{**group, "params": rest}] if rest else []
        parted += [{**options, **group, "params": some}] if some else []
    return parted
