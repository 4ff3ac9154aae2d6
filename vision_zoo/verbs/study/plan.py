"""What a study consists of: the product of recipes, variations, folds and seeds, each trial with a name of its own."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vision_zoo.errors import ConfigError, refuse

OURS = ("config", "ckpt_path", "seed_everything", "trainer.default_root_dir", "test_after_fit")  # given to each trial


class Recipe(NamedTuple):
    """A configuration file."""

    name: str
    path: Path
    content: str  # what it says, without its comments


class Trial(NamedTuple):
    """One run of a study."""

    study: Path  # the folder
    recipe: Recipe
    varied: tuple[tuple[str, str], ...]  # options and values
    fold: str  # as 2/5; empty without folds
    seed: int
    shared: tuple[str, ...]  # options that all trials have
    tested: bool = False  # whether its fit ends with a test: not where trials are compared, to choose one

    @property
    def short(self) -> list[tuple[str, str]]:
        """The varied options by their last words, where these tell them apart, and their values."""
        last = [name.rpartition(".")[2] for name, _ in self.varied]
        pairs = zip(last, self.varied, strict=True)
        return [(name if last.count(word) > 1 else word, value) for word, (name, value) in pairs]

    @property
    def configuration(self) -> str:
        """Its recipe and varied options, for people: trials that differ by fold and seed alone have it in common."""
        return ", ".join([self.recipe.name, *(f"{name} {value}" for name, value in self.short)])

    @property
    def title(self) -> str:
        """The same with fold and seed."""
        return f"{self.configuration}{f', fold {self.fold}' if self.fold else ''}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its folder, named by words and a digest of what the recipe holds and of all options."""
        whole = [self.recipe.content, self.varied, self.fold, self.seed, self.shared]
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:10]
        parts = [self.recipe.name, *(f"{name}={value}" for name, value in self.short)]
        parts += [f"fold{self.fold.replace('/', 'of')}"] * bool(self.fold) + [f"seed{self.seed}"]
        return self.study / "trials" / f"{file_name('-'.join(parts))}-{digest}"

    @property
    def words(self) -> list[str]:
        """The command line of its run."""
        options = [("config", self.recipe.path), *self.varied, ("seed_everything", self.seed)]
        options += [("data.fold", self.fold) if self.fold else ("data.seed", self.seed)]
        options += [("trainer.default_root_dir", self.folder), ("test_after_fit", str(self.tested).lower())]
        return ["fit", *self.shared, *(f"--{name}={value}" for name, value in options)]


def file_name(text: str) -> str:
    """A text as a name of a file or folder."""
    return re.sub(r"[^\w.=+-]+", "_", text)[:100].strip("._-") or "study"


def read_seeds(text: str) -> list[int]:
    """The seeds that a number of them, or a list such as 0,3,7, stands for."""
    wrong = not re.fullmatch(r"\[?\d{1,9}(, ?\d{1,9})*\]?", text)
    refuse(ConfigError, (wrong, f"--seeds must be how many, or a list such as 0,1,2, got {text}"))
    listed = [int(word) for word in text.strip("[]").split(",")]
    seeds = listed if len(listed) > 1 or "[" in text else [*range(listed[0])]
    refuse(ConfigError, (not seeds or len(set(seeds)) < len(seeds), f"--seeds {text} names none, or one twice"))
    return seeds


def read_variation(word: str) -> tuple[str, list[str]]:
    """OPTION=A,B,C as the option and its values; commas in brackets belong to a value."""
    values, (name, _, text) = list[str](), word.lstrip("-").partition("=")
    with suppress(yaml.YAMLError):
        parsed: Any = yaml.compose(f"[{text}]")
        values = [text[node.start_mark.index - 1 : node.end_mark.index - 1].strip() for node in parsed.value]
    wrong = not (name and values and all(values)) or len(set(values)) < len(values)
    form = "write OPTION=A,B,C with each value once, as in --vary model.optimizer.lr=0.01,0.001"
    refuse(ConfigError, (wrong, f"--vary {word}: {form}"))
    return name, values


def trials_of(
    study: Path, recipes: Sequence[Recipe], variations: Mapping[str, Sequence[str]], folds: int | None, *rest: Any
) -> list[Trial]:
    """All trials of some seeds with shared options; options that a study decides itself are a ConfigError."""
    seeds, shared = rest
    given = [*variations, *(word.partition("=")[0].lstrip("-") for word in shared)]
    taken = {*OURS, "data.fold" if folds else "data.seed"}
    own = ", ".join(f"--{name}" for name in given if name in taken or given.count(name) > 1)
    folded = [f"{number}/{folds}" for number in range(1, (folds or 0) + 1)] or [""]
    pairs = [[(name, value) for value in values] for name, values in variations.items()]
    product = itertools.product(recipes, itertools.product(*pairs), folded, seeds)
    found = [Trial(study, *parts, tuple(shared)) for parts in product]
    nothing = re.compile(r"--trainer\.(fast_dev_run|barebones)=(?!(false|0|null)$).*", re.IGNORECASE)
    bare = ", ".join(filter(nothing.fullmatch, shared))
    refuse(
        ConfigError,
        (bare, f"study compares what runs leave, and with {bare} they leave nothing: leave it out"),
        (own, f"study: {own} is given twice, or decided by --seeds, --folds, --name and --test: leave it out"),
        (folds is not None and folds < 2, f"--folds must be at least 2, got {folds}"),
        (len({trial.folder for trial in found}) < len(found), "study: a recipe is named twice"),
    )
    return found
