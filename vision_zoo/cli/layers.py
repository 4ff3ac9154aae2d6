"""One configuration out of many places: what is laid over what, and how classes, files and checkpoints are found."""

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vision_zoo.cli.names import CLASS_SLOTS, LIST_SLOTS, as_spec
from vision_zoo.errors import ConfigError
from vision_zoo.specs import import_path
from vision_zoo.types import Config

DEFAULT_RECIPE = "cnn_mnist5k"
# What a configuration of one's own may leave out.
DEFAULTS: Config = {
    "seed_everything": 0,
    "model": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}},
    "trainer": {"max_epochs": 10},
}


# What belongs to the experiment and stays when another data set is named.
SHARED_DATA_OPTIONS = (
    "root", "batch_size", "val_split", "seed", "num_workers", "augmentation", "image_size", "shuffle", "mean", "std",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- words of the command line


class Words:
    """The command line, read far enough to know which files and classes it names."""

    def __init__(self, argv: list[str]) -> None:
        self.subcommand = argv[0] if argv else ""
        self.rest = argv[1:]

    def spell_out(self, short: str, long: str) -> None:
        """Write an option's short form as its long one."""
        self.rest = [long if word == short else word for word in self.rest]

    def values(self, key: str) -> list[str]:
        """Values given to an option, in order."""
        found = []
        for position, word in enumerate(self.rest):
            if word == f"--{key}" and position + 1 < len(self.rest):
                found.append(self.rest[position + 1])
            elif word.startswith(f"--{key}="):
                found.append(word.split("=", 1)[1])
        return found

    def last(self, key: str) -> str | None:
        """The value that counts, or None."""
        return next(reversed(self.values(key)), None)

    def drop(self, key: str) -> None:
        """Take an option out."""
        kept, skip = [], False
        for word in self.rest:
            if skip:
                skip = False
            elif word == f"--{key}":
                skip = True
            elif not word.startswith(f"--{key}="):
                kept.append(word)
        self.rest = kept

    def check_value(self, key: str) -> None:
        """Refuse an option that stands at the end, for drop would take it out without a word.

        Raises:
            ConfigError: naming the option.
        """
        if self.rest and self.rest[-1] == f"--{key}":
            raise ConfigError(f"--{key} needs a value")

    def without_value(self, message: str) -> str | None:
        """The full option that the parser's 'expected one argument' is about; its message names only the first part."""
        lacking = re.search(r"argument (--[\w.]+): expected one argument", message)
        for word, following in itertools.pairwise([*self.rest, "--"]):
            if lacking and following.startswith("--") and f"{word}.".startswith(f"{lacking[1]}."):
                return word
        return None

    def change(self, key: str, new: Callable[[str], str]) -> None:
        """Give an option another value, wherever it stands; lists are appended to by repeating it."""
        for position, word in enumerate(self.rest):
            if word == f"--{key}" and position + 1 < len(self.rest):
                self.rest[position + 1] = new(self.rest[position + 1])
            elif word.startswith(f"--{key}="):
                self.rest[position] = f"--{key}={new(word.split('=', 1)[1])}"


# ------------------------------------------------------------------------------------------------------- class names


# ----------------------------------------------------------------------------------------------------------- layers


def normalise(config: Mapping[str, Any], where: str) -> Config:
    """A configuration with every class named by its full path.

    Raises:
        ConfigError: if it is not a mapping of mappings, or names an unknown class.
    """
    result: Config = copy.deepcopy(dict(config))
    for section in ("model", "data", "trainer"):
        if section in result and not isinstance(result[section], (Mapping, str) if section == "data" else Mapping):
            options = {"model": " such as backbone: LeNet5", "trainer": " such as max_epochs: 5"}.get(section, "")
            raise ConfigError(f"{where}: '{section}' must hold options{options}, got {result[section]!r}")
    if "data" in result:
        result["data"] = as_spec(result["data"], "data")
    holders = {
        "model": result.get("model") or {},
        "data": (result["data"].get("init_args") or {}) if isinstance(result.get("data"), Mapping) else {},
        "trainer": result.get("trainer") or {},
    }
    for slot in CLASS_SLOTS:
        section, _, key = slot.partition(".")
        if not key or not isinstance(holders[section], Mapping) or holders[section].get(key) is None:
            continue
        value = holders[section][key]
        if slot in LIST_SLOTS and isinstance(value, list):
            holders[section][key] = [as_spec(item, slot) for item in value]
        else:
            holders[section][key] = as_spec(value, slot)
    return result


def merge(base: Config, new: Mapping[str, Any]) -> Config:
    """Lay a configuration over another: another class starts from its own defaults, the same keeps its options."""
    result = copy.deepcopy(base)
    for key, value in new.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if "class_path" in value and "class_path" in old and value["class_path"] != old["class_path"]:
                kept = {}
                if key == "data":
                    kept = {k: v for k, v in (old.get("init_args") or {}).items() if k in SHARED_DATA_OPTIONS}
                result[key] = copy.deepcopy(dict(value))
                if kept:
                    kept = fit_data_options(value["class_path"], kept)
                    result[key]["init_args"] = {**kept, **(value.get("init_args") or {})}
            else:
                result[key] = merge(dict(old), value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def fit_data_options(class_path: str, options: Config) -> Config:
    """Leave out what is not for another data set: foreign options, mean and std of other channels, counts of images."""
    class_ = import_path(class_path)
    known = set(inspect.signature(class_).parameters)
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(class_).parameters.values()):
        known |= set(SHARED_DATA_OPTIONS)  # which it hands on
    channels = getattr(class_, "mean", None)
    result = {}
    for key, value in options.items():
        if key not in known:
            continue
        if key == "val_split" and isinstance(value, (int, float)) and value > 1:
            continue
        per_channel = key in ("mean", "std") and isinstance(value, list) and len(value) > 1
        if per_channel and (not isinstance(channels, tuple) or len(channels) != len(value)):
            continue
        result[key] = value
    return result


def read_config(path: Path) -> Config:
    """Read a YAML file of options.

    Raises:
        ConfigError: if it cannot be read, or is not valid YAML or not a mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if config is None:
        raise ConfigError(f"{path} is empty: write options as 'name: value', or leave --config out for the defaults")
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold options as 'name: value', got {type(config).__name__}")
    if (strange := _no_name(config)) is not None:
        raise ConfigError(f"{path} must hold options as 'name: value', but {strange!r} is not a name")
    return normalise(config, str(path))


def _no_name(node: Any) -> Any:
    """A key of nested options that is not a text."""
    for key, value in node.items() if isinstance(node, dict) else ():
        strange = key if not isinstance(key, str) else _no_name(value)
        if strange is not None:
            return strange
    return None


# ------------------------------------------------------------------------------------------------------ checkpoints


def flat(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Nested options as one level of dotted names."""
    result: Config = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
