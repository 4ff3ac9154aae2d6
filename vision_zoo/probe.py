"""One trial of a network before any work: does it classify?"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor, nn

from vision_zoo.backbones.fitting import BATCH_NORMS
from vision_zoo.errors import ConfigError, lack, refuse

# How a network says that it cannot take an image.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError)

Probed: TypeAlias = Any  # a Classifier, whose module imports this one
Around = Callable[[], AbstractContextManager[Any]]

_CLASSIFY: WeakSet[nn.Module] = WeakSet()  # the networks that were tried


def check(model: Probed, batch_size: int | None = None, around: Around | None = None) -> None:
    """Classify one black image, so that a network of the wrong kind is refused by name; the classifier stays as it is.

    It is done once for a network, and again with ``around``, which may look at the layers.

    Raises:
        ConfigError: if there is but one class, or the backbone fails on the image or returns anything but logits of
            shape (1, K), or has batch normalisation and is to learn from single images.
    """
    normalises = any(isinstance(module, BATCH_NORMS) for module in model.backbone.modules())
    single = f"{model.network_name} has batch normalisation, which cannot learn from single images: "
    single += "set --data.batch_size to at least 2, or take a network without it"
    extra = [name for name, value in model.backbone.state_dict().items() if not isinstance(value, Tensor)]
    odd = f"{model.network_name} has {extra[0] if extra else ''} among its weights, which is no tensor: no checkpoint "
    odd += "could be read again. Keep it in its options, or in a buffer"
    few = f"two classes or more are needed, but the data has {model.num_classes}"
    refuse(ConfigError, (model.num_classes < 2, few), (batch_size == 1 and normalises, single), (extra, odd))
    if around is None and model.backbone in _CLASSIFY:
        return
    image = torch.zeros(1, *model.image_shape, dtype=torch.uint8, device=model.scale.device)
    try:
        with evaluating(model), around() if around else nullcontext():
            logits = model(image)
    except REFUSALS as error:
        if lack(error):
            raise
        small = "if they are too small for it, set --data.image_size higher"
        what = f"backbone {model.network_name} cannot classify images of shape {model.image_shape}"
        raise ConfigError(f"{what}: {error}; {small}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    expected = f"logits of shape (images, classes) = (1, {model.num_classes})"
    wrong = f"backbone {model.network_name} must return {expected}, got {shape}"
    refuse(ConfigError, (shape != (1, model.num_classes), wrong))
    _CLASSIFY.add(model.backbone)


@contextmanager
def evaluating(model: Probed) -> Iterator[None]:
    """Look at a network in eval mode, without gradients, and without changing it or the random numbers."""
    modes = [(module, module.training) for module in model.backbone.modules()]
    model.backbone.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        for module, training in modes:  # each its own: a part may be frozen in eval mode
            module.training = training
