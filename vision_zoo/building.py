"""Building the network that a description names, and giving it the weights of a file."""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from operator import itemgetter
from textwrap import shorten
from typing import Any, cast
from weakref import WeakSet

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vision_zoo.checkpoints import read_state_dicts
from vision_zoo.errors import CheckpointError, ConfigError, lack, refuse
from vision_zoo.known import PREFIX
from vision_zoo.specs import class_and_arguments, options_of, rebuild, returned_class, walk, without_downloads
from vision_zoo.types import ImageShape, Preprocessing

Backbone = Callable[[ImageShape, int], nn.Module]

_FIRST_IMAGES = 5_000  # evenly spaced over the training images
_LOADED: WeakSet[nn.Module] = WeakSet()  # the networks that have weights of a file
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of torch, in names


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


def settled_options(backbone: Any) -> dict[str, Any] | None:
    """The options of a backbone as a checkpoint is to hold them, where its class says so; else None."""
    target, arguments = class_and_arguments(rebuild(backbone))
    settle = getattr(target, "settled", None)
    return settle(**arguments) if settle else None


def settled(backbone: Backbone) -> Backbone:
    """The same backbone with its options as a checkpoint is to hold them."""
    options = settled_options(backbone)
    return partial(class_and_arguments(backbone)[0], **options) if options else backbone


def preprocessing_of(backbone: Any) -> Preprocessing | None:
    """How images were prepared for the pretrained weights that a backbone, or its description, asks for; else None."""
    target, arguments = class_and_arguments(rebuild(backbone))
    known = getattr(target, "preprocessing", None)
    if known is None or arguments.get("weights") is None:
        return None
    return cast(Preprocessing, known(**{name: arguments[name] for name in options_of(known) if name in arguments}))


def start_from_images(model: Any, data: Any) -> None:
    """Show normalised training images, float (N, C, H, W), to a network with a method `start_from` and no weights yet.

    Args:
        model: the classifier.
        data: the data module of its run; anything else is a ConfigError.
    """
    if not hasattr(model.backbone, "start_from") or model.backbone in _LOADED:
        return
    needs = f"{model.network_name} starts from training images: give the trainer one of vision_zoo's data modules"
    refuse(ConfigError, (not hasattr(data, "sample"), needs))
    images = data.sample("train", _FIRST_IMAGES).images.to(model.device)
    model.backbone.start_from(images * model.scale + model.shift)


def load_backbone_weights(backbone: nn.Module, path: str, name: str, num_classes: int) -> None:
    """Load the weights of a file, see `read_state_dicts`; those of another network are a CheckpointError.

    Their names may begin with those of modules around the network. The last layer is left as it is where the file has
    none, or one for another number of classes; a line on standard error says so.
    """
    own = backbone.state_dict()
    paths = [key.split(".") for key in own]
    root = len([*takewhile(lambda words: len({*words}) == 1, zip(*(path[:-1] for path in paths), strict=False))])
    names = {".".join(path[root:]): key for path, key in zip(paths, own, strict=True)}  # such as without "network."
    _, prefix, state = max((_found(state, names) for state in read_state_dicts(path)), key=itemgetter(0))
    begun = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    taken = {names.get(key, key): value for key, value in begun.items()}
    last = next((key.rpartition(".")[0] for key in reversed(own) if own[key].shape[:1] == (num_classes,)), None)
    head = {key: value for key, value in own.items() if key.rpartition(".")[0] == last}
    theirs = [taken[key] for key in head if key in taken]
    other = [(num_classes, *value.shape[1:]) for value in theirs] == [tuple(value.shape) for value in head.values()]
    left_out = head if not theirs or (other and all(len(value) != num_classes for value in theirs)) else {}
    try:
        backbone.load_state_dict({**taken, **left_out})
    except RuntimeError as error:
        problems = [shorten(line, 200, placeholder=" ...") for line in str(error).splitlines()[1:5]]
        hint = "Weights serve the network and the image size that they were trained with"
        raise CheckpointError(f"{path} does not fit {name}: {' '.join(problems)} {hint}") from error
    _LOADED.add(backbone)
    if left_out or len(taken) < len(state):
        has = f"one for {len(theirs[0])} classes" if theirs else "none"
        what = f"; the last layer, {last}, starts anew, for the file has {has}" * bool(left_out)
        what += f"; {len(state) - len(taken)} of the file do not begin with {prefix}" * (len(taken) < len(state))
        counts = f"{len(own) - len(left_out)} of the network's {len(own)} tensors are taken"
        rank_zero_only(print)(f"vision_zoo: {path}: {counts}{what}", file=sys.stderr)


def _found(state: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[int, str, dict[str, Tensor]]:
    """How many of the names a state dict has behind one prefix, the prefix, and the state dict without wrappers."""
    own = {key: value for key, value in state.items() if not key.startswith(PREFIX) or key in names}
    state, counts = {_WRAPPERS.sub("", key): value for key, value in own.items()}, Counter[str]()
    for words in (key.split(".") for key in state):
        found = [n for n in range(len(words)) if ".".join(words[n:]) in names]
        counts.update("".join(f"{word}." for word in words[:n]) for n in found)
    prefix, count = next(iter(counts.most_common(1)), ("", 0))
    return count, prefix, state


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
    options = {name: rebuild(without_downloads(value)) for name, value in described.items()}
    if options.get("finetune") is not None:
        options["finetune"] = options["finetune"]()
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
