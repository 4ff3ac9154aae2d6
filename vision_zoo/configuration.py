"""One configuration out of many places: what is laid over what, and how classes, files and checkpoints are found."""

import contextlib
import copy
import glob
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vision_zoo.checkpoints import import_path, is_import_path, read_checkpoint
from vision_zoo.errors import CheckpointError, ConfigError
from vision_zoo.files import expanded
from vision_zoo.helptext import did_you_mean
from vision_zoo.listing import configs_folder

Config = dict[str, Any]

DEFAULT_RECIPE = "cnn_mnist5k"
# What a configuration of one's own may leave out.
DEFAULTS: Config = {
    "seed_everything": 0,
    "model": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}},
    "trainer": {"max_epochs": 10},
}

# Where a class named without its module is looked for, by the place where it is named.
CLASS_SLOTS: dict[str, tuple[str, ...]] = {
    "data": ("vision_zoo.data",),
    "model.backbone": ("vision_zoo.backbones",),
    "model.optimizer": ("torch.optim",),
    "model.scheduler": ("torch.optim.lr_scheduler",),
    "data.augmentation": ("vision_zoo.transforms", "torchvision.transforms.v2"),
    "trainer.callbacks": ("lightning.pytorch.callbacks", "vision_zoo.callbacks.resizing"),
    "trainer.logger": ("lightning.pytorch.loggers",),
}
LIST_SLOTS = ("data.augmentation", "trainer.callbacks", "trainer.logger")

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


_BASES = {"ImageDataModule", "BatchTransform", "Transform", "Optimizer", "LRScheduler"}  # nothing to choose


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
            return name
        if found is not None:
            raise ConfigError(f"--{slot} {name}: this is a {type(found).__name__}, not a class")
        close = did_you_mean(attribute, dir(importlib.import_module(module)))
        raise ConfigError(f"--{slot} {name}: module {module} has no {attribute}{close}")
    known: set[str] = set()
    for package in CLASS_SLOTS[slot]:
        classes = dict(inspect.getmembers(importlib.import_module(package), inspect.isclass))
        own = {key for key, value in classes.items() if key[0] != "_" and value.__module__.startswith(package)}
        if name in own:
            return f"{package}.{name}"
        known |= own - _BASES
    models = importlib.import_module("torchvision.models")
    if slot == "model.backbone" and name in models.list_models(module=models):
        hint = f"; --{slot} Torchvision --{slot}.name {name} is the one of torchvision."
    raise ConfigError(
        f"--{slot} {name}: unknown{hint or did_you_mean(name, known) or '.'} Known are {', '.join(sorted(known))}; "
        "a class of your own is named with its module: package.module.Class"
    )


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
    if value.lstrip()[:1] not in ("{", "["):
        return as_spec(value, slot)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{slot}: {value} is not valid YAML: {error}") from error
    return [as_spec(item, slot) for item in parsed] if isinstance(parsed, list) else as_spec(parsed, slot)


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
                if key == "model":
                    _forget_peak(old, value, result[key])
        else:
            result[key] = copy.deepcopy(value)
    return result


def _forget_peak(old: Mapping[str, Any], new: Mapping[str, Any], merged: Config) -> None:
    """Leave out the peak of a one-cycle schedule that was chosen for another optimizer, or another rate of it."""

    def options(part: Any, name: str) -> Mapping[str, Any]:
        spec = part.get(name)
        return (
            {"class_path": spec.get("class_path"), **(spec.get("init_args") or {})} if isinstance(spec, Mapping) else {}
        )

    def rate(model: Mapping[str, Any]) -> tuple[Any, Any]:
        optimizer = options(model, "optimizer")
        return optimizer.get("class_path"), optimizer.get("lr")

    one_cycle = str(options(merged, "scheduler").get("class_path")).endswith(".OneCycleLR")
    if one_cycle and "max_lr" not in options(new, "scheduler") and rate(old) != rate(merged):
        (merged["scheduler"].get("init_args") or {}).pop("max_lr", None)


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


def run_name_of(path: Path) -> str:
    """The name of the runs of a configuration: its file's, or for a run's own config.yaml, that run's."""
    folder = path.resolve().parent
    return folder.parent.name if path.name == "config.yaml" and folder.name.startswith("version_") else path.stem


def find_checkpoint(name: str, root: Path, prefer: str, run_name: str | None = None) -> Path:
    """The checkpoint meant by a path, a run folder, or best or last.

    Args:
        name: what the user gave.
        root: folder that holds "runs".
        prefer: "best" or "last", for a run folder.
        run_name: look only at runs of this configuration.

    Raises:
        CheckpointError: if there is none.
    """
    if name in ("best", "last"):
        whose = glob.escape(run_name) if run_name else "*"
        runs = [run for run in root.resolve().glob(f"runs/{whose}/version_*") if (run / "checkpoints").is_dir()]

        def written(run: Path) -> tuple[int, str]:
            files = [run / "checkpoints", *run.glob("checkpoints/*.ckpt")]
            return max(file.stat().st_mtime_ns for file in files), str(run)

        if not runs:
            whose = f"run of {run_name}" if run_name else "run"
            raise CheckpointError(
                f"--ckpt_path {name}: no {whose} with a checkpoint below {root.resolve() / 'runs'}. Train first with "
                "vision_zoo fit, or give the checkpoint's path"
            )
        newest = max(runs, key=written)
        if not (newest / "checkpoints" / f"{name}.ckpt").is_file():
            raise CheckpointError(
                f"--ckpt_path {name}: the newest run, {newest}, has no {name}.ckpt yet: give the folder of another run"
            )
        return newest / "checkpoints" / f"{name}.ckpt"
    path = expanded(name)
    if path.is_dir():
        for candidate in (
            path / "checkpoints" / f"{prefer}.ckpt",
            path / f"{prefer}.ckpt",
            path / "checkpoints" / "last.ckpt",
        ):
            if candidate.is_file():
                return candidate.resolve()
        raise CheckpointError(f"--ckpt_path {name}: {path.resolve()} holds no checkpoints/{prefer}.ckpt")
    if not path.is_file():
        raise CheckpointError(f"--ckpt_path {name}: {path.resolve()} not found")
    return path.resolve()


def read_or_offer(path: Path, trusted_packages: Sequence[str]) -> Config:
    """Read a checkpoint, or say which other one of the same run is good.

    Raises:
        CheckpointError: if it cannot be used, with the path of the next older good one.
    """
    try:
        return read_checkpoint(path, trusted_packages)
    except CheckpointError as error:
        if path.parent.name != "checkpoints":
            raise
        others = sorted(path.parent.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for other in others:
            if other != path:
                try:
                    read_checkpoint(other, trusted_packages)
                except CheckpointError:
                    continue
                hint = f"The next older good checkpoint is {other}: --ckpt_path {other}"
                raise CheckpointError(f"{error}. {hint}") from error
        raise CheckpointError(f"{error}. There is no other good checkpoint in {path.parent}") from error


def prepare_schedule(config: Config, rate: str | float | None) -> Config:
    """A schedule may leave out its length: 0 stands for the steps of the run where torch has no default.

    OneCycleLR may leave out its peak too, and torch has it not look at the optimizer's learning rate.

    Args:
        config: the whole configuration but for what the command line says of numbers.
        rate: the learning rate on the command line, if it has one; the recipe's peak went with the recipe's rate.
    """
    spec = (config.get("model") or {}).get("scheduler")
    if isinstance(spec, Mapping) and "class_path" in spec:
        parameters = inspect.signature(import_path(spec["class_path"])).parameters
        if spec["class_path"].startswith("torch.") and "schedulers" in parameters:
            raise ConfigError(
                f"--model.scheduler {spec['class_path'].rpartition('.')[2]} is made of schedules, which no option can "
                "name: write a class that makes it from an optimizer, and give its name in this place"
            )
        arguments = dict(spec.get("init_args") or {})
        if "T_max" in parameters and "T_max" not in arguments:
            arguments["T_max"] = 0
        optimizer = config["model"].get("optimizer")
        if spec["class_path"].endswith(".OneCycleLR") and isinstance(optimizer, Mapping) and "class_path" in optimizer:
            takes = set(inspect.signature(import_path(optimizer["class_path"])).parameters)
            if optimizer["class_path"].startswith("torch.") and not takes & {"momentum", "betas"}:
                arguments.setdefault("cycle_momentum", False)  # torch asks for it where there is none to cycle
        if spec["class_path"].endswith(".OneCycleLR") and (rate is not None or "max_lr" not in arguments):
            options = (optimizer.get("init_args") if isinstance(optimizer, Mapping) else None) or {}
            peak: Any = options.get("lr") if rate is None else rate
            if peak is None and isinstance(optimizer, Mapping):
                defaults = inspect.signature(import_path(optimizer["class_path"])).parameters
                peak = getattr(defaults.get("lr"), "default", None)
            with contextlib.suppress(TypeError, ValueError):  # no number: the parser says so
                arguments["max_lr"] = float(peak)
        if arguments:
            config["model"]["scheduler"] = {**spec, "init_args": arguments}
    return config


def flat(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Nested options as one level of dotted names."""
    result: Config = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
