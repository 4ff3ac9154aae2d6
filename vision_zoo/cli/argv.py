"""The command line as options and values, read once and never changed."""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from vision_zoo.errors import ConfigError

FLAGS = ("help", "help_all", "print_config")  # which may stand without a value


@dataclass(frozen=True)
class Argv:
    """One command and its options."""

    verb: str
    options: tuple[tuple[str, str | None], ...]  # without dashes, in the order given; the value of a flag is None
    stray: tuple[str, ...] = ()  # words that belong to no option

    @classmethod
    def read(cls, words: Iterable[str]) -> "Argv":
        """Read ``VERB --option value --option=value ...``; -c is --config. An option needs its value.

        Several numbers after an option of a class are a list of them.
        """
        verb, *rest = words
        options: list[tuple[str, str | None]] = []
        stray: list[str] = []
        waiting = list(reversed(rest))
        while waiting:
            word = waiting.pop()
            word = "--config" if word == "-c" else word
            if not word.startswith("--") or word == "--":
                stray.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            if not equals and name in FLAGS:
                options.append((name, None))
                continue
            if not equals and (not waiting or waiting[-1].startswith("--")):
                raise ConfigError(f"--{name} needs a value")
            values = [value if equals else waiting.pop()]
            while "." in name and waiting and _is_number(values[0]) and _is_number(waiting[-1]):
                values.append(waiting.pop())  # such as --data.image_size 96 128
            options.append((name, values[0] if len(values) == 1 else f"[{', '.join(values)}]"))
        return cls(verb, tuple(options), tuple(stray))

    def values(self, *names: str) -> list[str]:
        """The values of an option under any of its names, in order."""
        return [value for name, value in self.options if name in names and value is not None]

    def last(self, *names: str) -> str | None:
        """The value of an option that counts, or None."""
        return next(reversed(self.values(*names)), None)

    def without(self, names: Iterable[str]) -> list[str]:
        """The words of all other options, each with its value in one word."""
        out = set(names)
        kept = ((name, value) for name, value in self.options if name not in out)
        return [*(f"--{name}" if value is None else f"--{name}={value}" for name, value in kept), *self.stray]


def _is_number(word: str) -> bool:
    with suppress(ValueError):
        return math.isfinite(float(word))
    return False
