"""The words of ``study``: its own options, its recipes, and those of fit, which it hands on to its trials."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from vision_zoo.cli import names
from vision_zoo.cli.argv import FLAGS, Argv
from vision_zoo.cli.commands import command_help
from vision_zoo.cli.layers import trusted_packages
from vision_zoo.cli.parser import parse
from vision_zoo.verbs.study import study as run_study
from vision_zoo.verbs.study.plan import Recipe


def study(argv: Argv, command: Callable[[Sequence[str]], int]) -> None:
    """Run a study; `command` runs the words of a trial, for its exit code."""
    if set(FLAGS) & dict(argv.options).keys():
        sys.stdout.write(f"{command_help('study')}and all of fit, for its trials: vision_zoo fit --help_all\n")
        return
    parser = ArgumentParser(prog="vision_zoo study", exit_on_error=False, allow_abbrev=False)
    by_hand = {"recipe", "command", "words", "vary", "search", "trusted_packages"}
    own = parser.add_function_arguments(run_study, skip={*by_hand}, fail_untyped=True)
    given = tuple((name, value) for name, value in argv.options if name in own)
    options = parse(parser, Argv("study", given).without(()), "study", {})
    paths = [*map(names.find_config, argv.stray)]
    recipes = [Recipe(names.run_name_of(p), p.absolute(), json.dumps(names.read_config(p), default=str)) for p in paths]
    words, trusted = Argv("fit", argv.options).without([*own, "vary", "search"]), trusted_packages(argv)
    several: dict[str, Any] = {name: argv.values(name) for name in ("vary", "search")}
    run_study(recipes, command, words, trusted_packages=trusted, **several, **options.as_dict())
