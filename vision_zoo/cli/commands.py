"""The commands: where each one's function stands, and which of its options people use most.

The words for a command are those of its function: the first line of the docstring says what it does, ``Args`` what its
options are. They are read from the source, so that ``--help`` needs no torch.
"""

import ast
import functools
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from vision_zoo.version import __version__

WIDTH = 80  # columns of the smallest terminal that the texts are written for
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Option:
    """An option that people use often.

    Attributes:
        flag: as typed, with its dashes; empty for a plain word.
        value: what stands for its value in the help.
        text: what it does, a few words.
        completes: what a shell offers for its value: words separated by spaces, of which recipes, backbones, datasets,
            FILES and FOLDERS stand for what there is.
    """

    flag: str
    value: str
    text: str
    completes: str = ""


# Options that several commands have, of the data, the network and the trainer.
SHARED = {
    option.flag.lstrip("-"): option
    for option in (
        Option("--config", "NAME|FILE", "a recipe by name, or a YAML file", "recipes FILES"),
        Option("--ckpt_path", "PATH", "checkpoint or run folder; best, last: newest run", "best last FILES"),
        Option("--trusted_packages", "NAME", "trust this package's classes in checkpoints"),
        Option("--data", "NAME", "dataset, see: vision_zoo list datasets", "datasets"),
        Option("--data.root", "FOLDER", "where its files are, or are downloaded to", "FOLDERS"),
        Option("--data.batch_size", "N", "images per batch, in each process"),
        Option("--data.val_split", "X", "validation part: fraction or count of train"),
        Option("--model.backbone", "NAME", "network, see: vision_zoo list backbones", "backbones"),
        Option("--model.optimizer", "NAME", "a class of torch.optim", "Adam AdamW SGD RMSprop"),
        Option("--model.optimizer.lr", "X", "learning rate; the peak of OneCycleLR"),
        Option("--model.scheduler", "NAME", "learning rate schedule", "CosineAnnealingLR OneCycleLR StepLR"),
        Option("--trainer.max_epochs", "N", "how long to train"),
        Option("--trainer.accelerator", "NAME", "cpu, gpu or auto", "auto cpu gpu"),
        Option("--trainer.devices", "N", "number of processes or GPUs"),
        Option("--trainer.precision", "NAME", "32-true, bf16-mixed, ...", "32-true bf16-mixed 16-mixed"),
        Option("--trainer.default_root_dir", "FOLDER", "where the folder runs is made", "FOLDERS"),
        Option("--seed_everything", "N", "decides weights, dropout, augmentation"),
    )
}


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        where: module and name of its function.
        common: the options that its short help shows: of SHARED, or parameters of the function.
        example: a whole command line.
        light: answered without torch, so that there are no options besides these.
        files: what a shell offers for the option output: FILES or FOLDERS.
    """

    where: str
    common: tuple[str, ...]
    example: str
    light: bool = False
    files: str = "FILES"

    @property
    def text(self) -> str:
        """What it does, one line of the overview."""
        line = _docstring(self.where).partition("\n")[0].rstrip(".")
        return line[0].lower() + line[1:]

    @property
    def options(self) -> tuple[Option, ...]:
        """The common ones."""
        own = _own_options(self.where, self.files)
        return tuple(SHARED[name] if name in SHARED else own[name] for name in self.common)


_SCORING = ("data", "data.root", "data.batch_size", "trainer.accelerator", "trainer.devices", "trusted_packages")

COMMANDS: dict[str, Command] = {
    "fit": Command(
        "verbs.fit:fit",
        (
            *("config", "ckpt_path", "data", "data.root", "data.batch_size", "data.val_split"),
            *("model.backbone", "model.optimizer", "model.optimizer.lr", "model.scheduler"),
            *("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "trainer.precision"),
            *("trainer.default_root_dir", "seed_everything", "test_after_fit", "tta", "trusted_packages"),
        ),
        "vision_zoo fit --config lenet5_mnist --data MNIST5k",
    ),
    "validate": Command("verbs.evaluate:validate", ("ckpt_path", *_SCORING), "vision_zoo validate --ckpt_path best"),
    "test": Command(
        "verbs.evaluate:test",
        ("ckpt_path", "output", "tta", *_SCORING),
        "vision_zoo test --ckpt_path runs/lenet5_mnist/version_0",
        files="FOLDERS",
    ),
    "predict": Command(
        "verbs.predict:predict",
        ("ckpt_path", "images", "output", "format", "top_k", "invert", "batch_size", "accelerator", "trusted_packages"),
        "vision_zoo predict --ckpt_path best --images scans photo.jpg",
    ),
    "export": Command(
        "verbs.export:export",
        ("ckpt_path", "format", "output", "trusted_packages"),
        "vision_zoo export --ckpt_path best --format onnx --output digits.onnx",
    ),
    "summary": Command(
        "verbs.summary:summary",
        ("config", "model.backbone", "data", "ckpt_path", "depth", "trusted_packages"),
        "vision_zoo summary --model.backbone LeNet5 --data FashionMNIST",
    ),
    "show": Command(
        "verbs.show:show",
        ("data", "data.root", "config", "split", "count", "augmented", "ckpt_path", "output", "trusted_packages"),
        "vision_zoo show --data MNIST5k --split test --count 20",
    ),
    "report": Command(
        "verbs.report:report", ("ckpt_path", "output", "trusted_packages"), "vision_zoo report --ckpt_path best"
    ),
    "list": Command(
        "verbs.list_:list_", ("kind", "sort", "root"), "vision_zoo list runs --sort test/accuracy", light=True
    ),
    "completion": Command("cli.completion:completion", ("shell",), 'eval "$(vision_zoo completion bash)"', light=True),
}


def overview() -> str:
    """What ``vision_zoo --help`` prints: every command on one line."""
    commands = "\n".join(f"  {name:<12}{command.text}" for name, command in COMMANDS.items())
    return f"""vision_zoo {__version__}: image classification with PyTorch Lightning

usage: vision_zoo COMMAND [OPTION VALUE ...]

{commands}

examples:
  vision_zoo fit                       train on 5,000 digits, no download needed
  vision_zoo fit --config cnn_mnist    train a recipe, see: vision_zoo list
  vision_zoo test --ckpt_path best     score what was trained last

options of a command: vision_zoo COMMAND --help
version: vision_zoo --version
"""


def command_help(name: str) -> str:
    """What ``vision_zoo COMMAND --help`` prints: the common options, on one screen."""
    command = COMMANDS[name]
    left = [f"{option.flag} {option.value}".strip() for option in command.options]
    column = max(map(len, left)) + 4
    words = " ".join(option.value for option in command.options if not option.flag)
    lines = [f"usage: vision_zoo {name} {f'[{words}] ' if words else ''}[OPTION VALUE ...]", ""]
    lines += [f"{command.text[0].upper()}{command.text[1:]}.", ""]
    for label, option in zip(left, command.options, strict=True):
        first, *rest = textwrap.wrap(option.text, WIDTH - column)
        lines += [f"  {label:<{column - 4}}  {first}", *(" " * column + line for line in rest)]
    lines += ["", f"example: {command.example}"]
    if not command.light:
        lines.append(f"all options: vision_zoo {name} --help_all")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------- the words of a function


@functools.cache
def _function(where: str) -> ast.FunctionDef:
    module, _, name = where.partition(":")
    path = _PACKAGE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


@functools.cache
def _literals() -> dict[str, str]:
    """The types of vision_zoo.types by name, as they are written there."""
    tree = ast.parse((_PACKAGE / "types.py").read_text(encoding="utf-8"))
    return {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)}


def _docstring(where: str) -> str:
    return ast.get_docstring(_function(where)) or ""


@functools.cache
def _own_options(where: str, files: str) -> dict[str, Option]:
    """The parameters of a function as options, with what Args says of them up to the first stop, semicolon or colon."""
    arguments = _function(where).args
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", _docstring(where).partition("Args:\n")[2], re.MULTILINE))
    found = {}
    for argument in (*arguments.args, *arguments.kwonlyargs):
        name, kind = argument.arg, ast.unparse(argument.annotation) if argument.annotation else ""
        text = re.split(r"[.;:](?:\s|$)", " ".join(texts.get(name, "").split()))[0]
        values = " ".join(re.findall(r"'([^']+)'", _literals().get(kind, kind)))
        values = {"shell": "bash zsh fish", "accelerator": "auto cpu gpu"}.get(name, values)
        plain = name in ("kind", "shell")  # words without a flag
        places = "FILES" if name == "images" else files if name == "output" else "FOLDERS" if name == "root" else ""
        bools = "true false" if "bool" in kind else ""
        found[name] = Option("" if plain else f"--{name}", _metavar(name, kind), text, values or places or bools)
    return found


def _metavar(name: str, kind: str) -> str:
    """What stands for a value in the help."""
    by_name = {
        "images": "PATH ...",
        "output": "PATH",
        "root": "FOLDER",
        "sort": "COLUMN",
        "kind": "KIND",
        "shell": "SHELL",
    }
    by_name |= {"ckpt_path": "PATH", "trusted_packages": "NAME"}
    for word, value in {"bool": "true|false", "int": "N", "float": "X"}.items():
        if re.search(rf"\b{word}\b", kind):
            return by_name.get(name, value)
    return by_name.get(name, "NAME")
