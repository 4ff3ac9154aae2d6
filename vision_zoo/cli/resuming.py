"""What a checkpoint fixes: a run that continues must be the same run."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vision_zoo.checkpoints import Checkpoint
from vision_zoo.cli.argv import Argv
from vision_zoo.cli.names import from_yaml
from vision_zoo.data.described import described_data
from vision_zoo.errors import CheckpointError, ConfigError, refuse
from vision_zoo.schedules import open_length
from vision_zoo.specs import import_path
from vision_zoo.training.run_folder import RESULTS
from vision_zoo.trust import places_outside
from vision_zoo.types import Config

# These decide nothing about a run: where the data lie, who reads and keeps them, and which weights it began with.
MAY_DIFFER = (
    *("data.root", "data.path", "data.cache_gb", "data.num_workers", "data.device"),
    *("model.weights", "model.backbone.weights", "model.loss.teacher"),
)
# Options of the trainer that decide how many steps a run has.
LENGTHS = ("max_epochs", "max_steps", "accumulate_grad_batches", "limit_train_batches", "overfit_batches")


def check_run_folder(checkpoint: Checkpoint) -> None:
    """Refuse to continue in a folder that holds another run's things, which would be overwritten."""
    run = checkpoint.run
    config = run / "config.yaml"
    in_the_way = [run / name for name in (*RESULTS, "metrics.csv") if (run / name).exists()]
    if config.is_file():
        written = from_yaml(config.read_text(encoding="utf-8", errors="replace"), str(config))
        theirs, ours = (
            {n: value for n, value in _flat(whole).items() if n.startswith("model.") and "weights" not in n}
            for whole in (written if isinstance(written, Mapping) else {}, checkpoint.config)
        )  # without the weights that a run began with, which its checkpoints do not keep
        in_the_way = [] if ours and theirs == ours else [config]
    if in_the_way:
        replaced = f"{in_the_way[0]}, which a run resumed there would replace"
        way_out = "copy it into a folder of its own, such as other/checkpoints/last.ckpt, and give that"
        raise CheckpointError(f"{checkpoint.path} does not belong to {replaced}: {way_out}")


def check_places(checkpoint: Checkpoint, stored: Config, given: Config, argv: Argv) -> None:
    """Refuse to write where the checkpoint alone says so: it may be another person's."""
    run = checkpoint.run
    for name, value in (stored.get("trainer") or {}).items():
        if name in (given.get("trainer") or {}) or argv.values(f"trainer.{name}"):
            continue
        for place in places_outside(value, (run, Path.cwd())):
            raise CheckpointError(
                f"{checkpoint.path} would have --trainer.{name} write to {place}, outside of its run and of the "
                f"working directory. If that is intended, give it again: --config {run / 'config.yaml'}"
            )


def check_members(checkpoints: Sequence[Checkpoint], argv: Argv) -> None:
    """Refuse to average networks of which some were trained with what is to be scored, and options of one of them."""
    first, *others = checkpoints
    if not others:
        return
    network = [name for name, _ in argv.options if name.startswith("model")]
    both = f"--{''.join(network[:1])} is of one network, and several are averaged: leave it out"
    refuse(ConfigError, (network, both))
    data, elsewhere = described_data(first.data), argv.values("data", "data.class_path", "data.root", "data.path")
    names: tuple[str, ...] = ("root", "path", "val_split", "test_split", "seed", "fold")
    if argv.verb == "test":  # other datasets have a test part of their own
        names = ("test_split", "seed") if data is not None and data.cuts_test else ()
    for other in [] if elsewhere else others:
        ours, theirs = (checkpoint.data.get("init_args") or {} for checkpoint in (first, other))
        differ = [f"--data.{n} {theirs.get(n)}, not {ours.get(n)}" for n in names if ours.get(n) != theirs.get(n)]
        held_out = f"{other.path} held other images out than {first.path} ({', '.join(differ)})"
        way_out = "score them one by one, or on images of their own, given with --data.root or --data.path"
        refuse(CheckpointError, (differ, f"{held_out}, and was trained with what would be scored: {way_out}"))


def changes(checkpoint: Checkpoint, config: Config, verb: str) -> list[str]:
    """What differs from the checkpoint's configuration, a line each; a run that fit continues must stay the same."""
    stored, now = _flat(checkpoint.config), _flat(config)
    differing = [name for name in sorted({*stored, *now}) if stored.get(name) != now.get(name)]
    found: dict[str, str] = {}
    for name in differing:
        short = name.replace("init_args.", "")
        shown = short.removesuffix(".class_path")
        if name.split(".")[0] in ("seed_everything", "model", "data") and short not in MAY_DIFFER:
            kept = shown in ("data.mean", "data.std", "data.value_range")
            ignored = ", ignored: the network keeps its own" * kept
            found[shown] = f"--{shown}: {stored.get(name)} -> {now.get(name)}{ignored}"
    if verb != "fit":
        lines = [f"changed against the checkpoint: {change}" for change in found.values()]
        return lines + _dealt(found, stored, now, verb)
    if found:
        differ = f"{checkpoint.path} continues a run, which fixes network, data and optimizer, but these differ"
        way_out = "Leave the options out (and --config too), or start a new run without --ckpt_path"
        raise ConfigError(f"{differ}: {'; '.join(found.values())}. {way_out}")
    _check_length(checkpoint, stored, now)
    changed = [x for x in differing if x.startswith(("trainer.", "model.loss.")) and x != "trainer.default_root_dir"]
    return [f"changed against the checkpoint: --{n}: {stored.get(n)} -> {now.get(n)}" for n in changed]


def _dealt(found: Mapping[str, str], stored: Config, now: Config, verb: str) -> list[str]:
    """A warning where other images than before are held out, for the network may have been trained with them."""
    deciding: dict[str, tuple[str, ...]] = {}
    if now.get("data.init_args.val_split") != 0 or now.get("data.init_args.fold"):  # otherwise nothing is scored
        deciding["validate"] = ("val_split", "fold", "test_split", "seed")
        deciding["compare"] = deciding["validate"]
    if "data.init_args.test_split" in now:  # datasets without it have a test part of their own
        deciding["test"] = ("test_split", "seed")
    dealt = [f"--data.{name}" for name in deciding.get(verb, ()) if f"data.{name}" in found]
    if not dealt or "data" in found:
        return []
    moved = any(stored.get(f"data.init_args.{n}") != now.get(f"data.init_args.{n}") for n in ("root", "path"))
    unless = "unless these are other images, some" if moved else "images"
    return [f"{', '.join(dealt)}: {unless} that the network was trained with may be among those that are scored"]


def _check_length(checkpoint: Checkpoint, stored: Config, now: Config) -> None:
    """Refuse another length of a run whose schedule was laid out for it."""
    name, prefix = stored.get("model.scheduler.class_path"), "model.scheduler.init_args."
    options = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    laid_out = name is not None and open_length(import_path(name), options) is not None
    if isinstance(stored.get("model.finetune.init_args.thaw_at"), float):
        name, laid_out = "thaw_at of --model.finetune", True
    if not laid_out:
        return
    for length in (f"trainer.{name}" for name in LENGTHS):
        if stored.get(length) != now.get(length):
            config, weights = (shlex.quote(str(x)) for x in (checkpoint.run / "config.yaml", checkpoint.path))
            change = f"{length.partition('.')[2]} {stored.get(length)}, which cannot become {now.get(length)}"
            again = f"start a new run from its weights with --config {config} --model.weights {weights}"
            raise ConfigError(f"the run's {name} was laid out for {change}: {again} in place of --ckpt_path")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Nested options as one level of dotted names."""
    result: Config = {}
    for key, value in config.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result
