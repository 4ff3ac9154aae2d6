"""One trial of a network before any work: does it classify, and in which memory format and precision?"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vision_zoo.errors import ConfigError, refuse

# How a network says that it cannot take an image.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Probed: TypeAlias = Any  # a Classifier, whose module imports this one
Around = Callable[[], AbstractContextManager[Any]]  # entered anew for each pass


class Mode(NamedTuple):
    """How a network computes; one that works in all of it works in any part of it."""

    channels_last: bool = False
    bf16: bool = False


_ANSWERS: WeakKeyDictionary[nn.Module, dict[Mode, bool]] = WeakKeyDictionary()


def accepts(model: Probed, *, channels_last: bool = False, bf16: bool = False) -> bool:
    """Whether the network classifies in this way; one that calls ``view`` on its features does not in channels_last.

    bf16 stands for autocast on the device where the network is. What was tried is remembered for as long as the
    classifier keeps its backbone.
    """
    mode, answers = Mode(channels_last, bf16), _ANSWERS.setdefault(model.backbone, {})
    if any(works and tried.channels_last >= channels_last and tried.bf16 >= bf16 for tried, works in answers.items()):
        return True
    if mode not in answers:
        _try(model, mode)
    return answers[mode]


def check(model: Probed, batch_size: int | None = None, *, bf16: bool = False, around: Around | None = None) -> None:
    """Classify one black image, so that a network of the wrong kind is refused by name; the classifier stays as it is.

    It is done once, in the way that asks most of the network (with bf16, that includes autocast), and again in the
    plain way only if that fails. With ``around``, which may look at the layers, it is done in any case.

    Raises:
        ConfigError: if there is but one class, or the backbone fails on the image or returns anything but logits of
            shape (1, K), or has batch normalisation and is to learn from single images.
    """
    modules = list(model.backbone.modules())
    normalises = any(isinstance(module, BATCH_NORMS) for module in modules)
    single = f"{model.network_name} has batch normalisation, which cannot learn from single images: "
    single += "set --data.batch_size to at least 2, or take a network without it"
    few = f"two classes or more are needed, but the data has {model.num_classes}"
    refuse(ConfigError, (model.num_classes < 2, few), (batch_size == 1 and normalises, single))
    if around is not None or not any(_ANSWERS.get(model.backbone, {}).values()):
        demanding = Mode(any(isinstance(module, nn.Conv2d) for module in modules), bf16)
        problem = _try(model, demanding, around)
        if problem and demanding != Mode():
            problem = _try(model, Mode(), around)
        refuse(ConfigError, (problem, problem))


def _try(model: Probed, mode: Mode, around: Around | None = None) -> str:
    """What is wrong with the network's answer to one black image, or nothing."""
    name, before, device = model.network_name, model.channels_last, model.scale.device
    image = torch.zeros(1, *model.image_shape, dtype=torch.uint8, device=device)
    problem = ""
    try:
        model.set_memory_format(mode.channels_last)
        precision = torch.autocast(device.type, torch.bfloat16, enabled=mode.bf16)
        with model.evaluation_mode(), precision, around() if around else nullcontext():
            logits = model(image)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (1, model.num_classes):
            expected = f"logits of shape (images, classes) = (1, {model.num_classes})"
            problem = f"backbone {name} must return {expected}, got {shape}"
    except REFUSALS as error:
        small = "if they are too small for it, set --data.image_size higher"
        problem = f"backbone {name} cannot classify images of shape {model.image_shape}: {error}; {small}"
    finally:
        model.set_memory_format(before)
    _ANSWERS.setdefault(model.backbone, {})[mode] = not problem
    return problem
