"""Classes, recipes and checkpoints by name."""

import copy
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger

from vision_zoo.errors import ConfigError, did_you_mean
from vision_zoo.files import expanded
from vision_zoo.specs import is_import_path
from vision_zoo.types import Config
from vision_zoo.verbs.list_ import configs_folder

# Where a class named without its module is looked for, by the place where it is named.
CLASS_SLOTS: dict[str, tuple[str, ...]] = {
    "data": ("vision_zoo.data",),
    "model.backbone": ("vision_zoo.backbones",),
    "model.optimizer": ("torch.optim",),
    "model.scheduler": ("vision_zoo.schedules", "torch.optim.lr_scheduler"),
    "data.augmentation": ("vision_zoo.transforms", "torchvision.transforms.v2"),
    "trainer.callbacks": (
        "vision_zoo.training.resizing",
        "vision_zoo.training.lightning_callbacks",
        "lightning.pytorch.callbacks",
    ),
    "trainer.logger": ("lightning.pytorch.loggers",),
}


# Values that stand for "no class"; a logger may be any of them.
NO_CLASS = ("null", "None", "true", "True", "false", "False")
LIST_SLOTS = ("data.augmentation", "trainer.callbacks", "trainer.logger")


# Nothing to choose: bases, and schedules that are made of others, which no option can name.
_BASES = {
    *("ImageDataModule", "BatchTransform", "Transform", "Optimizer", "LRScheduler"),
    *("SequentialLR", "ChainedScheduler", "AverageInTime"),
}


def find_class(name: str, slot: str) -> str:
    """The full path of a class; names without a module are looked for where the slot says.

    Raises:
        ConfigError: with close matches, if there is none.
    """
    hint = _own_data(name) if slot == "data" else ""
    if "." in name or "/" in name:
        if hint or not is_import_path(name):
            raise ConfigError(f"--{slot} {name}: not a class path; write package.module.Class{hint}")
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError as error:
            raise ConfigError(f"--{slot} {name}: {error}") from error
        if callable(found):
            return _ours(found, slot) or name
        if found is not None:
            raise ConfigError(f"--{slot} {name}: this is a {type(found).__name__}, not a class")
        close = did_you_mean(attribute, dir(importlib.import_module(module)))
        raise ConfigError(f"--{slot} {name}: module {module} has no {attribute}{close}")
    known: set[str] = set()
    for package in CLASS_SLOTS[slot]:
        classes = dict(inspect.getmembers(importlib.import_module(package), inspect.isclass))
        own = {key for key, value in classes.items() if key[0] != "_" and value.__module__.startswith(package)} - _BASES
        if name in own and slot == "trainer.logger" and not issubclass(classes[name], Logger):
            where = classes[name].__module__
            raise ConfigError(f"--{slot} {name}: {where}.{name} is a logger of Fabric, not of the Trainer")
        if name in own:
            return f"{package}.{name}"
        known |= own
    models = importlib.import_module("torchvision.models")
    if slot == "model.backbone" and name in models.list_models(module=models):
        hint = f"; --{slot} Torchvision --{slot}.name {name} is the one of torchvision."
    raise ConfigError(
        f"--{slot} {name}: unknown{hint or did_you_mean(name, known) or '.'} Known are {', '.join(sorted(known))}; "
        "a class of your own is named with its module: package.module.Class"
    )


def _ours(class_: Any, slot: str) -> str | None:
    """Our subclass of a library's class, of the same name, where there is one: it resumes exactly."""
    for package in CLASS_SLOTS[slot]:
        found = getattr(importlib.import_module(package), getattr(class_, "__name__", ""), None)
        if inspect.isclass(found) and found is not class_ and class_ in found.__mro__:
            return f"{found.__module__}.{found.__qualname__}"
    return None


def _own_data(name: str) -> str:
    """The options for what somebody names who gives the place of the images in place of a class."""
    path = expanded(name)
    if path.suffix == ".npz":
        return f"; your own arrays are --data ArrayFile --data.path {name}."
    if path.is_dir() or "/" in name:
        return f"; your own pictures are --data ImageFolder --data.root {name}."
    return ""


def as_spec(value: Any, slot: str) -> Any:
    """A class choice as {"class_path": full path, "init_args": {...}}."""
    if isinstance(value, str):
        value = {"class_path": value}
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        spec: Config = {"class_path": find_class(value["class_path"], slot)}
        if beside := [str(key) for key in value if key not in ("class_path", "init_args", "dict_kwargs")]:
            raise ConfigError(
                f"--{slot}: {', '.join(beside)} beside class_path {value['class_path']}: its options go under init_args"
            )
        for key in ("init_args", "dict_kwargs"):
            if not isinstance(value.get(key) or {}, Mapping):
                raise ConfigError(f"--{slot}: the {key} of {value['class_path']} are not options: {value[key]!r}")
            if value.get(key):
                spec[key] = copy.deepcopy(dict(value[key]))
        return spec
    return value


def class_choice(value: str, slot: str) -> Any:
    """What a word of the command line chooses: a name, or YAML with one class or a list of them."""
    if value in NO_CLASS:
        return yaml.safe_load(value) if value != "None" else None
    if value.lstrip()[:1] not in ("{", "["):
        return as_spec(value, slot)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{slot}: {value} is not valid YAML: {error}") from error
    return [as_spec(item, slot) for item in parsed] if isinstance(parsed, list) else as_spec(parsed, slot)


def find_config(name: str) -> Path:
    """A configuration file by path, or a shipped recipe by name.

    Raises:
        ConfigError: with close matches, if there is none.
    """
    path = expanded(name)
    if path.exists() and not path.is_dir():  # a pipe too
        return path
    shipped = {p.stem: p for p in configs_folder().rglob("*.yaml")}
    if path.name == name and name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    if path.is_dir():
        raise ConfigError(f"--config {name} is a folder: give a file in it")
    hint = did_you_mean(path.stem, shipped) or ". See: vision_zoo list"
    raise ConfigError(f"--config {name}: there is no such file or shipped recipe{hint}")


def run_name_of(path: Path) -> str:
    """The name of the runs of a configuration: its file's, or for a run's own config.yaml, that run's."""
    folder = path.resolve().parent
    return folder.parent.name if path.name == "config.yaml" and folder.name.startswith("version_") else path.stem
