"""What a checkpoint may hold: a list of what is allowed, for the file may come from anywhere.

A hostile file cannot, unless the user admits its package with ``--trusted_packages``:

- run code when it is read: ``weights_only`` gives tensors and plain data, and nothing compressed is unpacked;
- name code outside of the trusted packages, through a re-export such as ``torch.os``, or in a folder beside it;
- name a class of another kind than its option takes: among the options of a class only modules, and no functions;
- hide a name in YAML within a text, in a key with dots, or in letters of another script;
- have a file or an address read as a configuration;
- have data walked without an end, or a network built that is far larger than the file's weights;
- have `fit` write outside of its run and the working directory, or to an address (see `places_outside`).

It can name any folder of images to be read, have `fit` log to the service of one of Lightning's loggers, and choose
options of trusted classes that predict nonsense or take long.
"""

import inspect
import io
import os
import pickle
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from textwrap import shorten
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from lightning import LightningDataModule
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import accelerators, callbacks, loggers, plugins, profilers, strategies
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from vision_zoo.files import expanded
from vision_zoo.finetuning import FineTuning
from vision_zoo.specs import is_import_path, is_package, lies_beside, listed, returned_class, walk

TRUSTED_PACKAGES = ("vision_zoo", "torch", "torchvision", "lightning", "timm")
"""Packages whose classes a checkpoint may name; not torchmetrics, some of whose modules load a model by its name."""

FACTS = ("image_shape", "class_names", "mean", "std", "value_range")  # of a network's options those that name nothing
# What stands in each place; anywhere else a class must be a module.
KINDS: dict[str, tuple[type, ...]] = {
    "model.backbone": (nn.Module,),
    "model.loss": (nn.Module,),
    "model.optimizer": (Optimizer,),
    "model.finetune": (FineTuning,),
    "model.scheduler": (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau),
    "data": (LightningDataModule,),
    "data.augmentation": (nn.Module,),
    "trainer.accelerator": (accelerators.Accelerator,),
    "trainer.callbacks": (callbacks.Callback,),
    "trainer.logger": (loggers.Logger,),
    "trainer.plugins": (plugins.Precision, ClusterEnvironment, plugins.CheckpointIO, plugins.LayerSync),
    "trainer.profiler": (profilers.Profiler,),
    "trainer.strategy": (strategies.Strategy,),
}
PURE_FUNCTIONS = ("torch.nn.functional", "torch._C._nn", "torch.nn.init")  # such as a network's activation
CLASS_KEYS = ("class_path", "_class_path", "_instantiator")
INSTANTIATORS = (None, "lightning.pytorch.cli.instantiate_module")  # which Lightning writes beside options
PATHS = ("trainer.default_root_dir",)  # texts by their type, as are those options of classes that are annotated so
WRITTEN_TO = ("dirpath", "save_dir", "dir")  # options of Lightning's callbacks, loggers and profilers
MOST_NODES, DEEPEST, MOST_LETTERS = 2_000_000, 40, 10_000  # of nested plain data, of one text
WEIGHTS_ALONE = "To use nothing but its weights, name a network and give the file to --model.weights"

_VALUES = (NoneType, bool, int, float, Tensor)
_ADDRESS = re.compile("hf[-_]hub:|local-dir:", re.IGNORECASE)  # of models, as timm reads them
_KEY = re.compile(r"[^\W_][\w -]*|_[^\W_][\w -]*")  # no dots, with which the parser goes down, and no __path__
# One line that YAML reads as itself: no structure, comment or tag in it, nor an address of fsspec (x://y, x::y).
_LINE = re.compile(r"(-?\w([^\s:#\\]|:(?![\s:/]|$)| (?![\s#]|$))*)?")
_PLAIN_TYPES = (str, int, float, bool, NoneType, Path, os.PathLike, ...)
_CONTAINERS = (Union, UnionType, list, tuple, dict, Sequence, Mapping, Iterable)


class Allowlist:
    """Which classes, functions and texts an option may hold; functions only of packages that the user admits."""

    def __init__(self, trusted_packages: Sequence[str]) -> None:
        self.own = tuple(listed(trusted_packages))
        self.admitted = (*(name for name in TRUSTED_PACKAGES if not lies_beside(name)), *self.own)

    def option(self, value: Any, place: str, *, is_text: bool = False) -> Iterator[str]:
        """What is wrong with a value, plain data with classes in it, in a place such as "model.backbone.width".

        A text is free to say anything where `is_text`, for the parser keeps it as it is, see `_keeps_texts`.
        """
        if isinstance(value, Mapping) and "class_path" in value:
            yield from self._class_with_options(value, place)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if type(key) is not int and not (isinstance(key, str) and _KEY.fullmatch(key)):
                    yield f"has an option {str(key)[:80]!r} in {place}, which is no name. {WEIGHTS_ALONE}"
                yield from self.option(item, f"{place}.{key}".lstrip("."), is_text=is_text)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from self.option(item, place, is_text=is_text)
        elif isinstance(value, str):
            yield from self._text(value, place, is_text)
        elif type(value) not in _VALUES:
            yield f"holds a {type(value).__name__} as {place}, which is no plain value. {WEIGHTS_ALONE}"

    def _class_with_options(self, spec: Mapping[str, Any], place: str) -> Iterator[str]:
        name = spec["class_path"]
        if not isinstance(name, str) or not is_import_path(name):
            yield f"has {str(name)[:80]!r} as class_path, which is not a package.module.Class. {WEIGHTS_ALONE}"
            return
        yield from self._name(name, place)
        hints = _hints(self._found(name))
        for holder in spec.keys() - {"class_path"}:
            options = spec[holder] or {}
            if holder not in ("init_args", "dict_kwargs") or not isinstance(options, Mapping):
                yield f"has {str(holder)[:80]!r} beside {name}, and the {holder} of a class are not options"
                return
            for option, value in options.items():
                is_text = holder == "init_args" and _keeps_texts(hints.get(option))
                yield from self.option({option: value}, place, is_text=is_text)

    def _found(self, name: str) -> Any:
        """What a path leads to; None if it is of no admitted package, or cannot be imported."""
        if name.partition(".")[0] in self.admitted and ".__" not in name:  # a __main__ runs when it is imported
            with suppress(Exception, SystemExit):
                return resolve_name(name)
        return None

    def _name(self, name: str, place: str) -> Iterator[str]:
        """What is wrong with the path of a class or function in a place."""
        found, module, full = self._found(name), name, name
        if inspect.ismodule(found):
            module = full = found.__name__
        elif found is not None:
            module = str(getattr(found, "__module__", None) or name)
            full = f"{module}.{getattr(found, '__name__', '')}"
        home, slot, kinds = module.partition(".")[0], place.rpartition(".")[2], KINDS.get(place, (nn.Module,))
        made = returned_class(found) if home in self.own and not inspect.isclass(found) else found
        pure = callable(found) and name.rpartition(".")[0] in PURE_FUNCTIONS
        harmless = home in self.own or pure or isinstance(found, torch.dtype)
        if home not in self.admitted:
            which = "" if found is None else f", which is {full}"
            admit = f"If you trust it, admit it with --trusted_packages {home}"
            yield f"names {name}{which}, code of a package that is not trusted. {admit}"
        elif found is None:
            # What only `fit` builds may be missing elsewhere, and there the parser says so.
            if not place.startswith("trainer.") or ".__" in name:
                yield f"names {name} as {slot}, but {name} cannot be imported from here. {WEIGHTS_ALONE}"
        elif not (inspect.isclass(made) and issubclass(made, kinds)) and (place in KINDS or not harmless):
            expected = " or ".join(kind.__name__ for kind in kinds)
            yield f"names {name} as {slot}, which is no {expected} class. {WEIGHTS_ALONE}"

    def _text(self, text: str, place: str, is_text: bool) -> Iterator[str]:
        """What is wrong with a text: where the parser may import or read what it names, it must be one plain line."""
        package, dot, _ = text.partition(".")
        dotted = bool(dot) and all(part.isidentifier() for part in text.split("."))
        if len(text) > MOST_LETTERS:
            yield f"has a text of {len(text):,} letters as {place}. {WEIGHTS_ALONE}"
        elif _ADDRESS.match(text) and place != "model.backbone.weights":  # those are left out, see `without_downloads`
            yield f"has {text[:80]!r} as {place}, which timm would fetch or read. {WEIGHTS_ALONE}"
        elif is_text or place in PATHS:
            return
        elif dotted and (package in self.admitted or package in sys.modules or is_package(package)):
            yield from self._name(text, place)
        elif not text.isprintable() or not _LINE.fullmatch(text):
            yield f"has {text[:80]!r} as {place}, which is no plain word. {WEIGHTS_ALONE}"
        elif os.path.isfile(text):  # noqa: PTH113  which takes any text
            yield f"names the file {text} as {place}, which a checkpoint may not do. {WEIGHTS_ALONE}"


def untrusted(checkpoint: Mapping[str, Any], trusted_packages: Sequence[str]) -> Iterator[str]:
    """What a checkpoint of the right form holds beyond what it may, as predicates of one sentence each."""
    allowlist = Allowlist(trusted_packages)
    yield from allowlist.option({k: v for k, v in checkpoint["hyper_parameters"].items() if k not in FACTS}, "model")
    data = dict(checkpoint.get("datamodule_hyper_parameters") or {})
    if data.pop("_instantiator", None) not in INSTANTIATORS:
        yield f"names a function as _instantiator. {WEIGHTS_ALONE}"
    if "_class_path" in data:  # otherwise it cannot be built without the user's own code
        yield from allowlist.option({"class_path": data.pop("_class_path"), "init_args": data}, "data")
    yield from allowlist.option((checkpoint.get("vision_zoo") or {}).get("config"), "")


def endless(node: Any) -> bool:
    """Whether plain data are nested without an end."""
    return any(depth > DEEPEST or count > MOST_NODES for count, (_, _, depth) in enumerate(walk(node)))


def not_plain(part: Any) -> str:
    """Why data, or a part's state, would not be read back from a checkpoint, which runs nothing; empty if plain."""
    file = io.BytesIO()
    try:
        torch.save(part.state_dict() if hasattr(part, "state_dict") else part, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:  # AttributeError: of LambdaLR with math.sqrt, say
        return (
            "has a state that no checkpoint could be continued from, for it is not plain data: numpy's numbers are to "
            "be made Python's with float() or int(), functions of a library to be wrapped in your own "
            f"({type(error).__name__}: {shorten(str(error), 200)})"
        )
    return ""


def foreign_packages(config: Any) -> list[str]:
    """Packages of the classes and functions that a configuration names, save those that are trusted by themselves."""
    paths = [(key, value) for key, value, _ in walk(config) if isinstance(value, str) and is_import_path(value)]
    packages = [(key, path.partition(".")[0]) for key, path in paths]
    named = {package for key, package in packages if key in CLASS_KEYS or is_package(package)}
    return sorted(named.difference(TRUSTED_PACKAGES))


def trusting(packages: Iterable[str]) -> str:
    """What follows in a command on a checkpoint that names such packages: a blank and options, or nothing."""
    return "".join(f" --trusted_packages {name}" for name in packages)


def places_outside(options: Any, folders: Sequence[Path]) -> Iterator[str]:
    """Where the callbacks, loggers and so on of a trainer's options would write, as far as it is in no such folder."""
    for key, value, _ in walk([spec for spec in listed(options) if isinstance(spec, Mapping)]):
        if isinstance(value, str) and key not in CLASS_KEYS:
            path = expanded(value.removeprefix("file:"))
            inside = any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
            is_place = key in WRITTEN_TO or path.is_absolute() or ".." in path.parts
            if "://" in value.removeprefix("file:") or (is_place and not inside):
                yield value


def _keeps_texts(hint: Any) -> bool:
    """Whether the parser keeps a text as it is for this type: one of plain values, without a class or function."""
    origin = get_origin(hint)
    if origin in _CONTAINERS:
        return all(map(_keeps_texts, get_args(hint)))
    return origin is Literal or any(hint is plain for plain in _PLAIN_TYPES)


def _hints(found: Any) -> dict[str, Any]:
    """Types of the options of a class and of the classes that it is derived from, to which it may hand them on."""
    hints: dict[str, Any] = {}
    for base in reversed(found.__mro__) if inspect.isclass(found) else ():
        init: Any = getattr(base, "__init__", None)
        with suppress(TypeError, ValueError):  # of a class that is not written in Python
            hints |= dict.fromkeys(inspect.signature(init).parameters, Any)
        hints |= getattr(init, "__annotations__", {})
        with suppress(Exception):  # an annotation that names what is imported for type checkers alone
            hints |= get_type_hints(init)
    return hints
