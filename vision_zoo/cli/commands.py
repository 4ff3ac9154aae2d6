"""The commands: where each one's function stands, and which of its options people use most.

The words for a command are those of its function's docstring, read from the source, so that ``--help`` needs no torch.
"""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from vision_zoo.version import __version__

WIDTH = 80  # columns of the smallest terminal that the texts are written for
_PACKAGE = Path(__file__).parents[1]


class Option(NamedTuple):
    """An option that people use often."""

    flag: str  # as typed, with its dashes; empty for a plain word
    value: str  # what stands for its value in the help
    text: str  # what it does, a few words
    completes: str = ""  # words that a shell offers; those in capitals stand for what there is


_OPTIMIZERS = "Adam AdamW SGD RMSprop MuonWith SAM AdamWScheduleFree SGDScheduleFree"
# Options that several commands have, of the data, the network and the trainer.
SHARED = {
    option.flag.lstrip("-"): option
    for option in (
        Option("", "FOLDER", "class folders, or a table (.csv), or arrays (.npz)", "FILES"),
        Option("--image_size", "N", "side of the square that photos are resized to"),
        Option("--backbone", "NAME", "pretrained network", "BACKBONES"),
        Option("--seed", "N", "decides the splits"),
        Option("--config", "NAME|FILE", "a recipe by name, or a YAML file", "RECIPES FILES"),
        Option("--ckpt_path", "PATH", "checkpoint or run folder; best, last: newest run", "best last FILES"),
        Option("--trusted_packages", "NAME", "trust this package's classes in checkpoints"),
        Option("--data", "NAME", "dataset, see: vision_zoo list datasets", "DATASETS"),
        Option("--data.root", "FOLDER", "where its files are, or are downloaded to", "FILES"),
        Option("--data.batch_size", "N", "images per batch, in each process"),
        Option("--data.val_split", "X", "validation part: fraction or count of train"),
        Option("--model.backbone", "NAME", "network, see: vision_zoo list backbones", "BACKBONES"),
        Option("--model.optimizer", "NAME", "of torch.optim, or MuonWith, SAM, ...", _OPTIMIZERS),
        Option("--model.optimizer.lr", "X", "learning rate; the peak of OneCycleLR"),
        Option("--model.scheduler", "NAME", "learning schedule", "CosineAnnealingLR LinearDecayLR OneCycleLR StepLR"),
        Option("--model.finetune", "NAME", "freeze a pretrained network at first", "FineTuning"),
        Option("--trainer.max_epochs", "N", "how long to train"),
        Option("--trainer.accelerator", "NAME", "cpu, gpu or auto", "auto cpu gpu"),
        Option("--trainer.devices", "N", "number of processes or GPUs"),
        Option("--trainer.precision", "NAME", "32-true, bf16-mixed, ...", "32-true bf16-mixed 16-mixed"),
        Option("--trainer.default_root_dir", "FOLDER", "where the folder runs is made", "FILES"),
        Option("--seed_everything", "N", "decides weights, dropout, augmentation"),
    )
}
SHARED["ckpt_paths"] = Option("--ckpt_path", "PATH ...", "one, or several to average", "best last FILES")


class Command(NamedTuple):
    """A command of the command line."""

    where: str  # module and name of its function
    example: str  # a whole command line
    common: tuple[str, ...] = ()  # the options that its short help shows; by default the parameters of its function
    light: bool = False  # answered without torch, so that there are no options besides these

    @property
    def text(self) -> str:
        """What it does, one line of the overview."""
        line = _definition(self.where)[1].partition(".\n")[0].rstrip(".")
        return line[0].lower() + line[1:]

    @property
    def options(self) -> list[Option]:
        """The common ones."""
        own = _own_options(self.where)
        return [SHARED.get(name) or own[name] for name in self.common or own]


_SCORING = ("data", "data.root", "data.batch_size", "trainer.accelerator", "trainer.devices", "trusted_packages")

COMMANDS: dict[str, Command] = {
    "fit": Command(
        "verbs.fit:fit",
        "vision_zoo fit --config lenet5_mnist --data MNIST5k",
        (
            *("config", "ckpt_path", "data", "data.root", "data.batch_size", "data.val_split"),
            *("model.backbone", "model.optimizer", "model.optimizer.lr", "model.scheduler", "model.finetune"),
            *("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "trainer.precision"),
            *("trainer.default_root_dir", "seed_everything", "test_after_fit", "tta", "known", "trusted_packages"),
        ),
    ),
    "teach": Command(
        "verbs.teach:teach",
        "vision_zoo teach photos",
        (
            *("", "image_size", "backbone", "seed", "data.val_split", "curve", "unlabelled", "next", "refine", "known"),
            *("trainer.accelerator", "trainer.default_root_dir", "trusted_packages"),
        ),
    ),
    "audit": Command(
        "verbs.audit:audit",
        "vision_zoo audit photos",
        ("", "data", "data.root", "image_size", "backbone", "seed", "output", "apply", "trusted_packages"),
    ),
    "pack": Command(
        "verbs.pack:pack",
        "vision_zoo pack photos",
        ("", "data", "data.root", "image_size", "output", "shard_mb", "encoded", "check", "trusted_packages"),
    ),
    "study": Command(
        "verbs.study:study",
        "vision_zoo study cnn_mnist5k --seeds 3 --vary data.batch_size=64,128",
        (
            *("recipe", "seeds", "folds", "vary", "metric", "jobs", "test", "name"),
            *("search", "trials", "sampler", "pruner", "minutes", "storage", "trusted_packages"),
        ),
    ),
    "validate": Command("verbs.evaluate:validate", "vision_zoo validate --ckpt_path best", ("ckpt_paths", *_SCORING)),
    "test": Command(
        "verbs.evaluate:test",
        "vision_zoo test --ckpt_path runs/lenet5_mnist/version_0",
        ("ckpt_paths", "output", "tta", *_SCORING),
    ),
    "compare": Command(
        "verbs.compare:compare",
        "vision_zoo compare runs/lenet5/version_0 runs/lenet5/version_1",
        ("runs", "split", "output", "tta", "accelerator", "data.root", "data.batch_size", "trusted_packages"),
    ),
    "predict": Command("verbs.predict:predict", "vision_zoo predict --ckpt_path best --images scans photo.jpg"),
    "explain": Command("verbs.explain:explain", "vision_zoo explain --ckpt_path best --images scans"),
    "serve": Command("verbs.serve:serve", "vision_zoo serve --ckpt_path best"),
    "export": Command("verbs.export:export", "vision_zoo export --ckpt_path best --format onnx --output digits.onnx"),
    "summary": Command(
        "verbs.summary:summary",
        "vision_zoo summary --model.backbone LeNet5 --data FashionMNIST",
        ("config", "model.backbone", "data", "ckpt_path", "depth", "trusted_packages"),
    ),
    "show": Command(
        "verbs.show:show",
        "vision_zoo show --data MNIST5k --split test --count 20",
        ("data", "data.root", "config", "split", "count", "augmented", "ckpt_path", "output", "trusted_packages"),
    ),
    "report": Command("verbs.report:report", "vision_zoo report --ckpt_path best"),
    "reproduce": Command(
        "verbs.reproduce:reproduce",
        "vision_zoo reproduce runs/lenet5_mnist/version_0",
        ("run", "data_root", "output", "accelerator", "trusted_packages"),
    ),
    "list": Command("verbs.list_:list_", "vision_zoo list runs --sort test/accuracy", light=True),
    "completion": Command("cli.completion:completion", 'eval "$(vision_zoo completion bash)"', light=True),
}
ELSEWHERE = {"train": "fit", "val": "validate", "eval": "validate", "infer": "predict", "classify": "predict"}


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
        first = f"  {label:<{column - 2}}"
        lines += textwrap.wrap(option.text, WIDTH, initial_indent=first, subsequent_indent=" " * column)
    lines += ["", f"example: {command.example}"]
    if not command.light:
        lines.append(f"all options: vision_zoo {name} --help_all")
    return "\n".join(lines) + "\n"


_PLAIN_WORDS = ("kind", "words", "shell", "recipe", "run", "runs")  # of a command line, without a flag
# How an option of one command is shown and completed: by its type, else by its name.
_BY_NAME = {
    "images": ("PATH ...", "FILES"),
    **dict.fromkeys(("run", "runs"), ("", "FILES")),
    "output": ("PATH", "FILES"),
    **dict.fromkeys(("root", "data_root"), ("FOLDER", "FILES")),
    **dict.fromkeys(("apply", "check", "embeddings"), ("FILE", "FILES")),
    **dict.fromkeys(("unlabelled", "explain"), ("FOLDER", "FILES")),
    "sort": ("COLUMN", ""),
    "recipe": ("RECIPE ...", "RECIPES FILES"),
    "vary": ("OPTION=A,B,C", ""),
    "search": ("OPTION=LOW..HIGH", ""),
    "storage": ("URL", ""),
    "seeds": ("N", ""),
    "words": ("WORDS", "timm torchvision"),
    "shell": ("NAME", "bash zsh fish"),
    "accelerator": ("NAME", "auto cpu gpu"),
}
_BY_TYPE = {"bool": ("true|false", "true false"), "int": ("N", ""), "float": ("X", "")}
_PARAMETER = re.compile(r"(\w+): ((?:\[.*?\]|[^\[,=)#\n])+)")  # its name and type
_LITERAL = re.compile(r"^(\w+) = Literal\[(.+)\]$", re.MULTILINE)


def _source(module: str) -> str:
    file = _PACKAGE.joinpath(*module.split("."))
    return (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8")


def _definition(where: str) -> tuple[str, str]:
    """The parameters and the docstring of a command's function, as they are written."""
    module, _, name = where.partition(":")
    parameters, docstring, _ = _source(module).partition(f"\ndef {name}(")[2].split('"""', maxsplit=2)
    return parameters, docstring


def _own_options(where: str) -> dict[str, Option]:
    """The parameters of a function as options, with what Args says of them up to the first stop, semicolon or colon."""
    parameters, docstring = _definition(where)
    kinds, shared_types = dict(_PARAMETER.findall(parameters)), dict(_LITERAL.findall(_source("types")))
    about, found = docstring.partition("Args:\n")[2].partition("\n\n")[0], {}
    for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", about, re.MULTILINE):
        kind = kinds[name].strip().removesuffix(" | None")
        choices = " ".join(re.findall(r'"(.+?)"', shared_types.get(kind, kind)))
        either = choices.replace(" ", "|") if 0 < len(choices) < 30 else "NAME"
        value, completes = _BY_TYPE.get(kind) or _BY_NAME.get(name) or (either, choices)
        words = re.split(r"[.;:](?:\s|$)", " ".join(text.split()))[0]
        flag = "" if name in _PLAIN_WORDS else f"--{name}"
        words += f" ({default[1]})" if (default := re.search(rf"\b{name}: [^=,]+ = (\d[\d.]*)", parameters)) else ""
        found[name] = Option(flag, value if flag else name.upper(), words, completes)
    return found
