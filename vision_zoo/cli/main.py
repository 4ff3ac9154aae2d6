"""Run one command and print what went wrong in words."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from vision_zoo.checkpoints import Checkpoint, find_checkpoints
from vision_zoo.cli import studying, teaching
from vision_zoo.cli.argv import AVERAGED, FLAGS, Argv
from vision_zoo.cli.commands import COMMANDS
from vision_zoo.cli.layers import SECTIONS, read_request, trusted_packages
from vision_zoo.cli.messages import explain, quiet
from vision_zoo.cli.parser import Parser, parse
from vision_zoo.cli.resuming import check_places
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.specs import import_path
from vision_zoo.training.performance import keep_freed_memory
from vision_zoo.training.processes import leave_processes, reported_elsewhere
from vision_zoo.training.saving import AtomicCheckpointIO
from vision_zoo.types import Config
from vision_zoo.verbs.audit.apply import apply_fixes
from vision_zoo.verbs.fit import Plan, speed_of
from vision_zoo.verbs.trainer import TrainerMaker


@quiet()
def main(words: Sequence[str]) -> int:
    """Run the words of a command line, without the program's name; the exit code, as `vision_zoo.__main__` says."""
    keep_freed_memory()
    try:
        execute(words)
    except Exception as error:
        if isinstance(error, BrokenPipeError) or os.environ.get("VISION_ZOO_DEBUG") == "1":
            raise
        message, code = explain(error)
        if not reported_elsewhere(error):
            sys.stderr.write(f"vision_zoo: {message}\n")
        return code
    except SystemExit as asked:  # the parser's --help and --print_config; Lightning turns Ctrl-C into an exit
        return 130 if isinstance(asked.__context__, KeyboardInterrupt) else int(asked.code or 0)
    finally:
        leave_processes()
    return 0


def execute(words: Sequence[str], speed: Mapping[str, Any] | None = None) -> Any:
    """Run one command and return what its function returns; `explain` puts its exceptions in words.

    A run is as fast as another one has chosen to be, where its ``speed`` is given; see `Plan`.
    """
    argv = Argv.read(words)
    verb = argv.verb
    if verb == "study":
        return studying.study(argv, main)
    function = import_path(f"vision_zoo.{COMMANDS[verb].where.replace(':', '.')}")
    if verb not in SECTIONS:
        return function(**_options_of(function, argv))
    if verb == "compare":
        return _compare(argv, function)
    packs = verb == "pack" and not argv.values("check")
    argv = teaching.in_full(argv) if packs or verb in ("teach", "audit") else argv
    if verb == "audit" and (fixes := argv.last("apply")) is not None:  # no data module, for a class may be empty by now
        others = argv.without(("data", "data.root", "data.path", "data.seed", "apply"))
        refuse(ConfigError, (others, f"--apply goes with the folder alone: leave out {' '.join(others)}"))
        return apply_fixes((argv.values("data.root", "data.path") or argv.values("data"))[-1], fixes)
    if verb == "pack" and (checked := argv.last("check")) is not None:
        others = argv.without(("check",))
        refuse(ConfigError, (others, f"--check goes with its file alone: leave out {' '.join(others)}"))
        return function(None, "", check=checked)
    request = read_request(argv, function)
    if verb in ("validate", "test") and request.checkpoint is None:
        _ask_for_checkpoint(argv)
    parser = Parser(request, function)
    if verb in ("show", "pack"):
        return function(parser.datamodule, **parser.options)
    if verb == "summary":
        return function(parser.model, **parser.options)
    if verb == "audit":
        return function(parser.model, parser.datamodule, **parser.options)
    io = AtomicCheckpointIO(request.checkpoint, request.trusted)
    make_trainer = TrainerMaker(parser.trainer_options(), io, tuple(words))
    if verb in ("fit", "teach"):
        parser.model.loss.trusted_packages = request.trusted
        plan = Plan(request.run_name, parser.run_config(), request.checkpoint, speed)
        folder = function(make_trainer, parser.model, parser.datamodule, plan, **parser.options)
        return teaching.refine(execute, folder, plan.config) if parser.options.get("refine") else folder
    return function(make_trainer, parser.model, parser.datamodule, request.checkpoint, **parser.options)


def _compare(argv: Argv, function: Callable[..., Any]) -> None:
    """Have `compare` open each run as `test` would, with the data options that are given."""

    def parsed(path: Path) -> Parser:
        options = (*argv.options, ("ckpt_path", str(path)))
        return Parser(read_request(replace(argv, options=options, stray=()), function), function)

    def open_run(path: Path) -> tuple[Any, ...]:
        parser = opened.pop(path, None) or parsed(path)
        return parser.checkpoint, parser.model, parser.datamodule, parser.options["tta"]

    if not argv.stray:  # but perhaps a question for help
        Parser(read_request(argv, function), function)
    few = "compare needs two runs or more: vision_zoo compare runs/lenet5/version_0 runs/lenet5/version_1"
    refuse(ConfigError, (not argv.stray, few))
    groups = [(word, find_checkpoints(word)) for word in argv.stray]
    opened = {groups[0][1][0]: (first := parsed(groups[0][1][0]))}
    refuse(ConfigError, (len(groups) < 2, few))
    options = {name: value for name, value in first.options.items() if name != "tta"}  # which each run has of its own
    function(open_run, groups, **options)


def _options_of(function: Callable[..., Any], argv: Argv) -> dict[str, Any]:
    """Parse the options of a command whose function opens the checkpoint itself: its parameters are the options."""
    by_hand: dict[str, Any] = {"trusted_packages": trusted_packages(argv)}
    if argv.verb in AVERAGED:
        by_hand["ckpt_paths"] = argv.checkpoints
    if argv.verb == "reproduce":
        by_hand |= {"run": list(argv.stray), "train": partial(_train_again, by_hand["trusted_packages"])}
        argv = replace(argv, stray=())
    if argv.verb in ("predict", "explain"):  # the parser takes a list only as a bracketed word
        by_hand["images"], argv = [*argv.values("images"), *argv.stray], replace(argv, stray=())
    command, prog = COMMANDS[argv.verb], f"vision_zoo {argv.verb}"
    parser = ArgumentParser(prog=prog, description=command.text, exit_on_error=False, allow_abbrev=False)
    added = parser.add_function_arguments(function, skip={*by_hand}, fail_untyped=True)
    for option in command.options:
        if option.flag[2:] in (*by_hand, "ckpt_path") and option.flag[2:] not in added:
            parser.add_argument(option.flag, help=option.text)
    if not argv.values("ckpt_path") and argv.verb != "reproduce":
        _ask_for_checkpoint(argv)
    read = {*by_hand, *(("ckpt_path", "ckpt_path+") if "ckpt_paths" in by_hand else ())}
    options = parse(parser, argv.without(read), argv.verb, {})
    return {**{name: options[name] for name in added}, **by_hand}


def _train_again(trusted: Sequence[str], checkpoint: Checkpoint, config: Config) -> Path | None:
    """Train what a checkpoint describes as a new run, computing in the way that its run chose."""
    check_places(checkpoint, config, {}, Argv("fit", ()))
    with TemporaryDirectory() as folder:
        file = Path(folder, f"{checkpoint.run_name}.yaml")
        file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        words = ["fit", "--config", str(file), *(f"--trusted_packages={name}" for name in trusted)]
        made: Path | None = execute(words, speed_of(checkpoint))
        return made


def _ask_for_checkpoint(argv: Argv) -> None:
    """Refuse a command without its checkpoint, save where it asks for help."""
    which = "--ckpt_path with a checkpoint, a run folder, or best or last for the newest run"
    problem = f"{argv.verb} needs a trained network: {which}, for example: {COMMANDS[argv.verb].example}"
    refuse(ConfigError, (not set(FLAGS) & dict(argv.options).keys(), problem))
