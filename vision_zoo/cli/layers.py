"""One configuration out of many places: defaults < checkpoint < --config files < command line."""

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from vision_zoo.checkpoints import Checkpoint, open_checkpoint, open_checkpoints, run_folder
from vision_zoo.cli import names, teaching
from vision_zoo.cli.argv import AVERAGED, Argv
from vision_zoo.cli.resuming import check_members, check_places, check_run_folder
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import CheckpointError, ConfigError, refuse
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
# The sections of a configuration that a command has.
SECTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("fit", "teach", "validate", "test"), ("model", "data", "trainer")),
    **dict.fromkeys(("summary", "compare", "audit"), ("model", "data")),
    **dict.fromkeys(("show", "pack"), ("data",)),
}
# Options with the weights that a network begins with; those of a checkpoint replace them.
FIRST_WEIGHTS = ("model.weights", "model.backbone.weights", "model.backbone.init_args.weights")


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    argv: Argv
    config: Config  # all layers, with the classes that the command line names
    args: list[str]  # the other options of the command line, for the parser
    run_name: str  # of the configuration; names the folder of a new run
    checkpoint: Checkpoint | None  # read and vetted
    trusted: tuple[str, ...]  # packages that the user trusts
    others: tuple[Checkpoint, ...] = ()  # those that are averaged with the checkpoint


def read_request(argv: Argv, verb: Callable[..., Any]) -> Request:
    """Lay defaults, checkpoint, files and classes of the command line over each other; `verb` is its function."""
    files = [names.find_config(name) for name in argv.values("config")]
    given: Config = reduce(_merge, map(names.read_config, files), {})
    trusted = trusted_packages(argv, given.pop("trusted_packages", None))
    opened = _checkpoints(argv, given, trusted, files)
    checkpoint = opened[0] if opened else None
    stored = {} if checkpoint is None else _stored(checkpoint, argv.verb)
    run_name = names.run_name_of(files[0]) if files else "teach" if argv.verb == "teach" else "default"
    if checkpoint is not None and argv.verb == "fit":
        check_places(checkpoint, stored, given, argv)
        run_name = checkpoint.run_name or run_name
    config = _merge(stored or _defaults(argv, given, bool(files)), given)
    config = _with_backbone(_with_classes(config, argv), checkpoint is not None)
    # A recipe, or config.yaml of a run, holds options that other commands lack.
    lacks = {"model", "data", "trainer", *options_of(fit)} - {*SECTIONS[argv.verb], *options_of(verb)}
    config = {name: value for name, value in config.items() if name not in lacks}
    words = _other_words(argv, checkpoint is not None)
    return Request(argv, config, words, run_name, checkpoint, trusted, tuple(opened[1:]))


def trusted_packages(argv: Argv, from_files: Any = None) -> tuple[str, ...]:
    """The packages that command line and files call trusted."""
    named = [*listed(from_files)]
    for word in argv.values("trusted_packages", "trusted_packages+"):
        named += listed(names.from_yaml(word, f"--trusted_packages {word}"))
    return tuple(map(str, named))


def _defaults(argv: Argv, given: Config, has_files: bool) -> Config:
    """What the files lie on where there is no checkpoint; without files the default recipe."""
    if argv.verb in ("teach", "audit", "pack"):
        return _merge(DEFAULTS, teaching.defaults(argv))
    base = DEFAULTS if has_files else names.read_config(names.find_config(DEFAULT_RECIPE))
    steps, epochs = (_of_trainer(argv, given, name) for name in ("max_steps", "max_epochs"))
    if steps not in (None, "-1", -1) and epochs in (None, "-1", -1):  # the default number of epochs would end the run
        return _merge(base, {"trainer": {"max_epochs": -1}})
    return base


def _of_trainer(argv: Argv, given: Config, name: str) -> Any:
    """An option of the trainer as command line or files set it."""
    return argv.last(f"trainer.{name}") or (given.get("trainer") or {}).get(name)


def _checkpoints(argv: Argv, given: Config, trusted: tuple[str, ...], files: list[Path]) -> list[Checkpoint]:
    """Open the checkpoints that a command names, if any; what fit continues must be a run's."""
    found = listed(given.pop("ckpt_path", None))
    if not (named := argv.checkpoints or found):
        return []
    name = named[0]
    root = expanded(_of_trainer(argv, given, "default_root_dir") or ".")
    if argv.verb in AVERAGED:
        checkpoints = open_checkpoints(map(str, named), trusted, root)
        check_members(checkpoints, argv)
        return checkpoints
    if argv.verb != "fit":
        return [open_checkpoint(str(name), trusted, root=root, prefer="best")]
    older = "to drop what was trained after its best epoch, give the path of its best.ckpt"
    problem = f"--ckpt_path best: fit resumes where the newest run ended, with --ckpt_path last; {older}"
    refuse(ConfigError, (name == "best", problem))
    run_name = names.run_name_of(files[0]) if files else None
    checkpoint = open_checkpoint(str(name), trusted, root=root, prefer="last", run_name=run_name)
    path = checkpoint.path
    way_out = f"take last.ckpt of its run, or start a new one with --config and --model.weights {path}"
    outside = f"{path} lies in no run folder, and fit continues a run in its own: {way_out}"
    stateless = f"{path} holds weights alone, and no state to continue from: {way_out}"
    has_state = {"optimizer_states", "loops"} <= checkpoint.content.keys()
    refuse(CheckpointError, (run_folder(path) is None, outside), (not has_state, stateless))
    check_run_folder(checkpoint)
    return [checkpoint]


def _stored(checkpoint: Checkpoint, verb: str) -> Config:
    """The configuration that a checkpoint holds, as far as a command uses it."""
    if config := copy.deepcopy(checkpoint.config):
        if verb != "fit":
            # How it was trained (devices, epochs, loggers) says nothing about how to use it; how it was tested does.
            return {key: config[key] for key in ("seed_everything", "model", "data", "tta") if key in config}
        root = (config.get("trainer") or {}).get("default_root_dir")
        if root is not None and expanded(root).resolve() not in checkpoint.run.parents[2:3]:  # it was moved
            del config["trainer"]["default_root_dir"]
        return config
    # Written by plain Python: the model describes itself.
    hparams = checkpoint.content["hyper_parameters"]
    described = ("backbone", "optimizer", "scheduler", "finetune", "decay_vectors", "loss")
    stored: Config = {"model": {name: hparams[name] for name in described if hparams.get(name) is not None}}
    if checkpoint.data:
        stored["data"] = checkpoint.data
    elif verb == "summary":  # which needs no data, but the parser does
        stored["data"] = {"class_path": "vision_zoo.data.MNIST5k"}
    return stored


def _with_classes(config: Config, argv: Argv) -> Config:
    """Lay the classes that the command line names over a configuration; lists of classes are left to the parser."""
    for slot in names.CLASS_SLOTS:
        section, _, key = slot.partition(".")
        if slot not in names.LIST_SLOTS and (word := argv.last(slot, f"{slot}.class_path")) is not None:
            choice = names.class_choice(word, slot)
            config = _merge(config, {section: {key: choice} if key else choice})
    return config


def _with_backbone(config: Config, has_checkpoint: bool) -> Config:
    """The configuration with the backbone as the parser wants it; a checkpoint's weights replace the first ones."""
    model = config.get("model", {})
    backbone = model.get("backbone")
    if has_checkpoint:
        model.pop("weights", None)
        backbone = without_downloads(backbone)
    if isinstance(backbone, dict) and backbone.keys() == {"class_path"}:
        path = backbone["class_path"]
        backbone = backbone if inspect.isclass(import_path(path)) else path  # of a function
    if backbone is not None:
        model["backbone"] = backbone
    return config


def _other_words(argv: Argv, has_checkpoint: bool) -> list[str]:
    """The words that are left for the parser."""
    read = {"config", *(FIRST_WEIGHTS if has_checkpoint else ())}
    read |= {f"{name}{end}" for name in ("ckpt_path", "trusted_packages") for end in ("", "+")}
    alone = names.CLASS_SLOTS.keys() - names.LIST_SLOTS
    read |= {f"{slot}{end}" for slot in alone for end in ("", ".class_path")}
    options = tuple((name, names.in_full(name, value)) for name, value in argv.options)
    return replace(argv, options=options).without(read)


def _merge(base: Config, new: Mapping[str, Any]) -> Config:
    """Lay a configuration over another: another class starts from its own defaults, the same keeps its options."""
    result = copy.deepcopy(base)
    for key, value in new.items():
        old = result.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping):
            result[key] = copy.deepcopy(value)
        elif "class_path" in value and "class_path" in old and not _alike(value["class_path"], old["class_path"]):
            result[key] = copy.deepcopy(dict(value))
            if key == "data" and (kept := _kept_data_options(value["class_path"], old.get("init_args") or {})):
                result[key]["init_args"] = {**kept, **(value.get("init_args") or {})}
        else:
            result[key] = _merge(dict(old), value)
    return result


def _alike(first: str, second: str) -> bool:
    """Whether two paths lead to one class, such as torch.optim.SGD and torch.optim.sgd.SGD."""
    with suppress(ConfigError):
        named = first.rpartition(".")[2] == second.rpartition(".")[2]
        return first == second or (named and import_path(first) is import_path(second))
    return False


def _kept_data_options(class_path: str, options: Mapping[str, Any]) -> Config:
    """What stays of the options of another dataset: not a count of images, nor values for other channels."""
    class_ = import_path(class_path)
    known, channels = options_of(class_), getattr(class_, "mean", None)

    def stays(name: str, value: Any) -> bool:
        count = name == "val_split" and isinstance(value, (int, float)) and value > 1
        per_channel = name in ("mean", "std") and isinstance(value, list) and len(value) > 1
        foreign = per_channel and (not isinstance(channels, tuple) or len(channels) != len(value))
        return not count and not foreign

    shared = {name: options[name] for name in options_of(ImageDataModule) if name in options and name in known}
    return {name: value for name, value in shared.items() if stays(name, value)}
