"""Building the network that a description names, and giving it the weights of a file."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vision_zoo.checkpoints import read_state_dict
from vision_zoo.errors import CheckpointError, ConfigError, lack
from vision_zoo.specs import class_and_arguments, rebuild, returned_class, walk, without_downloads
from vision_zoo.types import ImageShape

Backbone = Callable[[ImageShape, int], nn.Module]


def build_backbone(backbone: Backbone, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Call a backbone with image shape and number of classes; one not made to be called so is a ConfigError."""
    target, arguments = class_and_arguments(backbone)
    path = f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else repr(target)
    expected = (
        f"backbone {path} must be an nn.Module class (or a function annotated '-> nn.Module') whose first two "
        "parameters are the image shape (channels, height, width) and the number of classes"
    )
    # jsonargparse gives functions no options; a checkpoint must not call just any function of a package.
    made = target if inspect.isclass(target) else returned_class(target)
    if made is None or not issubclass(made, nn.Module):
        raise ConfigError(expected)
    try:
        bound = inspect.signature(target).bind(image_shape, num_classes, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{expected}: {error}") from error
    first = next(iter(bound.signature.parameters.values()))
    if first.annotation in (int, float, str, bool, "int", "float", "str", "bool"):
        raise ConfigError(f"{expected}; its first one is {first}")
    try:
        return backbone(image_shape, num_classes)
    except (RuntimeError, MemoryError) as error:
        if not lack(error):
            raise
        what = f"backbone {path} for images of shape {tuple(image_shape)} does not fit into the memory"
        raise ConfigError(f"{what}: set --data.image_size or the options of the network lower") from error


def load_backbone_weights(backbone: nn.Module, path: str, name: str) -> None:
    """Load a file of weights, see `read_state_dict`; those of another network are a CheckpointError."""
    try:
        backbone.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        problems = [shorten(line, 200, placeholder=" ...") for line in str(error).splitlines()[1:5]]
        hint = "Weights serve the network, the number of classes and the image size that they were trained with"
        raise CheckpointError(f"{path} does not fit {name}: {' '.join(problems)} {hint}") from error


class _UndrawnParameters(TorchFunctionMode):
    """Parameters that are to be initialised become zero instead; everything else is as ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        tensor = args[0] if args else options.get("tensor")
        random = func in (Tensor.uniform_, Tensor.normal_) or getattr(func, "__module__", "") == nn.init.__name__
        if random and isinstance(tensor, nn.Parameter):
            tensor.detach().zero_()
            return tensor
        return func(*args, **options)


@contextmanager
def without_random_weights() -> Iterator[None]:
    """Networks built inside wait for the weights of a checkpoint; random states of the process stay as they are."""
    with torch.random.fork_rng(devices=[]), _UndrawnParameters():
        yield


def described_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the classifier of a checkpoint, which `read_checkpoint` has vetted, was made with."""
    described = checkpoint["hyper_parameters"]
    options = {name: rebuild(value) for name, value in described.items()}
    about = checkpoint.get("vision_zoo")
    spec = about["config"]["model"].get("backbone") if about is not None else None
    nested = any(key == "class_path" for key, _, _ in walk(described["backbone"].get("init_args")))
    if isinstance(spec, Mapping) and nested:
        # As the command line makes it, of classes that the annotations of the network admit.
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--backbone", type=Backbone)
        parsed = parser.parse_object({"backbone": dict(without_downloads(spec))})
        options["backbone"] = parser.instantiate_classes(parsed).backbone
    return options
