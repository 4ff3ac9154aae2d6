"""Run one command and print what went wrong in words."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser

from vision_zoo.cli import teaching
from vision_zoo.cli.argv import FLAGS, Argv
from vision_zoo.cli.commands import COMMANDS
from vision_zoo.cli.layers import SECTIONS, read_request, trusted_packages
from vision_zoo.cli.messages import explain, quiet
from vision_zoo.cli.parser import Parser, parse
from vision_zoo.errors import ConfigError, refuse
from vision_zoo.specs import import_path
from vision_zoo.training.performance import keep_freed_memory
from vision_zoo.training.processes import leave_processes, reported_elsewhere
from vision_zoo.training.saving import AtomicCheckpointIO
from vision_zoo.verbs.fit import Plan
from vision_zoo.verbs.trainer import TrainerMaker


def main(words: Sequence[str]) -> int:
    """Run the words of a command line, without the program's name; the exit code, as `vision_zoo.__main__` says."""
    quiet()
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


def execute(words: Sequence[str]) -> Any:
    """Run one command and return what its function returns; `explain` puts its exceptions in words."""
    argv = Argv.read(words)
    verb = argv.verb
    function = import_path(f"vision_zoo.{COMMANDS[verb].where.replace(':', '.')}")
    if verb not in SECTIONS:
        return function(**_options_of(function, argv))
    argv = teaching.in_full(argv) if verb == "teach" else argv
    request = read_request(argv, function)
    if verb in ("validate", "test") and request.checkpoint is None:
        _ask_for_checkpoint(argv)
    parser = Parser(request, function)
    if verb == "show":
        return function(parser.datamodule, **parser.options)
    if verb == "summary":
        return function(parser.model, **parser.options)
    io = AtomicCheckpointIO(request.checkpoint, request.trusted)
    make_trainer = TrainerMaker(parser.trainer_options(), io, tuple(words))
    if verb in ("fit", "teach"):
        plan = Plan(request.run_name, parser.run_config(), request.checkpoint)
        folder = function(make_trainer, parser.model, parser.datamodule, plan, **parser.options)
        return teaching.refine(execute, folder, plan.config) if parser.options.get("refine") else folder
    return function(make_trainer, parser.model, parser.datamodule, request.checkpoint, **parser.options)


def _options_of(function: Callable[..., Any], argv: Argv) -> dict[str, Any]:
    """Parse the options of a command whose function opens the checkpoint itself: its parameters are the options."""
    by_hand: dict[str, Any] = {"trusted_packages": trusted_packages(argv)}
    if argv.verb in ("predict", "explain"):  # the parser takes a list only as a bracketed word
        by_hand["images"], argv = [*argv.values("images"), *argv.stray], replace(argv, stray=())
    command, prog = COMMANDS[argv.verb], f"vision_zoo {argv.verb}"
    parser = ArgumentParser(prog=prog, description=command.text, exit_on_error=False, allow_abbrev=False)
    added = parser.add_function_arguments(function, skip={*by_hand}, fail_untyped=True)
    for option in command.options:
        if option.flag[2:] in by_hand:
            parser.add_argument(option.flag, help=option.text)
    if not argv.values("ckpt_path"):
        _ask_for_checkpoint(argv)
    options = parse(parser, argv.without(by_hand), argv.verb, {})
    return {**{name: options[name] for name in added}, **by_hand}


def _ask_for_checkpoint(argv: Argv) -> None:
    """Refuse a command without its checkpoint, save where it asks for help."""
    which = "--ckpt_path with a checkpoint, a run folder, or best or last for the newest run"
    problem = f"{argv.verb} needs a trained network: {which}, for example: vision_zoo {argv.verb} --ckpt_path best"
    refuse(ConfigError, (not set(FLAGS) & dict(argv.options).keys(), problem))
