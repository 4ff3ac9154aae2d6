"""LightningCLI for the commands that build a network or a dataset from options: fit, validate, test, summary, show."""

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from numbers import Number
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, _loaders_dumpers
from jsonargparse.typing import register_type
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vision_zoo.building import preprocessing_of, settled_options, without_random_weights
from vision_zoo.checkpoints import find_checkpoint
from vision_zoo.classifier import Classifier
from vision_zoo.cli.commands import SHARED
from vision_zoo.cli.layers import SECTIONS, Request
from vision_zoo.cli.limits import LIMITS, RANGES
from vision_zoo.cli.messages import suggest_option
from vision_zoo.cli.names import CLASS_SLOTS, Loader, read_config
from vision_zoo.cli.resuming import changes
from vision_zoo.cli.teaching import VAL_SPLIT, without_validation
from vision_zoo.data.base import ImageDataModule
from vision_zoo.data.folder import ImageFolder
from vision_zoo.data.pack import Pack
from vision_zoo.ensemble import Ensemble
from vision_zoo.errors import CheckpointError, ConfigError, refuse
from vision_zoo.files import expanded, is_address
from vision_zoo.specs import import_path, options_of, parameters_of
from vision_zoo.types import Config

# What config.yaml and checkpoints keep: all that decides what a run computes.
KEPT = (
    *("seed_everything", "model", "data", "trainer", "deterministic"),
    *("channels_last", "compile", "test_after_fit", "tta", "known"),
)


def _as_number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise ValueError(f"not a number: {value!r}")
    return value  # type: ignore[no-any-return]


# What the parser reads values with, which must mean the same as in a file.
cast(Any, _loaders_dumpers).yaml_default_loader = Loader
# Types of options of torch, torchvision and Lightning that jsonargparse could read, but not write to config.yaml.
register_type(Number, serializer=_as_number, deserializer=_as_number)
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))


class Parser(LightningCLI):
    """Parses the options of a command on top of a layered configuration; builds its data, model and own options."""

    def __init__(self, request: Request, function: Callable[..., Any]) -> None:
        self.request, self.function = request, function
        self.verb, self.checkpoint = request.argv.verb, request.checkpoint
        super().__init__(
            Classifier,
            ImageDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": f"vision_zoo {self.verb}"},
            subclass_mode_data=True,
            args=["--config", yaml.safe_dump(request.config, sort_keys=False), *request.args],
            run=False,
            auto_configure_optimizers=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add trainer, model and data, as far as the command needs them."""
        if "trainer" in SECTIONS[self.verb]:
            parser.add_lightning_class_args(self.trainer_class, "trainer")
            parser.set_defaults({"trainer.num_sanity_val_steps": 0})
        if "model" in SECTIONS[self.verb]:
            parser.add_lightning_class_args(Classifier, "model")
        parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the command, and hand the data's facts to the model; a checkpoint's own go first."""
        skip: set[str | int] = {"make_trainer", "model", "datamodule", "checkpoint", "plan", "open_run", "runs"}
        self._own_options = parser.add_function_arguments(self.function, skip=skip)
        for name in ("ckpt_path", "trusted_packages"):  # read before, see layers.py
            parser.add_argument(f"--{name}", type=str | list[str] | None, help=SHARED[name].text)
        if "model" in SECTIONS[self.verb]:
            stored = self.checkpoint.content["hyper_parameters"] if self.checkpoint else {}
            self._facts = {**({"value_range": None} if stored else {}), **stored}
            for name in ("image_shape", "class_names", "mean", "std", "value_range"):
                fact = partial(_fact, name, self._facts)
                parser.link_arguments("data", f"model.{name}", compute_fn=fact, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then make paths absolute, so that a checkpoint finds its data from anywhere."""
        self.config = parse(parser, args, self.verb, self.request.config)
        for name, value, may_be_null in _values(self.config.as_dict()):
            _check_value(name, value, may_be_null)
        data, model = self.config["data"], self.config.get("model")
        options = data.get("init_args")
        self._prepare(options)
        loss = self.config.get("model.loss.init_args")
        for holder, name in ((options, "root"), (options, "path"), (model, "weights"), (loss, "teacher")):
            given = None if holder is None else holder.get(name)
            if isinstance(given, str) and not is_address(given) and (name != "teacher" or expanded(given).exists()):
                holder[name] = str(expanded(given).resolve())  # (a teacher may be best or last)
        if model is not None and isinstance(weights := model.get("weights"), str) and Path(weights).is_dir():
            model["weights"] = str(find_checkpoint(weights, Path(), "best"))
        if self.request.argv.values("data.root") and data["class_path"] == "vision_zoo.data.MNIST5k":
            where = "a folder of images: --data ImageFolder"
            _note(f"vision_zoo: --data.root is not used, for the images of MNIST5k come with a package; {where}")

    def _prepare(self, options: Any) -> None:
        """Prepare images as those were that the pretrained weights were trained with, and say so."""
        self._said = ""
        backbone = (self.config.get("model") or {}).get("backbone")
        given = backbone.as_dict() if isinstance(backbone, Namespace) else None
        if given and self.checkpoint is None and (settled := settled_options(given)):
            given["init_args"] = settled
            for name, value in settled.items():
                self.config[f"model.backbone.init_args.{name}"] = value
        prepared = preprocessing_of(given) if given and self.checkpoint is None else None
        if prepared is None:
            return
        mean, std, size, interpolation = prepared
        self._facts |= {"mean": mean, "std": std}  # so that those of the data need not be computed
        options["interpolation"] = options.get("interpolation") or interpolation
        kind = import_path(self.config["data"]["class_path"])
        if options.get("image_size") is None and issubclass(kind, ImageFolder) and not issubclass(kind, Pack):
            options["image_size"] = size
        shown = options.get("image_size") or "their own"
        means, stds = (" ".join(f"{value:.3g}" for value in values) for values in (mean, std))
        self._said = (
            f"vision_zoo: images are prepared as for the pretrained weights: mean {means}, std {stds}, "
            f"{options['interpolation']}; size {shown}, of the weights {size}"
        )

    def _set_seed(self) -> None:
        seed = self.config.get("seed_everything")
        # For True, Lightning promises a random one, and takes 0.
        wrong = seed is True or (type(seed) is int and not 0 <= seed < 2**32)
        refuse(ConfigError, (wrong, f"--seed_everything must be a whole number from 0 to {2**32 - 1}, got {seed}"))
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Decide what teach holds out; print what differs from the checkpoint, and refuse what makes another run."""
        if self.verb == "teach" and not self.request.argv.values("data.val_split"):
            options = self.config["data"].get("init_args") or {}
            if options.get("val_split") == VAL_SPLIT and without_validation(self.config["data"].as_dict()):
                options["val_split"] = 0
        if self.checkpoint is not None and self.checkpoint.config and "model" in self.config:
            for line in changes(self.checkpoint, self.plain_config(), self.verb):
                _note(line)

    def _dump_config(self) -> None:  # which Lightning calls; to validate once more would take a fifth of the parsing
        if not hasattr(self, "config_dump"):
            dumped = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, skip_validation=True)
            self.config_dump = yaml.safe_load(dumped)

    def plain_config(self) -> Config:
        """The whole configuration as plain data, as config.yaml and checkpoints keep it."""
        dumped = self.parser.dump(self.config, skip_none=False, skip_validation=True)
        if lost := re.search(r"(\w+): ['\"]?Unable to serialize instance (.*)", dumped):  # jsonargparse goes on
            raise ConfigError(f"{lost[1]}: {lost[2]} is of a kind that config.yaml cannot hold. Give another, or none")
        config = yaml.safe_load(dumped)
        return {key: config[key] for key in KEPT if key in config}

    def run_config(self) -> Config:
        """The same for a run: one that continues keeps the weights that it began with in its configuration."""
        config = self.plain_config()
        began = self.checkpoint.run / "config.yaml" if self.checkpoint else None
        if began is not None and began.is_file():
            model = read_config(began).get("model") or {}
            config["model"]["weights"] = model.get("weights")
            options = (model.get("backbone") or {}).get("init_args") or {}
            if options.get("weights") is not None:
                config["model"]["backbone"]["init_args"]["weights"] = options["weights"]
        if config["model"].get("weights") is None:
            config["model"].pop("weights", None)
        return config

    def instantiate_classes(self) -> None:
        """Build data and model; the trainer is built by the command, which knows what callbacks it needs."""
        with contextlib.nullcontext() if self.checkpoint is None else without_random_weights():
            self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule, self.model = self.config_init.get("data"), self.config_init.get("model")
        if self._said:
            _note(self._said)
        self.options = {name: self.config_init.get(name) for name in self._own_options}
        if self.checkpoint is not None and self.model is not None:
            self.datamodule.value_range = self.model.value_range
        if self.checkpoint is None or self.model is None or self.verb == "fit":
            return
        if self.request.others:
            self.model = Ensemble([self.checkpoint, *self.request.others])
            return
        try:
            self.model.take_over(self.checkpoint.content)
        except RuntimeError as error:
            network = self.model.network_name
            raise CheckpointError(f"the weights in {self.checkpoint.path} do not fit {network}: {error}") from error

    def trainer_options(self) -> Config:
        """The options of the trainer, with their classes built; those that cannot work here are a ConfigError."""
        options: Config = dict(self.config_init["trainer"])
        for limit in LIMITS:
            refuse(ConfigError, (limit.applies(options), f"--trainer.{limit.name} does not work here: {limit.reason}"))
        return options


def _values(node: Any, name: str = "", may_be_null: bool = True) -> Iterator[tuple[str, Any, bool]]:
    """Every value of a configuration with its option, and whether the class that has that takes null."""
    if isinstance(node, Mapping):
        known = parameters_of(import_path(node["class_path"])) if "class_path" in node else {}
        for key, value in {**node, **(node.get("init_args") or {})}.items():
            takes = key not in known or known[key].default is None
            takes = takes or bool(re.search("None|Optional|Any|_empty", str(known[key].annotation)))
            yield from () if key == "init_args" else _values(value, f"{name}.{key}".lstrip("."), takes)
    for item in node if isinstance(node, list) else ():
        yield from _values(item, name)
    yield name, node, may_be_null


def _check_value(name: str, value: Any, may_be_null: bool) -> None:
    """Refuse what no option can be, and the parser lets pass."""
    count = name == "trainer.devices" and str(value).isdigit()  # which is a text, too
    number = int(value) if count else value if isinstance(value, int | float) and not math.isinf(value) else 0.5
    most = 2**63 - 1 if isinstance(number, int) else torch.finfo(torch.float32).max
    least, high = RANGES.get(name, (-most, most)) if value is not True else (0, 1)
    most = min(most, high)
    bound = "finite" if math.isnan(number) else f"at least {least}" if number < least else f"at most {most}"
    refuse(
        ConfigError,
        (value is None and not may_be_null, f"--{name} is null, or left blank in a file: leave it out, or set it"),
        (number != 0.5 and not least <= number <= most, f"--{name} must be {bound}, got {value}"),
    )


def parse(parser: ArgumentParser, words: Any, verb: str, config: Config) -> Namespace:
    """Parse the words of a command; an option that does not exist is an ArgumentError that names close ones."""
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise ArgumentError(None, suggest_option(str(error), _option_names(parser, config), verb)) from error


def _option_names(parser: ArgumentParser, config: Config) -> list[str]:
    """Every option of a command without its dashes, with those of the classes that a configuration names."""
    flags = (flag for action in parser._actions for flag in action.option_strings)
    names = {flag[2:] for flag in flags if flag.startswith("--") and not flag.endswith(("+", ".help"))}
    for slot in CLASS_SLOTS:
        section, _, key = slot.partition(".")
        holder = config.get(section) or {}
        spec = holder.get(key) if key else holder
        if isinstance(spec, Mapping) and isinstance(spec.get("class_path"), str):
            filled_in = ("image_shape", "num_classes", "params", "optimizer")
            names |= {f"{slot}.{name}" for name in options_of(import_path(spec["class_path"])) if name not in filled_in}
    return sorted(names)


def _note(text: str) -> None:
    rank_zero_only(partial(print, file=sys.stderr))(text)


def _fact(name: str, stored: Mapping[str, Any], data: ImageDataModule) -> Any:
    """What a checkpoint or pretrained weights say of the images, else what the data say."""
    known = name in stored and (stored[name] is not None or name == "value_range")  # None where all are 8 bits
    value: Any = stored[name] if known else getattr(data, name)
    return tuple(value) if name == "image_shape" else list(value) if isinstance(value, tuple) else value
