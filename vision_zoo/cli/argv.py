"""The command line as options and values, read once and never changed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vision_zoo.errors import ConfigError, did_you_mean

_NUMBERS = re.compile(r"[-+\d.e\[\], ]*\d[-+\d.e\[\], ]*")
SWITCHES = ("refine", "test", "int8", "encoded")  # which stand for true without a value
AVERAGED = ("validate", "test", "predict", "export")  # which take several checkpoints
_BOOL = ("true", "false", "True", "False", "yes", "no")
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

        Numbers that follow the number of a dotted option, such as --data.image_size 96 128, or of --image_size make it
        a list; words that follow --ckpt_path are further checkpoints, where a command takes several.
        """
        verb, *rest = words
        options: list[tuple[str, str | None]] = []
        stray: list[str] = []
        waiting = list(reversed(rest))
        while waiting:
            word = waiting.pop()
            word = "--config" if word == "-c" else word
            if not word.startswith("--") or word == "--":
                if (
                    options
                    and ("." in options[-1][0] or options[-1][0] == "image_size")
                    and _NUMBERS.fullmatch(f"{options[-1][1]} {word}")
                ):
                    options[-1] = (options[-1][0], f"[{(options[-1][1] or '').strip('[]')}, {word}]")
                elif options and options[-1][0] in ("ckpt_path", "ckpt_path+") and verb in AVERAGED:
                    options.append(("ckpt_path+", word))
                else:
                    stray.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            if equals:
                options.append((name, value))
            elif name in FLAGS:
                options.append((name, None))
            elif waiting and not waiting[-1].startswith("--") and (name not in SWITCHES or waiting[-1] in _BOOL):
                options.append((name, waiting.pop()))
            elif name in SWITCHES:
                options.append((name, "true"))
            else:
                close = did_you_mean(f"--{name}", [f"--{flag}" for flag in FLAGS])
                raise ConfigError(f"--{name} needs a value{close}")
        return cls(verb, tuple(options), tuple(stray))

    def values(self, *names: str) -> list[str]:
        """The values of an option under any of its names, in order."""
        return [value for name, value in self.options if name in names and value is not None]

    def last(self, *names: str) -> str | None:
        """The value of an option that counts, or None."""
        return next(reversed(self.values(*names)), None)

    @property
    def checkpoints(self) -> list[str]:
        """The value of --ckpt_path that counts, with those that follow it."""
        named = [(name, value) for name, value in self.options if name in ("ckpt_path", "ckpt_path+") and value]
        last = max((place for place, (name, _) in enumerate(named) if name == "ckpt_path"), default=0)
        return [value for _, value in named[last:]]

    def without(self, names: Iterable[str]) -> list[str]:
        """The words of all other options, each with its value in one word."""
        out = set(names)
        kept = ((name, value) for name, value in self.options if name not in out)
        return [*(f"--{name}" if value is None else f"--{name}={value}" for name, value in kept), *self.stray]
