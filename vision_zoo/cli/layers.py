"""One configuration out of many places: defaults < checkpoint < --config files < command line."""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vision_zoo.checkpoints import Checkpoint, open_checkpoint
from vision_zoo.cli.argv import Argv
from vision_zoo.cli.names import CLASS_SLOTS, LIST_SLOTS, as_spec, class_choice, find_class, find_config, run_name_of
from vision_zoo.cli.resuming import check_places, check_run_folder, resumed
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import CheckpointError, ConfigError
from vision_zoo.files import expanded
from vision_zoo.specs import import_path, listed, options_of, without_downloads
from vision_zoo.types import Config
from vision_zoo.verbs.fit import fit

DEFAULT_RECIPE = "cnn_mnist5k"
DEFAULTS: Config = {  # of what a configuration leaves out
    "seed_everything": 0,
    "model": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}}},
    "trainer": {"max_epochs": 10},
}
# What belongs to the experiment and stays when another dataset is named.
SHARED_DATA_OPTIONS = tuple(options_of(ImageDataModule))
# The sections of a configuration that a command has.
SECTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("fit", "validate", "test"), ("model", "data", "trainer")),
    "summary": ("model", "data"),
    "show": ("data",),
}
# Options with the weights that a network begins with; those of a checkpoint replace them.
FIRST_WEIGHTS = ("model.weights", "model.backbone.weights", "model.backbone.init_args.weights")


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        verb: the command.
        argv: its options as given.
        config: the layered configuration, with the classes that the command line names.
        args: the other options of the command line, for the parser.
        run_name: of the configuration; names the folder of a new run.
        checkpoint: read and vetted, where the command has one.
        trusted: packages that the user trusts.
    """

    verb: str
    argv: Argv
    config: Config
    args: list[str]
    run_name: str
    checkpoint: Checkpoint | None
    trusted: tuple[str, ...]

    @property
    def resumes(self) -> bool:
        """Whether a run is continued."""
        return self.verb == "fit" and self.checkpoint is not None


def read_request(argv: Argv, verb: Callable[..., Any]) -> Request:
    """Lay defaults, checkpoint, files and the classes of the command line over each other.

    Args:
        argv: the command line.
        verb: the function of the command: its parameters are the options that it has.

    Raises:
        InputError: if a file, a class or a checkpoint cannot be used.
    """
    files = [find_config(name) for name in argv.values("config")]
    run_name = run_name_of(files[0]) if files else "default"
    given: Config = {}
    for file in files:
        given = merge(given, read_config(file))
    trusted = trusted_packages(argv, given.pop("trusted_packages", None))
    ckpt_path = argv.last("ckpt_path") or given.pop("ckpt_path", None)
    checkpoint = None if ckpt_path is None else _checkpoint(argv, given, str(ckpt_path), trusted, files)
    stored = {} if checkpoint is None else _stored(checkpoint, argv.verb)
    base = stored or (DEFAULTS if files else read_config(find_config(DEFAULT_RECIPE)))
    if argv.verb == "show" and not files and not stored:
        base = {"data": {"class_path": base["data"]["class_path"]}}  # the recipe's options are of no use to others
    if not stored and _length(argv, given, "max_steps") and not _length(argv, given, "max_epochs"):
        base = merge(base, {"trainer": {"max_epochs": -1}})  # the default number of epochs would end the run before
    config = merge(base, given)
    if checkpoint is not None:
        if argv.verb == "fit":
            check_places(checkpoint, stored, given, argv)
            run_name = checkpoint.run_name or run_name
        if isinstance(config.get("model"), dict):
            config["model"].pop("weights", None)
    config = _with_classes(config, argv)
    if isinstance(model := config.get("model"), dict) and isinstance(backbone := model.get("backbone"), dict):
        if checkpoint is not None:
            model["backbone"] = without_downloads(backbone)
        if backbone.keys() == {"class_path"} and not inspect.isclass(import_path(backbone["class_path"])):
            model["backbone"] = backbone["class_path"]  # as the parser wants a function
    # A recipe, or config.yaml of a run, holds options that other commands lack.
    lacks = {"model", "data", "trainer", *options_of(fit)} - {*SECTIONS[argv.verb], *options_of(verb)}
    config = {name: value for name, value in config.items() if name not in lacks}
    taken = {"config", "ckpt_path", "trusted_packages", "trusted_packages+", *(FIRST_WEIGHTS if checkpoint else ())}
    for slot in CLASS_SLOTS:
        taken |= {slot, f"{slot}.class_path", f"{slot}.help"}
        taken |= {f"{slot}{rest}" for rest, _ in argv.below(slot)} if slot in LIST_SLOTS else set()
    help_ = [f"--{slot}.help={find_class(name, slot)}" for slot in CLASS_SLOTS for name in argv.values(f"{slot}.help")]
    return Request(argv.verb, argv, config, [*argv.without(taken), *help_], run_name, checkpoint, trusted)


def trusted_packages(argv: Argv, from_files: Any = None) -> tuple[str, ...]:
    """The packages that command line and files call trusted."""
    named: list[Any] = listed(from_files)
    for word in argv.values("trusted_packages", "trusted_packages+"):
        try:
            named += listed(yaml.safe_load(word))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"--trusted_packages {word}: give the name of a package, or a list such as [a, b]"
            ) from error
    return tuple(map(str, named))


def _length(argv: Argv, given: Config, name: str) -> bool:
    """Whether files or command line set this length of the run."""
    value = argv.last(f"trainer.{name}") or (given.get("trainer") or {}).get(name)
    return value is not None and str(value) != "-1"


# --------------------------------------------------------------------------------------------------------- checkpoint


def _checkpoint(argv: Argv, given: Config, name: str, trusted: tuple[str, ...], files: list[Path]) -> Checkpoint:
    """Open the checkpoint that a command names; what fit continues must be a run's."""
    resuming = argv.verb == "fit"
    root = argv.last("trainer.default_root_dir") or (given.get("trainer") or {}).get("default_root_dir") or "."
    if resuming and name == "best":
        raise ConfigError(
            "--ckpt_path best: fit resumes where the newest run ended, with --ckpt_path last. To go back to its best "
            "epoch and drop what was trained since, give the path of its best.ckpt"
        )
    checkpoint = open_checkpoint(
        name,
        trusted,
        root=expanded(root),
        prefer="last" if resuming else "best",
        run_name=run_name_of(files[0]) if resuming and files else None,
    )
    if resuming:
        path = checkpoint.path
        again = f"--model.weights {path}"
        refusals = {
            f"{path} lies in no run folder, and fit continues a run in its own. To start a new run from these weights: "
            f"their --config, and {again}": path.parent.name != "checkpoints",
            f"{path} holds weights alone (as of ModelCheckpoint's save_weights_only), and no state to continue from: "
            f"take last.ckpt, or start a new run with {again}": not {"optimizer_states", "loops"}
            <= checkpoint.content.keys(),
        }
        for message, applies in refusals.items():
            if applies:
                raise CheckpointError(message)
        check_run_folder(checkpoint)
    return checkpoint


def _stored(checkpoint: Checkpoint, verb: str) -> Config:
    """The configuration that a checkpoint holds, as far as a command uses it."""
    if config := copy.deepcopy(checkpoint.config):
        if verb == "fit":
            return resumed(config, checkpoint.path)
        # How it was trained (devices, epochs, loggers) says nothing about how to use it; how it was tested does.
        used = ("seed_everything", "model", "data", *(["tta"] if verb == "test" else []))
        return {key: config[key] for key in used if key in config}
    # Written by plain Python: the model describes itself.
    hparams = checkpoint.content["hyper_parameters"]
    names = ("backbone", "optimizer", "scheduler", "label_smoothing")
    stored: Config = {"model": {name: hparams[name] for name in names if hparams.get(name) is not None}}
    if checkpoint.data:
        stored["data"] = checkpoint.data
    elif verb == "summary":  # which needs no data, but the parser does
        stored["data"] = {"class_path": "vision_zoo.data.MNIST5k"}
    return stored


# ------------------------------------------------------------------------------------------------------------ classes


def _with_classes(config: Config, argv: Argv) -> Config:
    """Lay the classes that the command line names over a configuration."""
    for slot in CLASS_SLOTS:
        section, _, key = slot.partition(".")
        if slot in LIST_SLOTS:
            if any(argv.below(slot)):
                holder = config.setdefault(section, {})
                holder = holder.setdefault("init_args", {}) if section == "data" else holder
                holder[key] = _listed_choices(holder.get(key), argv, slot)
        elif (word := argv.last(slot, f"{slot}.class_path")) is not None:
            choice = class_choice(word, slot)
            config = merge(config, {section: {key: choice} if key else choice})
    return config


def _listed_choices(value: Any, argv: Argv, slot: str) -> Any:
    """The classes of a place after ``--slot A --slot+ B --slot.option value``; an option is of the class before it."""
    items: Any = value
    for rest, word in argv.below(slot):
        if rest in ("", ".class_path"):
            items = class_choice(word, slot)
        elif rest == "+":
            items = [*listed(items), *listed(class_choice(word, slot))]
        elif rest != ".help":
            last = listed(items)[-1] if listed(items) else None
            if not isinstance(last, dict):
                raise ConfigError(f"--{slot}{rest}: name a class before, with --{slot}")
            options = last.setdefault("init_args", {})
            *path, name = rest.removeprefix(".init_args").removeprefix(".").split(".")
            for part in path:
                options = options.setdefault(part, {})
            options[name] = word
    return items


# -------------------------------------------------------------------------------------------------------------- files


def read_config(path: Path) -> Config:
    """Read a YAML file of options; every class gets its full path.

    Raises:
        ConfigError: if it cannot be read, or is not valid YAML or not a mapping of options.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    problem = ""
    if config is None:
        problem = "is empty: write options as 'name: value', or leave --config out for the defaults"
    elif not isinstance(config, dict):
        problem = f"must hold options as 'name: value', got {type(config).__name__}"
    elif (strange := _no_name(config)) is not None:
        problem = f"must hold options as 'name: value', but {strange!r} is not a name"
    if problem:
        raise ConfigError(f"{path} {problem}")
    return normalise(config, str(path))


def _no_name(node: Any) -> Any:
    """A key of nested options that is not a string."""
    for key, value in node.items() if isinstance(node, dict) else ():
        strange = key if not isinstance(key, str) else _no_name(value)
        if strange is not None:
            return strange
    return None


def normalise(config: Mapping[str, Any], where: str) -> Config:
    """A configuration with every class named by its full path.

    Raises:
        ConfigError: if it is not a mapping of mappings, or names an unknown class.
    """
    result: Config = copy.deepcopy(dict(config))
    examples = {"model": " such as backbone: LeNet5", "trainer": " such as max_epochs: 5", "data": ""}
    for section, example in examples.items():
        if section in result and not isinstance(result[section], (dict, str) if section == "data" else dict):
            raise ConfigError(f"{where}: '{section}' must hold options{example}, got {result[section]!r}")
    if "data" in result:
        result["data"] = as_spec(result["data"], "data")
    for slot in CLASS_SLOTS:
        section, _, key = slot.partition(".")
        holder = result.get(section)
        holder = holder.get("init_args") if section == "data" and isinstance(holder, dict) else holder
        if key and isinstance(holder, dict) and holder.get(key) is not None:
            value = holder[key]
            several = slot in LIST_SLOTS and isinstance(value, list)
            holder[key] = [as_spec(item, slot) for item in value] if several else as_spec(value, slot)
    return result


# -------------------------------------------------------------------------------------------------------------- merge


def merge(base: Config, new: Mapping[str, Any]) -> Config:
    """Lay a configuration over another: another class starts from its own defaults, the same keeps its options."""
    result = copy.deepcopy(base)
    for key, value in new.items():
        old = result.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping):
            result[key] = copy.deepcopy(value)
        elif "class_path" in value and "class_path" in old and value["class_path"] != old["class_path"]:
            result[key] = copy.deepcopy(dict(value))
            if key == "data" and (kept := kept_data_options(value["class_path"], old.get("init_args") or {})):
                result[key]["init_args"] = {**kept, **(value.get("init_args") or {})}
        else:
            result[key] = merge(dict(old), value)
    return result


def kept_data_options(class_path: str, options: Mapping[str, Any]) -> Config:
    """What stays of the options of another dataset: not a count of images, nor values for other channels."""
    class_ = import_path(class_path)
    known, channels = options_of(class_), getattr(class_, "mean", None)
    kept: Config = {}
    for name in SHARED_DATA_OPTIONS:
        value = options.get(name)
        count = name == "val_split" and isinstance(value, (int, float)) and value > 1
        per_channel = name in ("mean", "std") and isinstance(value, list) and len(value) > 1
        foreign = per_channel and (not isinstance(channels, tuple) or len(channels) != len(value or ()))
        if name in options and name in known and not count and not foreign:
            kept[name] = value
    return kept
