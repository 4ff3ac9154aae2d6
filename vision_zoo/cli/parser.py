"""The command line: LightningCLI fed with one configuration, and errors told in words."""

import copy
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from numbers import Number
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import ArgumentError
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from vision_zoo.checkpoints import Checkpoint, find_checkpoint, read_or_offer
from vision_zoo.classifier import Classifier
from vision_zoo.cli.layers import DEFAULT_RECIPE, DEFAULTS, Words, flat, merge, prepare_schedule, read_config
from vision_zoo.cli.limits import check_trainer_options
from vision_zoo.cli.messages import processes_to_count, suggest_option
from vision_zoo.cli.names import CLASS_SLOTS, LIST_SLOTS, class_choice, find_class, find_config, run_name_of
from vision_zoo.data.base import ImageDataModule
from vision_zoo.errors import CheckpointError, ConfigError
from vision_zoo.files import expanded
from vision_zoo.specs import listed, without_downloads
from vision_zoo.training import AtomicCheckpointIO, Console, Evaluation, Run, Speed
from vision_zoo.training.performance import NoProfiler, skip_idle_hooks
from vision_zoo.training.processes import watch_processes
from vision_zoo.training.run_folder import RESULTS
from vision_zoo.trust import places_outside
from vision_zoo.types import Config
from vision_zoo.verbs.trainer import Trainer

# What config.yaml and checkpoints keep: all that decides what a run computes.
KEPT = ("seed_everything", "model", "data", "trainer", "deterministic", "channels_last", "test_after_fit", "tta")

# Options of fit that config.yaml may hold; other commands have but some of them.
FIT_OPTIONS = inspect.signature(Trainer.fit).parameters.keys() - {"self", "model", "datamodule", "ckpt_path"}

# Options of the trainer that decide how many steps a run has.
LENGTHS = ("max_epochs", "max_steps", "accumulate_grad_batches", "limit_train_batches", "overfit_batches")

# Commands that take all facts from the checkpoint; a checkpoint that names no data set gets MNIST5k, because the parser
# requires one.
DATA_NOT_NEEDED = ("export", "summary", "predict", "report")

# Options with the weights that a network begins with.
WEIGHTS = ("weights", "backbone.weights", "backbone.init_args.weights")


NO_CLASS = ("null", "None", "true", "True", "false", "False")  # words in a class's place; a logger may be any of them

# Where the data lies and who reads it decides nothing: it may differ from the checkpoint's. Neither do the weights that
# a run began with, once it has its own.
FREE = ("data.root", "data.path", "data.num_workers", "model.weights", "model.backbone.weights")


def _as_number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise ValueError(f"not a number: {value!r}")
    return value  # type: ignore[no-any-return]


# Types of options of torch, torchvision and Lightning that jsonargparse could read, but not write to config.yaml.
register_type(Number, serializer=_as_number, deserializer=_as_number)
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))


def _value(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError as error:
        raise ConfigError(f"--trusted_packages {word}: give the name of a package, or a list such as [a, b]") from error


class VisionZooCLI(LightningCLI):
    """LightningCLI that sees one configuration only, already layered.

    Precedence: command line, then --config files, then the checkpoint, then defaults.
    """

    def __init__(self, argv: list[str]) -> None:
        self.words = Words(argv)
        self.checkpoint: dict[str, Any] | None = None
        self.checkpoint_path: Path | None = None
        self.layered = self.layer()
        strict = {"exit_on_error": False, "allow_abbrev": False}
        args = [self.words.subcommand, "--config", yaml.safe_dump(self.layered, sort_keys=False), *self.words.rest]
        super().__init__(
            Classifier,
            ImageDataModule,
            save_config_callback=None,
            trainer_class=Trainer,
            trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0},
            seed_everything_default=0,
            parser_kwargs={**strict, self.words.subcommand: dict(strict)},
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
        )

    # ------------------------------------------------------------------------------------------------------ layering

    def layer(self) -> Config:
        """One configuration from defaults, checkpoint, files and the classes that the command line names."""
        words = self.words
        words.spell_out("-c", "--config")
        for key in ("config", "trusted_packages", *(f"model.{name}" for name in WEIGHTS)):
            words.check_value(key)
        files = [find_config(name) for name in words.values("config")]
        self.run_name = run_name_of(files[0]) if files else "default"
        configs = [read_config(path) for path in files]
        words.drop("config")
        given: Config = {}
        for config in configs:
            given = merge(given, config)
        # Those who read a run's config.yaml have but some of fit's options in it.
        foreign = FIT_OPTIONS - inspect.signature(getattr(Trainer, words.subcommand)).parameters.keys()
        given = {name: value for name, value in given.items() if name not in foreign}
        named = [*words.values("trusted_packages"), *words.values("trusted_packages+")]
        packages = [package for word in named for package in listed(_value(word))]
        self.trusted = tuple(map(str, [*packages, *listed(given.pop("trusted_packages", None))]))
        for key in ("trusted_packages", "trusted_packages+"):
            words.drop(key)

        if (named := given.pop("ckpt_path", None)) is not None and not words.values("ckpt_path"):
            words.rest += ["--ckpt_path", str(named)]
        ckpt = words.last("ckpt_path")
        resuming = words.subcommand == "fit"
        if ckpt is not None:
            if resuming and ckpt == "best":
                raise ConfigError(
                    "--ckpt_path best: fit resumes where the newest run ended, with --ckpt_path last. To go back "
                    "to its best epoch and drop what was trained since, give the path of its best.ckpt"
                )
            root = expanded(
                words.last("trainer.default_root_dir") or (given.get("trainer") or {}).get("default_root_dir") or "."
            )
            run_name = self.run_name if resuming and files else None
            self.checkpoint_path = find_checkpoint(ckpt, root, "last" if resuming else "best", run_name)
            if resuming and self.checkpoint_path.parent.name != "checkpoints":
                raise CheckpointError(
                    f"{self.checkpoint_path} lies in no run folder, and fit continues a run in its own. To start a new "
                    f"run from these weights: their --config, and --model.weights {self.checkpoint_path}"
                )
            self.checkpoint = read_or_offer(self.checkpoint_path, self.trusted)
            if resuming and not {"optimizer_states", "loops"} <= self.checkpoint.keys():
                raise CheckpointError(
                    f"{self.checkpoint_path} holds weights alone (as of ModelCheckpoint's save_weights_only), and no "
                    f"state to continue from: take last.ckpt, or start a new run with --model.weights "
                    f"{self.checkpoint_path}"
                )
            if resuming:
                self._check_run_folder()
            words.change("ckpt_path", lambda _: str(self.checkpoint_path))
        stored = self._stored_config()
        if stored:
            base = stored
        elif files:
            base = DEFAULTS
        else:
            base = read_config(find_config(DEFAULT_RECIPE))
            if words.subcommand == "show":  # its batch size and split are of no use to another data set's pictures
                base = {"data": {"class_path": base["data"]["class_path"]}}
        if not stored and not self._gives("max_epochs", given) and self._gives("max_steps", given):
            base = merge(base, {"trainer": {"max_epochs": -1}})  # which the defaults would end before
        merged = merge(base, given)
        if stored and resuming:
            self._check_places(stored, given)
        if stored and isinstance(merged["model"], dict):
            # The checkpoint's weights replace those that the run began with, which may be gone.
            merged["model"]["backbone"] = without_downloads(merged["model"].get("backbone"))
            merged["model"].pop("weights", None)
            for name in WEIGHTS:
                words.drop(f"model.{name}")
        rate = words.last("model.optimizer.lr") or words.last("model.optimizer.init_args.lr")
        chosen = words.last("model.optimizer") or ""
        if rate is None and chosen.lstrip()[:1] == "{":
            rate = (class_choice(chosen, "model.optimizer").get("init_args") or {}).get("lr")
        config = prepare_schedule(self._choose_classes(merged), rate)
        if words.subcommand == "show":
            config.pop("model", None)
        return config | ({"trusted_packages": list(self.trusted)} if self.trusted else {})

    def _gives(self, length: str, given: Config) -> bool:
        """Whether files or words set a length of the run."""
        value = self.words.last(f"trainer.{length}") or (given.get("trainer") or {}).get(length)
        return value is not None and str(value) != "-1"

    def _check_run_folder(self) -> None:
        """Refuse to continue in a folder of other things, which would be overwritten: any folder may hold checkpoints.

        A checkpoint that was taken out of its run resumes in a folder that has none of a run's files.
        """
        run = cast(Path, self.checkpoint_path).parent.parent
        about = cast(Config, self.checkpoint).get("vision_zoo")
        config = run / "config.yaml"
        if config.is_file():
            try:
                written = yaml.safe_load(config.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError):
                written = None
            # Which weights a run began with is not kept in its checkpoints.
            theirs, ours = (
                {n: value for n, value in flat(whole).items() if n.startswith("model.") and "weights" not in n}
                for whole in (written if isinstance(written, Mapping) else {}, about["config"] if about else {})
            )
            in_the_way = [] if ours and theirs == ours else [config]
        else:
            in_the_way = [path for path in (run / name for name in (*RESULTS, "metrics.csv")) if path.exists()]
        if in_the_way:
            raise CheckpointError(
                f"{self.checkpoint_path} does not belong to {in_the_way[0]}, which a run resumed there would "
                "replace: copy it into a folder of its own, such as other/checkpoints/last.ckpt, and give that"
            )

    def _check_places(self, stored: Config, given: Config) -> None:
        """Refuse to write where the checkpoint alone says so: it may be somebody else's."""
        run = cast(Path, self.checkpoint_path).parent.parent
        for name, value in (stored.get("trainer") or {}).items():
            if name in (given.get("trainer") or {}) or self.words.values(f"trainer.{name}"):
                continue
            for place in places_outside(value, (run, Path.cwd())):
                raise CheckpointError(
                    f"{self.checkpoint_path} would have --trainer.{name} write to {place}, outside of its run and of "
                    f"the working directory. If that is meant, say it again: --config {run / 'config.yaml'}"
                )

    def _stored_config(self) -> Config:
        if self.checkpoint is None:
            return {}
        about = self.checkpoint.get("vision_zoo")
        if about is not None:
            config: Config = copy.deepcopy(about["config"])
            if self.words.subcommand == "fit":
                self.run_name = about["name"]
                root = (config.get("trainer") or {}).get("default_root_dir")
                run = cast(Path, self.checkpoint_path).resolve().parent.parent
                if root is not None and expanded(root).resolve() != run.parent.parent.parent:
                    del config["trainer"]["default_root_dir"]  # moved, or meant to have files written elsewhere
                return config
            # How it was trained (devices, epochs, loggers) says nothing about how to use it; how it was tested does.
            used = ("seed_everything", "model", "data", *(["tta"] if self.words.subcommand == "test" else []))
            return {key: config[key] for key in used if key in config}
        # Written by plain Python: the model describes itself.
        hparams = self.checkpoint["hyper_parameters"]
        names = ("backbone", "optimizer", "scheduler", "label_smoothing")
        model = {name: hparams[name] for name in names if hparams.get(name) is not None}
        data = self.checkpoint.get("datamodule_hyper_parameters") or {}
        if "_class_path" in data:
            options = {name: value for name, value in data.items() if not name.startswith("_")}
            return {"model": model, "data": {"class_path": data["_class_path"], "init_args": options}}
        if self.words.subcommand in DATA_NOT_NEEDED:
            return {"model": model, "data": {"class_path": "vision_zoo.data.MNIST5k"}}
        return {"model": model}

    def _choose_classes(self, config: Config) -> Config:
        """Apply the classes that the command line names, so that no option of a replaced class is left."""
        for slot in CLASS_SLOTS:
            self.words.change(f"{slot}.help", partial(find_class, slot=slot))
            for option in (slot, f"{slot}.class_path", f"{slot}+"):
                value = self.words.last(option)
                own_weights = slot == "model.backbone" and self.checkpoint is not None
                self.words.change(option, partial(_full_choice, slot=slot, own_weights=own_weights))
                if slot not in LIST_SLOTS and value not in (None, *NO_CLASS):
                    choice = class_choice(value, slot)
                    choice = without_downloads(choice) if own_weights else choice
                    section, _, key = slot.partition(".")
                    config = merge(config, {section: {key: choice} if key else choice})
        return config

    # -------------------------------------------------------------------------------------------------------- parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in Lightning
        """The command and its arguments that are not options; each further parser would cost time at every start."""
        # The parser takes a list option only as a bracketed word: --images is added by hand.
        return {self.words.subcommand: {"model", "datamodule", "images"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            help_ = "files, folders (with the folders in them) and patterns such as 'scans/*.png'"
            parser.add_argument("--images", nargs="+", type=str, metavar="PATH", help=help_)
            self._subcommand_method_arguments[subcommand].append("images")
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add trainer, model and data; without a network where none is needed, so that none is built."""
        if self.words.subcommand != "show":
            super().add_core_arguments_to_parser(parser)
            return
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Hand the data's facts to the model; a checkpoint's own facts go first."""
        help_ = "read a checkpoint that names classes of this package; once for each"
        parser.add_argument("--trusted_packages", type=str | list[str] | None, help=help_)  # `layer` has read it
        if self.words.subcommand == "show":
            return
        facts: dict[str, Callable[[ImageDataModule], Any]] = {
            "image_shape": lambda data: data.image_shape,
            "class_names": lambda data: list(data.class_names),
            "mean": lambda data: list(data.mean),
            "std": lambda data: list(data.std),
        }
        stored = self.checkpoint["hyper_parameters"] if self.checkpoint else {}
        for name, fact in facts.items():
            if name in stored:
                value = tuple(stored[name]) if name == "image_shape" else stored[name]
                parser.link_arguments("data", f"model.{name}", compute_fn=_constant(value), apply_on="instantiate")
            else:
                parser.link_arguments("data", f"model.{name}", compute_fn=fact, apply_on="instantiate")

    def _set_seed(self) -> None:
        """Seed everything.

        Raises:
            ConfigError: if the seed is not one that every random generator takes.
        """
        seed = self._get(self.config, "seed_everything")
        if seed is True:  # for which Lightning promises a random one, and takes 0
            raise ConfigError("--seed_everything true names no seed: give a number, such as 1")
        if type(seed) is int and not 0 <= seed < 2**32:
            raise ConfigError(f"--seed_everything must be a whole number from 0 to {2**32 - 1}, got {seed}")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint is a layer below the command line (Lightning would lay it above)."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then make paths absolute, so that a checkpoint finds its data from anywhere."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            if word := self.words.without_value(str(error)):
                raise ArgumentError(None, f"{word} needs a value") from error
            own = self._parser(self.words.subcommand)
            raise ArgumentError(None, suggest_option(str(error), own, self.layered)) from error
        data = self.config[self.words.subcommand].get("data")
        options = data.get("init_args") if data is not None else None
        model = self.config[self.words.subcommand].get("model")
        for holder, name in ((options, "root"), (options, "path"), (model, "weights")):
            if holder is not None and isinstance(holder.get(name), str):
                holder[name] = str(expanded(holder[name]).resolve())
        if model is not None and isinstance(weights := model.get("weights"), str) and Path(weights).is_dir():
            model["weights"] = str(find_checkpoint(weights, Path(), "best"))
        if self.words.values("data.root") and data is not None and data["class_path"] == "vision_zoo.data.MNIST5k":
            rank_zero_only(print)(
                "vision_zoo: --data.root is not used, for the images of MNIST5k come with a package; a folder of "
                "pictures: --data ImageFolder",
                file=sys.stderr,
            )

    def before_instantiate_classes(self) -> None:
        """Say what differs from the checkpoint; refuse it where the run would not be the same one any more."""
        if self.checkpoint is None or "vision_zoo" not in self.checkpoint:
            return
        if self.words.subcommand == "show":  # has no network to compare
            return
        stored, now = flat(self.checkpoint["vision_zoo"]["config"]), flat(self.plain_config())
        resuming = self.words.subcommand == "fit"
        changes: dict[str, str] = {}
        for name in sorted({n for n in (*stored, *now) if n.split(".")[0] in ("seed_everything", "model", "data")}):
            if name.replace("init_args.", "") in FREE:
                continue
            if stored.get(name) != now.get(name):
                shown = name.replace("init_args.", "").removesuffix(".class_path")
                changes[shown] = f"--{shown}: {stored.get(name)} -> {now.get(name)}"
                if shown in ("data.mean", "data.std", "data.image_size"):
                    changes[shown] += ", ignored: the network keeps its own"
        if resuming and changes:
            raise ConfigError(
                f"{self.checkpoint_path} continues a run, which fixes network, data and optimizer, but these differ: "
                f"{'; '.join(changes.values())}. Leave the options out (and --config too), or start a new run without "
                "--ckpt_path"
            )
        for name in LENGTHS if resuming and self._laid_out(stored) else ():
            if stored.get(f"trainer.{name}") != now.get(f"trainer.{name}"):
                raise ConfigError(
                    f"the run's {stored['model.scheduler.class_path']} was laid out for {name} "
                    f"{stored.get(f'trainer.{name}')}, which cannot become {now.get(f'trainer.{name}')}: start a new "
                    f"run from its weights with {_again(cast(Path, self.checkpoint_path))} in place of --ckpt_path"
                )
        for name in sorted(
            {n for n in (*stored, *now) if n.startswith("trainer.") and n != "trainer.default_root_dir"}
        ):
            if resuming and stored.get(name) != now.get(name):
                changes[name] = f"--{name}: {stored.get(name)} -> {now.get(name)}"
        say = rank_zero_only(partial(print, file=sys.stderr))
        for change in changes.values():
            say(f"changed against the checkpoint: {change}")
        deciding: dict[str, tuple[str, ...]] = {}
        if now.get("data.init_args.val_split") != 0:  # of none, nothing is scored
            deciding["validate"] = ("val_split", "test_split", "seed")
        if "data.init_args.test_split" in now:  # of data sets without it, the test part is what it is
            deciding["test"] = ("test_split", "seed")
        dealt = [f"--data.{name}" for name in deciding.get(self.words.subcommand, ()) if f"data.{name}" in changes]
        if dealt and "data" not in changes:
            moved = any(stored.get(f"data.init_args.{n}") != now.get(f"data.init_args.{n}") for n in ("root", "path"))
            unless = "unless these are other images, some" if moved else "images"
            say(f"{', '.join(dealt)}: {unless} that the network was trained with may be among those that are scored")

    @staticmethod
    def _laid_out(config: Config) -> bool:
        """Whether the schedule's length is the run's."""
        name = config.get("model.scheduler.class_path") or ""
        return name.endswith("OneCycleLR") or config.get("model.scheduler.init_args.T_max") == 0

    def plain_config(self) -> Config:
        """The whole configuration as plain data, as config.yaml and checkpoints keep it."""
        dumped = self.parser.dump(self.config, skip_none=False, skip_validation=True)
        if lost := re.search(r"(\w+): ['\"]?Unable to serialize instance (.*)", dumped):  # jsonargparse goes on
            raise ConfigError(f"{lost[1]}: {lost[2]} is of a kind that config.yaml cannot hold. Give another, or none")
        config = yaml.safe_load(dumped)[self.words.subcommand]
        return {key: config[key] for key in KEPT if key in config}

    def run_config(self, folder: Path | None) -> Config:
        """The same for a run: a resumed one keeps the weights that it began with in its configuration."""
        config = self.plain_config()
        if folder is not None and (folder / "config.yaml").is_file():
            began = read_config(folder / "config.yaml").get("model") or {}
            config["model"]["weights"] = began.get("weights")
            options = (began.get("backbone") or {}).get("init_args") or {}
            if options.get("weights") is not None:
                config["model"]["backbone"]["init_args"]["weights"] = options["weights"]
        if config["model"].get("weights") is None:
            config["model"].pop("weights", None)
        return config

    # ------------------------------------------------------------------------------------------------- instantiation

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has: its folder, the terminal, the evaluation, safe checkpoints."""
        opened = Checkpoint(self.checkpoint_path, self.checkpoint) if self.checkpoint_path and self.checkpoint else None
        checkpoint_io = AtomicCheckpointIO(opened, self.trusted)
        options = dict(self._get(self.config_init, "trainer"))
        check_trainer_options(options)
        # Run opens TensorBoard's file in its folder; Lightning would open one elsewhere.
        kwargs["logger"] = options.get("logger") if options.get("logger") not in (None, True) else False
        if options.get("profiler") is None:
            kwargs["profiler"] = NoProfiler()
        kwargs["plugins"] = [*listed(options.get("plugins")), checkpoint_io]
        # Lightning takes "no bar" for "no Console".
        callbacks: list[Any] = [Console(bar=options.get("enable_progress_bar") is not False), Evaluation()]
        kwargs["enable_progress_bar"] = True
        if self.words.subcommand == "fit":
            folder = self.checkpoint_path.parent.parent if self.checkpoint_path else None
            stored = (self.checkpoint.get("callbacks") or {}).get("Speed", {}) if self.checkpoint else None
            # Before Console, which says what was chosen, and before Run, which saves.
            callbacks.insert(0, Speed(options.get("precision") is not None, stored))
            run = Run(self.run_name, self.run_config(folder), folder, options.get("logger") is not False)
            own = listed(options.get("callbacks"))
            run.guests = [c for c in own if isinstance(c, ModelCheckpoint) and c.dirpath is None]
            callbacks.append(run)
            exact = self._get(self.config_init, "deterministic")
            if options.get("deterministic") is None and torch.cuda.is_available():
                kwargs["deterministic"] = "warn" if exact else False
                if options.get("benchmark") is None:
                    kwargs["benchmark"] = not exact
        if MPSAccelerator.is_available():  # has no float64, in which losses are summed
            if options.get("accelerator") in ("mps", "gpu"):
                raise ConfigError(
                    f"--trainer.accelerator {options['accelerator']}: Apple's GPUs have no float64, which sums of "
                    "losses need; say --trainer.accelerator cpu"
                )
            if options.get("accelerator") in (None, "auto"):
                kwargs["accelerator"] = "cpu"
        kwargs["callbacks"] = [*listed(options.get("callbacks")), *callbacks]
        try:
            trainer = cast(Trainer, super().instantiate_trainer(**kwargs))
        except (ValueError, MisconfigurationException) as error:
            raise ConfigError(f"these --trainer options do not work here: {error}") from error
        if str(options.get("precision")) in ("16", "16-mixed") and trainer.precision == "bf16-mixed":
            # Lightning changes it with a warning among many others.
            raise ConfigError(f"--trainer.precision {options['precision']}: a CPU cannot; say bf16-mixed or 32-true")
        if "TORCHELASTIC_RUN_ID" in os.environ and trainer.world_size < int(os.environ["WORLD_SIZE"]):
            raise ConfigError(processes_to_count())  # each would train a network of its own
        watch_processes(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            skip_idle_hooks(callback)
        return trainer


def _full_choice(value: str, slot: str, own_weights: bool) -> str:
    """A word that chooses classes, with their full paths; without weights where a checkpoint has its own."""
    if value in NO_CLASS:
        return value
    choice = class_choice(value, slot)
    choice = without_downloads(choice) if own_weights else choice
    only_named = isinstance(choice, Mapping) and choice.keys() == {"class_path"}
    return str(choice["class_path"]) if only_named else json.dumps(choice)


def _again(checkpoint: Path) -> str:
    """The options that start a new run from a run's weights."""
    config = checkpoint.parent.parent / "config.yaml"
    return f"--config {shlex.quote(str(config))} --model.weights {shlex.quote(str(checkpoint))}"


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value
