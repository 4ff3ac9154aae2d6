"""A class or function and its options as plain data, and back."""

import importlib
import importlib.util
import inspect
import keyword
from collections.abc import Callable, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from vision_zoo.errors import ConfigError
from vision_zoo.types import ImageShape


def is_import_path(text: str) -> bool:
    """Whether a text is ``package.Name``, with any number of modules between."""
    parts = text.split(".")
    return text.isascii() and len(parts) > 1 and all(p.isidentifier() and not keyword.iskeyword(p) for p in parts)


def import_path(path: str) -> Any:
    """Import ``package.module.Name``.

    Raises:
        ConfigError: if there is no such thing.
    """
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be imported: {error}") from error


def returned_class(function: Any) -> type | None:
    """The class that a function says it returns."""
    try:
        returns = inspect.signature(function).return_annotation
        if isinstance(returns, str):  # of a module that says `from __future__ import annotations`
            name, *path = returns.split(".")
            returns = reduce(getattr, path, function.__globals__[name])
    except (TypeError, ValueError, KeyError, AttributeError):
        return None
    return returns if inspect.isclass(returns) and returns is not inspect.Signature.empty else None


def is_package(name: str) -> bool:
    """Whether a package of this name is installed."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def class_and_arguments(target: Any) -> tuple[Any, dict[str, Any]]:
    """The class or function behind a callable and the arguments bound to it."""
    if isinstance(target, partial):
        if target.args:  # the command line's parser makes partial(instantiator, ..., class, **arguments)
            return target.args[-1], target.keywords
        return target.func, target.keywords
    return target, {}


def copyable(target: Any) -> Any:
    """The same callable, without the parser that the command line's holds: averages of weights copy the module."""
    class_, arguments = class_and_arguments(target)
    return partial(class_, **arguments) if isinstance(target, partial) and target.args else target


def options_of(target: Any) -> dict[str, Any]:
    """The options of a class or function with their defaults, those that it hands to its base class included.

    Args:
        target: a class, whose `__init__` may end in ``**options``, or a function.

    Returns:
        The default of each, by name; ``inspect.Parameter.empty`` where there is none.
    """
    bases = inspect.getmro(target)[1:-1] if inspect.isclass(target) else ()
    found: dict[str, Any] = {}
    for owner in (target, *(vars(base)["__init__"] for base in bases if "__init__" in vars(base))):
        parameters = inspect.signature(owner).parameters.values()
        named = {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = {**{name: default for name, default in named.items() if name != "self"}, **found}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return {name: default for name, default in found.items() if not name.startswith("_")}


def takes(target: Any, name: str) -> bool:
    """Whether a class or function has an option of this name."""
    return name in options_of(target)


def describe(target: Any) -> dict[str, Any] | None:
    """A class, a function with bound arguments or a module as plain data: {"class_path": ..., "init_args": ...}.

    Of a module, the options are those that it keeps as attributes of the same name and that are plain.
    """
    if target is None:
        return None
    class_, arguments = class_and_arguments(target)
    if isinstance(target, nn.Module):
        kept = {name: getattr(target, name, ...) for name in options_of(type(target))}
        arguments = {name: value for name, value in kept.items() if value is None or isinstance(value, _PLAIN)}
    if not hasattr(class_, "__qualname__"):
        class_ = type(class_)
    path = f"{class_.__module__}.{class_.__qualname__}"
    description: dict[str, Any] = {"class_path": path}
    if arguments:
        description["init_args"] = {key: plain(value) for key, value in arguments.items()}
    return description


def without_downloads(backbone: Any) -> Any:
    """A backbone's description without pretrained weights to fetch: the checkpoint itself has better ones."""
    if isinstance(backbone, Mapping) and isinstance((backbone.get("init_args") or {}).get("weights"), str):
        return {**backbone, "init_args": {**backbone["init_args"], "weights": None}}
    return backbone


_PLAIN = (bool, int, float, str, list, tuple, nn.ModuleList)


def plain(value: Any) -> Any:
    """A value as plain data; classes, functions and modules are described."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return describe(value)


def rebuild(value: Any) -> Any:
    """The callable that ``describe`` described; anything else as it is."""
    if isinstance(value, Mapping) and "class_path" in value:
        target = import_path(value["class_path"])
        return partial(target, **value["init_args"]) if value.get("init_args") else target
    return value


def has_classes(options: Any) -> bool:
    """Whether there are classes among the options of a class, with options of their own."""
    values = options.values() if isinstance(options, Mapping) else options if isinstance(options, list) else ()
    return (isinstance(options, Mapping) and "class_path" in options) or any(map(has_classes, values))


def parsed(spec: Mapping[str, Any]) -> Any:
    """The backbone of a configuration as the command line makes it, of classes that its own annotations admit."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Callable[[ImageShape, int], nn.Module])
    return parser.instantiate_classes(parser.parse_object({"backbone": dict(spec)})).backbone


def listed(value: Any) -> list[Any]:
    """An option that takes one or several, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]
