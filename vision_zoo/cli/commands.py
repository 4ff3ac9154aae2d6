"""The commands and their common options: the one table behind --help, completion and the check of a command's name."""

from dataclasses import dataclass

from vision_zoo import __version__

WIDTH = 80  # columns of the smallest terminal that the texts are written for


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


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        text: what it does, one line of the overview.
        options: the common ones.
        example: a whole command line.
        light: answered without torch, so that there are no options besides these.
    """

    text: str
    options: tuple[Option, ...]
    example: str
    light: bool = False


_CONFIG = Option("--config", "NAME|FILE", "a recipe by name, or a YAML file", "recipes FILES")
_CKPT = Option("--ckpt_path", "PATH", "checkpoint or run folder; best, last: newest run", "best last FILES")
_TRUST = Option("--trusted_packages", "NAME", "trust this package's classes in checkpoints")
_DATA = (
    Option("--data", "NAME", "data set, see: vision_zoo list datasets", "datasets"),
    Option("--data.root", "FOLDER", "where its files are, or are downloaded to", "FOLDERS"),
)
_SIZE = Option("--data.batch_size", "N", "images per batch, in each process")
_BACKBONE = Option("--model.backbone", "NAME", "network, see: vision_zoo list backbones", "backbones")
_DEVICE = Option("--trainer.accelerator", "NAME", "cpu, gpu or auto", "auto cpu gpu")
_DEVICES = Option("--trainer.devices", "N", "number of processes or GPUs")

COMMANDS: dict[str, Command] = {
    "fit": Command(
        "train a network, test the best checkpoint, leave a run folder",
        (
            _CONFIG,
            Option("--ckpt_path", "RUN", "resume a run; last: the newest one", "last FILES"),
            *_DATA,
            _SIZE,
            Option("--data.val_split", "X", "validation part: fraction or count of train"),
            _BACKBONE,
            Option("--model.optimizer", "NAME", "a class of torch.optim", "Adam AdamW SGD RMSprop"),
            Option("--model.optimizer.lr", "X", "learning rate; the peak of OneCycleLR"),
            Option(
                "--model.scheduler", "NAME", "learning rate schedule of torch", "CosineAnnealingLR OneCycleLR StepLR"
            ),
            Option("--trainer.max_epochs", "N", "how long to train"),
            _DEVICE,
            _DEVICES,
            Option("--trainer.precision", "NAME", "32-true, bf16-mixed, ...", "32-true bf16-mixed 16-mixed"),
            Option("--trainer.default_root_dir", "FOLDER", "where the folder runs is made", "FOLDERS"),
            Option("--seed_everything", "N", "decides weights, dropout, augmentation"),
            Option("--test_after_fit", "true|false", "test the best checkpoint at the end", "true false"),
            Option("--tta", "KIND", "test-time augmentation of the final test", "flip shift flip+shift"),
            _TRUST,
        ),
        "vision_zoo fit --config lenet5_mnist --data MNIST5k",
    ),
    "validate": Command(
        "score a checkpoint on the validation images",
        (_CKPT, *_DATA, _SIZE, _DEVICE, _DEVICES, _TRUST),
        "vision_zoo validate --ckpt_path best",
    ),
    "test": Command(
        "score a checkpoint on the test images",
        (
            _CKPT,
            Option("--output", "FOLDER", "for metrics by class and mistakes", "FOLDERS"),
            Option("--tta", "KIND", "average over mirrored, shifted views", "flip shift flip+shift"),
            *_DATA,
            _SIZE,
            _DEVICE,
            _DEVICES,
            _TRUST,
        ),
        "vision_zoo test --ckpt_path runs/lenet5_mnist/version_0",
    ),
    "predict": Command(
        "classify pictures of any size and kind",
        (
            _CKPT,
            Option("--images", "PATH ...", "files, folders and patterns", "FILES"),
            Option("--output", "FILE", "default: predictions.csv here; - prints", "FILES"),
            Option("--format", "NAME", "csv or json", "csv json"),
            Option("--top_k", "N", "labels for each picture; default: 5"),
            Option("--invert", "true|false", "for dark digits on white paper", "true false"),
            _DEVICE,
            _TRUST,
        ),
        "vision_zoo predict --ckpt_path best --images scans photo.jpg",
    ),
    "export": Command(
        "write a network as one file for other programs",
        (
            _CKPT,
            Option("--format", "NAME", "what to write", "onnx torch_export safetensors state_dict"),
            Option("--output", "FILE", "default: the run's name, here, if free", "FILES"),
            _TRUST,
        ),
        "vision_zoo export --ckpt_path best --format onnx --output digits.onnx",
    ),
    "summary": Command(
        "show a network's layers: shapes, parameters, multiply-adds",
        (
            _CONFIG,
            _BACKBONE,
            _DATA[0],
            _CKPT,
            Option("--depth", "N", "one row for blocks nested this deep; default: layers"),
            _TRUST,
        ),
        "vision_zoo summary --model.backbone LeNet5 --data FashionMNIST",
    ),
    "show": Command(
        "draw a grid of a data set's pictures with their labels",
        (
            *_DATA,
            _CONFIG,
            Option("--split", "NAME", "train, val or test", "train val test"),
            Option("--count", "N", "number of pictures"),
            Option("--augmented", "true|false", "with draws of the training augmentation", "true false"),
            _CKPT,
            Option("--output", "FILE", "PNG file; default: DATASET_SPLIT.png here", "FILES"),
            _TRUST,
        ),
        "vision_zoo show --data MNIST5k --split test --count 20",
    ),
    "report": Command(
        "write an HTML report and a model card of a run",
        (_CKPT, Option("--output", "PATH", "folder, or .html file; default: the run folder", "FILES"), _TRUST),
        "vision_zoo report --ckpt_path best",
    ),
    "list": Command(
        "list backbones, data sets, recipes and past runs",
        (
            Option("", "KIND", "backbones, datasets, recipes or runs; default: all", "backbones datasets recipes runs"),
            Option("--sort", "COLUMN", "order of the past runs, best first: test/accuracy, ..."),
            Option("--root", "FOLDER", "folder that holds runs; default: this one", "FOLDERS"),
        ),
        "vision_zoo list runs --sort test/accuracy",
        light=True,
    ),
    "completion": Command(
        "print a completion script for bash, zsh or fish",
        (Option("", "SHELL", "bash, zsh or fish", "bash zsh fish"),),
        'eval "$(vision_zoo completion bash)"',
        light=True,
    ),
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
    width = max(map(len, left))
    words = " ".join(option.value for option in command.options if not option.flag)
    lines = [
        f"usage: vision_zoo {name} {f'[{words}] ' if words else ''}[OPTION VALUE ...]",
        "",
        f"{command.text[0].upper()}{command.text[1:]}.",
        "",
        *(f"  {label:<{width}}  {option.text}" for label, option in zip(left, command.options, strict=True)),
        "",
        f"example: {command.example}",
    ]
    if not command.light:
        lines.append(f"all options: vision_zoo {name} --help_all")
    return "\n".join(lines) + "\n"
