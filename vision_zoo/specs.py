"""A class or function and its options as plain data, and back."""

import importlib
import importlib.util
import inspect
import keyword
import sys
from collections.abc import Iterator, Mapping
from functools import partial, reduce
from pathlib import Path
from typing import Any

from torch import nn

from vision_zoo.errors import ConfigError

_PLAIN = (bool, int, float, str, list, tuple, nn.ModuleList)


def is_import_path(text: str) -> bool:
    """Whether a text is ``package.Name``, with any number of modules between."""
    parts = text.split(".")
    return text.isascii() and len(parts) > 1 and all(p.isidentifier() and not keyword.iskeyword(p) for p in parts)


def import_path(path: str) -> Any:
    """Import ``package.module.Name``; if there is no such thing, that is a ConfigError."""
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


def lies_beside(package: str) -> bool:
    """Whether a package that is not imported yet would come from the working directory, where a checkpoint may lie."""
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    return any(Path(place).absolute().parent == Path.cwd() for place in places)


def class_and_arguments(target: Any) -> tuple[Any, dict[str, Any]]:
    """The class or function behind a callable and the arguments bound to it."""
    if not isinstance(target, partial):
        return target, {}
    # The command line's parser makes partial(instantiator, ..., class, **arguments).
    return target.args[-1] if target.args else target.func, target.keywords


def copyable(target: Any) -> Any:
    """The same callable, without the parser that the command line's holds: averages of weights copy the module."""
    class_, arguments = class_and_arguments(target)
    return partial(class_, **arguments) if isinstance(target, partial) and target.args else target


def options_of(target: Any) -> dict[str, Any]:
    """The options of a function or class with their defaults, ``inspect.Parameter.empty`` where there is none.

    Those of a base class are included, where `__init__` ends in ``**options``.
    """
    return {name: parameter.default for name, parameter in parameters_of(target).items()}


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters behind `options_of`."""
    bases = inspect.getmro(target)[1:-1] if inspect.isclass(target) else ()
    found: dict[str, inspect.Parameter] = {}
    for owner in (target, *(vars(base)["__init__"] for base in bases if "__init__" in vars(base))):
        parameters = inspect.signature(owner).parameters.values()
        named = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = {**{name: p for name, p in named.items() if name != "self"}, **found}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return {name: parameter for name, parameter in found.items() if not name.startswith("_")}


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
    path = {"class_path": f"{class_.__module__}.{class_.__qualname__}"}
    return {**path, "init_args": plain(arguments)} if arguments else path


def importable(*targets: Any) -> list[dict[str, Any] | None]:
    """What `describe` gives of each, for what only training needs; None of all, where one is a script's own function.

    Nothing could be built from its name again, and the others do not train as they did together.
    """
    found = [*map(describe, targets)]
    paths = [value for key, value, _ in walk(found) if key == "class_path"]
    whole = all(is_import_path(path) and not path.startswith("__main__.") for path in paths)
    return found if whole else [None] * len(found)


def without_downloads(backbone: Any) -> Any:
    """A backbone's description without pretrained weights to fetch: the checkpoint itself has better ones."""
    if isinstance(backbone, Mapping) and isinstance((backbone.get("init_args") or {}).get("weights"), str):
        return {**backbone, "init_args": {**backbone["init_args"], "weights": None}}
    return backbone


def plain(value: Any) -> Any:
    """A value as plain data; classes, functions and modules are described."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else describe(value)


def rebuild(value: Any) -> Any:
    """The callable that ``describe`` described; anything else as it is."""
    if isinstance(value, Mapping) and "class_path" in value:
        target = import_path(value["class_path"])
        return partial(target, **value["init_args"]) if value.get("init_args") else target
    return value


def walk(node: Any) -> Iterator[tuple[str, Any, int]]:
    """Every value of nested plain data: the key that holds it, or that holds its list, the value, and the depth."""
    stack: list[tuple[str, Any, int]] = [("", node, 0)]
    while stack:
        key, value, depth = stack.pop()
        yield key, value, depth
        if isinstance(value, Mapping):
            stack += [(str(k), v, depth + 1) for k, v in value.items()]
        elif isinstance(value, (list, tuple, set)):
            stack += [(key, v, depth + 1) for v in value]


def listed(value: Any) -> list[Any]:
    """An option that takes one or several, as a list."""
    return [*value] if isinstance(value, (list, tuple)) else [] if value is None else [value]
