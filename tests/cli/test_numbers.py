"""Every number that an option of fit may be: a working run, or one line and exit code 2, before the training."""

import collections.abc
import importlib
import inspect
import shutil
import typing
from collections.abc import Iterable, Iterator

import pytest
import yaml

from tests import tiny
from vision_zoo.__main__ import main
from vision_zoo.classifier import Classifier
from vision_zoo.cli.names import _BASES, CLASS_SLOTS
from vision_zoo.cli.parser import Parser
from vision_zoo.data import ArrayFile
from vision_zoo.specs import parameters_of

BASE = (
    "fit", "--model.backbone", "MLP", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--model.scheduler",
    "null", "--data", "ArrayFile", "--data.path", "data.npz", "--data.batch_size", "8", "--data.val_split", "10",
    "--trainer.max_epochs", "1", "--trainer.max_steps", "3",
)  # fmt: skip
QUICKLY = ("--test_after_fit", "false")
# The classes that options name, with how many numbers of theirs are tried at least.
SLOTS = {"model.backbone": 60, "model.optimizer": 300, "model.scheduler": 150, "trainer.callbacks": 200}
NEEDED = {
    "EarlyStopping": {"monitor": "val/loss"},
    "Torchvision": {"name": "shufflenet_v2_x0_5"},
    "SpikeDetection": {"warmup": "1000"},
    "OneCycleLR": {"max_lr": "0.1"},
    "ExponentialLR": {"gamma": "0.9"},
}
FILLED_IN = ("image_shape", "num_classes", "params", "optimizer")
# What never ends as it is asked to; what ends at once, for SpikeDetection finds spikes.
NOT_TRIED = {("max_iter", "1000000000000"), ("warmup", "0"), ("warmup", "-1")}
UNFIT = ("Muon", "SparseAdam", "ProgressiveResizing", "LambdaLR", "MultiplicativeLR")  # here, or without a function
NUMBERS = ("0", "-1", "1000000000000", "99999999999999999999", ".nan", "1e30")
SAMPLE = 31  # of how many numbers one is tried by default


def takes_numbers(kind: object) -> bool:
    of_function = typing.get_origin(kind) is collections.abc.Callable
    return kind in (int, float) or (not of_function and any(map(takes_numbers, typing.get_args(kind))))


@pytest.fixture
def options(monkeypatch) -> list[str]:
    """Every option of fit, and of the dataset, whose type has a number, as the parser says."""
    found: list[str] = []

    def only_look(self, parser, args):
        typed = {a.option_strings[-1]: getattr(a, "_typehint", a.type) for a in parser._actions if a.option_strings}
        found.extend(flag.rstrip("+") for flag, kind in typed.items() if flag[:2] == "--" and takes_numbers(kind))
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_arguments", only_look)
        main(list(BASE))
    own = {name: parameter.annotation for name, parameter in parameters_of(ArrayFile).items()}
    return found + [f"--data.{name}" for name, kind in own.items() if takes_numbers(kind)]


def written(kind: object, number: str) -> str:
    """A number as a type takes it: in brackets for a list, and for each of its places."""
    kinds = [part for part in typing.get_args(kind) if takes_numbers(part)]
    origin = typing.get_origin(kind)
    if not kinds:
        return number
    if origin is dict:
        return f"{{0: {number}}}"
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return f"[{', '.join(written(part, number) for part in kinds)}]"
    return written(kinds[0], number)


def typed(class_: type) -> dict[str, object]:
    """The options of a class with their types, those that modules write as texts included."""
    kinds: dict[str, object] = {}
    names = {**vars(typing), **vars(collections.abc)}  # of which some are imported for type checkers alone
    for base in reversed(class_.__mro__):
        kinds |= typing.get_type_hints(base.__init__, None, names) if "__init__" in vars(base) else {}
    return {name: kinds.get(name) for name in parameters_of(class_)}


def classes_of(slot: str) -> Iterator[type]:
    """Every class that an option finds by its name."""
    found: dict[str, type] = {}
    for package in reversed(CLASS_SLOTS[slot]):
        module = importlib.import_module(package)
        own = {n: c for n, c in inspect.getmembers(module, inspect.isclass) if c.__module__.startswith(package)}
        found |= {name: class_ for name, class_ in own.items() if name[0] != "_" and name not in _BASES}
    yield from found.values()


def numbers_of(class_: type, slot: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The words that choose a class, with what it needs, and the numbers of its options."""
    kinds, parameters = typed(class_), parameters_of(class_)
    numeric = {name: kind for name, kind in kinds.items() if takes_numbers(kind) and name not in FILLED_IN}
    needed = {name: written(kind, "1") for name, kind in numeric.items() if parameters[name].default is inspect._empty}
    needed |= NEEDED.get(class_.__name__, {})
    words = [f"--{slot}={class_.__name__}", *(f"--{slot}.{name}={value}" for name, value in needed.items())]
    tried = [
        (name, number)
        for name in numeric
        for number in NUMBERS
        if (name, number) not in NOT_TRIED or slot == "model.scheduler"
    ]
    return words, [(f"--{slot}.{name}", written(numeric[name], number)) for name, number in tried]


@pytest.fixture
def try_words(here, capsys, monkeypatch):
    """Run fit with further words: it works, or is refused in one line before the first step."""
    steps, original = [], Classifier.training_step

    def step(self, *batch):
        steps.append(1)
        return original(self, *batch)

    def run(*words: str) -> int:
        steps.clear()
        code = main([*BASE, *words])
        error = capsys.readouterr().err
        shutil.rmtree(here / "runs", ignore_errors=True)  # thousands of them would fill a disk
        one_line = code == 2 and len(error.splitlines()) == 1 and not steps
        assert code == 0 or one_line, f"{words}: {code}, {error}"
        assert "internal error" not in error
        return code

    monkeypatch.setattr(Classifier, "training_step", step)
    tiny.write_npz(here / "data.npz", 40, 20, (8, 8))
    return run


def try_numbers(options, try_words, every) -> int:
    tried = [(option, number) for option in options for number in NUMBERS][::every]
    for option, number in tried:
        try_words(f"{option}=" + (f"[{number}]" if option in ("--data.mean", "--data.std") else number))
    return len(tried)


def test_a_sample_of_all_numbers_works_or_is_refused_before_the_training(options, try_words):
    assert len(options) >= 30
    assert try_numbers(options, try_words, SAMPLE) >= 6


@pytest.mark.slow
def test_every_number_works_or_is_refused_before_the_training(options, try_words):
    """One minute; two on a busy machine."""
    assert try_numbers(options, try_words, 1) >= 180


@pytest.mark.slow
@pytest.mark.parametrize(("slot", "least"), SLOTS.items())
def test_every_number_of_every_class_works_or_is_refused_before_the_training(slot, least, here, try_words):
    """Up to three minutes each; ten on a busy machine."""
    if slot == "model.backbone":  # others need no such images, of which each run of LBFGS would leave 200 MB
        tiny.write_npz(here / "data.npz", 40, 20, (48, 48))
    tried = 0
    for class_ in classes_of(slot):
        words, numbers = numbers_of(class_, slot)
        if not numbers or class_.__name__ in UNFIT:
            continue
        assert try_words(*words, *QUICKLY) == 0, words
        for option, number in numbers:
            try_words(*(word for word in words if not word.startswith(f"{option}=")), f"{option}={number}", *QUICKLY)
        tried += len(numbers)
    assert tried >= least


def test_a_share_of_the_test_images_below_one_batch_is_refused_before_the_training(here, capsys):
    tiny.write_npz(here / "data.npz", 40, 20, (8, 8))
    assert main([*BASE, "--trainer.limit_test_batches", "0.0001"]) == 2
    assert "limit_test_batches 0.0001 of 3 is less than one batch: set it to 0.333" in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.parametrize("option", ["data.root", "data.batch_size", "model.optimizer.momentum"])
def test_null_where_no_option_takes_it_is_refused_by_name(option, here, capsys):
    tiny.write_npz(here / "data.npz", 40, 20, (8, 8))
    assert main([*BASE, f"--{option}", "null"]) == 2
    assert f"--{option} is null, or left blank in a file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["trainer:\n  {0}: 1\ndata: A\ntrainer:\n  b: 2", "a: {{b: 1, c: 2,\n\n  b: 3}}"])
def test_a_key_given_twice_is_refused_with_both_lines(text, here, capsys):
    (here / "mine.yaml").write_text(text.format("a"))
    assert main(["fit", "--config", "mine.yaml"]) == 2
    key, first, second = ("trainer", 1, 4) if "trainer" in text else ("b", 1, 3)
    assert f"{key} is given in line {first} and again in line {second}" in capsys.readouterr().err


def test_keys_that_anchors_share_are_not_given_twice(here, only_parsed):
    (here / "mine.yaml").write_text(
        "model: {backbone: LeNet5}\ndata: MNIST5k\ntrainer: {<<: &a {max_epochs: 1}, max_epochs: 2}"
    )
    assert main(["fit", "--config", "mine.yaml"]) == 77


def test_times_and_dates_mean_in_a_file_what_they_mean_on_the_command_line(here, capsys):
    given = {"max_time": "12:00:00:00", "val_check_interval": "01:30:00:00", "default_root_dir": "2026-01-05"}
    lines = "".join(f"  {name}: {value}\n" for name, value in given.items())
    (here / "mine.yaml").write_text(f"model: {{backbone: LeNet5}}\ndata: MNIST5k\ntrainer:\n{lines}")
    words = [word for name, value in given.items() for word in (f"--trainer.{name}", value)]
    for command in (["--config", "mine.yaml"], words):
        assert main(["fit", *command, "--print_config"]) == 0
        trainer = yaml.safe_load(capsys.readouterr().out.replace("01:30:00:00\n", "'01:30:00:00'\n"))["trainer"]
        assert {name: trainer[name] for name in given} == given
