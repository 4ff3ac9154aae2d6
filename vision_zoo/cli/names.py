"""Classes and recipes by name, and the files that name them."""

import copy
import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from vision_zoo import trust
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.discovery import TABLES
from vision_zoo.errors import ConfigError, did_you_mean, refuse
from vision_zoo.files import expanded
from vision_zoo.specs import is_import_path
from vision_zoo.types import Config
from vision_zoo.verbs.list_ import configs_folder

# Where a class named without its module is looked for, by the place where it is named.
CLASS_SLOTS: dict[str, tuple[str, ...]] = {
    "data": ("vision_zoo.data",),
    "model.backbone": ("vision_zoo.backbones",),
    "model.loss": ("vision_zoo.losses", "torch.nn.modules.loss"),
    "model.optimizer": ("vision_zoo.optimizers", "torch.optim"),
    "model.scheduler": ("vision_zoo.schedules", "torch.optim.lr_scheduler"),
    "model.finetune": ("vision_zoo.finetuning",),
    "data.augmentation": ("vision_zoo.transforms", "torchvision.transforms.v2"),
    "trainer.callbacks": (
        "vision_zoo.training.resizing",
        "vision_zoo.training.lightning_callbacks",
        "lightning.pytorch.callbacks",
    ),
    "trainer.logger": ("lightning.pytorch.loggers",),
}
LIST_SLOTS = ("data.augmentation", "trainer.callbacks", "trainer.logger")
# Nothing to choose: bases, schedules that are made of others, which no option can name, and a logger for Fabric alone.
_BASES = {
    *("ImageDataModule", "BatchTransform", "LabelledTransform", "Transform", "Optimizer", "LRScheduler"),
    *("SequentialLR", "ChainedScheduler", "Freezing", "AverageInTime", "LitLogger", "TrainingLoss"),
}


class Loader(yaml.SafeLoader):
    """YAML as files and the command line hold it: no key is given twice, and a time or a date is a text.

    To YAML 1.1, 12:00:00:00 is a number of base 60, 2026-01-01 an object, and 1e-3 a text.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; a key that it has twice is a YAMLError with both lines."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            twice = f"{key.value} is given in line {lines.get(name)} and again in line {line}: join or drop one"
            refuse(yaml.YAMLError, (name in lines, twice))
            lines[name] = line
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The type of a value that has no tag of its own."""
        tag: str = cast(Any, super()).resolve(kind, value, implicit)
        name = tag.rpartition(":")[2]
        octal = name == "int" and re.fullmatch(r"[-+]?0[0-7_]+", value)  # as 010, which the command line takes for 10
        if name == "timestamp" or (name in ("int", "float") and ":" in value) or octal:
            return self.DEFAULT_SCALAR_TAG
        exponent = name == "str" and implicit[0] and re.fullmatch(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+", value)
        return "tag:yaml.org,2002:float" if exponent else tag


def find_class(name: str, slot: str) -> str:
    """The full path of a class, looked for where the slot says; a ConfigError with close matches, if there is none."""
    where, hint = f"--{slot} {name}:", _own_data(name) if slot == "data" else ""
    if "." in name or "/" in name:
        if hint or not is_import_path(name):
            raise ConfigError(f"{where} not a class path; write package.module.Class{hint}")
        module_name, _, attribute = name.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            places = ". Modules are looked for in the working directory, PYTHONPATH and what is installed"
            raise ConfigError(f"{where} {error}{places * isinstance(error, ModuleNotFoundError)}") from error
        found, close = getattr(module, attribute, None), did_you_mean(attribute, dir(module))
        kinds = (ImageDataModule,) if slot == "data" else trust.KINDS[slot]
        other = inspect.isclass(found) and not issubclass(found, kinds)
        base = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        refuse(
            ConfigError,
            (found is None, f"{where} module {module_name} has no {attribute}{close}"),
            (not callable(found), f"{where} this is a {type(found).__name__}, not a class"),
            (other, f"{where} this class is not derived from {base}"),
        )
        return _ours(found, slot) or name
    known: set[str] = set()
    for package in CLASS_SLOTS[slot]:
        classes = dict(inspect.getmembers(importlib.import_module(package), inspect.isclass))
        own = {key for key, value in classes.items() if key[0] != "_" and value.__module__.startswith(package)} - _BASES
        if name in own:
            return f"{package}.{name}"
        known |= own
    models = importlib.import_module("torchvision.models")
    if slot == "model.backbone" and name in models.list_models(module=models):
        hint = f"; --{slot} Torchvision --{slot}.name {name} is the one of torchvision."
    unknown = f"{where} unknown{hint or did_you_mean(name, known) or '.'} Known are {', '.join(sorted(known))}"
    raise ConfigError(f"{unknown}; a class of your own is named with its module: package.module.Class")


def _ours(class_: Any, slot: str) -> str | None:
    """Our subclass of a library's class, of the same name, where there is one: it resumes exactly."""
    for package in CLASS_SLOTS[slot]:
        found = getattr(importlib.import_module(package), getattr(class_, "__name__", ""), None)
        if inspect.isclass(found) and found is not class_ and class_ in found.__mro__:
            return f"{found.__module__}.{found.__qualname__}"
    return None


# The data modules that take one file, by its ending.
DATA_BY_ENDING = {**dict.fromkeys(TABLES, "ImageTable"), **dict.fromkeys((".npz", ".npy"), "ArrayFile")}
DATA_BY_ENDING |= {".vz": "Pack", ".tar": "WebDataset"}


def _own_data(name: str) -> str:
    """The options for the place of the images, where a user gives that in place of a class."""
    path = expanded(name)
    if kind := DATA_BY_ENDING.get(path.suffix.lower()):
        return f"; your own images are --data {kind} --data.path {name}."
    return f"; your own pictures are --data ImageFolder --data.root {name}." if path.is_dir() or "/" in name else ""


def as_spec(value: Any, slot: str) -> Any:
    """A class choice as {"class_path": full path, "init_args": {...}}."""
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, Mapping):
        return value
    name, options = value.get("class_path"), value.get("init_args")
    beside = ", ".join(str(key) for key in value if key not in ("class_path", "init_args", "dict_kwargs"))
    none = f"--{slot} names no class: write class_path: NAME, and beside it {beside} under init_args"
    refuse(
        ConfigError,
        (beside and not name, none),
        (beside, f"--{slot}: {beside} beside class_path {name}: its options go under init_args"),
        (not isinstance(options, Mapping | None), f"--{slot}: the init_args of {name} are not options: {options!r}"),
    )
    given = {key: copy.deepcopy(option) for key, option in value.items() if option}
    return {**given, "class_path": find_class(name, slot)} if isinstance(name, str) else value


def class_choice(word: str, slot: str) -> Any:
    """What a word of the command line chooses: a name, or YAML with one class or a list of them."""
    value: Any = None if word == "None" else word
    if word.lower() in ("null", "true", "false") or word.lstrip()[:1] in ("{", "["):  # a logger may be any of those
        value = from_yaml(word, f"--{slot}: {word}")
    return [as_spec(item, slot) for item in value] if isinstance(value, list) else as_spec(value, slot)


def in_full(name: str, value: str | None) -> str | None:
    """The value of an option; the classes of a list, and one that is to be explained, with their full paths."""
    slot = name.removesuffix("+").removesuffix(".help")
    if value is None or slot not in CLASS_SLOTS:
        return value
    if name.endswith(".help"):
        return find_class(value, slot)
    return yaml.safe_dump(class_choice(value, slot), default_flow_style=True) if slot in LIST_SLOTS else value


def from_yaml(text: str, where: str) -> Any:
    """The value of a text; one that is no YAML is a ConfigError."""
    try:
        return yaml.load(text, Loader)  # noqa: S506  # a safe one
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error


def find_config(name: str) -> Path:
    """A configuration file by path, or a shipped recipe by name; a ConfigError with close matches, if there is none."""
    path = expanded(name)
    if path.exists() and not path.is_dir():  # a pipe too
        return path
    shipped = {p.stem: p for p in configs_folder().rglob("*.yaml")}
    if path.name == name and name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    if path.is_dir():
        raise ConfigError(f"--config {name} is a folder: give a file in it, or --data.root {name} if it holds pictures")
    hint = did_you_mean(path.stem, shipped) or ". See: vision_zoo list"
    raise ConfigError(f"--config {name}: there is no such file or shipped recipe{hint}")


def run_name_of(path: Path) -> str:
    """The name of the runs of a configuration: its file's, or for a run's own config.yaml, that run's."""
    folder = path.resolve().parent
    return folder.parent.name if path.name == "config.yaml" and folder.name.startswith("version_") else path.stem


def read_config(path: Path) -> Config:
    """Read a YAML file of options; every class gets its full path. Anything else is a ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    config = from_yaml(text, str(path))
    problem = f"{path} must hold options as 'name: value', got {type(config).__name__}"
    refuse(
        ConfigError,
        (config is None, f"{path} is empty: write options as 'name: value', or leave --config out for the defaults"),
        (not isinstance(config, dict), problem),
    )
    return _with_full_paths(config, str(path))


def _with_full_paths(config: Config, where: str) -> Config:
    """A configuration of a file with every class named by its full path; its sections must hold options."""
    if "data" in config:
        config["data"] = as_spec(config["data"], "data")
    examples = {"model": " such as backbone: LeNet5", "trainer": " such as max_epochs: 5", "data": ""}
    for section, example in examples.items():
        if not isinstance(config.get(section, {}), dict):
            raise ConfigError(f"{where}: '{section}' must hold options{example}, got {config[section]!r}")
    for slot in CLASS_SLOTS:
        section, _, key = slot.partition(".")
        holder = config.get(section, {})
        holder = holder.get("init_args") if section == "data" else holder
        if key and isinstance(holder, dict) and holder.get(key) is not None:
            value = holder[key]
            several = slot in LIST_SLOTS and isinstance(value, list)
            holder[key] = [as_spec(item, slot) for item in value] if several else as_spec(value, slot)
    return config
